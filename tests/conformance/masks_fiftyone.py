"""FiftyOne's importer reads the export, without its database, and its samples are written again."""

import json
import os

os.environ["FIFTYONE_DISABLE_SERVICES"] = "1"

from fiftyone.utils.data.importers import FiftyOneDatasetImporter
from masks import Check

check = Check()
importer = FiftyOneDatasetImporter(str(check.exports / "fiftyone"))
assert importer._is_legacy_format_data()
samples = []
with importer._to_legacy_importer() as reader:
    for sample in reader:
        size = (sample.metadata.width, sample.metadata.height)
        for found in sample.instances.detections:
            check.add(sample.filepath, found.label, found.to_segmentation(frame_size=size).mask)
        samples.append(sample.to_dict())
check.end()
(check.back / "samples.json").write_text(json.dumps({"samples": samples}, default=str))

"""Datumaro reads the COCO export and the CVAT export, and writes both again."""

import shutil

from datumaro import Dataset
from datumaro.components.annotation import AnnotationType
from masks import Check

check = Check()
# it finds COCO's images only where annotations lie in a folder of this name
(check.back / "annotations").mkdir()
shutil.copy(check.exports / "coco" / "annotations.json", check.back / "annotations" / "instances_default.json")
(check.back / "images").symlink_to(check.exports.absolute() / "coco" / "images")
files = {"coco_instances": check.back / "annotations" / "instances_default.json"}
files["cvat"] = check.exports / "cvat" / "annotations.xml"
for kind, file in files.items():
    dataset = Dataset.import_from(str(file), kind)
    labels = dataset.categories()[AnnotationType.label]
    for item in dataset:
        for found in (each for each in item.annotations if each.type is AnnotationType.mask):  # COCO's have boxes, too
            check.add(item.id, labels[found.label].name, found.image)
    check.end()
    # else COCO's masks become outlines
    dataset.export(str(check.back / kind), kind, **({"segmentation_mode": "mask"} if kind == "coco_instances" else {}))

"""Label Studio's SDK reads the tasks and the interface, and paints the masks again as an annotator's."""

import json

from label_studio_sdk.converter.brush import decode_rle, encode_rle
from label_studio_sdk.label_interface import LabelInterface
from masks import Check

check = Check()
folder = check.exports / "label-studio"
interface = LabelInterface((folder / "config.xml").read_text())
tasks = json.loads((folder / "tasks.json").read_text())
for task in tasks:
    (prediction,) = task.pop("predictions")
    assert interface.validate_prediction(prediction)
    assert interface.validate_task(task)
    results = prediction["result"]
    for result in results:
        value = result["value"]
        pixels = decode_rle(value["rle"]).reshape(result["original_height"], result["original_width"], 4)
        check.add(task["data"]["image"].rpartition("/")[2], value["brushlabels"][0], pixels[..., 3])
        value["rle"] = encode_rle(pixels.flatten())
    task["annotations"] = [{"result": results, "completed_by": 1}]
check.end()
(check.back / "label-studio.json").write_text(json.dumps(tasks))

"""supervision reads the COCO export, and boxes of the YOLO export."""

import supervision
from masks import Check

check = Check()
folder = check.exports / "coco"
dataset = supervision.DetectionDataset.from_coco(
    str(folder / "images"), str(folder / "annotations.json"), force_masks=True
)
for path, _, found in dataset:
    for label, mask in zip(found.class_id, found.mask if found.mask is not None else (), strict=True):
        check.add(path, dataset.classes[label], mask)
check.end()

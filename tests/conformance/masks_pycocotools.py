"""pycocotools reads the COCO export."""

from masks import Check
from pycocotools.coco import COCO

check = Check()
coco = COCO(check.exports / "coco" / "annotations.json")
for image in coco.loadImgs(coco.getImgIds()):
    for annotation in coco.loadAnns(coco.getAnnIds([image["id"]])):
        label = coco.loadCats([annotation["category_id"]])[0]["name"]
        check.add(image["file_name"], label, coco.annToMask(annotation))
check.end()

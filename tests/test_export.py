"""Exporting to other tools' files: what they hold is what is stored, pixel by pixel."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from builds import make_config, make_input, patchmint, run
from PIL import Image
from pycocotools.coco import COCO
from shard_data import stored

from patchmint.datasets.dataset import open_dataset
from patchmint.errors import InputError, ShardError
from patchmint.geometry.rle import decode_mask
from patchmint.inspection.export.back import READERS
from patchmint.inspection.export.formats import FORMATS, brush_rle
from patchmint.inspection.export.run import export
from patchmint.inspection.gallery.remake import Offer, drawn_masks, offer_masks
from patchmint.shards.endings import INSTANCES
from patchmint.shards.schema import InstancesDocument

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode, with NumPy 2

TEXTS = ["a cat", 'a sofa & <b>"two"</b>', "A  Cat"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Three pictures with a box each, and their instances; EXIF turns the last one."""
    folder = tmp_path_factory.mktemp("export")
    source = make_input(folder / "in", TEXTS)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(source / "002.jpg") as last:
        last.save(source / "002.jpg", exif=exif, quality=80)
    config = make_config(folder / "config.yaml", source, folder / "out", 2, labels={"instances": True})
    run(config, folder / "out")
    return folder / "out"


def found(base):
    return [(sample, sample.images[0]) for sample in stored(base)]


def test_a_gallery_shows_the_masks_as_stored(base):
    """Without the masker, which a plug-in's data set doesn't have, and where the source turned the image, too."""
    dataset = open_dataset(str(base))
    assert offer_masks(dataset, True) == Offer(())
    assert not offer_masks(dataset, False).available
    for _, image in found(base):
        assert drawn_masks(image) == {0: image.instances[0].mask.rle}
    with pytest.raises(ShardError, match="don't fit its phrases"):
        drawn_masks(replace(image, members=image.members | {INSTANCES: InstancesDocument.of([], []).to_bytes()}))


def test_coco_holds_every_mask_and_comes_back(base, tmp_path):
    out = tmp_path / "coco"
    assert "3 images" in patchmint("export", base, out, "--to", "coco").stderr
    coco = COCO(out / "annotations.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["a cat", TEXTS[1].lower()]
    for number, (sample, image) in enumerate(found(base), start=1):
        (entry,) = coco.loadImgs([number])
        with Image.open(out / "images" / entry["file_name"]) as file:
            assert file.size == (entry["width"], entry["height"]) == (image.info.width, image.info.height)
        unturned = image.info.orientation == 1
        assert (entry["file_name"] == f"{sample.key}.jpg") == unturned
        assert ((out / "images" / entry["file_name"]).read_bytes() == image.data) == unturned
        (annotation,) = coco.loadAnns(coco.getAnnIds([number]))
        (own,) = image.instances
        assert np.array_equal(coco.annToMask(annotation), decode_mask(own.mask.rle))
        assert annotation["area"] == coco.annToMask(annotation).sum()
        left, top, right, bottom = own.box
        assert annotation["bbox"] == [left, top, right - left, bottom - top]
        assert (annotation["score"], annotation["span"]) == (own.score, [0, len(image.phrases[0].text)])
    # and back, as a source
    files = {"annotations": "annotations.json", "images": "images"}
    source = {"kind": "coco", "uri": str(out), "texts": "categories"} | files
    labels = {"masks": "annotators", "boxes": "annotators", "instances": True}
    models = {"models": "untrained-tiny", "tokens": None, "source": source, "labels": labels}
    back = make_config(tmp_path / "back.yaml", "", tmp_path / "back", **models)
    patchmint("build", back)
    masks = [[each.mask for each in image.instances] for _, image in found(base)]
    assert [[each.mask for each in image.instances] for _, image in found(tmp_path / "back")] == masks


def test_yolo_and_odvg_have_the_boxes(base, tmp_path):
    only = "list_contains(phrases, 'a cat')"
    patchmint("export", base, tmp_path / "yolo", "--to", "yolo", "--where", only)
    sample, image = found(base)[0]
    (label,) = (tmp_path / "yolo" / "labels").iterdir()
    category, x, y, width, height = map(float, label.read_text().split())
    left, top, right, bottom = image.phrases[0].box
    size = np.array([image.info.width, image.info.height] * 2)
    expected = np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) / size
    np.testing.assert_allclose([x, y, width, height], expected, atol=1e-6)
    names = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())["names"]
    assert (names[category], label.stem) == ("a cat", sample.key)
    patchmint("export", base, tmp_path / "odvg", "--to", "odvg")
    lines = [json.loads(line) for line in (tmp_path / "odvg" / "annotations.jsonl").read_text().splitlines()]
    assert [line["grounding"]["caption"] for line in lines] == TEXTS
    for line, (_, image) in zip(lines, found(base), strict=True):
        (region,) = line["grounding"]["regions"]
        ((start, end),) = region["tokens_positive"]
        assert line["grounding"]["caption"][start:end] == region["phrase"]
        assert tuple(region["bbox"]) == image.phrases[0].box


def test_label_studio_has_brush_masks(base, tmp_path):
    patchmint("export", base, tmp_path / "tasks", "--to", "label-studio")
    tasks = json.loads((tmp_path / "tasks" / "tasks.json").read_text())
    for task, (_, image) in zip(tasks, found(base), strict=True):
        (result,) = task["predictions"][0]["result"]
        mask = decode_mask(image.instances[0].mask.rle)
        assert np.array_equal(painted(result["value"]["rle"]).reshape(*mask.shape, 4)[..., 3], 255 * mask)
    assert "<Label value='a sofa &amp; &lt;b&gt;\"two\"&lt;/b&gt;'/>" in (tmp_path / "tasks" / "config.xml").read_text()


def painted(rle):
    """Label Studio's own decoder (label_studio_sdk.converter.brush.decode_rle), shortened."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def take(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    number, width = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < number:
        runs = take(1)
        length = take(lengths[take(2)]) + 1
        values += [take(width)] * length if runs else [take(width) for _ in range(length)]
    return np.array(values)


def test_brush_masks_of_all_lengths():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 5), (200, 300)):
        for share in (0, 0.01, 0.5, 1):
            mask = (rng.random(shape) < share).astype(np.uint8)
            assert np.array_equal(
                painted(brush_rle(mask)).reshape(*shape, 4), np.repeat(255 * mask[..., None], 4, axis=2)
            )


def test_a_folder_that_holds_something_is_left_alone(base, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="already"):
        export(open_dataset(base), tmp_path, "coco")
    with pytest.raises(InputError, match="condition"):
        export(open_dataset(base), tmp_path / "new", "coco", "nonsense(")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert FORMATS.keys() == READERS.keys()

"""Every form in which image-text data is published: what docs/sources.md has in its table is read, and recognised."""

import io
import json
import re
import tarfile
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import fixture, image_bytes, put, samples_of, source

from patchmint.pipeline.sources.recognise import recognise
from patchmint.samples import Turn

PHOTO = image_bytes()
ASKED = "What is she wearing?"
ANSWER = "An orange suit."
TALK = (Turn("human", f"<image>\n{ASKED}"), Turn("gpt", ANSWER))
LLAVA = [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": ANSWER}]
MESSAGES = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}]
BOX = (4.0, 5.0, 24.0, 35.0)
WIDE = [4, 5, 20, 30]


class Form(NamedTuple):
    """A form of data.

    Attributes:
        make: writes it into a folder.
        kind: the source that reads it.
        texts: of the sample that is looked at: the first whose image is there.
        settings: beside `uri`; those that `patchmint init` finds as well.
        boxes: of its first text.
        phrases: that its first text has spans of.
        talk: its conversation.
        set_by_hand: of the settings, those that can't be seen in the data.
    """

    make: Any
    kind: str
    texts: list[str]
    settings: Any = MappingProxyType({})
    boxes: tuple = ()
    phrases: tuple = ()
    talk: tuple = ()
    set_by_hand: tuple = ()


def of(documents, *images):
    """Documents, and images."""

    def make(folder):
        contents = {name: each if isinstance(each, str) else json.dumps(each) for name, each in documents.items()}
        return put(folder, contents | dict.fromkeys(images, PHOTO))

    return make


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def tar(**members):
    def make(folder):
        with tarfile.open(folder / "00000.tar", "w") as file:
            for name, data in members.items():
                data = data if isinstance(data, bytes) else data.encode()
                info = tarfile.TarInfo(f"0001.{name.replace('_', '.')}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        return folder

    return make


def hub(images, name="train-00000-of-00001.parquet", **columns):
    """A Parquet file as `datasets` writes it: images are structs of bytes and path."""
    stored = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.list_(stored) if isinstance(images[0], list) else stored
    column = "images" if isinstance(images[0], list) else "image"

    def make(folder):
        (folder / "data").mkdir()
        table = pa.table({column: pa.array(images, kind), **columns})
        pq.write_table(table, folder / "data" / name)
        return folder

    return make


def with_image(name, path):
    return lambda folder: put(fixture(name, folder.parent / "copied"), {path: PHOTO})


STORED = {"bytes": PHOTO, "path": None}
COCO_IMAGE = {"id": 391895, "width": 64, "height": 64, "license": 3, "date_captured": "2013-11-14 11:18:45"}
COCO_IMAGE |= {
    "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg",
    "flickr_url": "http://farm9/x.jpg",
}
LVIS = {
    "images": [COCO_IMAGE | {"not_exhaustive_category_ids": [], "neg_category_ids": [12]}],
    "annotations": [
        {
            "id": 1,
            "image_id": 391895,
            "category_id": 3,
            "bbox": WIDE,
            "area": 600.0,
            "segmentation": [[4, 5, 24, 5, 24, 35]],
        }
    ],
    "categories": [
        {
            "id": 3,
            "name": "alarm_clock",
            "synonyms": ["alarm_clock"],
            "synset": "alarm_clock.n.01",
            "def": "a clock",
            "frequency": "f",
        }
    ],
}
KARPATHY = {
    "images": [
        {
            "filepath": "val2014",
            "sentids": [1],
            "filename": "COCO_val2014_000000522418.jpg",
            "imgid": 0,
            "split": "restval",
            "cocoid": 522418,
            "sentences": [{"tokens": ["a", "woman"], "raw": "A woman wearing a net.", "imgid": 0, "sentid": 1}],
        },
    ],
    "dataset": "coco",
}
FLICKR = {
    "Sentences/1000092795.txt": """\
[/EN#1/people/clothing Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#0/notvisual their] hands .
[/EN#1/people Two friends] enjoy time [/EN#4/scene outside] .
""",
    "Annotations/1000092795.xml": """\
<annotation><filename>1000092795.jpg</filename><size><width>64</width><height>64</height><depth>3</depth></size>
<object><name>1</name><bndbox>
  <xmin>4</xmin><ymin>5</ymin><xmax>24</xmax><ymax>35</ymax></bndbox></object>
<object><name>1</name><name>2</name><bndbox>
  <xmin>30</xmin><ymin>5</ymin><xmax>40</xmax><ymax>35</ymax></bndbox></object>
<object><name>4</name><scene>1</scene><nobndbox>1</nobndbox></object>
</annotation>
""",
    "train.txt": "1000092795\n",
}
GREFS = [
    {
        "ref_id": 1,
        "image_id": 5,
        "ann_id": [7, 8],
        "category_id": [1, 1],
        "split": "train",
        "no_target": False,
        "sentences": [
            {"sent": "both women", "raw": "both women", "sent_id": 1, "exist": True, "tokens": ["both", "women"]}
        ],
    },
    {
        "ref_id": 2,
        "image_id": 5,
        "ann_id": [-1],
        "category_id": [-1],
        "split": "train",
        "no_target": True,
        "sentences": [{"sent": "the dog", "raw": "the dog", "sent_id": 2, "exist": False, "tokens": ["the", "dog"]}],
    },
]
INSTANCES = {
    "images": [{"id": 5, "file_name": "COCO_train2014_000000000005.jpg", "width": 64, "height": 64}],
    "annotations": [
        {"id": 7, "image_id": 5, "category_id": 1, "bbox": WIDE},
        {"id": 8, "image_id": 5, "category_id": 1, "bbox": [0, 0, 2, 2]},
    ],
    "categories": [{"id": 1, "name": "person"}],
}
ODVG = {
    "filename": "014127544.jpg",
    "height": 64,
    "width": 64,
    "grounding": {
        "caption": "Homemade cream cheese and bread",
        "regions": [{"bbox": list(BOX), "phrase": "Homemade cream cheese"}, {"bbox": [1, 1, 2, 2], "phrase": "bread"}],
    },
}
DETECTION = {
    "filename": "000000391895.jpg",
    "height": 64,
    "width": 64,
    "detection": {
        "instances": [
            {"bbox": list(BOX), "label": 3, "category": "motorcycle"},
            {"bbox": [1, 1, 2, 2], "label": 0, "category": "person"},
        ]
    },
}
MDETR = {
    "info": [],
    "licenses": [],
    "images": [
        {
            "file_name": "1000092795.jpg",
            "height": 64,
            "width": 64,
            "id": 0,
            "original_img_id": 1000092795,
            "caption": "Two young guys look at their hands",
            "dataset_name": "flickr",
            "tokens_negative": [[0, 34]],
            "sentence_id": 0,
        },
        {
            "file_name": "1000092795.jpg",
            "height": 64,
            "width": 64,
            "id": 1,
            "original_img_id": 1000092795,
            "caption": "Two friends outside",
            "dataset_name": "flickr",
            "tokens_negative": [[0, 19]],
            "sentence_id": 1,
        },
    ],
    "annotations": [
        {
            "area": 600,
            "iscrowd": 0,
            "image_id": 0,
            "category_id": 1,
            "id": 0,
            "bbox": WIDE,
            "tokens_positive": [[0, 14]],
        },
        {
            "area": 600,
            "iscrowd": 0,
            "image_id": 1,
            "category_id": 1,
            "id": 1,
            "bbox": WIDE,
            "tokens_positive": [[0, 11]],
        },
    ],
    "categories": [{"supercategory": "object", "id": 1, "name": "object"}],
}
PARTS = [
    {"role": "system", "content": "You describe pictures."},
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"type": "text", "text": ASKED}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
]
CAULDRON = [[{"user": ASKED, "assistant": ANSWER, "source": "A-OKVQA"}]]

FORMS = {
    "image with .txt or .json beside it": Form(of({"a.txt": "a cat"}, "a.jpg"), "folder", ["a cat"]),
    "table (.csv, .tsv, .jsonl, .json, .parquet)": Form(
        of({"all.json": [{"image": "x/a.jpg", "caption": "a cat"}]}, "x/a.jpg"),
        *("folder", ["a cat"], {"table": "all.json", "file_column": "image", "text_column": "caption"}),
    ),
    "Hub image folder (`train/metadata.jsonl`)": Form(
        of(
            {
                "train/metadata.jsonl": lines({"file_name": "a.jpg", "text": "a cat"}),
                "test/metadata.jsonl": lines({"file_name": "b.jpg", "text": "a dog"}),
            },
            *("train/a.jpg", "test/b.jpg"),
        ),
        *("folder", ["a cat"], {"table": "train/metadata.jsonl"}),
    ),
    "img2dataset tars": Form(
        tar(jpg=PHOTO, txt="a cat", json='{"caption": "a cat", "status": "success"}'), "webdataset", ["a cat"]
    ),
    "tars with a caption in .json": Form(tar(json='{"caption": "a cat"}', jpg=PHOTO), "webdataset", ["a cat"]),
    "tars with other members (`input.jpg`, `output.txt`)": Form(
        tar(input_jpg=PHOTO, edited_jpg=b"x", output_txt="a cat", json='{"prompt": {"text": "draw"}}'),
        *("webdataset", ["a cat", "draw"], {"image_member": "input", "texts": ["output.txt", "json:prompt.text"]}),
        set_by_hand=("image_member", "texts"),
    ),
    "Parquet with images": Form(hub([STORED], caption=["a cat"]), "parquet", ["a cat"], {"text_columns": ["caption"]}),
    "COCO captions": Form(
        with_image("coco", "train2017/000000000025.jpg"),
        *("coco", ["A woman in an orange suit smiles.", "An astronaut before a flag."]),
    ),
    "COCO instances": Form(
        with_image("coco", "train2017/000000000009.jpg"),
        *("coco", ["cat"], {"texts": "categories"}, ((2.0, 3.0, 4.0, 9.0),), ("cat",)),
        set_by_hand=("texts",),
    ),
    "LVIS": Form(
        of({"lvis_v1_train.json": LVIS}, "train2017/000000391895.jpg"),
        *(
            "coco",
            ["alarm clock"],
            {"annotations": "lvis_v1_train.json", "texts": "categories"},
            (BOX,),
            ("alarm clock",),
        ),
    ),
    "Karpathy's splits (COCO, Flickr30k, Flickr8k)": Form(
        of({"dataset_coco.json": KARPATHY}, "val2014/COCO_val2014_000000522418.jpg"),
        "karpathy",
        ["A woman wearing a net."],
    ),
    "Flickr30k Entities": Form(
        of(FLICKR, "flickr30k-images/1000092795.jpg"),
        *(
            "flickr30k-entities",
            ["Two young guys with shaggy hair look at their hands .", "Two friends enjoy time outside ."],
        ),
        *({}, (BOX, (30.0, 5.0, 40.0, 35.0)), ("Two young guys", "shaggy hair")),
    ),
    "Visual Genome regions": Form(
        with_image("visual_genome", "VG_100K_2/1.jpg"),
        *("visual-genome", ["the clock is green in colour", "shade is along the street "], {}, (BOX,)),
    ),
    "Visual Genome objects": Form(
        with_image("visual_genome", "VG_100K_2/1.jpg"),
        *("visual-genome", ["trees . clock"], {"texts": "objects"}),
        *(((0.0, 0.0, 60.0, 30.0), (3.0, 4.0, 10.0, 13.0), (50.0, 20.0, 60.0, 30.0)), ("trees", "clock")),
        set_by_hand=("texts",),
    ),
    "RefCOCO, RefCOCO+, RefCOCOg": Form(
        with_image("references", "train2014/COCO_train2014_000000001234.jpg"),
        *("references", ["left cat"], {"split": "val"}, ((0.0, 0.0, 5.0, 5.0),)),
        set_by_hand=("split",),
    ),
    "gRefCOCO": Form(
        of({"grefs(unc).json": GREFS, "instances.json": INSTANCES}, "train2014/COCO_train2014_000000000005.jpg"),
        *("references", ["both women", "the dog"], {}, (BOX, (0.0, 0.0, 2.0, 2.0))),
    ),
    "ODVG grounding": Form(
        of({"flickr.jsonl": lines(ODVG)}, "images/014127544.jpg"),
        *("grounding", ["Homemade cream cheese and bread"], {"annotations": "flickr.jsonl", "images": "images"}),
        *((BOX, (1.0, 1.0, 2.0, 2.0)), ("Homemade cream cheese", "bread")),
    ),
    "ODVG detection": Form(
        of({"coco.jsonl": lines(DETECTION)}, "images/000000391895.jpg"),
        *("grounding", ["motorcycle . person"], {"annotations": "coco.jsonl", "images": "images"}),
        *((BOX, (1.0, 1.0, 2.0, 2.0)), ("motorcycle", "person")),
    ),
    "MDETR": Form(
        of({"final_flickr_separateGT_train.json": MDETR}, "flickr30k-images/1000092795.jpg"),
        *("grounding", ["Two young guys look at their hands", "Two friends outside"]),
        *(
            {"annotations": "final_flickr_separateGT_train.json", "images": "flickr30k-images"},
            (BOX,),
            ("Two young guys",),
        ),
    ),
    "LLaVA 558K": Form(
        of(
            {
                "blip_laion_cc_sbu_558k.json": [
                    {"id": "004539375", "image": "00453/004539375.jpg", "conversations": LLAVA}
                ]
            },
            "images/00453/004539375.jpg",
        ),
        *("conversations", [ANSWER]),
        talk=TALK,
    ),
    "LLaVA 665K": Form(
        of(
            {
                "llava_v1_5_mix665k.json": [
                    {"id": "1", "image": "coco/train2017/1.jpg", "conversations": LLAVA},
                    {"id": "t", "conversations": LLAVA[1:]},
                ]
            },
            "coco/train2017/1.jpg",
        ),
        *("conversations", [ANSWER]),
        talk=TALK,
    ),
    "ShareGPT4V": Form(
        of(
            {
                "sharegpt4v_instruct_gpt4-vision_cap100k.json": [
                    {"id": "1", "image": "sam/images/sa_1.jpg", "conversations": LLAVA}
                ]
            },
            "sam/images/sa_1.jpg",
        ),
        *("conversations", [ANSWER], {"annotations": "sharegpt4v_instruct_gpt4-vision_cap100k.json"}),
        talk=TALK,
    ),
    "ShareGPT with `images`": Form(
        of({"mllm.json": [{"messages": MESSAGES, "images": ["pictures/a.jpg"]}]}, "pictures/a.jpg"),
        *("conversations", [ANSWER], {"annotations": "mllm.json", "missing_mark": "prepend"}),
        talk=TALK,
    ),
    "OpenAI messages": Form(
        of({"chat.jsonl": lines({"messages": PARTS})}, "a.jpg"),
        *("conversations", [ANSWER], {"annotations": "chat.jsonl"}),
        talk=(Turn("system", "You describe pictures."), *TALK),
    ),
    "LLaVA-OneVision-Data, LLaVA-NeXT-Data": Form(
        hub([STORED, None], id=["a", "b"], conversations=[LLAVA, LLAVA[1:]], data_source=["x", "y"]),
        "conversations",
        [ANSWER],
        talk=TALK,
    ),
    "the_cauldron": Form(hub([[STORED]], texts=CAULDRON), "conversations", [ANSWER], talk=TALK),
}


def first(opened):
    return next(sample for sample in samples_of(opened) if sample.fault is None and is_there(opened, sample))


def is_there(opened, sample):
    try:
        return opened.read_image(sample.image) == PHOTO
    except Exception:
        return False


def check(form, opened):
    sample = first(opened)
    text = sample.texts[0]
    assert [each.content for each in sample.texts] == form.texts
    assert tuple(dict.fromkeys(each.box for each in text.instances)) == form.boxes
    assert tuple(text.content[start:end] for start, end in text.phrases) == form.phrases
    assert sample.conversation == form.talk


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_is_read_and_recognised(form, tmp_path):
    (tmp_path / "data").mkdir()
    folder = form.make(tmp_path / "data")
    check(form, source(form.kind, folder, **form.settings))
    found = recognise(str(folder))
    assert found.source["kind"] == form.kind
    by_hand = {key: form.settings[key] for key in form.set_by_hand}
    settings = {key: value for key, value in found.source.items() if key not in ("kind", "uri")} | by_hand
    check(form, source(form.kind, folder, **settings))


def test_the_documents_table_is_what_is_tested_here():
    page = (Path(__file__).parents[1] / "docs/sources.md").read_text()
    rows = re.findall(r"^\| (.+?) \| `([a-z0-9-]+)` \|(.*?)\|(.*?)\|(.*?)\|$", page, re.MULTILINE)
    shown = {name: (kind, *(bool(cell.strip()) for cell in cells)) for name, kind, *cells in rows}
    tested = {name: (form.kind, bool(form.texts), bool(form.boxes), bool(form.talk)) for name, form in FORMS.items()}
    assert {name: shown.get(name) for name in tested} == tested
    assert set(shown) - set(tested) == {"form", "a data set of patchmint's own"}

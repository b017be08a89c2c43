"""Settings of the sources: one union, told apart by kind."""

import pytest
from pydantic import TypeAdapter

from patchmint.config.build import BuildConfig
from patchmint.config.sources import CocoSourceConfig, SourceConfig
from patchmint.errors import ConfigError

KINDS = ["folder", "webdataset", "coco", "karpathy", "flickr30k-entities", "visual-genome", "references", "parquet"]
KINDS += ["conversations", "llava", "interleaved"]
ADAPTER = TypeAdapter(SourceConfig)


def build(**source):
    return BuildConfig.parse({"source": source, "output": {"uri": "out"}, "models": "untrained-tiny"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_uri_is_enough_and_every_setting_is_described(kind):
    config = ADAPTER.validate_python({"kind": kind, "uri": "data/set"})
    assert config.kind == kind
    assert ADAPTER.validate_json(ADAPTER.dump_json(config)) == config
    fields = type(config).model_fields
    assert [name for name, field in fields.items() if name != "kind" and not field.description] == []


def test_the_design_s_example():
    config = build(kind="coco", uri="data/coco", texts="caption").source
    assert config == CocoSourceConfig(kind="coco", uri="data/coco", texts="caption", split="train2017")


def test_one_column_of_texts_or_several():
    for given, columns in (("caption", ("caption",)), (["a", "b"], ("a", "b"))):
        assert build(kind="parquet", uri="x", text_columns=given).source.text_columns == columns


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "coco", "uri": "x", "anotations": "a.json"}, "did you mean 'annotations'"),
        ({"kind": "coco", "uri": "x", "texts": "captions"}, "source.texts"),
        ({"kind": "cocoa", "uri": "x"}, "did you mean 'coco'"),
        ({"uri": "x"}, "source.kind"),
        ({"kind": "folder", "uri": "x", "text_column": "caption"}, "source: text_column is about a table"),
        ({"kind": "llava"}, "source.uri"),
        ({"kind": "llava", "uri": ""}, "source.uri"),
    ],
)
def test_what_is_wrong_is_named(source, message):
    with pytest.raises(ConfigError, match=message):
        build(**source)

"""Settings of the sources: what kind of data set, where it lies, and which of its words are the texts."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from patchmint.config.parsing import Settings

_URI = "Folder of the data set: a local path, s3://bucket/folder, gs://..., az://... or hf://datasets/ORG/NAME"


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


OneOrSeveral = Annotated[
    tuple[str, ...], BeforeValidator(_one_or_several, json_schema_input_type=str | tuple[str, ...])
]


class CommonSettings(Settings):
    """What every source takes: its name, and which of its samples are chosen."""

    has_own_split: ClassVar[bool] = False
    """Whether `split` is a word of the source's own, and not one of those in names of files."""

    name: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,63})?$",
        description="Stays in each sample (source.name); needed where there are several sources.",
    )
    files: OneOrSeveral = Field(
        default=(),
        description="Take only samples in these files (tars, Parquet files, images): globs such as train-*.parquet, or "
        "ranges such as {00000..00003}.tar. One without a slash holds in every folder.",
    )
    split: str | None = Field(
        default=None,
        min_length=1,
        description="Take only files of this split, by their names as on the Hugging Face Hub (train-*.parquet, "
        "train/...): train, validation, test; several: train+validation; or all. Null: they may be of one split only.",
    )
    where: str = Field(
        default="",
        description="Take only samples for which this holds: SQL (DuckDB's) over the source's own fields of them, and "
        "id, path and texts. Such as: status = 'success' and similarity > 0.28",
    )
    sample: float = Field(
        default=1.0, gt=0, le=1, description="Take this share of the samples, by their ids: 0.01 is a part of 0.1."
    )
    dedupe: Literal["image", "image+text"] | None = Field(
        default=None,
        description="Take the first of those whose image files are equal, or also their texts. Planning then reads "
        "every image.",
    )
    take: int | None = Field(default=None, ge=1, description="Take the first so many of the samples chosen otherwise.")

    @property
    def gives_documents(self) -> bool:
        """Whether its samples are documents of several images, and not pictures."""
        return False

    @model_serializer(mode="wrap")
    def _own_first(self, serialized: SerializerFunctionWrapHandler) -> dict[str, Any]:
        common = (*DocumentsSettings.model_fields, *CommonSettings.model_fields)
        told = serialized(self)
        return dict(sorted(told.items(), key=lambda item: common.index(item[0]) if item[0] in common else -1))

    def deciding(self) -> dict[str, Any]:
        """All settings as JSON values, but for those of these that choose nothing."""
        silent = {**CommonSettings.model_fields, **DocumentsSettings.model_fields}
        told = self.model_dump(mode="json").items()
        return {key: value for key, value in told if key not in silent or getattr(self, key) != silent[key].default}


class InterleavedSettings(Settings):
    """Which texts of a document label its images."""

    image_texts: Literal["all", "neighbours", "own"] | None = Field(
        default=None,
        description="Which texts of a document label an image: all of them; its neighbours (the texts before and after "
        "it, in a conversation the question and its answers); or its own (as neighbours, but in MMC4 the text that it "
        "was matched to). Null: all, but neighbours where texts stand around images.",
    )


class DocumentsSettings(InterleavedSettings):
    """Whether samples are documents."""

    documents: bool = Field(
        default=False,
        description="Read documents of any number of images, in place of pictures: a data set is of one or the other.",
    )

    @property
    def gives_documents(self) -> bool:
        """As for all sources."""
        return self.documents

    @model_validator(mode="after")
    def _image_texts_are_of_documents(self) -> Self:
        if self.image_texts is not None and not self.documents:
            raise ValueError("image_texts is about documents; set documents: true")
        return self


Folders = str | Annotated[tuple[str, ...], Field(min_length=1)]


class ImagesSettings(CommonSettings):
    """Where the images are whose paths the annotations name."""

    images: Folders | None = Field(
        default=None,
        description='The folder that image paths start from, or several, which are tried in order; "" is the top. '
        "Null: the top.",
    )
    strip_prefix: OneOrSeveral = Field(
        default=(), description="What to take off the beginning of image paths, such as /data/coco/; one or several."
    )
    other_endings: bool = Field(
        default=False,
        description="Where an image isn't there, take one that differs in its ending only: a .gif for a .jpg.",
    )


class FolderSourceConfig(ImagesSettings):
    """A folder of images, with a caption file beside each or one table for all."""

    kind: Literal["folder"]
    uri: str = Field(min_length=1, description=_URI)
    table: str | None = Field(
        default=None,
        min_length=1,
        description="A .csv, .tsv, .jsonl, .json or .parquet table in the folder, a row per image and text. Null: a "
        ".txt or .json beside each image.",
    )
    file_column: str = Field(default="file_name", description="The table's column of image paths.")
    text_column: str = Field(default="text", description="The table's column of texts.")
    id_column: str | None = Field(
        default=None, min_length=1, description="The table's column of ids. Null: an image's path."
    )
    images: Folders | None = Field(
        default=None,
        description='The folder that a table\'s paths start from, or several, which are tried in order; "" is the top. '
        "Null: the folder of a table that is called metadata, as on the Hub; else the top.",
    )

    @model_validator(mode="after")
    def _columns_are_a_tables(self) -> Self:
        fields = type(self).model_fields
        of_tables = ("file_column", "text_column", "id_column", "images", "strip_prefix", "other_endings")
        given = [name for name in of_tables if getattr(self, name) != fields[name].default]
        if self.table is None and given:
            raise ValueError(f"{given[0]} is about a table, and none is given; name it in table")
        return self


class WebDatasetSourceConfig(DocumentsSettings, CommonSettings):
    """WebDataset tars, as img2dataset writes them."""

    kind: Literal["webdataset"]
    uri: str = Field(
        min_length=1, description="A folder of tars, one tar, or a range of tars such as data/{00000..00012}.tar."
    )
    image_member: str | None = Field(
        default=None,
        min_length=1,
        description="Which member is the image, by what follows the key's dot: input.jpg, or input for any ending of "
        "images. Null: the only one that is called KEY.jpg, KEY.png, ...",
    )
    texts: OneOrSeveral = Field(
        default=(),
        description="Which members are texts, by what follows the key's dot: txt, output.txt; or fields of KEY.json: "
        "json:caption, json:meta.title. All that are named become texts. None given: .txt, or else json:caption.",
    )


class CocoSourceConfig(ImagesSettings):
    """COCO captions or instances; LVIS."""

    has_own_split: ClassVar[bool] = True

    kind: Literal["coco"]
    uri: str = Field(min_length=1, description=_URI)
    texts: Literal["caption", "categories"] = Field(
        default="caption",
        description="Each caption is a text; or one text lists the categories of the image's instances.",
    )
    split: str = Field(default="train2017", min_length=1, description="Chooses the annotation file and the images.")
    annotations: str | None = Field(
        default=None,
        min_length=1,
        description="The annotation file. Null: annotations/captions_SPLIT.json or annotations/instances_SPLIT.json.",
    )
    images: Folders | None = Field(
        default=None,
        description='The folder that file names start from, or several, which are tried in order; "" is the top. Null: '
        "SPLIT, or for images that only have a coco_url the top.",
    )


class KarpathySourceConfig(ImagesSettings):
    """Karpathy's splits of COCO, Flickr30k and Flickr8k: dataset_coco.json and the like."""

    has_own_split: ClassVar[bool] = True

    kind: Literal["karpathy"]
    uri: str = Field(min_length=1, description=_URI)
    annotations: str | None = Field(
        default=None, min_length=1, description="The JSON file. Null: the only dataset*.json at the top."
    )
    split: str | None = Field(
        default=None,
        min_length=1,
        description="Take only the images of this split: train, val, test; of several: train+restval; or all. Null: "
        "they may be of one split only.",
    )


class GroundingSourceConfig(ImagesSettings):
    """Phrases of captions with boxes: ODVG (JSON Lines) and MDETR (JSON)."""

    kind: Literal["grounding"]
    uri: str = Field(min_length=1, description=_URI)
    annotations: str = Field(min_length=1, description="The file: ODVG's .jsonl, or MDETR's .json.")


class FlickrSourceConfig(ImagesSettings):
    """Flickr30k Entities: five captions for an image, with phrases and their boxes."""

    has_own_split: ClassVar[bool] = True

    kind: Literal["flickr30k-entities"]
    uri: str = Field(min_length=1, description=_URI)
    split: str | None = Field(
        default=None,
        min_length=1,
        description="Take only images that SPLIT.txt lists: train, val, test; of several: train+val; or all. Null: "
        "there may be one such file only.",
    )
    images: Folders = Field(
        default="flickr30k-images",
        description='The folder of the images, or several, which are tried in order; "" is the top.',
    )


class VisualGenomeSourceConfig(ImagesSettings):
    """Visual Genome region descriptions or objects."""

    kind: Literal["visual-genome"]
    uri: str = Field(min_length=1, description=_URI)
    texts: Literal["regions", "objects"] = Field(
        default="regions", description="Each region's description is a text; or one text lists the image's objects."
    )
    images: Folders = Field(
        default="",
        description='The folder that holds VG_100K and VG_100K_2, or several, which are tried in order; "" is the top.',
    )


class ReferencesSourceConfig(ImagesSettings):
    """RefCOCO, RefCOCO+, RefCOCOg: expressions that refer to one thing in an image; gRefCOCO: to several, or none."""

    has_own_split: ClassVar[bool] = True

    kind: Literal["references"]
    uri: str = Field(min_length=1, description=_URI)
    refs: str | None = Field(
        default=None, min_length=1, description="The JSON list of references. Null: the only (g)refs*.json at the top."
    )
    instances: str = Field(default="instances.json", min_length=1, description="Images and boxes, as COCO instances.")
    images: Folders = Field(
        default="train2014",
        description='The folder that file names start from, or several, which are tried in order; "" is the top.',
    )
    split: str | None = Field(
        default=None,
        min_length=1,
        description="Take only the references of this split: train, val, testA, ...; of several: train+val; or all. "
        "Null: they may be of one split only.",
    )


class ConversationsSourceConfig(DocumentsSettings, ImagesSettings):
    """Conversations about images: LLaVA, ShareGPT, OpenAI's messages, the_cauldron; JSON, JSON Lines or Parquet."""

    kind: Literal["conversations", "llava"]
    uri: str = Field(min_length=1, description=_URI)
    texts: Literal["answers", "questions", "all"] = Field(
        default="answers",
        description="Which turns become texts: those of gpt (assistant), those of human (user), or both.",
    )
    annotations: str | None = Field(
        default=None,
        min_length=1,
        description="The .json, .jsonl or .parquet file, or a folder of Parquet files. Null: "
        "blip_laion_cc_sbu_558k.json or llava_v1_5_mix665k.json, whichever is there; else all Parquet files; else the "
        "only JSON file at the top.",
    )
    images: Folders | None = Field(
        default=None,
        description='The folder that image paths start from, or several, which are tried in order; "" is the top. '
        "Null: images for the 558K file, else the top.",
    )
    image_column: str | None = Field(
        default=None, min_length=1, description="Field or column of the image. Null: image or images."
    )
    id_column: str = Field(default="id", min_length=1, description="Field or column of the id, where there is one.")
    missing_mark: Literal["reject", "prepend"] = Field(
        default="reject",
        description="What to do with a conversation about an image in which no turn of a human has an <image> mark: "
        "reject it, or put the mark before the first question.",
    )


class InterleavedSourceConfig(InterleavedSettings, ImagesSettings):
    """Documents whose texts stand around their images: MMC4, OBELICS, MINT-1T; JSON Lines, JSON or Parquet."""

    kind: Literal["interleaved"]
    uri: str = Field(min_length=1, description=_URI)
    annotations: str | None = Field(
        default=None,
        min_length=1,
        description="A .jsonl, .json or .parquet file, or a folder of them. Null: all Parquet files, else all JSON "
        "files at the top.",
    )
    image_column: str | None = Field(
        default=None, min_length=1, description="Field or column of the images. Null: image or images; MMC4's own."
    )
    id_column: str = Field(
        default="id", min_length=1, description="Field or column of the id, where there is one. Else: file and number."
    )

    @property
    def gives_documents(self) -> bool:
        """As for all sources."""
        return True


class ParquetSourceConfig(DocumentsSettings, CommonSettings):
    """Parquet files that hold the images, as on the Hugging Face Hub."""

    kind: Literal["parquet"]
    uri: str = Field(min_length=1, description="A folder of .parquet files, or one such file.")
    image_column: str = Field(
        default="image",
        min_length=1,
        description="Column of images: bytes, or a struct of bytes and path; of documents, also of lists of them.",
    )
    text_columns: OneOrSeveral = Field(
        default=(),
        description="Columns of texts: strings or lists of strings. None given: the only one of caption, captions, "
        "text and texts.",
    )
    id_column: str | None = Field(
        default=None, min_length=1, description="Column of ids. Null: the path beside the image, or file and row."
    )


class PatchmintSourceConfig(CommonSettings):
    """A finished data set of patchmint's own.

    What the other settings make is a column of it; where they make nothing, its samples are copied.
    """

    kind: Literal["patchmint"]
    uri: str = Field(min_length=1, description="Folder of the data set, which holds dataset.json.")
    columns: tuple[str, ...] = Field(
        default=(), exclude_if=lambda names: not names, description="Names of columns that are read with it."
    )
    keep_labels: bool = Field(
        default=False,
        exclude_if=lambda keep: not keep,
        description="Make labels only on those of the grids on which it has none.",
    )

    def deciding(self) -> dict[str, Any]:
        """All settings but the place: what lies there is told by its dataset.json, and a column moves with it."""
        return {key: value for key, value in super().deciding().items() if key != "uri"}


AnySource = (
    FolderSourceConfig
    | WebDatasetSourceConfig
    | CocoSourceConfig
    | KarpathySourceConfig
    | GroundingSourceConfig
    | FlickrSourceConfig
    | VisualGenomeSourceConfig
    | ReferencesSourceConfig
    | ConversationsSourceConfig
    | InterleavedSourceConfig
    | ParquetSourceConfig
    | PatchmintSourceConfig
)
SourceConfig = Annotated[AnySource, Field(discriminator="kind")]
"""Where samples come from; `kind` says which of these it is."""

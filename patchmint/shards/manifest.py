"""dataset.json: what a finished data set is. Nothing in it varies between two builds of the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from patchmint.errors import InputError, ShardError, about
from patchmint.shards.endings import (
    CAPTION,
    COVERAGE,
    DOCUMENT,
    FEATURES,
    IMAGE,
    INSTANCES,
    SELECTOR,
    on_grid,
    tokenizer_name,
)
from patchmint.shards.layout import GridLayout, Layout
from patchmint.shards.paths import MANIFEST_PATH
from patchmint.shards.records import CommitRecord, ImageCounts, mean_share_of
from patchmint.shards.schema import first_error
from patchmint.shards.versions import schema_name, version_of
from patchmint.storage import Storage, uri_of

SCHEMA = schema_name("dataset")

SECTION_OF_ROLE = {
    "detector": "labels",
    "vocabulary": "labels",
    "masker": "labels",
    "segmenter": "labels",
    "presence": "labels",
    "tokenizer": "tokens",
    "remap": "tokens",
    "vit": "features",
}
"""Which section of the settings a model, by its role, makes; `section_of` knows those of several tokenizers too."""

SECTIONS = ("labels", "tokens", "features")
"""Sections of the settings that something is made by."""

_MEGAPIXELS = 100.0
_NOTHING: Mapping[str, int] = MappingProxyType({})


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class ModelEntry(_Part):
    """A model file that took part."""

    name: str = Field(description="Name or path, as in the config.")
    sha256: str = Field(description="Of the file; empty where there is none (untrained models, plug-ins).")
    size: int = Field(ge=0, description="Bytes of the file; 0 where there is none.")
    licence: str = Field(description="Of the weights; empty where it isn't known.")


class MemberEntry(_Part):
    """A member of every sample."""

    ending: str = Field(description="The member is KEY.ENDING.")
    dtype: str = Field(description="Type of the numbers; bytes or text for what isn't an array.")
    shape: tuple[str, ...] = Field(description="Of an array: numbers, and T for the texts, views for the views.")


class Totals(_Part):
    """How much there is."""

    units: int = Field(ge=0, description="Units, retries included.")
    planned: int = Field(ge=0, description="Samples in the source.")
    written: int = Field(ge=0, description="Samples in the shards.")
    rejected: dict[str, int] = Field(description="Samples that are in no shard, by reason.")
    absent: dict[str, int] = Field(
        default={}, description="What of the source is no sample, or wasn't chosen, by reason; not in `planned`."
    )
    texts: int = Field(ge=0, description="Texts of the samples in the shards.")
    label_share: float | None = Field(
        ge=0, le=1, description="Mean over those texts of the share of their patches that are 1; null without labels."
    )
    shards: int = Field(ge=0, description="Units with at least one sample written.")
    bytes: int = Field(ge=0, description="Of all tars.")
    images: ImageCounts | None = Field(
        default=None, exclude_if=lambda images: images is None, description="Of documents; absent: they are pictures."
    )

    @classmethod
    def of(
        cls,
        records: Sequence[CommitRecord],
        planned: int,
        rejected: Mapping[str, int],
        absent: Mapping[str, int] = _NOTHING,
        images: int = 0,
    ) -> Self:
        """Add up what commit records say.

        Args:
            records: of the units that are done.
            planned: samples in the source.
            rejected: samples that are in no shard, by reason.
            absent: what of the source is no sample, by reason.
            images: of the source's documents.
        """
        units = [record.listed() for record in records]
        return cls(
            units=len(units),
            planned=planned,
            written=sum(unit.samples for unit in units),
            rejected=dict(rejected),
            absent=dict(absent),
            texts=sum(unit.texts for unit in units),
            label_share=mean_share_of((unit.label_share, unit.texts) for unit in units),
            shards=sum(unit.samples > 0 for unit in units),
            bytes=sum(unit.bytes for unit in units),
            images=ImageCounts.of(images, records),
        )


class ColumnEntry(_Part):
    """Whose column a data set is."""

    base: str = Field(description="plan_digest of the data set that it belongs to.")
    units: int = Field(ge=0, description="Units that this had: those of lower numbers are the same in both.")
    sparse: bool = Field(
        default=False,
        exclude_if=lambda sparse: not sparse,
        description="True: it holds some samples only, which take the place of the others' members; absent: all.",
    )


class Manifest(_Part):
    """dataset.json."""

    schema_: Literal["patchmint.dataset/2", "patchmint.dataset/1"] = Field(
        default="patchmint.dataset/2", alias="schema"
    )
    notice: str = Field(description="A warning that belongs on every use (untrained or demo models); else empty.")
    config: dict[str, Any] = Field(description="Without credentials; `extended`: that of what was extended.")
    config_digest: str = Field(description="SHA-256 of what of the config decides the bytes.")
    plan_digest: str = Field(description="SHA-256 of the plan.")
    models: dict[str, ModelEntry] = Field(description="By role.")
    versions: dict[str, str] = Field(description="Of the libraries that decide the bytes.")
    layout: Layout = Field(description="What every sample has.")
    members: tuple[MemberEntry, ...] = Field(description="The same, member by member.")
    totals: Totals
    column: ColumnEntry | None = Field(
        default=None,
        exclude_if=lambda column: column is None,
        description="Absent: its samples are whole.",
    )

    def with_column(self, column: Manifest, *, sparse: bool) -> Manifest:
        """That of its samples with those of a column; of a sparse one only the notice and `edits` are others.

        What no section of the settings made (corrections, trust) leaves settings and models as they are.

        Raises:
            InputError: labels would lie on one grid, and features, or some samples' labels, on another.
        """
        layout = self.layout.with_column(column.layout)
        if sparse:
            if (layout.grid, layout.min_coverage) != (self.layout.grid, self.layout.min_coverage):
                raise InputError(
                    "the corrections are of labels on another grid, or of another labels.min_coverage; choose columns "
                    "without them (--columns, or columns=), and correct those"
                )
            layout = self.layout.model_copy(update={"notice": layout.notice, "edits": True})
        update: dict[str, Any] = {"layout": layout, "notice": layout.notice, "members": describe_members(layout)}
        if any(isinstance(column.config.get(section), Mapping) for section in SECTIONS):
            update |= {
                "config": column.config | {"extended": self.config},
                "models": self.models | {role: model for role, model in column.models.items() if role != "extended"},
            }
        if not sparse and column.layout.min_coverage is not None:
            labelled = {name: getattr(column.totals, name) for name in ("texts", "label_share")}
            update["totals"] = self.totals.model_copy(update=labelled)
        return self.model_copy(update=update)

    @property
    def version(self) -> int:
        """Of the format."""
        return version_of("dataset", self.schema_)

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        told = self.model_dump(mode="json")
        if self.version == 1:
            del told["totals"]["absent"]
        return (json.dumps(told, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def describe_members(layout: Layout) -> tuple[MemberEntry, ...]:
    """Every member of a sample, with type and shape."""
    views = "*views" if layout.grid.fit == "anyres" else ""
    labels = _labels_on(layout.grid)
    known: dict[str, tuple[str, tuple[str, ...]]] = {
        IMAGE: ("bytes", ()),
        DOCUMENT: ("text", ()),
        CAPTION: ("text", ()),
        SELECTOR: labels,
        COVERAGE: labels,
        INSTANCES: ("text", ()),
    }
    for grid in layout.further_grids:
        known |= dict.fromkeys((on_grid(SELECTOR, grid.name), on_grid(COVERAGE, grid.name)), _labels_on(grid))
    for tokens in layout.all_tokens:
        shape = [str(length) for length in tokens.shape]
        shape[:2] = ("rows", "cols") if tokens.varies else shape[:2]
        known[f"{tokens.member}.npy"] = (tokens.dtype.name, tuple(shape))
    if layout.features is not None:
        features = layout.features
        known[FEATURES] = (
            "float16",
            (f"{features.tokens}{views}" if features.tokens else "rows*cols", str(features.channels)),
        )
    return tuple(
        MemberEntry(ending=ending, dtype=known[ending][0], shape=known[ending][1]) for ending in layout.members
    )


def _labels_on(grid: GridLayout) -> tuple[str, tuple[str, ...]]:
    views = "*views" if grid.fit == "anyres" else ""
    return "uint8", ("T", *((f"{grid.rows}{views}", str(grid.cols)) if grid.rows else ("rows", "cols")))


def made_by(config: Mapping[str, Any], section: str) -> Mapping[str, Any] | None:
    """The settings of the build that made labels, tokens or features last; None where none did.

    Args:
        config: of a manifest. What was extended stands in it under `extended`.
        section: labels, tokens or features.
    """
    return next((past for past in _history(config) if isinstance(past.get(section), Mapping)), None)


def section_of(role: str) -> str | None:
    """Which section of the settings a model makes; None where that is none."""
    return SECTION_OF_ROLE.get(role.partition(".")[0])


def codes_made_by(config: Mapping[str, Any], member: str) -> dict[str, Any] | None:
    """The settings of the build that made a tokenizer's codes, as if that one had been its only one.

    Args:
        config: as for `made_by`.
        member: of the codes.
    """
    name = tokenizer_name(member)
    for past in _history(config):
        given = past.get("tokens")
        own = given.get(name) if isinstance(given, Mapping) and name else given
        if isinstance(own, Mapping) and not has_several(own):
            if (models := past.get("models")) and name:
                models = {**models, "tokenizer": models.get(f"tokenizer.{name}")}
            return {**past, "tokens": own, "models": models}
    return None


def has_several(tokens: Mapping[str, Any] | None) -> bool:
    """Whether settings of tokens are those of several tokenizers, by name."""
    return any(isinstance(value, Mapping) for value in (tokens or {}).values())


def held_settings(manifest: Manifest) -> dict[str, Any]:
    """The settings of a data set as if one build had made all that its shards hold.

    `manifest.config` is that of the last command: what an extension carried over is null there.

    Returns:
        As `manifest.config`, without `extended`; the source (of several a list) is the first one's. Labels, tokens and
        features are None where the shards have none, else the settings that made them, with the precision; empty where
        nobody knows.
    """
    layout, config = manifest.layout, manifest.config
    held = {"labels": layout.min_coverage, "tokens": layout.tokens, "features": layout.features}
    settings = {name: value for name, value in config.items() if name not in ("extended", "precision")}
    models: dict[str, Any] = {}
    for section, form in held.items():
        past = made_by(config, section) if form is not None else None
        settings[section] = None if form is None else {}
        if past is not None:
            precision = {"precision": past["precision"]} if "precision" in past else {}
            settings[section] = dict(sorted((dict(past[section]) | precision).items()))
            if section == "labels" and past.get("grids"):
                settings["grids"] = past["grids"]
            made = past.get("models") or {}
            models |= {role: name for role, name in made.items() if section_of(role) == section}
    if layout.further_tokens:
        found = {each.name: codes_made_by(config, each.member) or {} for each in layout.all_tokens}
        settings["tokens"] = {name: past.get("tokens", {}) for name, past in found.items()}
    *_, first = _history(config)
    return settings | {"source": first.get("sources") or first.get("source"), "models": models}


def _history(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings, those of the data set that was extended, and so on."""
    yield config
    while isinstance(config := config.get("extended", {}), Mapping) and config:
        yield config


def image_limit(manifest: Manifest | None) -> float:
    """Megapixels above which a stored image isn't decoded: the build's own limit, 100 where it isn't known.

    A tar of unknown origin may hold an image that fills the memory.
    """
    limits = manifest.config.get("limits") if manifest is not None else None
    limit = limits.get("max_image_megapixels") if isinstance(limits, dict) else None
    return float(limit) if isinstance(limit, int | float) else _MEGAPIXELS


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Write dataset.json.

    Raises:
        StorageError: it can't be written.
    """
    storage.write(MANIFEST_PATH, manifest.to_bytes())


def read_manifest(storage: Storage) -> Manifest:
    """Read dataset.json.

    Raises:
        NotFoundError: there is none: the build isn't finished.
        StorageError: it can't be read.
        ShardError: it isn't of the format's form.
    """
    with about(uri_of(storage, MANIFEST_PATH)):
        return parse_manifest(storage.read(MANIFEST_PATH))


def parse_manifest(data: bytes) -> Manifest:
    """Read the bytes of dataset.json.

    Raises:
        ShardError: they aren't of the format's form.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise ShardError(
            f"{MANIFEST_PATH} isn't of the form {SCHEMA}: {first_error(error)}; run the build's command again, which "
            "writes it again"
        ) from error

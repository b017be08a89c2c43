"""The settings of a build: one YAML file, every key of which can also be given on the command line."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from patchmint.config.annotator import MODEL_PRESETS, AnnotatorConfig, TokensConfig
from patchmint.config.grids import resolve_grid
from patchmint.config.parsing import Settings, read_yaml, sections
from patchmint.config.sources import AnySource, PatchmintSourceConfig, SourceConfig
from patchmint.errors import ConfigError
from patchmint.json_values import canonical_json
from patchmint.storage.hub import is_on_hub

CPU_BATCH_SIZES = (8, 32)
"""What `runner.batch_size: null` means on a CPU: the first, and up to the second where models take images small."""

CPU_INPUT_BYTES = 2**24
"""Of a CPU's batch, as the models take it. More only keeps more in memory: products are large enough by then."""

BATCHES_AHEAD = 4
"""Batches' worth of images from which a worker picks those that are alike."""

MOST_BYTES_AHEAD = 2**29
"""Of pixels that a worker prepares or has ready, if the images to come are like the largest so far."""

MOST_BYTES_WAITING = 2**30
"""Of pixels that wait in a worker for their batch, decoded and resized."""

MOST_BYTES_OF_A_BATCH = 2**29

_COMPILE = (
    "On GPUs, compile the models' large networks with torch.compile: minutes at the start. null: if the plan has so "
    "many images that it pays. The plan keeps the choice."
)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class OutputConfig(Settings):
    """Where the data set goes."""

    uri: str = Field(
        min_length=1,
        description="Folder for the data set: a local path, s3://, gs:// or az://; or hf://datasets/ORG/NAME.",
    )
    samples_per_shard: int = Field(default=1000, ge=1, le=100_000, description="Samples per shard.")
    images_per_shard: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Of documents, most images per shard, unless a single one has more. Null: any number.",
    )
    prefix: str = Field(
        default="",
        pattern=r"^([a-z0-9_-]{0,39}[a-z_-])?$",  # as shards.paths.PREFIX
        description="What shards' names begin with, such as coco-: readers that cache tars by their names (wids) would "
        "take those of two data sets for each other. Lower-case letters, digits, - and _, no digit at the end.",
    )


BatchSize = Annotated[
    int | None,
    Field(ge=1, le=4096, description="Batch size. null: chosen automatically (8 to 32 on a CPU, by trial on a GPU)."),
]


class LocalRunner(Settings):
    """Child processes on this machine; no Ray is started."""

    kind: Literal["local"] = "local"
    workers: int = Field(default=1, ge=1, le=1024, description="Worker processes; each loads the models.")
    num_cpus: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads per worker. null: OMP_NUM_THREADS, else the usable cores divided by the workers.",
    )
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    batch_size: BatchSize = None
    compile: bool | None = Field(default=None, description=_COMPILE)


class RayRunner(Settings):
    """Actors on a Ray cluster."""

    # in the schema: where `kind` isn't given, the runner is local
    model_config = ConfigDict(json_schema_extra={"required": ["kind"]})

    kind: Literal["ray"] = "ray"
    address: str | None = Field(
        default=None, description="The cluster. null: the one that the job runs in, or RAY_ADDRESS."
    )
    min_actors: int = Field(default=1, ge=1, description="Actors that must be ready before work starts.")
    max_actors: int = Field(default=8, ge=1, description="Most actors at a time; some may join later.")
    num_gpus: float = Field(default=1.0, ge=0, description="GPUs per actor. 0.5: two share one; 0: on the CPU.")
    num_cpus: int = Field(default=4, ge=1, description="CPU cores, and threads, per actor.")
    batch_size: BatchSize = None
    compile: bool | None = Field(default=None, description=_COMPILE)

    @field_validator("num_gpus")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("a share of a GPU is at most 1; more than one must be a whole number")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_actors < self.min_actors:
            raise ValueError(f"max_actors ({self.max_actors}) is less than min_actors ({self.min_actors})")
        return self


class LimitsConfig(Settings):
    """Limits that stop a build or reject a sample."""

    max_reject_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="The build stops if a larger share of samples is rejected, and more than 10.",
    )
    max_image_megapixels: float = Field(default=100.0, ge=1e-6, le=1000, description="Larger images are rejected.")
    max_images: int = Field(default=100, ge=1, le=999, description="Documents of more images are rejected.")
    sample_timeout: float | None = Field(
        default=None,
        gt=0,
        description="A worker that finishes no sample for so many seconds is taken to hang: it is replaced, and the "
        "sample at fault rejected. null: 20 times the longest such time so far, from 600 on; 1800 for the first batch.",
    )
    outage_seconds: float = Field(
        default=3600,
        ge=0,
        description="Seconds for which a store that has answered before, and fails now, is waited for. What is "
        "finished is kept.",
    )
    stop_seconds: float = Field(
        default=20,
        ge=0,
        le=500,
        description="After Ctrl-C or SIGTERM, seconds for workers to save what they have annotated, for the next run.",
    )


def _local_if_unsaid(runner: object) -> object:
    return {"kind": "local", **runner} if isinstance(runner, Mapping) else runner


class BuildConfig(AnnotatorConfig):
    """Everything that a build needs to know."""

    source: AnySource | None = Field(default=None, discriminator="kind", description="Where samples come from.")
    sources: tuple[SourceConfig, ...] = Field(
        default=(), description="Several sources, in order, in the place of one: each as under source, with a name."
    )
    output: OutputConfig = Field(description="Where the data set goes.")
    runner: Annotated[LocalRunner | RayRunner, BeforeValidator(_local_if_unsaid)] = Field(
        default_factory=LocalRunner, discriminator="kind", description="Where workers run."
    )
    limits: LimitsConfig = Field(
        default_factory=LimitsConfig, description="Limits that stop a build or reject a sample."
    )
    on_bad_image: Literal["reject", "drop"] = Field(
        default="reject",
        description="What to do with a document of which an image can't be used: reject it, or drop the image and its "
        "places. Without any good image it is rejected.",
    )
    track: Literal["wandb", "mlflow"] | None = Field(
        default=None, description="Also tell settings and counts to Weights & Biases or MLflow."
    )

    @model_validator(mode="after")
    def _one_or_several_sources(self) -> Self:
        if (self.source is None) == (not self.sources):
            raise ValueError("source: it must be given" if self.source is None else "give source or sources, not both")
        names = [source.name for source in self.sources]
        if len({*names, ""}) <= len(names):
            raise ValueError("sources: each needs a name of its own, such as `name: coco`")
        if any(source.kind == "patchmint" for source in self.sources):
            raise ValueError("sources: a data set of patchmint's (kind: patchmint) is extended by itself, as source")
        return self

    @model_validator(mode="after")
    def _column_of_its_dataset(self) -> Self:
        if self.extends and self.source is not None and not self._column_name():
            raise ValueError(
                f"output.uri: what is added to a data set goes into {self.source.uri.rstrip('/')}/columns/NAME, NAME "
                "of lower-case letters, digits, - and _; `patchmint compact` makes whole shards of it elsewhere"
            )
        return self

    @property
    def extends(self) -> bool:
        """Whether it adds a column to a data set."""
        return isinstance(self.source, PatchmintSourceConfig) and self.makes

    @property
    def copies(self) -> bool:
        """Whether samples of a data set are copied as they are."""
        return isinstance(self.source, PatchmintSourceConfig) and not self.makes and not self._column_name()

    def _column_name(self) -> str:
        """Name of the column that its output is of its source; empty: it is none."""
        folder, _, name = self.output.uri.rpartition("/")
        lawful = re.fullmatch("(?!none$|corrections)[a-z0-9][a-z0-9_-]{0,39}", name) is not None
        return name if self.source and lawful and folder == f"{self.source.uri.rstrip('/')}/columns" else ""

    @model_validator(mode="after")
    def _stored_of_a_dataset(self) -> Self:
        if self.labels is not None and self.labels.from_stored and self.all_sources[0].kind != "patchmint":
            raise ValueError("labels.masks: stored takes instances of a data set that is extended (kind: patchmint)")
        return self

    @model_validator(mode="after")
    def _pictures_or_documents(self) -> Self:
        if len({source.gives_documents for source in self.all_sources}) > 1:
            raise ValueError("sources: some give documents, some pictures; a data set is of one or the other")
        if self.gives_documents and any(source.dedupe for source in self.all_sources):
            raise ValueError("source.dedupe: it compares pictures, and can't be used with documents")
        if not self.gives_documents and self.output.images_per_shard and self.all_sources[0].kind != "patchmint":
            raise ValueError("output.images_per_shard is about documents, and the source gives pictures")
        if not self.gives_documents and self.on_bad_image == "drop":
            raise ValueError(
                "on_bad_image: drop is about sources of documents; this one gives pictures, or is extended"
            )
        return self

    @property
    def gives_documents(self) -> bool:
        """Whether its sources give documents of several images. Of a data set that is extended, it knows itself."""
        return self.all_sources[0].gives_documents

    @property
    def keeps_labels(self) -> bool:
        """Whether labels of a data set that is extended are carried over, and made only on grids where it has none."""
        return isinstance(self.source, PatchmintSourceConfig) and self.source.keep_labels

    @property
    def all_sources(self) -> tuple[AnySource, ...]:
        """The sources, in order; at least one."""
        return (self.source,) if self.source is not None else self.sources

    def with_sources(self, changed: Callable[[AnySource], AnySource]) -> Self:
        """The same with other settings of its sources."""
        one = changed(self.source) if self.source is not None else None
        return self.model_copy(update={"source": one, "sources": tuple(map(changed, self.sources))})

    @model_validator(mode="after")
    def _float16_on_gpus(self) -> Self:
        on_cpu = self.runner.device == "cpu" if isinstance(self.runner, LocalRunner) else self.runner.num_gpus == 0
        if self.precision == "float16" and on_cpu:
            raise ValueError("precision: float16 is for GPUs, and the runner has none; use bfloat16, float32 or auto")
        return self

    @model_validator(mode="after")
    def _grid_can_be_stored(self) -> Self:
        try:
            resolve_grid(self.grid)
        except ConfigError as error:
            raise ValueError(f"grid: {error}") from error
        return self

    @model_validator(mode="after")
    def _hub_through_one_machine(self) -> Self:
        if is_on_hub(self.output.uri) and isinstance(self.runner, RayRunner):
            raise ValueError(
                "output.uri: what goes to the Hub is built in a folder of this machine first, which a cluster's "
                "workers don't share; build into a store (s3://...) or a folder that all mount, then run patchmint push"
            )
        return self

    @model_validator(mode="after")
    def _no_credentials(self) -> Self:
        for key, uri in (*(("source.uri", source.uri) for source in self.all_sources), ("output.uri", self.output.uri)):
            parts = urlsplit(uri)
            if "://" in uri and ("@" in parts.netloc or parts.query):
                raise ValueError(
                    f"{key} must not carry a login, a token or a query: it is written into the data set. Give "
                    "credentials in environment variables (AWS_ACCESS_KEY_ID and so on)"
                )
        return self

    @classmethod
    def load(
        cls, base: str | os.PathLike[str] | Mapping[str, Any] | None = None, overrides: Mapping[str, Any] = _NOTHING
    ) -> Self:
        """Read a config and put single settings over it: the one way in which commands get theirs.

        Relative local paths in it mean those from the current directory, wherever the file lies.

        Args:
            base: a YAML file, or what one holds; None = everything is in `overrides`.
            overrides: dotted keys and their values: `{"labels.box_threshold": 0.3, "tokens": None}`. A changed
                `kind` keeps of its section what the new kind knows too.

        Raises:
            ConfigError: the file is missing or no YAML mapping, or a setting is wrong.
        """
        settings = base if isinstance(base, Mapping) else read_yaml(base) if base is not None else {}
        return cls.parse(apply_overrides(cls, settings, overrides))

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the data set's bytes, as JSON values: not where it goes nor what does the work."""
        settings = self.model_dump(mode="json", include={"labels", "grid", "tokens", "features", "precision"})
        sources = [source.deciding() for source in self.all_sources]
        prefix: dict[str, Any] = {"prefix": self.output.prefix} if self.output.prefix else {}
        images = {"images_per_shard": self.output.images_per_shard} if self.output.images_per_shard else {}
        documents = {"max_images": self.limits.max_images} if self.gives_documents else {}
        grids = self.model_dump(mode="json", include={"grids"}) if self.grids else {}
        if isinstance(self.tokens, dict):
            settings["tokens"] = {name: each.model_dump(mode="json") for name, each in self.tokenizers.items()}
            settings["tokens_order"] = list(self.tokens)  # JSON is written with sorted keys
        if labels := settings["labels"]:
            # What is off is left out: plans say what they did before one could choose.
            settings["labels"] = {key: value for key, value in labels.items() if not (value is None or value is False)}
        return (
            settings
            | grids
            | {
                **({"source": sources[0]} if self.source is not None else {"sources": sources}),
                "output": {"samples_per_shard": self.output.samples_per_shard} | images | prefix,
                "models": self.models_used,
                "limits": {"max_image_megapixels": self.limits.max_image_megapixels} | documents,
                **({"on_bad_image": self.on_bad_image} if self.gives_documents else {}),
            }
        )

    def digest(self, model_digests: Mapping[str, str]) -> str:
        """SHA-256, in hexadecimal, of what decides the bytes.

        Args:
            model_digests: by role, what tells a model's content: the SHA-256 of its file, say.
        """
        return hashlib.sha256(
            canonical_json({"settings": self.deciding(), "models": dict(model_digests)}).encode()
        ).hexdigest()

    def absolute(self) -> Self:
        """The same with absolute local paths, for workers that may run in another folder."""
        models: dict[str, Any] = {role: _absolute_model(name) for role, name in self.models if isinstance(name, str)}
        models["plugins"] = {
            name: plugin.model_copy(update={"checkpoint": plugin.checkpoint and _absolute_model(plugin.checkpoint)})
            for name, plugin in self.models.plugins.items()
        }
        updates: dict[str, Any] = {
            "output": self.output.model_copy(update={"uri": _absolute(self.output.uri)}),
            "models": self.models.model_copy(update=models),
        }
        if (presence := self.labels and self.labels.presence) and presence.calibration is not None:
            presence = presence.model_copy(update={"calibration": _absolute(presence.calibration)})
            updates["labels"] = self.labels.model_copy(update={"presence": presence})
        if isinstance(self.tokens, dict):
            updates["tokens"] = {name: _absolute_tokens(tokens) for name, tokens in self.tokens.items()}
        elif self.tokens is not None:
            updates["tokens"] = _absolute_tokens(self.tokens)
        return self.model_copy(update=updates).with_sources(
            lambda source: source.model_copy(update={"uri": _absolute(source.uri)})
        )


def json_schema() -> str:
    """The JSON Schema of a build's config file, as kept in docs/schemas/build.schema.json."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "patchmint build"}
    return json.dumps(head | BuildConfig.model_json_schema() | head, indent=2) + "\n"


def _absolute_tokens(tokens: TokensConfig) -> TokensConfig:
    remap, tokenizer = tokens.remap and _absolute(tokens.remap), tokens.tokenizer and _absolute_model(tokens.tokenizer)
    return tokens.model_copy(update={"remap": remap, "tokenizer": tokenizer})


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _absolute_model(name: str) -> str:
    """A model's path made absolute, with `#PART`; the name of a published or an outside model as it is."""
    given, sharp, part = name.partition("#")
    path = Path(given).expanduser()
    there = (os.sep in given or path.suffix) and (path.is_file() or path.is_dir())
    return f"{path.absolute()}{sharp}{part}" if there else name


def apply_overrides(model: type[Settings], settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Put single settings over others.

    Args:
        model: what the settings are of.
        settings: as a config file has them; not changed.
        overrides: dotted keys and their values. Whole sections (`labels`) go before keys in them.

    Returns:
        The settings, not validated yet.

    Raises:
        ConfigError: a key is overridden in a section that is overridden with something that has no keys.
    """
    merged = dict(settings)
    for dotted in sorted(overrides, key=lambda key: (key.count("."), not key.endswith(".kind"), key)):
        section, _, key = dotted.partition(".")
        if not key:
            merged[section] = overrides[dotted]
            continue
        if section == "source" and "source" not in merged and isinstance(merged.get("sources"), list):
            merged["sources"] = [_with_key(each, key, overrides[dotted]) for each in merged["sources"]]
            continue
        inner = _keys_of(section, merged.get(section))
        if inner is None:
            if section in overrides:
                raise ConfigError(
                    f"{dotted} and {section} = {overrides[section]!r} contradict each other; give one of them"
                )
            inner = {}
        if key == "kind" and inner.get("kind", overrides[dotted]) != overrides[dotted]:
            inner = _known_to(model, section, overrides[dotted], inner)
        merged[section] = inner | {key: overrides[dotted]}
    return merged


def _with_key(settings: object, key: str, value: object) -> object:
    return {**settings, key: value} if isinstance(settings, Mapping) else settings


def _keys_of(section: str, value: object) -> dict[str, Any] | None:
    if section == "models" and isinstance(value, str) and value in MODEL_PRESETS:
        return MODEL_PRESETS[value].model_dump()
    return dict(value) if isinstance(value, Mapping) else None


def _known_to(model: type[Settings], section: str, kind: object, settings: Mapping[str, Any]) -> dict[str, Any]:
    field = model.model_fields.get(section)
    chosen = sections(field).get(str(kind)) if field is not None else None
    known = chosen.model_fields if chosen is not None else settings
    # a split's name is one of its kind's
    return {key: value for key, value in settings.items() if key in known and key != "split"}

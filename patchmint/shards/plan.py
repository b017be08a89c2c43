"""The plan's index, `plan.parquet`: a row a unit, and what the plan was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.errors import ConfigError, NotFoundError, ShardError
from patchmint.json_values import canonical_json, differences
from patchmint.shards.paths import plan_path
from patchmint.shards.versions import VERSION, schema_name, version_of
from patchmint.storage import Storage, uri_of

if TYPE_CHECKING:  # takes longer to import than all that readers of plans need
    from patchmint.config.build import BuildConfig

_COLUMNS = pa.schema(
    [
        pa.field("unit", pa.int64(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("first_ordinal", pa.int64(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("row_group", pa.int64(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class ModelRecord:
    """A model, or a file that models use, and what tells it from others.

    Attributes:
        role: detector, vocabulary, masker, segmenter, tokenizer, vit; remap for a list of used codes;
            extended for the manifest of the data set that is extended.
        name: as in the config.
        sha256: of its file, hexadecimal; empty where there is no file.
        size: bytes of its file; 0 where there is none.
        licence: as its publisher states; empty where it isn't known.
        distribution: name and version of the outside package that brings it; empty for models of files.
    """

    role: str
    name: str
    sha256: str = ""
    size: int = 0
    licence: str = ""
    distribution: str = ""

    @property
    def fingerprint(self) -> str:
        """What decides whether another model is the same one."""
        return self.sha256 or self.distribution or self.name


@dataclass(frozen=True)
class Unit:
    """A slice of the source that becomes one shard.

    Attributes:
        id: number, unique over the plan and its retry plans.
        samples: how many samples it has.
        first_ordinal: ordinal of its first sample. In a retry plan the others don't follow it without gaps.
        part: path of the file with its samples.
        row_group: where in that file.
        images: of its documents, those that can't be read included; 0 of pictures.
    """

    id: int
    samples: int
    first_ordinal: int
    part: str
    row_group: int
    images: int = 0

    @property
    def name(self) -> str:
        """The id as in file names: "000003"."""
        return f"{self.id:06d}"


@dataclass(frozen=True)
class Plan:
    """What is to be built.

    Attributes:
        generation: 0; of the k-th retry plan k.
        units: in order of their ids.
        config: the settings that decide the data set's bytes (`BuildConfig.deciding`).
        config_digest: `BuildConfig.digest` with the models' fingerprints.
        models: by role.
        versions: of the libraries that the plan was made with.
        absent: what of the source is no sample, by reason (`Absent`); of a retry plan nothing.
        compiled: whether models are compiled where they run on a GPU: that may change the last bits of their sums, so
            whoever goes on with the plan does the same.
        version: of the format.
        digest: SHA-256, hexadecimal, of all this.
        total: number of samples.
        images: number of images of documents; 0 where samples are pictures.
    """

    generation: int
    units: Sequence[Unit] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    config_digest: str
    models: Mapping[str, ModelRecord] = field(repr=False)
    versions: Mapping[str, str] = field(repr=False)
    absent: Mapping[str, int] = field(default_factory=dict, repr=False)
    compiled: bool = False
    version: int = VERSION

    @cached_property
    def total(self) -> int:
        """Number of samples in all units."""
        return sum(unit.samples for unit in self.units)

    @cached_property
    def images(self) -> int:
        """Number of images of the documents in all units."""
        return sum(unit.images for unit in self.units)

    @cached_property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of all the rest; the parts' names stand for their content."""
        units = [
            [unit.id, unit.samples, unit.first_ordinal, unit.part, unit.row_group, *([unit.images] * bool(unit.images))]
            for unit in self.units
        ]
        models = {role: asdict(record) for role, record in self.models.items()}
        name = schema_name("plan", self.version)
        content = [name, self.generation, self.config, self.config_digest, models, dict(self.versions), units]
        if self.version > 1:
            content.append(dict(self.absent))
        if self.compiled:  # others say what they did before there was a choice
            content.append("compiled")
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    def check_same(self, config: BuildConfig, models: Mapping[str, ModelRecord]) -> None:
        """Check that a build with these settings and models goes on with this plan.

        Args:
            config: the present settings.
            models: the present models, as `record_models` found them.

        Raises:
            ConfigError: something that decides the bytes differs; the message names each such key.
        """
        if self.version < VERSION:
            raise ConfigError(
                f"the build in {config.output.uri} was begun by an earlier patchmint, in format {self.version}. It can "
                "be read, inspected and extended; finish it with that patchmint, or build into another output.uri"
            )
        if self.is_of(config, models):
            return
        raise ConfigError(
            f"{config.output.uri} holds a build with other settings:\n  "
            + "\n  ".join(self.changes(config, models))
            + "\nGo on with it with the same settings, or build into another output.uri"
        )

    def is_of(self, config: BuildConfig, models: Mapping[str, ModelRecord]) -> bool:
        """Whether it is the plan of these settings and models, as for `check_same`."""
        return config.digest(fingerprints(models)) == self.config_digest and self._compiles_as(config)

    def changes(self, config: BuildConfig, models: Mapping[str, ModelRecord]) -> list[str]:
        """What decides the bytes and differs, a line each; arguments as for `check_same`."""
        lines = differences(self.config, config.deciding())
        for role in sorted(self.models.keys() & models.keys()):
            old, new = self.models[role], models[role]
            if (old.name == new.name or role == "extended") and old.fingerprint != new.fingerprint:
                lines.append(f"models.{role}: content {old.fingerprint} there, {new.fingerprint} here")
        if not self._compiles_as(config):
            there, here = (str(each).lower() for each in (self.compiled, config.runner.compile))
            lines.append(f"runner.compile: {there} there, {here} here")
        return lines

    def _compiles_as(self, config: BuildConfig) -> bool:
        return config.runner.compile in (None, self.compiled)


def planned_sources(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of each source, of a plan's config or a manifest's."""
    return list(config.get("sources") or [config["source"]])


def fingerprints(models: Mapping[str, ModelRecord]) -> dict[str, str]:
    """What tells each model's content, by role."""
    return {role: record.fingerprint for role, record in models.items()}


def write_index(plan: Plan) -> bytes:
    """The bytes of the plan's index file; equal for equal plans."""
    metadata = {
        "patchmint.schema": schema_name("plan", plan.version),
        "patchmint.generation": str(plan.generation),
        "patchmint.plan_digest": plan.digest,
        "patchmint.config": canonical_json(plan.config),
        "patchmint.config_digest": plan.config_digest,
        "patchmint.models": canonical_json({role: asdict(record) for role, record in plan.models.items()}),
        "patchmint.versions": canonical_json(dict(plan.versions)),
        "patchmint.absent": canonical_json(dict(plan.absent)),
        **({"patchmint.compiled": "true"} if plan.compiled else {}),
    }
    columns: dict[str, list[int] | list[str]] = {
        "unit": [unit.id for unit in plan.units],
        "samples": [unit.samples for unit in plan.units],
        "first_ordinal": [unit.first_ordinal for unit in plan.units],
        "part": [unit.part for unit in plan.units],
        "row_group": [unit.row_group for unit in plan.units],
        "images": [unit.images for unit in plan.units],
    }
    buffer = BytesIO()
    table = pa.table(columns, schema=_COLUMNS.with_metadata(metadata))
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def load_plan(storage: Storage, generation: int = 0) -> Plan | None:
    """Read a plan.

    Args:
        storage: the output.
        generation: 0 = the plan; k = the k-th retry plan.

    Returns:
        The plan, or None where none was made yet.

    Raises:
        ShardError: the file is damaged, or of another program or version.
    """
    path = plan_path(generation)
    try:
        data = storage.read(path)
    except NotFoundError:
        return None
    try:
        plan, digest = _parse(data)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(storage, path, str(error)) from error
    if plan.generation != generation or plan.digest != digest:
        raise _damaged(storage, path, "its content isn't what its digest says")
    return plan


def load_plans(storage: Storage) -> list[Plan]:
    """Read the plan and every retry plan, in order; empty where no plan was made yet.

    Raises:
        ShardError: as for `load_plan`; or two plans have the same unit.
    """
    plans: list[Plan] = []
    units: set[int] = set()
    while (plan := load_plan(storage, len(plans))) is not None:
        own = {unit.id for unit in plan.units}
        if units & own:
            raise _damaged(storage, plan_path(len(plans)), "an earlier plan has units of the same numbers")
        units |= own
        plans.append(plan)
    return plans


def _parse(data: bytes) -> tuple[Plan, str]:
    # pq.read_table takes twice as long to import what it needs; pyarrow's threads aren't worth starting for some kB.
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    table = file.read(use_threads=False)
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    version = version_of("plan", metadata.get("patchmint.schema"))
    columns = table.to_pydict()
    named = [columns[name] for name in _COLUMNS.names if name != "images"]
    units = [Unit(*values) for values in zip(*named, columns.get("images", [0] * table.num_rows), strict=True)]
    plan = Plan(
        generation=int(metadata["patchmint.generation"]),
        units=tuple(units),
        config=json.loads(metadata["patchmint.config"]),
        config_digest=metadata["patchmint.config_digest"],
        models={role: ModelRecord(**record) for role, record in json.loads(metadata["patchmint.models"]).items()},
        versions=json.loads(metadata["patchmint.versions"]),
        absent=json.loads(metadata["patchmint.absent"]) if version > 1 else {},
        compiled="patchmint.compiled" in metadata,
        version=version,
    )
    return plan, metadata["patchmint.plan_digest"]


def _damaged(storage: Storage, path: str, why: str) -> ShardError:
    return ShardError(
        f"{path} in {storage.uri} can't be used: {why}. Bring it back from a copy, or build into another output.uri",
        uri=uri_of(storage, path),
    )

"""Which models a build uses, down to their bytes, and which versions of the libraries around them."""

from __future__ import annotations

import hashlib
import platform
import socket
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from patchmint.config import UNTRAINED, AnnotatorConfig, BuildConfig
from patchmint.config.annotator import role_of
from patchmint.datasets.extension import extended_manifest
from patchmint.errors import BuildError, WeightsMissingError
from patchmint.json_values import canonical_json
from patchmint.plugins import find_plugin, group_of, is_outside, package_of
from patchmint.shards.plan import ModelRecord
from patchmint.version import __version__
from patchmint.weights.checksums import recorded_sha256, sha256_of
from patchmint.weights.folder import notes_beside
from patchmint.weights.registry import CHECKPOINTS
from patchmint.weights.store import locate

_LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "groundingdino-py",
    "segment-anything",
    "simplejpeg",
    "taming-transformers",
    "numpy",
    "pillow",
    "pyarrow",
)

_SAVED_BY_COMPILING = {"detector": 0.75e-3, "masker": 0.27e-3}
"""Seconds of an image on a GPU, for each GB of the model's file: modelled (docs/performance.md), for one text."""
_COMPILING_SECONDS = 300
"""Of a worker, at most; the next one on the same machine finds most of it on disk."""
_PAYS = 10
"""Times that; for so many workers it still doesn't cost more than it gains."""


def record_models(config: AnnotatorConfig) -> dict[str, ModelRecord]:
    """Find every model of a config and hash its file, which takes a second or so a gigabyte.

    Returns:
        By role.

    Raises:
        WeightsMissingError: a file isn't on this machine.
        PluginError: an outside model isn't installed.
    """
    plugins = config.models.plugins
    records = {
        role: _record(role, name, plugins[name].checkpoint if name in plugins else None)
        for role, name in config.models_used.items()
    }
    described = ((f"{role}-config", record, _notes(role, record)) for role, record in [*records.items()])
    records |= {role: ModelRecord(role, record.name, *_digest(notes)) for role, record, notes in described if notes}
    if "segmenter" in records and not records["segmenter"].distribution:
        name = records["segmenter"].name
        words = locate(name).with_name("tokenizer.json")
        records["segmenter-vocabulary"] = _file_record("segmenter-vocabulary", name, words)
    for name, tokens in config.tokenizers.items():
        if tokens.remap is not None:
            role = role_of("remap", name)
            records[role] = _file_record(role, tokens.remap, Path(tokens.remap).expanduser())
    presence = config.labels.presence if config.labels is not None and config.labels.needs_detector else None
    if presence is not None and presence.calibration is not None:
        path = Path(presence.calibration).expanduser()
        records["presence"] = _file_record("presence", presence.calibration, path)
    if isinstance(config, BuildConfig) and config.source and (extended := extended_manifest(config)) is not None:
        data = extended.to_bytes()
        records["extended"] = ModelRecord("extended", config.source.uri, *_digest(data))
    return records


def check_models(config: AnnotatorConfig, planned: Mapping[str, ModelRecord]) -> None:
    """Check that the models here are those that the plan was made with.

    Raises:
        BuildError: one isn't.
        WeightsMissingError, PluginError: as for `record_models`.
    """
    for role, record in record_models(config).items():
        expected = planned.get(role)
        here, there = _told(record), _told(expected) if expected is not None else "none"
        if here != there:
            raise BuildError(
                f"the {role} {record.name!r} on {socket.gethostname()} isn't the one that the plan was made with "
                f"({here} here, {there} in the plan); put the same file or package on every machine"
            )


def _notes(role: str, record: ModelRecord) -> bytes:
    """What lies beside the weights of a model of your own and says what it is, as bytes; empty where nothing does."""
    if role == "vocabulary" or record.distribution or record.name == UNTRAINED or record.name in CHECKPOINTS:
        return b""
    notes = notes_beside(locate(record.name))
    return canonical_json(notes).encode() if notes else b""


def _digest(data: bytes) -> tuple[str, int]:
    return hashlib.sha256(data).hexdigest(), len(data)


def _told(record: ModelRecord) -> str:
    """What tells a model from others: of a plug-in with a checkpoint, both."""
    return " ".join(filter(None, (record.sha256, record.distribution))) or record.name


def compile_pays(images: int, models: Mapping[str, ModelRecord]) -> bool:
    """Whether a build of so many images on GPUs should compile its models where the settings leave that open."""
    gigabytes = {role: record.size / 1e9 for role, record in models.items()}
    saved = sum(gigabytes.get(role, 0.0) * seconds for role, seconds in _SAVED_BY_COMPILING.items())
    return images * saved > _PAYS * _COMPILING_SECONDS


def library_versions() -> dict[str, str]:
    """Versions of what labels and codes depend on, read without importing any of it."""
    own = {"patchmint": __version__, "python": platform.python_version()}
    return own | {name: _installed(name) for name in _LIBRARIES}


@cache  # a build asks twice, and each time takes a millisecond
def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _record(role: str, name: str, checkpoint: str | None) -> ModelRecord:
    if is_outside(role, name):
        return _plugin_record(role, name, checkpoint)
    if name == UNTRAINED:
        return ModelRecord(role, name)
    return _file_record(role, name, locate(name, role))


def _plugin_record(role: str, name: str, checkpoint: str | None) -> ModelRecord:
    group = group_of(role)
    assert group is not None
    package, licence = package_of(find_plugin(group, name))
    record = ModelRecord(role, name, distribution=package, licence=licence)
    if checkpoint is None:
        return record
    file = _file_record(role, checkpoint, locate(checkpoint))
    return replace(record, sha256=file.sha256, size=file.size, licence=file.licence or licence)


def _file_record(role: str, name: str, path: Path) -> ModelRecord:
    try:
        # what was fetched from a store was hashed when it came
        known = recorded_sha256(path) if "://" in name else None
        sha256, size = known or sha256_of(path), path.stat().st_size
    except OSError as error:
        raise WeightsMissingError(
            f"the {role} file {path} can't be read: {error.strerror or error}; check the path and its permissions",
            names=[name],
        ) from error
    licences = (checkpoint.licence for checkpoint in CHECKPOINTS.values() if checkpoint.sha256 == sha256)
    return ModelRecord(role, name, sha256, size, next(licences, ""))

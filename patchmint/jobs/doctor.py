"""Is everything here that a build needs? What fails, and the command that mends it."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from patchmint.compute.devices import describe_devices
from patchmint.config.build import BuildConfig, RayRunner
from patchmint.config.parsing import read_yaml
from patchmint.errors import ConfigError, PatchmintError
from patchmint.jobs.cluster_probe import probe_cluster
from patchmint.pipeline.preflight import CHECKS
from patchmint.storage import creates_conditionally, open_storage
from patchmint.storage.local import LocalStorage, existing_folder
from patchmint.weights.registry import CHECKPOINTS
from patchmint.weights.store import REINSTALL, check_file, file_of

_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision.ops",
    "transformers": "transformers",
    "groundingdino-py": "groundingdino.util.misc",
    "segment-anything": "segment_anything",
    "taming-transformers": "taming.modules.diffusionmodules.model",
    "pyarrow": "pyarrow.parquet",
    "obstore": "obstore",
    "ray": "ray",
}

_LOW_DISK = 10e9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: such as "Ray".
        status: ok; note = worth knowing, nothing is broken; fail.
        detail: what was found.
        remedy: the command or setting that mends it; empty if nothing is to mend, or the detail says how.
    """

    what: str
    status: Literal["ok", "note", "fail"]
    detail: str
    remedy: str = ""


def examine_file(path: Path | None, out: str | None) -> Iterator[Finding]:
    """As `examine`, with a config file, in which each wrong setting is a finding.

    Raises:
        ConfigError: the file can't be read.
    """
    settings = read_yaml(path) if path is not None else None
    config = None
    try:
        config = BuildConfig.load(settings).absolute() if settings is not None else None
    except ConfigError as error:
        yield from (Finding("settings", "fail", problem) for problem in error.problems)
    yield from examine(config, out)


def examine(config: BuildConfig | None, out: str | None) -> Iterator[Finding]:
    """Look at everything.

    Args:
        config: the build that is to run; None = look at what every build needs.
        out: an output to look at; None = the config's, if there is one.
    """
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package, module in _PACKAGES.items():
        yield _package(package, module)
    gpus = describe_devices()
    if gpus:
        yield Finding("GPU", "ok", "; ".join(gpus))
    else:
        remedy = "nothing, if you mean to run on the CPU; else look at `nvidia-smi` and at torch's CUDA version"
        yield Finding("GPU", "note", "torch sees no GPU here; models run on the CPU", remedy)
    yield _ray_token()
    yield _ray_cluster(config)
    yield _demo_models()
    if config is not None:
        yield from _checks(config)
    uri = out or (config.output.uri if config else None)
    if uri:
        yield from _output(uri)


def _package(package: str, module: str) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
        return Finding(package, "ok", version(package))
    except Exception as error:  # whatever a broken installation raises
        reason = f"import {module}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return Finding(package, "fail", reason, "make setup (or: pip install --force-reinstall patchmint)")


def _ray_token() -> Finding:
    mode = os.environ.get("RAY_AUTH_MODE", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if mode == "disabled":
        return Finding("Ray token", "note", "RAY_AUTH_MODE=disabled: whoever reaches the cluster's ports can run code")
    if os.environ.get("RAY_AUTH_TOKEN") or path.is_file():
        where = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(path)
        if mode == "token":
            return Finding("Ray token", "ok", f"from {where}")
        remedy = "export RAY_AUTH_MODE=token   (or `ray job submit` answers: Missing authentication token)"
        return Finding("Ray token", "note", f"found in {where}, but RAY_AUTH_MODE isn't set", remedy)
    remedy = "`ray start --head` writes one here; for a cluster elsewhere copy its token: export RAY_AUTH_TOKEN=..."
    return Finding("Ray token", "note", "none on this machine", remedy)


def _ray_cluster(config: BuildConfig | None) -> Finding:
    runner = config.runner if config is not None and isinstance(config.runner, RayRunner) else None
    address = (runner.address if runner else None) or os.environ.get("RAY_ADDRESS") or "auto"
    cluster = probe_cluster(address)
    if cluster.problem:
        refused = "Unauthenticated" in cluster.problem or "authentication" in cluster.problem.lower()
        remedy = "ray start --head   (runner.kind: local needs no Ray)"
        if refused:
            remedy = "export RAY_AUTH_MODE=token and give the head's token: RAY_AUTH_TOKEN, or ~/.ray/auth_token"
        return Finding("Ray cluster", "fail" if runner else "note", f"at {address!r}: {cluster.problem}", remedy)
    detail = f"{cluster.nodes} nodes, {cluster.cpus:g} CPU, {cluster.gpus:g} GPU"
    if runner and runner.num_gpus > cluster.gpus:
        remedy = "--runner.num-gpus 0 runs on CPUs; with an autoscaler nothing is to do"
        return Finding("Ray cluster", "note", f"{detail}; an actor asks for {runner.num_gpus:g} GPU", remedy)
    return Finding("Ray cluster", "ok", detail)


def _demo_models() -> Finding:
    bundled = [checkpoint for checkpoint in CHECKPOINTS.values() if checkpoint.bundled]
    checks = {checkpoint.name: check_file(file_of(checkpoint), checkpoint) for checkpoint in bundled}
    wrong = [f"{name}: {found.detail}" for name, found in checks.items() if found.status != "ok"]
    if wrong:
        return Finding("demo models", "fail", "; ".join(wrong), REINSTALL)
    return Finding("demo models", "ok", f"in the package and whole: {', '.join(checks)}")


def _checks(config: BuildConfig) -> Iterator[Finding]:
    """What a build would be refused for."""
    models = ", ".join(f"{role} {name}" for role, name in config.models_used.items())
    found = {
        "model files": f"{models}; {config.notice}" if config.notice else models,
        "source": f"{config.source.kind}, {config.source.uri}",
    }
    for what, check in CHECKS.items():
        try:
            check(config)
        except PatchmintError as error:
            lines = str(error).splitlines()
            commands = [line.strip() for line in lines if line.startswith("  ")]
            yield Finding(what, "fail", lines[0] if commands else str(error), " ".join(commands))
        else:
            if what in found:
                yield Finding(what, "note" if what == "model files" and config.notice else "ok", found[what])


def _output(uri: str) -> Iterator[Finding]:
    try:
        storage = open_storage(uri)
        conditional = creates_conditionally(storage)
    except PatchmintError as error:
        yield Finding("output", "fail", str(error), "check the path, its permissions, or the store's credentials")
        return
    if not conditional:
        detail = f"{uri} ignores If-None-Match: two builds into it could overwrite each other"
        yield Finding("output", "fail", detail, "use another store, or see to it that one driver runs: --single-driver")
        return
    yield Finding("output", "ok", f"{uri} can be written, and creates conditionally")
    if isinstance(storage, LocalStorage):
        yield _disk(existing_folder(storage.root))


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if free < _LOW_DISK:
        return Finding(
            "disk", "note", f"{free / 1e9:.1f} GB free at {folder}", "make room, or choose another output.uri"
        )
    return Finding("disk", "ok", f"{free / 1e9:.0f} GB free")

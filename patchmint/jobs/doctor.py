"""Is everything here that a build needs? What fails, and the command that mends it."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Literal

from patchmint.compute.devices import describe_devices
from patchmint.config.build import BuildConfig, RayRunner
from patchmint.config.parsing import read_yaml
from patchmint.errors import ConfigError, PatchmintError
from patchmint.images.decode import decode_image
from patchmint.images.reading import read_sample
from patchmint.jobs.cluster_probe import probe_cluster
from patchmint.jobs.printable import many
from patchmint.pipeline.driver.build import UNSYNCED
from patchmint.pipeline.preflight import CHECKS
from patchmint.pipeline.sources import open_sources
from patchmint.plugins import shown
from patchmint.samples import Fault, SourceSample, count_parts
from patchmint.storage import creates_conditionally, open_storage, syncs_names
from patchmint.storage.hub import is_on_hub, staging_folder
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

_SAMPLES = 1000
_FOUND = 100_000
"""Most to look through for samples that are chosen."""
"""Most samples of a source to look at."""

_IMAGES = 5
"""Most of their images to try, until one can be read."""


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
    yield _ray_token(config)
    yield _ray_cluster(config)
    yield _demo_models()
    if config is not None:
        yield from _checks(config)
    uri = out or (config.output.uri if config else None)
    if uri:
        yield from _output(str(staging_folder(uri)) if is_on_hub(uri) else uri)


def _package(package: str, module: str) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
        return Finding(package, "ok", version(package))
    except Exception as error:  # whatever a broken installation raises
        reason = f"import {module}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return Finding(package, "fail", reason, "make setup (or: pip install --force-reinstall patchmint)")


def _ray_token(config: BuildConfig | None) -> Finding:
    """What Ray 2.60 makes of its variables: `token` turns authentication on; unset, a token that is there does so."""
    mode = os.environ.get("RAY_AUTH_MODE")
    where, blank = _token_place()
    needed: Literal["fail", "note"] = "fail" if config is not None and isinstance(config.runner, RayRunner) else "note"
    generate = (
        "ray get-auth-token --generate   (for a cluster elsewhere copy its token into ~/.ray/auth_token, or export "
        "RAY_AUTH_TOKEN)"
    )
    if blank and os.environ.get("RAY_AUTH_TOKEN_PATH"):
        remedy = "write the token there, or unset RAY_AUTH_TOKEN_PATH"
        return Finding("Ray token", needed, f"RAY_AUTH_TOKEN_PATH={where} is no file with a token: Ray stops", remedy)
    match (mode or "").lower(), blank:
        case "token", True:
            return Finding("Ray token", needed, "RAY_AUTH_MODE=token, but there is none: Ray stops", generate)
        case "token", False:
            return Finding("Ray token", "ok", f"from {where}")
        case _ if mode is not None:
            detail = f"RAY_AUTH_MODE={mode}: whoever reaches the ports of a cluster started here can run code"
            return Finding("Ray token", "note", detail, "unset RAY_AUTH_MODE, or export RAY_AUTH_MODE=token")
        case _, True:
            detail = (
                "none on this machine: `ray start --head` starts a cluster without authentication, in which whoever "
                "reaches its ports can run code"
            )
            return Finding("Ray token", "note", detail, generate)
    detail = (
        f"from {where}, for clusters on this machine; without RAY_AUTH_MODE=token neither `ray job submit`, nor a node "
        "that joins (`ray start --address`), nor an address of a cluster elsewhere uses it"
    )
    return Finding("Ray token", "note", detail, "export RAY_AUTH_MODE=token")


def _token_place() -> tuple[str, bool]:
    """Where Ray looks for its token, and whether there is nothing."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN", not os.environ["RAY_AUTH_TOKEN"].strip()
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        return str(path), not path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return str(path), True


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
    models = ", ".join(f"{role} {shown(role, name)}" for role, name in config.models_used.items())
    found = {
        "model files": f"{models}; {config.notice}" if config.notice else models,
    }
    for what, check in CHECKS.items():
        try:
            check(config)
        except PatchmintError as error:
            lines = str(error).splitlines()
            commands = [line.strip() for line in lines if line.startswith("  ")]
            yield Finding(what, "fail", lines[0] if commands else str(error), " ".join(commands))
        else:
            if what == "source":
                yield _source(config)
            elif what in found:
                yield Finding(what, "note" if what == "model files" and config.notice else "ok", found[what])


def _source(config: BuildConfig) -> Finding:
    """What the first samples of a source are like, once its settings are known to fit."""
    shown = "; ".join(f"{source.kind}, {source.uri}" for source in config.all_sources)
    try:
        source = open_sources(config)
        source.check()
    except PatchmintError as error:
        return Finding("source", "note", f"{error}; the plan in {config.output.uri} was made from it before")
    try:
        # what isn't chosen may be most of it, and isn't looked through to its end
        found = islice(source.samples(), _FOUND)
        samples = list(islice((each for each in found if isinstance(each, SourceSample)), _SAMPLES + 1))
    except PatchmintError as error:
        return Finding("source", "fail", str(error))
    seen = samples[:_SAMPLES]
    faults = Counter(sample.fault.reason for sample in seen if sample.fault is not None)
    good = [sample for sample in seen if sample.fault is None]
    counted = f"{shown}: {'the first ' if len(samples) > _SAMPLES else ''}{many(len(seen), 'sample')} looked at"
    if faults:
        reasons = ", ".join(f"{count} {reason}" for reason, count in faults.most_common())
        counted += f", of which {faults.total()} would be rejected ({reasons})"
    if not good:
        return Finding("source", "fail", counted, "docs/sources.md says what a source holds, and what the reasons mean")
    problems = []
    decode = partial(decode_image, max_megapixels=config.limits.max_image_megapixels)
    for sample in good[:_IMAGES]:
        try:
            read = read_sample(sample, lambda _, ref: source.read_image(ref), decode, drop=True)
        except PatchmintError as error:
            problems.append(f"{sample.id}: {error}")
            continue
        if isinstance(read, Fault):
            problems.append(f"{sample.id}: {read.message}")
        else:
            height, width = read.images[0].image.size
            texts = many(len(sample.texts), "text")
            counted += f"; {sample.id} has {width} x {height} pixels and {texts}"
            break
    else:
        return Finding(
            "source", "fail", f"{counted}; none of the first {len(problems)} images can be read", problems[0]
        )
    if problems or faults.total() - count_parts(faults) > config.limits.max_reject_share * len(seen):
        remedy = problems[0] if problems else "the build stops above limits.max_reject_share"
        return Finding("source", "note", counted, remedy)
    return Finding("source", "ok", counted)


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
    if syncs_names(storage):
        yield Finding("output", "ok", f"{uri} can be written, and creates conditionally")
    else:
        yield Finding("output", "note", UNSYNCED.format(uri), "nothing, if that machine's power is safe")
    if isinstance(storage, LocalStorage):
        yield _disk(existing_folder(storage.root))


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if free < _LOW_DISK:
        return Finding(
            "disk", "note", f"{free / 1e9:.1f} GB free at {folder}", "make room, or choose another output.uri"
        )
    return Finding("disk", "ok", f"{free / 1e9:.0f} GB free")

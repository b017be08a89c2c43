"""`patchmint models`: list, pull and check weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from patchmint.cli.lazy import examples
from patchmint.config import MODEL_PRESETS, OFFICIAL, SMALL
from patchmint.errors import InputError
from patchmint.plugins import GROUPS, find_plugin, package_of, plugin_names
from patchmint.tokenizers.vqgan.arch import OFFICIAL as OFFICIAL_VQGANS
from patchmint.weights import hub
from patchmint.weights.download import ProgressCall, pull
from patchmint.weights.registry import CHECKPOINTS, FOLDERS, GIVES, Checkpoint, total_size
from patchmint.weights.store import (
    FOLDER_VARIABLE,
    REINSTALL,
    FileCheck,
    check_file,
    file_of,
    locate,
    named_checkpoint,
    weights_folder,
)

_PLUGINS_GIVE = {
    "detector": "boxes, scores",
    "masker": "masks",
    "segmenter": "masks, boxes, scores",
    "tokenizer": "codes",
    "vit": "features",
}
_NOT_PUBLISHED = "not published"
_PIPED_WIDTH = 140
_PLAIN_STEP = 0.1
_LEAST_SHOWN_AS_MB = 100_000

models_app = typer.Typer(
    name="models",
    help="List, pull and check weights (Grounding DINO, SAM, VQGAN): the official ones, and the demo's in the package.",
    epilog=examples("patchmint models list", "patchmint models pull small"),
    no_args_is_help=True,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, with full addresses and checksums.")]


@models_app.command("list", epilog=examples("patchmint models list", "patchmint models list --json"))
def list_models(as_json: JsonOption = False) -> None:
    """Show every checkpoint, which of them are on this machine, and the plug-ins that are installed."""
    if as_json:
        typer.echo(json.dumps([*map(_as_dict, CHECKPOINTS.values()), *_plugins()], indent=2))
        return
    table = Table(Column("name", no_wrap=True), "kind", "gives", "size", "present", "licence")
    for checkpoint in CHECKPOINTS.values():
        size, present = _shown_size(checkpoint.size), _presence(checkpoint)
        rule = f" ({rule})" if (rule := _rule(checkpoint)) else ""
        gives = GIVES[checkpoint.kind]
        table.add_row(checkpoint.name, checkpoint.kind + rule, gives, size, present, checkpoint.licence)
    for each in _plugins():
        table.add_row(each["name"], each["kind"], each["gives"], "its own", each["source"], each["licence"])
    _print_table(table)
    typer.echo(
        f"Folder: {weights_folder()} ({FOLDER_VARIABLE} chooses another). Addresses, checksums: --json", err=True
    )
    for preset in (OFFICIAL, SMALL):
        names = _of_preset(preset)
        typer.echo(f"Preset {preset} ({total_size(names)}): {' '.join(names)}", err=True)
    typer.echo("Besides, from folders of Hugging Face's layout or hub:ORG/NAME, by their model_type:", err=True)
    for role, gives, families in FOLDERS:
        typer.echo(f"  {role}: {', '.join(families)} ({gives})", err=True)


@models_app.command(
    "pull",
    epilog=examples(
        "patchmint models pull small",
        "patchmint models pull official clip-vit-l-14-336",
        "patchmint models pull hub:facebook/sam2.1-hiera-large",
        "patchmint models pull sam-vit-b --to /data/weights",
        "patchmint models pull sam-vit-b --url https://mirror.example/sam_vit_b.pth",
    ),
)
def pull_models(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Names that `patchmint models list` shows; presets: official or small, all that labels and codes "
            "need; or hub:ORG/NAME[@REVISION], which goes to the Hugging Face Hub's cache.",
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder to put the files in.", show_default="the weights folder")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Download from this mirror; for one NAME only.")] = None,
) -> None:
    """Download weights, verified before they get their final name. A broken download is resumed by the same command.

    Prints the path of each file on stdout. Those that come with patchmint stay where they are.
    """
    for name in (name for name in names if name.startswith(hub.PREFIX)):
        typer.echo(str(locate(name)))
    checkpoints = _named(name for name in names if not name.startswith(hub.PREFIX))
    if url is not None and len(checkpoints) > 1:
        raise InputError("--url is for one NAME only; pull the names one by one")
    folder = to.expanduser() if to is not None else weights_folder()
    for checkpoint in checkpoints:
        if checkpoint.bundled:
            path = pull(checkpoint, folder, notice=_say)
        else:
            with _progress(checkpoint) as (progress, notice):
                path = pull(checkpoint, folder, url=url, progress=progress, notice=notice)
        typer.echo(str(path))
    if folder != weights_folder() and not all(checkpoint.bundled for checkpoint in checkpoints):
        typer.echo(f"To use them by name, set {FOLDER_VARIABLE}={folder}", err=True)


@models_app.command("check", epilog=examples("patchmint models check", "patchmint models check small --json"))
def check_models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Names or presets; all if none is given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the files in the weights folder and the package: size, sha256, and that they are checkpoints at all.

    Ends with 1 if a file is wrong, or if a file is absent that was named or comes with patchmint.
    """
    checkpoints = _named(names) if names else list(CHECKPOINTS.values())
    results = [(checkpoint, check_file(file_of(checkpoint), checkpoint)) for checkpoint in checkpoints]
    if as_json:
        typer.echo(json.dumps([_check_dict(checkpoint, found) for checkpoint, found in results], indent=2))
    else:
        table = Table(Column("name", no_wrap=True), "status", "detail")
        for checkpoint, found in results:
            table.add_row(checkpoint.name, found.status, escape(found.detail))
        _print_table(table)
    wrong = [checkpoint for checkpoint, found in results if not _allowed(checkpoint, found, named=bool(names))]
    pulled = [checkpoint.name for checkpoint in wrong if not checkpoint.bundled]
    bundled = [checkpoint.name for checkpoint in wrong if checkpoint.bundled]
    if pulled:
        typer.echo(
            f"Not right: {', '.join(pulled)}. Get them again: patchmint models pull {' '.join(pulled)}", err=True
        )
    if bundled:
        typer.echo(f"Not right: {', '.join(bundled)}. They come with patchmint: {REINSTALL}", err=True)
    if wrong:
        raise typer.Exit(1)


def _named(names: Iterable[str]) -> list[Checkpoint]:
    """The checkpoints of these names and presets, each once."""
    every = [name for given in names for name in (_of_preset(given) if given in MODEL_PRESETS else [given])]
    return [named_checkpoint(name) for name in dict.fromkeys(every)]


def _of_preset(preset: str) -> list[str]:
    return list(MODEL_PRESETS[preset].used(labels=True, tokens=True).values())


def _allowed(checkpoint: Checkpoint, found: FileCheck, *, named: bool) -> bool:
    may_be_absent = not named and not checkpoint.bundled
    return found.status == "ok" or (found.status == "absent" and may_be_absent)


def _rule(checkpoint: Checkpoint) -> str:
    """How a published tokenizer chooses codes; "" of other models."""
    arch = OFFICIAL_VQGANS.get(checkpoint.name)
    return arch.rule if arch is not None else ""


def _presence(checkpoint: Checkpoint) -> str:
    if not file_of(checkpoint).is_file():
        return "no"
    return "bundled" if checkpoint.bundled else "yes"


def _as_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    fields = asdict(checkpoint)
    del fields["filename"]
    path = file_of(checkpoint)
    told = {"gives": GIVES[checkpoint.kind], "rule": _rule(checkpoint)}
    return {**fields, **told, "present": path.is_file(), "path": str(path)}


def _plugins() -> Iterator[dict[str, Any]]:
    """The models of installed packages, as `_as_dict`. None is imported; what weights they have a config says."""
    for role, group in GROUPS.items():
        for name in plugin_names(group):
            package, licence = package_of(find_plugin(group, name))
            told = {"name": name, "kind": f"{role} plug-in", "source": package, "licence": licence}
            unknown = {"url": "", "size": None, "sha256": None, "rule": "", "path": ""}
            yield told | unknown | {"gives": _PLUGINS_GIVE[role], "bundled": False, "present": True}


def _check_dict(checkpoint: Checkpoint, found: FileCheck) -> dict[str, Any]:
    return {"name": checkpoint.name, "path": str(file_of(checkpoint)), **asdict(found)}


def _shown_size(size: int | None) -> str:
    if size is None:
        return _NOT_PUBLISHED
    return f"{size / 1e6:.1f} MB" if size >= _LEAST_SHOWN_AS_MB else f"{size} bytes"


def _print_table(table: Table) -> None:
    """To stdout; in a pipe wide enough that names and checksums aren't cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    console.print(table)


@contextmanager
def _progress(checkpoint: Checkpoint) -> Iterator[tuple[ProgressCall, Any]]:
    """A bar on stderr if that is a terminal, else a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainProgress(checkpoint.name), _say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(checkpoint.name, total=checkpoint.size)

        def update(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield update, lambda line: console.print(escape(line), highlight=False)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


class _PlainProgress:
    """Prints a line for each tenth, or each 100 MB where the total isn't known."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        if done < self._next and done != total:
            return
        of_total = f" of {total / 1e6:.1f} MB ({100 * done // total}%)" if total else " MB"
        _say(f"{self._name}: {done / 1e6:.1f}{of_total}")
        self._next = done + (_PLAIN_STEP * total if total else 100e6)

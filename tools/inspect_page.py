"""Runs the commands of docs/inspect.md again and puts their present output into the page.

Usage: python -m tools.inspect_page, in a folder where `make demo` has built out/demo. Output that the page shortens
with a line "⋮" is shortened at the same places; it is an error if the line after the gap isn't printed any more.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "inspect.md"
WIDTH = 118
CUT = "⋮"
STRICT = (
    "build --source.kind coco --source.uri out/demo/scenes --output.uri out/strict --output.samples-per-shard 25 "
    "--labels.box-threshold 0.5"
)


def run(command: str) -> list[str]:
    """What a command prints on a terminal, then its stderr; without colours and the demo models' notice."""
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(WIDTH)}
    line = ["bash", "-c", f"{sys.executable} -W ignore -m patchmint {command}"]
    with subprocess.Popen(line, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:  # noqa: S603
        os.close(theirs)
        printed = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(ours, 65536):
                printed += chunk
        _, errors = process.communicate()
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;]*m", "", (printed + errors).decode()).replace("\r\n", "\n")
    text = re.sub(r"^demo models: .*?official`\)\n", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line.rstrip() for line in text.rstrip("\n").split("\n")]


def shortened(new: list[str], old: list[str]) -> list[str]:
    """Cut an output where the page cuts the old one."""
    if CUT not in old:
        return new
    kept: list[str] = []
    place = 0
    for number, part in enumerate("\n".join(old).split(f"\n{CUT}\n")):
        lines = part.split("\n")
        if number:
            kept.append(CUT)
            place = next(i for i in range(place, len(new)) if new[i].split()[:2] == lines[0].split()[:2])
        kept += new[place : place + len(lines)]
        place += len(lines)
    return kept


def main() -> None:
    """Bring the page up to date."""
    if not Path("out/strict/dataset.json").exists():
        run(STRICT)
    Path("broken.tar").write_bytes(Path("out/demo/dataset/shards/000001.tar").read_bytes()[:20000])

    def again(found: re.Match[str]) -> str:
        command, old = found[1], found[2].rstrip("\n").split("\n")
        new = shortened(run(command), old)
        text = "\n".join(new).replace(str(Path.cwd()) + "/", "")
        return f"$ patchmint {command}\n{text}\n"

    page = re.sub(r"^\$ patchmint (.*)\n((?:(?!\$ patchmint |```).*\n)*)", again, PAGE.read_text(), flags=re.MULTILINE)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()

"""Every command in docs/inspect.md, on small data sets that lie where the page says."""

import re
import shlex
from pathlib import Path

import pytest
from inspect_data import texted
from shard_data import DOCUMENTS, LAYOUT, configure, make_dataset, make_document, make_sample, renamed
from typer.testing import CliRunner

from patchmint.cli import app
from patchmint.shards.layout import TokensLayout

PAGE = (Path(__file__).parent.parent / "docs" / "inspect.md").read_text()
CONSOLE = re.findall(r"^\$ patchmint (.*)$", PAGE, re.MULTILINE)
SHELL = [
    line.partition("#")[0]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("patchmint ", "", 1).splitlines()
]
FINDINGS = ("inspect diff", "inspect verify broken.tar")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Keys 0 to 9, of which 3 has two texts, codes up to 512, and a document: what the page's commands ask for."""
    tokens = TokensLayout(member="vqgan", grid=(16, 16), codebook_sizes=(512,), preprocessing="pad-256-bicubic")
    layout = LAYOUT.model_copy(update={"tokens": tokens})
    samples = [renamed(make_sample(ordinal, layout=layout), str(ordinal)) for ordinal in range(10)]
    samples[4] = texted(samples[4], "a striped thing")
    for name, last in (("demo/dataset", 10), ("strict", 9)):
        folder = make_dataset(tmp_path / "out" / name, [samples[:5], samples[5:last]], layout=layout)
        configure(folder, grid={"rows": 4, "cols": 6, "patch_px": 14, "fit": "squash"})
    document = renamed(make_document(7, 6), "000007")
    make_dataset(tmp_path / "out" / "demo" / "documents-dataset", [[document]], layout=DOCUMENTS)
    tar = tmp_path / "out" / "demo" / "dataset" / "shards" / "000001.tar"
    (tmp_path / "broken.tar").write_bytes(tar.read_bytes()[:2000])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_every_command_of_the_page(workplace):
    assert len(CONSOLE) >= 12
    for line in CONSOLE:
        command = line.partition(" | ")[0]
        done = CliRunner().invoke(app, shlex.split(command))
        wanted = 1 if command.startswith(FINDINGS) else 0
        assert done.exit_code == wanted, f"{command}: {done.output}\n{done.exception!r}"
    for made in re.findall(r"--(?:png|html|sheet) (\S+)", "\n".join(CONSOLE)):
        assert (workplace / made).stat().st_size > 1000


def test_the_gallery_commands(workplace):
    assert len(SHELL) == 3
    for line in SHELL:
        command = shlex.split(line.removeprefix("patchmint "))
        if "--serve" in command:  # it would wait; test_gallery.py asks a served one
            command = [*command[: command.index("--serve")], "--help"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, f"{command}: {done.output}"
    assert (workplace / "out" / "gallery" / "index.html").is_file()


def test_the_table_names_every_command():
    from patchmint.cli.inspect import COMMANDS

    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(COMMANDS)

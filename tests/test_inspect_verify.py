"""`patchmint inspect verify`: what it prints, and what it ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shard_data import make_dataset, make_reject, make_sample, write_shard
from typer.testing import CliRunner

from patchmint.cli.inspect import inspect_app
from patchmint.errors import InputError


def run(*arguments: object):
    return CliRunner().invoke(inspect_app, ["verify", *map(str, arguments)])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "d", [[make_sample(0), make_sample(1, kind="png")]], {0: [make_reject(2)]})


def test_all_is_well(dataset):
    for target in (dataset, dataset / "shards" / "000000.tar", dataset / "shards"):
        done = run(target, "--deep")
        assert (done.exit_code, done.stdout) == (0, f"{target}: all is well\n")
    assert json.loads(run(dataset, "--json").stdout) == {"dataset": str(dataset), "findings": []}


def test_findings(dataset):
    (dataset / "shards" / "000000.parquet").unlink()
    (dataset / "shards" / "[red]\x1b[2J.tar").write_bytes(b"")
    done = run(dataset)
    assert done.exit_code == 1
    assert "commits/000000.json" in done.stdout
    assert "file-missing" in done.stdout
    assert "[red]\N{REPLACEMENT CHARACTER}[2J.tar" in done.stdout
    assert "\x1b" not in done.stdout
    assert "2 findings" in done.stderr
    found = json.loads(run(dataset, "--json").stdout)["findings"]
    assert {finding["code"] for finding in found} == {"file-missing", "file-stray"}
    assert set(found[0]) == {"shard", "key", "code", "message"}


def test_corrupt_images_are_found_deep(tmp_path):
    tar, _ = write_shard([make_sample(0)])
    damaged = tar.replace(make_sample(0).data[200:300], bytes(100))
    assert damaged != tar
    (tmp_path / "a.tar").write_bytes(damaged[:600] + b"\0" * 400 + damaged[1000:])
    assert run(tmp_path / "a.tar").exit_code == 0
    done = run(tmp_path / "a.tar", "--deep", "--json")
    assert done.exit_code == 1
    assert [f["code"] for f in json.loads(done.stdout)["findings"]] == ["image-damaged"]


def test_images_over_the_builds_limit_are_not_decoded(dataset):
    manifest = dataset / "dataset.json"
    document = json.loads(manifest.read_bytes())
    document["config"]["limits"] = {"max_image_megapixels": 0.001}
    manifest.write_text(json.dumps(document))
    done = run(dataset, "--deep", "--json")
    assert {f["code"] for f in json.loads(done.stdout)["findings"]} == {"image-damaged"}


def test_nothing_to_check(tmp_path):
    for target in (tmp_path, tmp_path / "no", tmp_path / "no.tar"):
        done = run(target)
        assert isinstance(done.exception, InputError), done
        assert str(target) in str(done.exception)


def test_starts_without_torch_and_ray(dataset):
    code = (
        "import sys; from patchmint.cli.inspect import inspect_app\n"
        f"try: inspect_app(['verify', {str(dataset)!r}, '--deep'])\n"
        "except SystemExit as end: print(end.code, [m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"

"""`patchmint label` as a user runs it: in a fork of a process that has imported everything, or in this process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import warm
from PIL import Image
from skimage import data

from patchmint.cli import main

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "docs" / "schemas" / "annotation.schema.json"


def patchmint(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "patchmint", *map(str, arguments)]
    return warm.run(command, cwd=ROOT, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "cat.png"
    Image.fromarray(data.chelsea()[:200, :200]).save(path)
    return path


def test_json_follows_the_documented_schema(photo, tmp_path):
    out = tmp_path / "o.png"
    texts = ("--text", "a cat on a sofa", "--text", "two dogs")
    done = patchmint("label", photo, *texts, "--models", "untrained-tiny", "--out", out, "--json", "--explain")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert document["texts"] == ["a cat on a sofa", "two dogs"]
    assert np.array(document["selector"]).shape == (2, 24, 24)
    counts = [sum(phrase["text_index"] == text for phrase in document["phrases"]) for text in (0, 1)]
    assert [(told["text"], told["boxes"]) for told in document["explanations"]] == [
        *zip(document["texts"], counts, strict=True)
    ]
    assert "mean nothing" in document["notice"]
    assert "mean nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    for path in (out, tmp_path / "o-1.png"):
        with Image.open(path) as picture:
            assert picture.format == "PNG"


def test_schema_in_the_docs_is_todays():
    done = warm.run([sys.executable, "-m", "patchmint.api.document"], cwd=ROOT)
    assert done.stdout == SCHEMA.read_text()


def test_plain_output_is_for_people(photo):
    asked = ("label", photo, "-t", "a cat \x1b[31mred\x1b[0m", "--models", "untrained-tiny", "--explain")
    done = patchmint(*asked, "--labels.phrase-thresholds", "{}", NO_COLOR="1")
    assert "24 boxes; best score 1.00" in done.stdout
    assert done.returncode == 0, done.stderr
    assert "patches kept" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.fixture
def run(photo, monkeypatch, capsys):
    """The command in this process, on untrained models; what it printed."""

    def run(*arguments: object) -> tuple[str, str]:
        given = ("label", photo, "-t", "a cat", "--models", "untrained-tiny", *arguments)
        monkeypatch.setattr(sys, "argv", ["patchmint", *map(str, given)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        return printed.out, printed.err

    return run


def test_options_are_those_of_a_build(run, tmp_path):
    config = tmp_path / "stage1.yaml"
    config.write_text(
        "source: {kind: folder, uri: in}\noutput: {uri: out}\nrunner: {workers: 2}\n"
        "grid: seed-224\ntokens: {size: 64}\nlabels: {box_threshold: 0.9}\n"
    )
    document = json.loads(run("--config", config, "--labels.box-threshold", "0.0", "--json")[0])
    assert np.array(document["selector"]).shape == (1, 16, 16)
    assert np.array(document["codes"]).shape == (8, 8)
    assert min(phrase["score"] for phrase in document["phrases"]) < 0.9
    size = [document["image"]["height"], document["image"]["width"]]
    assert [mask["size"] for mask in document["masks"]] == [size] * len(document["phrases"])
    document = json.loads(run("--config", config, "--json")[0])
    assert min(phrase["score"] for phrase in document["phrases"]) > 0.9


def test_old_option_names_still_work_and_name_the_new_ones(run):
    old = ("--box-threshold", "0.3", "--tokens-size", "64", "--tokens-fit", "crop", "--detector", "untrained-tiny")
    new = ("--labels.box-threshold", "0.3", "--tokens.size", "64", "--tokens.fit", "crop")
    (out_old, err_old), (out_new, err_new) = run(*old, "--json"), run(*new, "--json")
    assert out_old == out_new
    for name in ("labels.box-threshold", "tokens.size", "tokens.fit", "models.detector"):
        assert f"is now --{name};" in err_old
    assert "is now" not in err_new
    assert "--tokens-size" not in run("--help")[0]


def test_what_is_null_is_left_out(run):
    out, _ = run("--labels", "null", "--features.pool", "12")
    assert [line.partition(":")[0] for line in out.splitlines()] == ["codes", "features"]
    out, _ = run("--tokens", "null")
    assert "patches kept" in out
    assert "codes" not in out
    document = json.loads(run("--labels", "null", "--json")[0])
    assert document["selector"] == document["coverage"] == document["phrases"] == []
    assert document["codes"]
    assert json.loads(run("--tokens", "null", "--json")[0])["codes"] == []


def test_several_images_are_one_document(run, photo, tmp_path):
    alone = json.loads(run("--json")[0])
    (tmp_path / "other.png").write_bytes(photo.read_bytes())
    lines = run(tmp_path / "other.png", "--json", "--out", tmp_path / "o.png")[0].splitlines()
    assert [json.loads(line) for line in lines] == [alone, alone]
    assert sorted(path.name for path in tmp_path.glob("o*.png")) == ["o.0.png", "o.1.png", "other.png"]
    assert "other.png" in run(tmp_path / "other.png")[0].replace("\n", "")  # a long path is wrapped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.png", "--text", "a cat"), "missing.png"),
        (("{photo}", "--text", " "), "blank"),
        (("{photo}",), "--text"),
        (("{photo}", "--text", "a cat", "--grid", "llava"), "did you mean"),
        (("{photo}", "--text", "a cat", "--labels.prompt", "words"), "labels.prompt"),
        (("{photo}", "--text", "a cat", "--out", "no/such/folder/o.png"), "no folder"),
        (("{photo}", "--text", "a cat", "--out", "o.jpg"), ".png"),
        (("{photo}", "--text", "a cat", "--out", "{photo}"), "the image itself"),
        (("{photo}", "--text", "a cat", "--max-megapixels", "0.01"), "max_megapixels"),
        (("{photo}", "--text", "a cat", "--models.masker", "no/such.pth"), "no/such.pth"),
        (("{photo}", "--text", "a \udcff cat"), "Unicode"),
        (("{photo}", "--text", "a cat", "--tokens.size", "100"), "multiple"),
        (("{photo}", "--text", "a cat", "--colour"), "--colour"),
        (("{photo}", "--text", "a cat", "--labels", "null", "--out", "o.png"), "`labels` is null"),
        (("{photo}", "--text", "a cat", "--config", "missing.yaml"), "missing.yaml"),
        (("{photo}", "--text", "a cat", "--models.tokenizer", "no-such-thing"), "no-such-thing"),
        ((str(ROOT / "pyproject.toml"), "--text", "a cat"), "JPEG"),
    ],
)
def test_bad_usage_ends_with_2_and_one_message(photo, arguments, message, monkeypatch, capsys):
    filled = [argument.replace("{photo}", str(photo)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["patchmint", "label", *filled, "--models", "untrained-tiny"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert message in " ".join(err.split())
    assert out == ""


def test_missing_weights_end_with_2_and_the_command(photo, tmp_path):
    done = patchmint("label", photo, "--text", "a cat", "--models", "official", PATCHMINT_WEIGHTS=str(tmp_path))
    assert done.returncode == 2
    assert "patchmint models pull" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_has_examples_and_version_is_told():
    done = patchmint("label", "--help", NO_COLOR="1", COLUMNS="120")
    assert done.returncode == 0
    assert "--models official" in done.stdout
    assert patchmint("--version").stdout.startswith("patchmint ")

"""`inspect show`: looking samples up, grids and marks in the terminal, the files that it writes; help pages of all."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from shard_data import LAYOUT, commit_unit, configure, make_dataset, make_sample, renamed, write_plan, write_shard
from typer.testing import CliRunner

from patchmint.cli.inspect import COMMANDS, inspect_app
from patchmint.datasets.dataset import open_dataset
from patchmint.errors import InputError, ShardError
from patchmint.geometry import PatchGrid
from patchmint.geometry.grid import Fit
from patchmint.images.decode import decode_image
from patchmint.inspection import cache as inspection_cache
from patchmint.inspection.show import lookup
from patchmint.inspection.show.grids import draw_codes, draw_labels
from patchmint.inspection.show.labels import mark_phrases
from patchmint.inspection.show.lookup import find_sample
from patchmint.inspection.show.overlays import image_overlay
from patchmint.interfaces import FeatureSpec
from patchmint.pictures.overlay import draw_overlay
from patchmint.shards.schema import PhraseDocument
from patchmint.storage import local, open_storage
from patchmint.types import Phrase


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path):
    units = [[make_sample(n) for n in range(3)], [], [make_sample(n) for n in range(3, 8)], [make_sample(8)]]
    folder = make_dataset(tmp_path / "data", units)
    configure(folder, grid={"rows": 4, "cols": 6, "patch_px": 14, "fit": "squash"})
    return folder


def run(*arguments, **options):
    return CliRunner(**options).invoke(inspect_app, ["show", *map(str, arguments)])


def told(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def with_phrases(sample, *phrases):
    return replace(sample, phrases=phrases)


def phrase(text, start, end, text_index=0, score=0.5):
    box = (1.0, 2.0, 3.5, 4.25)
    return PhraseDocument(text=text, text_index=text_index, start=start, end=end, box=box, score=score)


def lone(tmp_path, *samples, layout=LAYOUT, sidecar=True):
    tar, table = write_shard(list(samples), layout)
    (tmp_path / "lone.tar").write_bytes(tar)
    if sidecar:
        (tmp_path / "lone.parquet").write_bytes(table)
    return tmp_path / "lone.tar"


# --- looking up


def test_every_key_position_and_id_leads_to_its_sample(dataset):
    opened = open_dataset(dataset)
    for index in range(9):
        for name in (f"s{index:04}", f"#{index}", f"Source/{index}.é"):
            found = find_sample(opened, name)
            assert (found.index, found.sample.key) == (index, f"s{index:04}"), name


def test_only_the_samples_bytes_are_read(dataset, monkeypatch):
    opened = open_dataset(dataset)
    find_sample(opened, "s0004")
    kind, ranges, opens = type(opened.storage), [], []
    read_range, whole = kind.read_range, local._open
    monkeypatch.setattr(local, "_open", lambda path, **how: opens.append(path.name) or whole(path, **how))
    monkeypatch.setattr(kind, "read_range", lambda self, *place: ranges.append(place) or read_range(self, *place))
    sample = find_sample(opened, "s0006").sample
    assert ranges == [("shards/000002.tar", sample.offset, sample.size)]
    # The table of its shard, and the range; of the others nothing: the index is there.
    assert sorted(opens) == ["000002.parquet", "000002.tar"]


def test_names_whose_hashes_are_equal(dataset, monkeypatch):
    monkeypatch.setattr(lookup, "name_hash", lambda name: len(name) % 2)
    opened = open_dataset(dataset)
    for index in range(9):
        assert find_sample(opened, f"s{index:04}").index == index
    with pytest.raises(InputError):
        find_sample(opened, "t0000")


def test_the_index_is_of_the_data_set_as_it_is_now(tmp_path):
    folder = tmp_path / "growing"
    write_plan(folder, {0: 1, 1: 1, 2: 1})
    for unit in (2, 0):
        commit_unit(folder, unit, [make_sample(unit)], [])
    assert find_sample(open_dataset(folder), "s0002").index == 1
    commit_unit(folder, 1, [make_sample(1)], [])
    assert [find_sample(open_dataset(folder), f"s{n:04}").index for n in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("finished", [True, False])
def test_another_data_set_of_the_same_sizes(tmp_path, finished):
    """Tars are padded: those of samples with other keys are as long."""
    first, second = (
        make_dataset(
            tmp_path / letter, [[renamed(make_sample(n), f"{letter}{order}")] for order, n in enumerate(place)]
        )
        for letter, place in (("a", (0, 1, 2)), ("b", (2, 1, 0)))
    )
    folder = tmp_path / "data"
    for source in (first, second):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, copy_function=shutil.copy)
        if not finished:
            (folder / "dataset.json").unlink()
        opened = open_dataset(folder)
        assert [find_sample(opened, f"{source.name}{n}").index for n in range(3)] == [0, 1, 2]
        ids = [find_sample(opened, f"Source/{n}.é").index for n in range(3)]
        assert ids == ([0, 1, 2] if source == first else [2, 1, 0])


@pytest.mark.parametrize("name", ["s0003", "Source/3.é", "t0003"])
def test_an_index_of_another_data_set_is_noticed(tmp_path, monkeypatch, name):
    """As if nothing cheap had told that the data set is another."""
    monkeypatch.setattr(inspection_cache, "_state", lambda dataset: "0" * 24)
    built = []
    build = lookup._build
    monkeypatch.setattr(lookup, "_build", lambda *arguments: built.append(1) or build(*arguments))
    folder = make_dataset(tmp_path / "data", [[make_sample(n)] for n in range(4)])
    assert find_sample(open_dataset(folder), name.replace("t", "s")).index == 3
    shutil.rmtree(folder)
    make_dataset(folder, [[renamed(make_sample(n), f"{name[0].lower()}{n:04}")] for n in (3, 2, 1, 0)])
    wanted = "t0003" if name == "t0003" else name
    assert find_sample(open_dataset(folder), wanted).index == 0
    assert len(built) == 2
    with pytest.raises(InputError):
        find_sample(open_dataset(folder), "nothing")
    assert len(built) == 2


@pytest.mark.parametrize("data", [None, b"", b"\x93NUMPY", b"{}"])
def test_a_damaged_index_is_made_anew(dataset, cache, data):
    found = [find_sample(open_dataset(dataset), name).index for name in ("s0007", "Source/7.é")]
    for path in (cache / "indexes").glob("*/keys-1-*/*.npy"):
        path.unlink() if data is None else path.write_bytes(data)
        assert [find_sample(open_dataset(dataset), name).index for name in ("s0007", "Source/7.é")] == found
        assert path.stat().st_size > 100


def test_unknown_keys_name_the_nearest(dataset, cache):
    (cache / "indexes").mkdir(parents=True)
    done = run(dataset, "s00005")
    assert isinstance(done.exception, InputError)
    assert "'s0005'" in str(done.exception)
    for position in ("#9", "#123456789012345678901234567890", "#" + "9" * 5000):
        assert "9 samples" in str(run(dataset, position).exception)
    assert isinstance(run(dataset, "\udcff").exception, InputError)
    assert isinstance(run(dataset, "").exception, InputError)


def test_an_id_of_several_samples(tmp_path):
    twin = make_sample(1)
    units = [[make_sample(0), twin], [renamed(twin, "other")]]
    data = make_dataset(tmp_path / "data", units)
    message = str(run(data, "Source/1.é").exception)
    assert "'s0001', 'other'" in message
    assert told(data, "other")["index"] == 2


def test_a_sidecar_of_another_tar(dataset):
    others = [renamed(make_sample(n), f"t{n:04}") for n in range(3, 8)]
    (dataset / "shards/000002.tar").write_bytes(write_shard(others)[0])
    done = run(dataset, "s0004")
    assert isinstance(done.exception, ShardError)
    assert "has sample 't0004'" in str(done.exception)


def test_no_samples_yet(tmp_path):
    write_plan(tmp_path / "new", {0: 1, 1: 1})
    assert "no samples yet" in str(run(tmp_path / "new", "a").exception)


# --- what is shown


def test_json_is_all_of_it(dataset):
    found = told(dataset, "s0003")
    sample = find_sample(open_dataset(dataset), "s0003").sample
    assert (found["index"], found["shard"], found["offset"]) == (3, "shards/000002.tar", 0)
    assert found["selector"] == sample.selector.tolist()
    assert found["coverage"] == sample.coverage.tolist()
    assert found["codes"] == sample.codes.tolist()
    assert found["document"]["texts"] == ["قطة على الأريكة", "second text"]
    assert found["document"]["phrases"][0]["box"] == [0.0, 1.5, 20.25, 30.0]
    assert found["document"]["conversation"][0]["role"] == "human"
    assert found["members"] == {ending: len(data) for ending, data in sample.members.items()}
    assert told(dataset, "s0003", "--text", "1")["selector"] == sample.selector[1:].tolist()


def test_phrases_are_marked_in_brackets_without_colour(tmp_path):
    sample = make_sample(0)  # "a cat on a sofa"
    sample = with_phrases(sample, phrase("cat on a sofa", 2, 15), phrase("sofa", 11, 15, score=-1), phrase("cat", 2, 5))
    shown = run(lone(tmp_path, sample), "#0").stdout
    assert "a [cat]1,3[ on a ]1[sofa]1,2" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith((" 1 ", " 2 ", " 3 "))] == [
        ["1", "cat", "on", "a", "sofa", "0.50", "1", "2", "3.5", "4.25"],
        ["2", "sofa", "none", "1", "2", "3.5", "4.25"],
        ["3", "cat", "0.50", "1", "2", "3.5", "4.25"],
    ]


def test_phrases_are_coloured_as_on_the_overlay(tmp_path):
    path = lone(tmp_path, with_phrases(make_sample(0), phrase("cat", 2, 5), phrase("sofa", 11, 15)))
    environment = {**os.environ, "FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "patchmint", "inspect", "show", str(path), "#0"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    assert "a \x1b[38;2;0;0;0;48;2;230;159;0mcat\x1b[0m on a \x1b[38;2;0;0;0;48;2;86;180;233msofa" in done.stdout
    plain = subprocess.run(command, env=environment | {"NO_COLOR": "1"}, capture_output=True, check=True, text=True)
    assert "a [cat]1 on a [sofa]2" in plain.stdout


def test_grids_and_codes_are_drawn(dataset):
    shown = run(dataset, "s0000").stdout.splitlines()
    sample = find_sample(open_dataset(dataset), "s0000").sample
    first = shown.index(next(line for line in shown if line.startswith("selector"))) + 1
    drawn = [[cell != "·" for cell in line[:12:2]] for line in shown[first : first + 4]]
    assert drawn == (sample.selector[0] != 0).tolist()
    place = shown.index(next(line for line in shown if line.startswith("codes"))) + 1
    assert [list(map(int, line.split())) for line in shown[place : place + 4]] == sample.codes.tolist()
    kept = int(sample.selector[0].sum())
    assert f"{kept} of 24 patches kept ({kept / 24:.1%})" in "\n".join(shown)


def test_hostile_texts_reach_no_terminal(tmp_path):
    source = make_sample(0).planned.sample
    text = "\x1b[2Jclear [red]markup[/red] \u202eevil " + "x" * 50_000
    texts = (replace(source.texts[0], content=text, phrases=(), instances=()),)
    sample = make_sample(0)
    evil = replace(source, id="\x1b[31mid [bold]", texts=texts)
    sample = replace(sample, planned=replace(sample.planned, sample=evil))
    sample = with_phrases(sample, phrase("\x1b[2J", 0, 4))
    done = run(lone(tmp_path, sample), "#0")
    assert done.exit_code == 0, done.exception
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "[red]markup[/red]" in done.stdout
    assert f"(+{len(text) - 2000:,} characters" in done.stdout.replace("\n", " ")
    assert "\x1b" not in run(tmp_path / "lone.tar", "#0", "--json").stdout


def test_without_labels_codes_and_with_features(tmp_path):
    features = FeatureSpec(
        encoder="vit", connector="none", layers=((-2,),), select_feature="patch", pool="", grid=(2, 3), leading=0,
        trailing=0, channels=4,
    )  # fmt: skip
    layout = LAYOUT.model_copy(update={"min_coverage": None, "tokens": None, "features": features, "notice": "demo!"})
    sample = replace(make_sample(0, layout=layout), features=np.zeros((6, 4), np.float16))
    path = lone(tmp_path, sample, layout=layout)
    shown = run(path, "#0").stdout
    for words in ("no labels", "no codes", "features 6 x 4 float16: vit", "demo!"):
        assert words in shown
    found = told(path, "#0")
    assert (found["selector"], found["codes"], found["features_shape"]) == (None, None, [6, 4])
    assert "no labels" in str(run(path, "#0", "--png", tmp_path / "o.png").exception)


def test_of_several_views_the_first_is_drawn(tmp_path):
    layout = LAYOUT.model_copy(update={"grid": LAYOUT.grid.model_copy(update={"fit": "anyres"})})
    sample = make_sample(0, layout=layout)
    coverage = np.zeros((1, 12, 6), np.uint8)
    coverage[0, 0, 0], coverage[0, 5], coverage[0, 11, 5] = 255, 200, 200
    sample = replace(sample, views=3, coverage=coverage, selector=(coverage > layout.threshold).astype(np.uint8))
    shown = run(lone(tmp_path, sample, layout=layout), "#0").stdout
    assert "8 of 72 patches kept (11.1%); drawn: the first of 3 views" in shown
    assert shown.count("██··········   ██··········") == 1
    assert shown.count("············   ············") == 3


def test_several_codebooks(tmp_path):
    tokens = LAYOUT.tokens.model_copy(update={"codebook_sizes": (8, 9)})
    layout = LAYOUT.model_copy(update={"tokens": tokens})
    sample = make_sample(0, layout=layout)
    shown = run(lone(tmp_path, sample, layout=layout), "#0").stdout.splitlines()
    place = shown.index(next(line for line in shown if line.startswith("codes   4 x 4 of 8 + 9"))) + 1
    drawn = [list(map(int, line.split())) for line in shown[place : place + 4]]
    assert drawn == sample.codes[..., 0].tolist()


@pytest.mark.parametrize("sidecar", [True, False])
def test_a_lone_tar(tmp_path, sidecar, cache):
    path = lone(tmp_path, *(make_sample(n) for n in range(3)), sidecar=sidecar)
    assert told(path, "s0002")["index"] == 2
    assert not cache.exists()  # nothing to keep


def test_labels_that_do_not_fit_their_sample(tmp_path):
    path = lone(tmp_path, make_sample(1), make_sample(0))
    data = path.read_bytes().replace(b"'shape': (2, 4, 6)", b"'shape': (4, 2, 6)")
    path.write_bytes(data)
    for options in ([], ["--json"], ["--png", tmp_path / "o.png"]):
        assert isinstance(run(path, "#0", *options).exception, ShardError), options


def test_text_out_of_range(dataset):
    for number in ("2", "-1"):
        assert "0 to 1" in str(run(dataset, "s0001", "--text", number).exception)


# --- overlay


def test_png_is_the_overlay(dataset, tmp_path):
    done = run(dataset, "s0001", "--png", tmp_path / "o.png")
    assert done.exit_code == 0, done.exception
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["o-0.png", "o-1.png"]
    assert str(tmp_path / "o-1.png") in done.output
    sample = find_sample(open_dataset(dataset), "s0001").sample
    texts, box = sample.document.texts, (0.0, 1.5, 20.25, 30.0)
    for text, phrases in ((0, [Phrase(texts[0][:3], 0, (0, 3), box, 0.4375)]), (1, [])):
        expected = draw_overlay(
            decode_image(sample.image).pixels,
            placement=PatchGrid(4, 6, 14, Fit.SQUASH).place((30, 40)),
            selector=sample.selector[text],
            coverage=sample.coverage[text],
            phrases=phrases,
            caption=texts[text],
            title="s0001",
            fit="squash",
        )
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"o-{text}.png")), expected)
    found = told(dataset, "s0001", "--text", "1", "--png", tmp_path / "one.png")
    assert found["png"] == [str(tmp_path / "one.png")]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), np.asarray(Image.open(tmp_path / "o-1.png")))


def test_png_that_cannot_be_written(dataset, tmp_path):
    assert "can't write" in str(run(dataset, "s0000", "--png", tmp_path / "no" / "o.png").exception)


def test_an_image_over_the_builds_limit_is_not_decoded(dataset):
    configure(dataset, limits={"max_image_megapixels": 0.001})
    opened = open_dataset(dataset)
    with pytest.raises(InputError, match="pixels"):
        image_overlay(opened, find_sample(opened, "#0").sample.images[0], 0)


# --- drawing


def test_marks_cover_the_text():
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(rng.choice(list("ab é猫"), rng.integers(0, 12)))
        spans = [tuple(sorted(rng.integers(-2, 15, 2).tolist())) for _ in range(rng.integers(0, 5))]
        runs = mark_phrases(text, spans)
        assert "".join(run.text for run in runs) == text
        numbers = [run.numbers for run in runs for _ in run.text]
        assert numbers == [
            tuple(n for n, (a, b) in enumerate(spans, start=1) if a <= place < b) for place in range(len(text))
        ]


def test_narrow_terminals_get_narrow_grids():
    kept = np.zeros((5, 8), np.uint8)
    kept[0, 0] = kept[1, 1] = kept[2, 2] = kept[3, 2] = kept[4, 7] = 1
    coverage = kept * 255
    wide = draw_labels(kept, coverage, 80, titles=("selector", "coverage"))
    assert wide[1] == "██··············   ██··············"
    stacked = draw_labels(kept, coverage, 16, titles=("selector", "coverage"))
    assert [line for line in stacked if line[0] != "·"][:2] == ["selector", "██··············"]
    assert len(stacked) == 12
    narrow = draw_labels(kept, None, 15, titles=("selector", "coverage"))
    assert narrow == ["selector", "▀▄······", "··█·····", "·······▀"]
    assert draw_labels(kept, None, 5, titles=("a", "b"))[1] == "▀▄··…"
    for width in (1, 5, 8, 15, 16, 34, 35, 200):
        assert max(map(len, draw_labels(kept, coverage, width, titles=("selector", "coverage")))) <= width


def test_shades_show_any_coverage():
    levels = np.array([[0, 1, 63, 64, 128, 191, 192, 255]], np.uint8)
    assert draw_labels(levels > 0, levels, 80, titles=("s", "c"))[1].split()[1] == "··░░░░▒▒▓▓▓▓████"


def test_codes_are_cut_to_the_width():
    codes = np.arange(12).reshape(2, 6)
    assert draw_codes(codes, 80) == [" 0  1  2  3  4  5", " 6  7  8  9 10 11"]
    assert draw_codes(codes, 11) == [" 0  1  2 …", " 6  7  8 …"]
    assert draw_codes(np.arange(5), 6) == ["0 1", "2 3", "4"]
    assert all(len(line) <= 11 for line in draw_codes(codes, 11))


def test_an_index_that_is_there_is_not_made_again(dataset, monkeypatch):
    opened = open_dataset(dataset)
    find_sample(opened, "s0001")
    monkeypatch.setattr(lookup, "iter_tables", None)
    assert find_sample(open_dataset(dataset), "s0008").index == 8
    assert open_storage(dataset).exists("dataset.json")
    assert not (dataset / "indexes").exists()


def test_pictures_are_there_before_anything_is_printed(dataset, tmp_path):
    """`| head` ends the command at the first write that finds no reader."""
    arguments = ["show", str(dataset), "#1", "--png", str(tmp_path / "o.png")]
    command = [sys.executable, "-m", "patchmint", "inspect", *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["o-0.png", "o-1.png"]
    assert done.stderr.splitlines() == [f"wrote {tmp_path / 'o-0.png'}", f"wrote {tmp_path / 'o-1.png'}"]
    with Image.open(io.BytesIO((tmp_path / "o-0.png").read_bytes())) as image:
        assert image.format == "PNG"


def test_bad_names_are_found_before_the_work(dataset, tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("o.jpg", "ends with .png"),
        ("o", "ends with .png"),
        ("no/o.png", "no folder"),
        ("folder.png", "it is a folder"),
    ):
        for target in (dataset, tmp_path / "nothing here"):
            done = run(target, "#0", "--png", tmp_path / name)
            assert isinstance(done.exception, InputError)
            assert words in str(done.exception)
            assert done.stdout == ""
    assert list(tmp_path.glob("o*")) == []


def test_help_pages_lose_no_brackets():
    """Square brackets are markup to rich, which drops them with what is in them."""
    for name, lazy in COMMANDS.items():
        command = lazy.load(name)
        page = CliRunner(env={"COLUMNS": "300"}).invoke(inspect_app, [name, "--help"]).stdout
        shown = " ".join(re.sub("│", " ", page).split())
        texts = [command.help, *lazy.examples, *(getattr(option, "help", "") or "" for option in command.params)]
        for line in "\n".join(texts).splitlines():
            assert " ".join(line.split()) in shown, name


def test_the_members_in_info_are_no_wider_than_the_terminal(dataset, monkeypatch):
    monkeypatch.setattr("patchmint.cli.inspect.info.console_for_data", lambda: Console(width=40))
    done = CliRunner().invoke(inspect_app, ["info", str(dataset)])
    members = done.stdout[done.stdout.index("members of a sample") :].splitlines()
    assert max(map(len, members)) <= 40
    assert "views: inputs" in " ".join(members)

"""`patchmint inspect codes`: the index against counting, the report against the arrays, words that go with a code."""

import errno
import os
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from builds import benchmark_modules
from inspect_data import answer, edit_column, inspect, refusal, texted, with_tokens
from PIL import Image
from shard_data import LAYOUT, finish, make_dataset, make_reject, make_sample, on_a_store, stored, write_shard

from patchmint.cli.inspect.drawing import bar, dot_grid, heat_map, spark_line
from patchmint.datasets.dataset import open_dataset
from patchmint.errors import InputError, ShardError
from patchmint.geometry import Fit
from patchmint.inspection import cache as inspection_cache
from patchmint.inspection.codes import index as code_index
from patchmint.inspection.codes import query as code_query
from patchmint.inspection.codes import terms as code_terms_module
from patchmint.inspection.codes.index import named_code, open_code_index, parse_code, tokens_layout
from patchmint.inspection.codes.query import rank_codes, report_code
from patchmint.inspection.codes.terms import Background, TermCounter, telling_terms, terms_of


def sample(ordinal, text, codes, *, of):
    """A sample with one text and codes of one codebook."""
    return replace(texted(make_sample(ordinal, layout=of, phrases=False), text), codes=codes[..., None])


run = partial(inspect, "codes")
told = partial(answer, "codes")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path):
    """Three shards, the middle unit without a sample; 40 codes, some of which are in no image."""
    of = with_tokens(40)
    units = [[make_sample(n, layout=of) for n in numbers] for numbers in (range(7), (), range(8, 12))]
    return make_dataset(tmp_path / "d", units, {1: [make_reject(7)]}, layout=of)


def counted(folder):
    """Keys and codes of all samples, from the tars."""
    return [(sample.key, sample.codes) for sample in stored(folder)]


@pytest.mark.parametrize("sizes", [(40,), (8, 16)])
def test_the_index_against_counting(tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(code_index, "_ROWS", 3)
    of = with_tokens(*sizes)
    make_dataset(
        tmp_path / "d", [[make_sample(n + 10 * u, layout=of) for n in range(5 + u)] for u in range(3)], layout=of
    )
    opened = open_dataset(tmp_path / "d")
    tokens = tokens_layout(opened)
    index = open_code_index(opened, tokens)
    arrays = counted(tmp_path / "d")
    assert len(arrays) == 18
    for number in range(sum(sizes)):
        code = named_code(number, tokens)
        assert parse_code(code.name, tokens) == code
        expected = [
            (at, int(((codes if len(sizes) == 1 else codes[..., code.book]) == code.code).sum()))
            for at, (_, codes) in enumerate(arrays)
        ]
        expected = [(at, times) for at, times in expected if times]
        entries = slice(index.offsets[number], index.offsets[number + 1])
        assert list(zip(index.samples[entries].tolist(), index.counts[entries].tolist(), strict=True)) == expected
        assert (index.images[number], index.totals[number]) == (len(expected), sum(times for _, times in expected))
        for limit in (1, 3, 100):
            found = list(zip(*(part.tolist() for part in index.ranked(number, limit)), strict=True))
            assert found == sorted(expected, key=lambda entry: (-entry[1], entry[0]))[:limit]


def test_counts_over_255_are_counted(tmp_path):
    of = with_tokens(2, grid=(20, 20), preprocessing="squash-320-bicubic")
    codes = np.zeros((20, 20), np.int64)
    make_dataset(tmp_path / "d", [[sample(0, "a", codes, of=of), sample(1, "b", codes + 1, of=of)]], layout=of)
    assert [image["count"] for image in told(tmp_path / "d", "0")["shown"]] == [400]


def test_the_index_is_made_once_and_anew_of_another_data_set(dataset, monkeypatch):
    first = told(dataset, "3")
    with monkeypatch.context() as patch:
        patch.setattr(code_index, "_build", lambda *_: pytest.fail("it is there already"))
        assert told(dataset, "3") == first
    of = with_tokens(40)
    shutil.rmtree(dataset)
    make_dataset(dataset, [[make_sample(n, layout=of) for n in range(9)]], layout=of)
    assert told(dataset, "3")["samples"] == 9


@pytest.mark.parametrize("data", [None, b"", b"\x93NUMPY", b"{}"])
def test_a_damaged_index_is_made_anew(dataset, cache, data):
    opened = open_dataset(dataset)
    first = open_code_index(opened, tokens_layout(opened)).ranked(3, 9)[0].tolist()
    (folder,) = (cache / "indexes").glob("*/content-codes-1-*")
    assert len(list(folder.iterdir())) == 5
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.unlink() if data is None else path.write_bytes(data)
        assert open_code_index(opened, tokens_layout(opened)).ranked(3, 9)[0].tolist() == first
        assert path.read_bytes() == whole
    path.unlink()
    assert run(dataset, "3").exit_code == 0


def test_an_index_of_another_data_set_is_noticed(dataset, cache, tmp_path, monkeypatch):
    """As if nothing cheap had told that the data set is another: what is shown is what is there now."""
    monkeypatch.setattr(inspection_cache, "_state", lambda dataset: "0" * 24)
    other = make_dataset(tmp_path / "e", [[sample(n, "a", np.full((4, 4), n), of=with_tokens(40))] for n in range(11)])
    finish(other, list(range(11)), 11, 0, with_tokens(40))
    asked = (("3",), ("--top", "--sheet", tmp_path / "s.png"))
    expected = [told(other, *arguments) for arguments in asked]
    for arguments, right in zip(asked, expected, strict=True):
        shutil.rmtree(cache)
        moved = shutil.copytree(dataset, tmp_path / "moved")
        told(moved, "3")
        shutil.rmtree(moved)
        shutil.copytree(other, moved)
        assert told(moved, *arguments) == right | {"dataset": str(moved)}
        shutil.rmtree(moved)


def test_no_index_is_made_twice_of_sidecars_that_are_wrong(dataset, monkeypatch):
    """Those of a code's images say what the index says: the samples are others."""
    made = []
    build = code_index._build
    monkeypatch.setattr(code_index, "_build", lambda *arguments: made.append(1) or build(*arguments))
    assert any("its sidecar says" in error for error in errors_of(dataset, code_counts=counts_raised))
    assert len(made) == 1


def test_an_index_finds_no_room(dataset, cache, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuses_with(errno.ENOSPC))
    assert "No space left on device; set PATCHMINT_CACHE" in refusal("codes", dataset, "3")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_file_system_that_cannot_reserve_is_fine(dataset, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuses_with(errno.EOPNOTSUPP))
    assert run(dataset, "3").exit_code == 0
    monkeypatch.delattr(os, "posix_fallocate")
    assert run(dataset, "4").exit_code == 0


def refuses_with(code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    return refuse


def test_positions_over_255(tmp_path, monkeypatch):
    """In several batches of one shard: a byte for a position would be too short, and so would one batch's row."""
    monkeypatch.setattr(code_index, "_ROWS", 100)
    of = with_tokens(40, grid=(2, 2), preprocessing="pad-32-bicubic")
    units = [[sample(n, "a", np.full((2, 2), n % 37), of=of) for n in range(260)], [make_sample(260, layout=of)]]
    opened = open_dataset(make_dataset(tmp_path / "d", units, layout=of))
    index = open_code_index(opened, tokens_layout(opened))
    for code in range(37):
        positions, counts = index.ranked(code, 300)
        mine = (positions < 260).nonzero()[0]
        assert positions[mine].tolist() == list(range(code, 260, 37))
        assert set(counts[mine].tolist()) == {4}


def test_a_code_reported(dataset):
    arrays = counted(dataset)
    totals = Counter(code for _, codes in arrays for code in codes.ravel().tolist())
    code, total = totals.most_common(1)[0]
    report = told(dataset, code, "--limit", 3)
    assert (report["code"], report["codebook_size"], report["samples"]) == (str(code), 40, 11)
    assert (report["occurrences"], report["share"]) == (total, total / (11 * 16))
    having = [(key, codes) for key, codes in arrays if (codes == code).any()]
    assert report["images"] == len(having)
    ranked = sorted(having, key=lambda pair: -int((pair[1] == code).sum()))[:3]
    assert [image["key"] for image in report["shown"]] == [key for key, _ in ranked]
    for image, (_, codes) in zip(report["shown"], ranked, strict=True):
        assert image["cells"] == np.argwhere(codes == code).tolist()
        assert (image["count"], image["share"]) == (len(image["cells"]), len(image["cells"]) / total)
    assert np.allclose(report["positions"], np.mean([codes == code for _, codes in ranked], axis=0))
    printed = run(dataset, code, "--limit", 3).stdout
    for words in (f"code {code} of 40: {total} times", "in the 3 of", *(key for key, _ in ranked)):
        assert words in printed


def test_a_code_in_no_image_ends_with_1(dataset, tmp_path):
    missing = next(code for code in range(40) if not any((codes == code).any() for _, codes in counted(dataset)))
    done = run(dataset, missing, "--sheet", tmp_path / "s.png", rc=1)
    assert done.stdout == f"code {missing} of 40: in none of 11 images\n"
    assert not (tmp_path / "s.png").exists()
    assert told(dataset, missing, rc=1)["shown"] == []


def test_several_codebooks_and_rows_are_not_needed(tmp_path):
    of = with_tokens(8, 16, grid=(10,), preprocessing="own")
    folder = make_dataset(tmp_path / "d", [[make_sample(n, layout=of) for n in range(3)]], layout=of)
    codes = counted(folder)[0][1]
    report = told(folder, f"1:{codes[4, 1]}")
    shown = {image["key"]: image["cells"] for image in report["shown"]}
    assert shown["s0000"] == np.argwhere(codes[:, 1] == codes[4, 1]).tolist()
    assert np.shape(report["positions"]) == (1, 10)
    run(folder, f"1:{codes[4, 1]}", "--sheet", tmp_path / "s.png", rc=0)
    assert (tmp_path / "s.png").exists()
    run(folder, "--top", rc=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one code, such as 17, or --top"),
        (("1", "--top"), "give one code"),
        (("40",), "run from 0 to 39"),
        (("1:3",), "there is no codebook 1"),
        (("seven",), "isn't a code"),
        (("1", "--sheet", "s.jpg"), "ends with .png"),
        (("1", "--sheet", "no/s.png"), "no folder"),
    ],
)
def test_what_is_asked_wrongly_is_said(dataset, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refusal("codes", dataset, *arguments)


def test_no_code_is_meant(tmp_path):
    with pytest.raises(InputError, match="2 codebooks, so code 3 could be in any"):
        parse_code("3", with_tokens(8, 16).tokens)
    bare = LAYOUT.model_copy(update={"tokens": None})
    make_dataset(tmp_path / "n", [[make_sample(0, layout=bare)]], layout=bare)
    for question in ("1", "--top"):
        assert "has no codes; `patchmint extend" in refusal("codes", tmp_path / "n", question)


def test_unfinished_builds_and_lone_tars(dataset, tmp_path):
    expected = told(dataset, "3")
    (dataset / "dataset.json").unlink()
    assert told(dataset, "3") == expected
    of = with_tokens(40)
    tar, sidecar = write_shard([make_sample(n, layout=of) for n in range(6)], of)
    (tmp_path / "a.tar").write_bytes(tar)
    scanned = told(tmp_path / "a.tar", "3")
    assert scanned["samples"] == 6
    (tmp_path / "a.parquet").write_bytes(sidecar)
    assert told(tmp_path / "a.tar", "3") == scanned


def test_from_a_store(dataset, tmp_path):
    expected = told(dataset, "3")
    with on_a_store(dataset) as uri:
        assert told(uri, "3", "--sheet", tmp_path / "s.png") == expected | {"dataset": uri}
        assert (tmp_path / "s.png").exists()


def counts_raised(rows):
    return [[count + 1 for count in row] for row in rows]


def errors_of(dataset, **columns):
    """Of asking for each code where columns of a sidecar are wrong."""
    for name, change in columns.items():
        edit_column(dataset / "sidecars" / "000002.parquet", name, change)
    errors = [run(dataset, code).exception for code in range(40)]
    return [str(error) for error in errors if isinstance(error, ShardError)]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"codes": lambda _: [[40]] * 4, "code_counts": lambda _: [[1]] * 4}, "outside its codebooks"),
        ({"code_counts": lambda _: [[1]] * 4}, "not as many counts"),
        ({"code_counts": counts_raised}, "its sidecar says"),
    ],
)
def test_damaged_sidecars(dataset, columns, words):
    assert any(words in error for error in errors_of(dataset, **columns))


def test_the_lists(dataset):
    arrays = np.stack([codes for _, codes in counted(dataset)])
    totals = np.bincount(arrays.ravel(), minlength=40)
    images = np.array([(arrays == code).any(axis=(1, 2)).sum() for code in range(40)])

    def concentrated(least):
        lawful = [code for code in range(40) if images[code] >= least]
        return sorted(lawful, key=lambda code: (-totals[code] / images[code], code))[:5]

    report = told(dataset, "--top", "--limit", 5)
    ranked = sorted(range(40), key=lambda code: (-totals[code], code))[:5]
    assert [(int(entry["code"]), entry["occurrences"], entry["images"]) for entry in report["commonest"]] == [
        (code, totals[code], images[code]) for code in ranked
    ]
    for entry in (*report["commonest"], *report["concentrated"]):
        code = int(entry["code"])
        assert entry["per_image"] == totals[code] / images[code]
        assert entry["share"] == totals[code] / totals.sum()
        most = max(range(len(arrays)), key=lambda at: int((arrays[at] == code).sum()))
        assert entry["example"] == counted(dataset)[most][0]
    for least, options in ((3, ()), (1, ("--min-images", 1)), (6, ("--min-images", 6))):
        found = told(dataset, "--top", "--limit", 5, *options)["concentrated"]
        assert [int(entry["code"]) for entry in found] == concentrated(least)
    printed = run(dataset, "--top").stdout
    assert "the commonest codes" in printed
    assert "of those in 3 images or more" in printed


def snowmen(folder):
    """60 images, every sixth of a snowman: these have code 5 ten times, others now and then once."""
    of = with_tokens(16)
    rng = np.random.default_rng(7)
    samples = []
    for ordinal in range(60):
        codes = rng.integers(6, 16, (4, 4))
        codes[0, 0] = 5 if ordinal % 4 == 1 else codes[0, 0]
        if ordinal % 6 == 0:
            codes.ravel()[:10] = 5
        text = "a Snowman in the garden" if ordinal % 6 == 0 else f"a house in the garden, number {ordinal}"
        samples.append(sample(ordinal, text, codes, of=of))
    return make_dataset(folder, [samples[:20], samples[20:40], samples[40:]], layout=of)


def test_words_that_go_with_a_code(tmp_path):
    folder = snowmen(tmp_path / "d")
    report = told(folder, "5")
    assert [image["count"] for image in report["shown"]][:11] == [10] * 10 + [1]
    words = report["words"]
    assert (words["images"], words["others"]) == (10, 50)
    assert [(term["text"], term["share"], term["share_of_others"]) for term in words["terms"]] == [("snowman", 1, 0)]
    best = told(folder, "--top")["concentrated"][0]
    assert (best["code"], best["word"]) == ("5", "snowman")
    assert "snowman" in run(folder, "5").stdout
    assert "no word goes with it" in run(folder, "9").stdout


def test_texts_of_few_shards_are_read(tmp_path, monkeypatch):
    opened = open_dataset(snowmen(tmp_path / "d"))
    tokens = tokens_layout(opened)
    index = open_code_index(opened, tokens)
    read = []
    original = code_query.rows_at

    def spied(dataset, positions, *rest):
        read.append(positions.tolist())
        return original(dataset, positions, *rest)

    monkeypatch.setattr(code_query, "rows_at", spied)
    report_code(opened, index, tokens, parse_code("5", tokens), 2)
    assert read == [[0, 6, 12, 18, 24, 30, 36, 42, 48, 54]]
    assert rank_codes(opened, index, tokens, 1, 3).commonest[0].word == "snowman"


def test_terms():
    terms = terms_of(["A dog's BIG-ball, 2 balls!"], ["Big ball", "dog", "x" * 50 + " y" * 20])
    assert terms == {"a", "dog's", "big-ball", "2", "balls", "big ball"}
    assert len(terms_of([" ".join(map(str, range(10**5)))], [])) <= 500
    counter = TermCounter()
    own = [frozenset({"the", "kite"}) for _ in range(8)]
    for terms in (*(frozenset({"the", f"n{number}"}) for number in range(50)), *own):
        counter.add(terms)
    background = counter.background()
    assert background.samples == 58
    (term,) = telling_terms(own, own, background, 5)
    assert (term.text, term.images, term.share, term.share_of_others) == ("kite", 8, 1.0, 0.0)
    assert term.lift == pytest.approx((8.5 / 9) / (0.5 / 51))
    # by hand: log odds 8.5/0.5 against 0.5/50.5
    expected = (np.log(8.5 / 0.5) - np.log(0.5 / 50.5)) / np.sqrt(1 / 8.5 + 1 / 0.5 + 1 / 0.5 + 1 / 50.5)
    assert term.z == pytest.approx(expected)
    assert telling_terms(own[:1], own[:1], background, 5) == []
    assert telling_terms(own, own, Background(58, {"the": 58, "kite": 58}), 5) == []


def test_terms_seen_once_are_let_go_of_too_many(monkeypatch):
    monkeypatch.setattr(code_terms_module, "_MAX_HELD", 4)
    counter = TermCounter()
    for number in range(10):
        counter.add(frozenset({"the", f"n{number}"}))
        assert len(counter.background().counts) <= 4
    background = counter.background()
    assert (background.samples, background.counts["the"]) == (10, 10)


@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
def test_cells_lie_where_the_tokenizer_has_them(fit):
    from patchmint.tokenizers.vqgan.arch import TINY
    from patchmint.tokenizers.vqgan.model import untrained_vqgan
    from patchmint.tokenizers.vqgan.tokenizer import VqganTokenizer

    tokenizer = VqganTokenizer(untrained_vqgan(TINY, 0), name="t", size=64, fit=fit)
    spec = tokenizer.spec
    found = with_tokens(spec.codebook_sizes[0], grid=spec.grid_shape, preprocessing=spec.preprocessing).tokens.cells
    assert found == spec.cells
    assert found.fit is Fit(fit)
    for words in ("own", "pad-65-bicubic", "anyres-64-bicubic", "pad-0-bicubic"):
        assert with_tokens(2, grid=spec.grid_shape, preprocessing=words).tokens.cells is None


def test_cells_of_padding_do_not_count(tmp_path):
    """A wide image fills the middle rows of the square: its bars' codes are nobody's, unless they are asked for."""
    of = with_tokens(8)
    wide, tall = np.full((4, 4), 7), np.full((4, 4), 7)
    wide[1:3], wide[0, 0], wide[1, 2], tall[:, 2] = 3, 5, 5, 3
    samples = [sample(n, "a", codes, of=of) for n, codes in enumerate((wide, tall, np.full((4, 4), 7), wide))]
    sizes = ((40, 10), (10, 40), (40, 40), (40, 20))
    samples = [
        replace(each, image=each.image.model_copy(update={"width": width, "height": height}))
        for each, (width, height) in zip(samples, sizes, strict=True)
    ]
    folder = make_dataset(tmp_path / "d", [samples[:3], samples[3:]], layout=of)

    def counts(code, *options):
        return {image["key"]: image["count"] for image in told(folder, code, *options)["shown"]}

    assert counts(3) == {"s0000": 7, "s0003": 7, "s0001": 4}
    assert counts(7) == {"s0002": 16, "s0001": 4}
    assert counts(5) == {"s0000": 1, "s0003": 1}
    assert [image["cells"] for image in told(folder, 5)["shown"]] == [[[1, 2]]] * 2
    assert counts(7, "--padding") == {"s0002": 16, "s0001": 12, "s0000": 7, "s0003": 7}
    assert counts(5, "--padding") == {"s0000": 2, "s0003": 2}
    assert told(folder, "--top", "--limit", 1)["commonest"][0]["occurrences"] == 20
    assert told(folder, "--top", "--limit", 1, "--padding")["commonest"][0]["occurrences"] == 42
    assert run(folder, 5, "--sheet", tmp_path / "sheet.png").exit_code == 0
    usage = answer("stats", folder)["codes"][0]
    assert usage["counts"] == [0, 0, 0, 18, 0, 2, 0, 20]
    assert answer("stats", folder, "--padding")["codes"][0]["counts"] == [0, 0, 0, 18, 0, 4, 0, 42]


def test_sheets(tmp_path):
    folder = snowmen(tmp_path / "d")
    for arguments in (["5", "--limit", "8"], ["--top", "--limit", "2"]):
        path = tmp_path / "sheet.png"
        done = run(folder, *arguments, "--sheet", path)
        assert (done.exit_code, done.stderr) == (0, f"wrote {path}\n")
        with Image.open(path) as sheet:
            pixels = np.asarray(sheet)
        assert (pixels == (230, 159, 0)).all(axis=2).sum() > 500, "outlines"
        path.unlink()


def test_an_image_that_cannot_be_decoded_leaves_an_empty_tile(tmp_path):
    of = with_tokens(16)
    samples = [make_sample(n, layout=of) for n in range(2)]
    make_dataset(tmp_path / "d", [[replace(samples[0], data=b"no image"), samples[1]]], layout=of)
    run(tmp_path / "d", samples[0].codes.ravel()[0], "--sheet", tmp_path / "s.png", rc=0)
    assert (tmp_path / "s.png").exists()


def test_hostile_texts_are_harmless(tmp_path):
    of = with_tokens(4)
    text = "[red]boo[/red] \x1b[2J <img src=x onerror=alert(1)> " + "\u202e" + "long " * 10_000
    codes = np.zeros((4, 4), np.int64)
    make_dataset(tmp_path / "d", [[sample(n, text, codes, of=of) for n in range(3)]], layout=of)
    done = run(tmp_path / "d", "0", "--sheet", tmp_path / "s.png")
    assert done.exit_code == 0
    assert "[red]boo[/red]" in done.stdout
    assert not set(done.stdout) & {"\x1b", "\u202e"}
    assert len(done.stdout) < 20_000


def test_the_notice_is_said(tmp_path):
    notice = "demo models: not for photographs"
    of = with_tokens(4).model_copy(update={"notice": notice})
    make_dataset(tmp_path / "d", [[make_sample(0, layout=of)]], layout=of)
    assert notice in run(tmp_path / "d", "--top").stdout
    assert told(tmp_path / "d", "--top")["notice"] == notice


def test_drawings_of_characters():
    assert dot_grid([(0, 0), (3, 1), (4, 2)], 5, 3) == ["\u2881\u2800", "\u2800\u2801"]
    assert heat_map([[0, 1], [2, 0.01]], 4) == ["  ▒▒", "██░░"]
    assert heat_map([[0, 1], [2, 4]], 3) == [" ░", "▒█"]
    assert heat_map([[0.0, 0.0]], 80) == ["    "]
    assert spark_line([0, 1, 100, 50]) == " ▁█▄"
    assert [bar(share, 4) for share in (0, 1 / 32, 0.5, 1, 7)] == ["", "▏", "██", "████", "████"]


def test_what_benchmarks_ask_is_a_data_set(tmp_path):
    """`benchmarks/inspection.py` makes up sidecars by hand: they have all columns, and only real samples are read."""
    (data,) = benchmark_modules("inspection_data")
    large, (key, *_) = data.make_samples(tmp_path / "large", 80, 2)
    assert answer("show", large, key)["document"]["key"] == key
    assert told(large, data.CODE)["images"] >= 40
    assert answer("ls", data.make_shards(tmp_path / "plain", 3))

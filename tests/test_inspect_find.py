"""`patchmint inspect find`: what matches, against a search by hand; and what SQL can't do."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from inspect_data import answer, inspect, plan_six, refusal, texted, unfinish
from shard_data import LAYOUT, commit_unit, make_dataset, make_reject, make_sample, on_a_store, renamed, write_shard
from typer.testing import CliRunner

from patchmint.cli.inspect import inspect_app
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.ledger import count_rejects
from patchmint.errors import InputError
from patchmint.inspection.find import search as find
from patchmint.inspection.find.search import Search, find_rejects, find_samples
from patchmint.inspection.find.sql import Conditions
from patchmint.pipeline.plan import make_retry_plan
from patchmint.samples import Fault
from patchmint.shards.schema import PhraseDocument
from patchmint.shards.sidecar import SCHEMA
from patchmint.storage import open_storage

SIZES = (7, 0, 5, 12)


def sample(ordinal):
    """Scores that single precision can't hold exactly, several phrases, and some samples without any."""
    made = make_sample(ordinal, phrases=ordinal % 4 != 0)
    scores = [-1.0] if ordinal % 7 == 3 else [round(0.05 * ordinal, 4) % 1, 0.1]
    text = made.planned.sample.texts[0].content
    phrases = tuple(
        PhraseDocument(text=text[:end], text_index=0, start=0, end=end, box=(0.0, 1.5, 20.25, 30.0), score=score)
        for end, score in zip((1, 4), scores, strict=False)
    )
    return replace(made, phrases=phrases if made.phrases else ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    ordinals = iter(range(100))
    units = [[sample(next(ordinals)) for _ in range(size)] for size in SIZES]
    rejects = {
        0: [make_reject(50)],
        1: [make_reject(51), replace(make_reject(52), fault=Fault("read", "x", "\x1b[2J"))],
    }
    return make_dataset(tmp_path_factory.mktemp("find") / "d", units, rejects)


@pytest.fixture
def dataset(folder):
    return open_dataset(folder)


run = partial(inspect, "find")
told = partial(answer, "find")


def keys(*arguments, rc=0):
    return run(*arguments, "--keys", rc=rc).stdout.split()


def rows_of(folder):
    return [row for path in sorted(folder.glob("sidecars/*.parquet")) for row in pq.read_table(path).to_pylist()]


def near(row, least, most):
    """Whether the best score lies in this range."""
    best = max((score for score in row["scores"] if score >= 0), default=None)
    return best is not None and least - 1e-6 <= best <= most + 1e-6


SEARCHES = [
    (Search(), lambda row: True),
    (Search(texts=["SOFA"]), lambda row: any("sofa" in text.lower() for text in row["texts"])),
    (Search(texts=["STRASSE"]), lambda row: False),
    (Search(texts=["straße"]), lambda row: "Straße" in row["texts"][0]),
    (Search(texts=["second"]), lambda row: len(row["texts"]) > 1),
    (Search(texts=["second", "cat"]), lambda row: len(row["texts"]) > 1 and " cat" in row["texts"][0]),
    (Search(texts=["%"]), lambda row: False),
    (Search(texts=["'quote'"]), lambda row: "'quote'" in row["texts"][0]),
    (Search(texts=["') or true or ('"]), lambda row: False),
    (Search(phrases=["A CA"]), lambda row: "a ca" in row["phrases"]),
    (Search(key="s00?5"), lambda row: fnmatchcase(row["key"], "s00?5")),
    (Search(min_score=0.55), lambda row: near(row, 0.55, 1)),
    (Search(max_score=0.15), lambda row: near(row, 0, 0.15)),
    (Search(min_score=0.3, max_score=0.3), lambda row: near(row, 0.3, 0.3)),
    (Search(min_share=0.6), lambda row: max(row["label_shares"]) >= 0.6),
    (Search(max_share=0.5), lambda row: min(row["label_shares"]) <= 0.5),
    (Search(min_share=0.5, max_share=0.55), lambda row: any(0.5 <= share <= 0.55 for share in row["label_shares"])),
    (Search(where="len(phrases) = 0"), lambda row: not row["phrases"]),
    (Search(where="list_max(scores) < 0.4"), lambda row: row["scores"] and max(row["scores"]) < 0.4),
    (
        Search(where="list_contains(codes, 10000) or ordinal = 3"),
        lambda row: 10000 in row["codes"] or row["ordinal"] == 3,
    ),
    (Search(where="width > 2 * height"), lambda row: False),
    (Search(where='"offset" = 0 -- the first of each'), lambda row: row["offset"] == 0),
    (Search(where="COLUMNS('.rdina.') > 20"), lambda row: row["ordinal"] > 20),
    (Search(where="contains(shard::VARCHAR, 'second t')"), lambda row: len(row["texts"]) > 1),
    (Search(where="#3 > 20"), lambda row: row["ordinal"] > 20),
    (Search(where="index between 6 and 8"), lambda row: row["key"] in {"s0006", "s0007", "s0008"}),
    (Search(key="s000[3-5]"), lambda row: row["key"] in {"s0003", "s0004", "s0005"}),
    (
        Search(where="ordinal > 3 or ordinal = 1", texts=["cat"], max_score=0.5),
        lambda row: row["ordinal"] in {1, *range(4, 24)} and " cat" in row["texts"][0] and near(row, 0, 0.5),
    ),
]


@pytest.mark.parametrize(("search", "matches"), SEARCHES)
def test_what_matches(folder, dataset, search, matches):
    expected = [place for place, row in enumerate(rows_of(folder)) if matches(row)]
    total, indices = find_samples(dataset, search)
    assert (total, indices.tolist()) == (len(expected), expected)


def test_some_of_these_searches_find_some(folder):
    counts = [sum(map(bool, map(matches, rows_of(folder)))) for _, matches in SEARCHES]
    assert sum(0 < count < sum(SIZES) for count in counts) > 15


def test_order_and_limit(folder, dataset):
    rows = rows_of(folder)
    for sort, key in (
        ("size", lambda place: rows[place]["size"]),
        ("size desc", lambda place: -rows[place]["size"]),
        ("texts[1] ASC", lambda place: rows[place]["texts"][0].encode()),
    ):
        total, indices = find_samples(dataset, Search(sort=sort), limit=9)
        assert (total, indices.tolist()) == (24, sorted(range(24), key=key)[:9]), sort
    # samples without a score come last
    _, indices = find_samples(dataset, Search(sort="list_max(scores) desc"))
    scores = [max(rows[place]["scores"], default=-2) for place in indices]
    assert scores == sorted(scores, reverse=True)
    _, indices = find_samples(dataset, Search(sort="list_max(scores)"))
    assert not rows[indices[-1]]["scores"]


@pytest.mark.parametrize(
    "where",
    [
        *("coluns > 1", "width >", "width > 1) or (1 = 1", "width > 1; drop table found", "width, height"),
        *("sum(width) > 1", "key", "key::int > 3", "width > $unbound", "getenv('HOME') <> ''", "*"),
        *("exists(from read_csv('/etc/passwd'))", "exists(from '/etc/passwd')", "exists(from glob('/etc/*'))"),
        *("exists(from rows_of)", "exists(from table_of_this_process)", " - ".join(["width"] * 900)),
    ],
)
def test_bad_sql_is_said_with_the_columns(dataset, where):
    table_of_this_process = pq.read_table(next(Path(dataset.uri).glob("sidecars/*.parquet")))
    assert table_of_this_process.num_rows
    for search in (Search(where=where), Search(sort=where)):
        if search.sort in ("key", "key::int > 3", "exists(from rows_of)"):
            continue
        with pytest.raises(InputError) as error:
            find_samples(dataset, search)
        assert '"label_shares" FLOAT[]' in str(error.value)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("width > (select avg(width) from shard)", "a subquery"),
        ("exists(from shard)", "a subquery"),
        ("'select' = key or width in (select 40)", "a subquery"),
        ("case when true then [ordinal > any(select 1)] end[1]", "a subquery"),
        ("row_number() over (order by width)", "a window function"),
        ("rank() over () > 1", "a window function"),
        ("1 + sum(width)", "'sum' is an aggregate"),
        ("Count(*) > 1", "'count_star' is an aggregate"),
        ("max(width) filter (width > 1)", "'max' is an aggregate"),
        ("unnest(codes)", "'unnest' makes several rows of one"),
        ("1 + generate_subscripts(codes, 1)", "'generate_subscripts' makes several rows of one"),
    ],
)
def test_what_looks_at_several_samples_is_refused(dataset, written, why):
    """Shard by shard it would say something else than of the whole data set."""
    for search in (Search(where=written), Search(sort=written), Search(sort=f"{written} desc")):
        with pytest.raises(InputError, match="sees one sample at a time") as error:
            find_samples(dataset, search)
        assert why in str(error.value)
        assert '"label_shares" FLOAT[]' in str(error.value)


def test_words_of_such_things_are_no_such_things(dataset):
    for where in ("key <> '(select 1) over () sum(x)'", "list_sum(codes) > 0 -- (select 1)", "list_avg(scores) >= -1"):
        assert find_samples(dataset, Search(where=where, sort=f"{where}"))[0], where


@pytest.mark.parametrize(
    "statement",
    [
        *("INSTALL httpfs", "LOAD httpfs", "SELECT '1.2.3.4'::inet", "SET threads = 8", "FROM table_of_this_process"),
        *("ATTACH '{}/x.db' AS x", "COPY found TO '{}/x.csv'"),
    ],
)
def test_nothing_is_loaded_reached_or_changed(tmp_path, statement):
    table_of_this_process = SCHEMA.empty_table()
    assert not table_of_this_process.num_rows
    with Conditions(SCHEMA, [], {}) as conditions, pytest.raises(duckdb.Error) as error:
        conditions._base.execute(statement.format(tmp_path))
    assert "trying to automatically" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_empty_ranges_are_refused(dataset):
    for search in (Search(min_score=0.5, max_score=0.4), Search(min_share=0.5, max_share=0.4)):
        with pytest.raises(InputError, match="--min-s"):
            find_samples(dataset, search)


def test_without_labels_there_is_nothing_of_theirs_to_search_by(tmp_path):
    layout = LAYOUT.model_copy(update={"min_coverage": None})
    folder = make_dataset(tmp_path / "d", [[make_sample(0, layout=layout, phrases=False)]], layout=layout)
    for search in (Search(phrases=["a"]), Search(min_score=0.0), Search(max_share=1.0)):
        with pytest.raises(InputError, match="has no labels"):
            find_samples(open_dataset(folder), search)
    assert keys(folder, "--text", "cat") == ["s0000"]


def test_only_the_columns_asked_for_are_read(dataset, monkeypatch):
    asked = []
    tables = find.iter_tables
    monkeypatch.setattr(
        find, "iter_tables", lambda of, columns, *rest: asked.append([*columns]) or tables(of, columns, *rest)
    )
    find_samples(dataset, Search(where='width > 2 * height and "Offset" = 0'))
    assert asked == [["offset", "width", "height"]]


def test_printed(folder):
    second = (folder, "--text", "second", "--limit", "3")
    done = run(*second, rc=0)
    assert "found 12 of 24 samples; 3 shown, --limit 0 shows all" in done.stderr
    assert all(word in done.stdout for word in ("s0001", "shards/000000.tar", "second text"))
    assert "s0007" not in done.stdout
    document = told(*second)
    assert document["found"] == 12
    assert [found["key"] for found in document["samples"]] == ["s0001", "s0003", "s0005"]
    row = rows_of(folder)[5]
    assert document["samples"][2] == {name: row[name] for name in ("key", "id", "texts", "phrases")} | {
        "index": 5,
        "shard": "shards/000000.tar",
        "images": 1,
        "pairs": [],
        "label_shares": pytest.approx(row["label_shares"], abs=1e-6),
        "best_score": 0.25,
    }
    assert document["samples"][1]["best_score"] is None  # of a phrase without a score
    assert run(folder, "--text", "second", "--keys", "--limit", "2", rc=0).stdout == "s0001\ns0003\n"
    assert len(run(folder, "--keys", rc=0).stdout.splitlines()) == 24
    by_size = [row["key"] for row in sorted(rows_of(folder), key=lambda row: -row["size"])]
    assert keys(folder, "--sort", "size desc") == by_size


def test_fifty_are_shown(tmp_path):
    folder = make_dataset(tmp_path / "d", [[make_sample(i) for i in range(60)]])
    assert len(told(folder)["samples"]) == 50
    assert len(told(folder, "--limit", 0)["samples"]) == 60
    assert "found 60 of 60 samples; 50 shown" in run(folder, rc=0).stderr


def test_nothing_matches(folder):
    done = run(folder, "--text", "zebra", rc=1)
    assert (done.stdout, done.stderr) == ("", "found 0 of 24 samples\n")
    assert told(folder, "--text", "zebra", rc=1)["samples"] == []
    assert run(folder, "--text", "zebra", "--keys", rc=1).stdout == ""


def test_hostile_texts_are_printed_as_texts(tmp_path):
    made = texted(make_sample(0), "[red]boom[/red] [/nope] \x1b[2J\u202e " + "long " * 10_000)
    done = run(make_dataset(tmp_path / "d", [[made]]), "--text", "BOOM", rc=0)
    assert "[red]boom[/red] [/nope]" in done.stdout
    assert not {"\x1b", "\u202e"} & set(done.stdout)
    assert len(done.stdout) < 3000


def test_the_help_says_what_can_be_asked(folder):
    page = " ".join(CliRunner(env={"COLUMNS": "200"}).invoke(inspect_app, ["find", "--help"]).stdout.split())
    columns = [*pq.read_table(next(folder.glob("sidecars/*.parquet"))).column_names, "index"]
    assert [name for name in columns if not re.search(rf"\b{name}\b", page)] == []
    assert "square brackets" in page
    assert "sees one sample at a time" in page


def test_json_reaches_the_terminal_in_plain_ascii(tmp_path):
    """Control characters (C0, C1, DEL), bidi overrides and half characters would act on it."""
    hostile = "a\x1b[2J\x07\x7f\x9b31m\u202e\u2066\u200f\u2028\n猫 [red]"
    found = run(make_dataset(tmp_path / "d", [[texted(make_sample(0), hostile)]]), "--json", rc=0).stdout
    assert found.isascii()
    assert {character for character in found if not character.isprintable()} == {"\n"}
    assert json.loads(found)["samples"][0]["texts"] == [hostile]


@pytest.mark.parametrize(
    "arguments", ["--keys --json", "--reason image-missing", "--rejects --text cat", "--rejects --min-score 0"]
)
def test_bad_usage(folder, arguments):
    refusal("find", folder, *arguments.split())


def test_a_share_over_1(folder):
    run(folder, "--min-share", "2", rc=2)


def test_rejects(folder):
    done = run(folder, "--rejects", rc=0)
    assert "found 3 rejects" in done.stderr
    assert "\x1b" not in done.stdout
    document = told(folder, "--rejects", "--reason", "image-missing")
    assert document["found"] == 2
    fault = {"stage": "read", "reason": "image-missing", "message": "it isn't there"}
    assert document["rejects"][0] == {"ordinal": 50, "key": "s0050", "id": "Source/50", **fault}
    assert keys(folder, "--rejects", "--key", "*51") == ["s0051"]
    assert keys(folder, "--rejects", "--limit", "2", "--sort", "ordinal desc") == ["s0052", "s0051"]
    assert keys(folder, "--rejects", "--where", "ordinal > 50 and reason <> 'x'") == ["s0051"]
    assert run(folder, "--rejects", "--reason", "nothing", rc=1).stdout == ""
    with pytest.raises(InputError, match=r'"message" VARCHAR, "image" INTEGER, "index" BIGINT$'):
        find_rejects(open_dataset(folder), where="width > 1")


def test_what_a_retry_took_up_is_no_reject(tmp_path):
    """Of ordinals 1, 3 and 4 the first retry writes 3, and the second, which is still under way, has taken up 4."""
    storage, plans = open_storage(tmp_path), [plan_six(tmp_path)]
    commit_unit(tmp_path, 0, [make_sample(0), make_sample(2)], [make_reject(1)])
    commit_unit(tmp_path, 1, [make_sample(5)], [make_reject(3), make_reject(4)])
    assert keys(tmp_path, "--rejects") == ["s0001", "s0003", "s0004"]
    plans.append(make_retry_plan(storage, plans, [1, 3, 4]))
    commit_unit(tmp_path, 2, [make_sample(3)], [make_reject(1), make_reject(4)])
    plans.append(make_retry_plan(storage, plans, [4]))
    dataset = open_dataset(tmp_path)
    total, found = find_rejects(dataset)
    assert (total, [reject.ordinal for reject in found]) == (1, [1])
    assert find_samples(dataset, Search(where="ordinal = 3"))[0] == 1
    commit_unit(tmp_path, 3, [], [make_reject(4)])
    total, found = find_rejects(open_dataset(tmp_path), sort="ordinal desc", limit=1)
    assert (total, [reject.ordinal for reject in found]) == (2, [4])
    assert [(entry.reason, entry.count) for entry in count_rejects(open_dataset(tmp_path))[0]] == [("image-missing", 2)]


def test_one_tar_and_an_unfinished_build(tmp_path, folder):
    alone = tmp_path / "alone.tar"
    for unit in ("000000", "000002"):
        tar = f"shards/{unit}.tar"
        stored = [row["key"] for row in pq.read_table(folder / f"sidecars/{unit}.parquet").to_pylist()]
        alone.write_bytes((folder / tar).read_bytes())
        assert keys(folder / tar) == keys(alone) == stored
        assert keys(alone, "--where", "len(codes) < 3", rc=1) == []
    with pytest.raises(InputError, match="one tar"):
        find_rejects(open_dataset(alone))
    part = make_dataset(tmp_path / "part", [[make_sample(0)], [make_sample(1)]])
    unfinish(part)
    assert keys(part) == ["s0000"]


def test_from_a_store(folder):
    with on_a_store(folder) as bucket:
        for words in (("--text", "second"), ("--rejects",)):
            assert keys(bucket, *words) == keys(folder, *words)


def test_a_pipe_to_head_is_quiet(tmp_path):
    samples = [renamed(make_sample(0), f"k{number:05d}-{'x' * 70}") for number in range(1000)]
    (tmp_path / "a.tar").write_bytes(write_shard(samples)[0])
    command = [sys.executable, "-m", "patchmint", "inspect", "find", str(tmp_path / "a.tar"), "--keys"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as found:
        assert found.stdout.readline().startswith(b"k00000")
        found.stdout.close()
        assert found.stderr.read() == b""
        assert found.wait(60) == 0


def test_rejects_stay_in_order(tmp_path):
    rejects = {unit: [replace(make_reject(10 * unit + n), key=f"r{unit}{n}") for n in range(3)] for unit in range(3)}
    folder = make_dataset(tmp_path / "d", [[make_sample(100)], [], [make_sample(101)]], rejects)
    assert keys(folder, "--rejects") == [reject.key for some in rejects.values() for reject in some]

"""Keys: lawful, unique whatever the ids are, and the same whatever the memory."""

import re
from functools import partial
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchmint.pipeline.plan import keys, to_batches
from patchmint.pipeline.plan.keys import MAX_KEY, key_of, marked
from patchmint.pipeline.plan.make import cut_units, spooled
from patchmint.samples import ImageRef, SourceSample
from patchmint.shards.endings import VALID_KEY


def is_unicode(text):
    return not any("\ud800" <= character <= "\udfff" for character in text)


plain_ids = (
    st.text(max_size=100) | st.text("aA0_-./é", max_size=90) | st.sampled_from(["a", "A", "a.jpg", "", "000000"])
)
hostile_ids = st.one_of(
    plain_ids,
    plain_ids.filter(is_unicode).map(key_of),
    st.builds(marked, st.sampled_from(["a", "x-0123456789", "a__000000001"]), st.integers(0, 12)),
)


def planned_keys(ids, unit=3):
    samples = [SourceSample(sample_id, (ImageRef("a.jpg"),), ()) for sample_id in ids]
    with spooled(to_batches(samples), partial(cut_units, samples=unit, images=None)) as batches:
        return [key for batch in batches for key in batch["key"].to_pylist()]


@pytest.mark.parametrize("lawful", ["000000391895", "a", "0", "a-b_c", "a__00000001", "x" * MAX_KEY, "a-0123456789"])
def test_a_lawful_id_is_its_own_key(lawful):
    assert key_of(lawful) == lawful


@pytest.mark.parametrize(
    ("unlawful", "shape"),
    [
        ("train2017/000000391895.jpg", r"train2017_000000391895_jpg-[0-9a-f]{10}"),
        ("ABC", r"abc-[0-9a-f]{10}"),
        ("a.b", r"a_b-[0-9a-f]{10}"),
        ("..a..", r"a-[0-9a-f]{10}"),
        ("-rf", r"rf-[0-9a-f]{10}"),
        ("a__000000007", r"a_000000007-[0-9a-f]{10}"),
        ("a__0000000070", r"a_0000000070-[0-9a-f]{10}"),
        ("猫", r"sample-[0-9a-f]{10}"),
        ("", r"sample-[0-9a-f]{10}"),
        ("a\n", r"a-[0-9a-f]{10}"),
        ("x" * (MAX_KEY + 1), rf"x{{{MAX_KEY - 11}}}-[0-9a-f]{{10}}"),
        ("x" * 1_000_000, rf"x{{{MAX_KEY - 11}}}-[0-9a-f]{{10}}"),
    ],
)
def test_an_unlawful_id_keeps_what_is_lawful_in_it(unlawful, shape):
    assert re.fullmatch(shape, key_of(unlawful))


def test_the_first_keeps_its_key_and_later_ones_are_marked():
    other = key_of("A")
    expected = ["a", "b", "a__000000002", "c", other, "a__000000005", f"{other}__000000006"]
    assert planned_keys(["a", "b", "a", "c", "A", "a", "A"]) == expected


def test_an_id_may_be_what_another_ids_key_is_or_look_like_a_mark_or_like_another():
    for ids in (["A", key_of("A")], [key_of("A"), "A"]):
        assert planned_keys(ids) == [key_of("A"), f"{key_of('A')}__000000001"]
    alike = ["a b", "a.b", "A b", "a/b", "a b ", "猫", "犬"]
    assert len({key_of(sample_id) for sample_id in alike}) == len(alike)
    found = planned_keys(["a", "a__000000002", "a"])
    assert found[0] == "a"
    assert found[2] == "a__000000002"
    assert len(set(found)) == 3


@settings(max_examples=150)
@given(st.lists(hostile_ids, max_size=30), st.integers(1, 7))
def test_keys_are_lawful_and_unique(ids, unit):
    found = planned_keys(ids, unit)
    assert len(found) == len(ids)
    assert len(set(found)) == len(ids)
    assert all(VALID_KEY.fullmatch(key) for key in found)


@pytest.mark.parametrize("at_once", [1, 2, 5, 64])
def test_repeats_are_found_in_any_number_of_rounds(monkeypatch, at_once):
    ids = [f"{number % 23}" for number in range(200)]
    expected = planned_keys(ids)
    monkeypatch.setattr(keys, "_AT_ONCE", at_once)
    assert planned_keys(ids) == expected
    assert len(set(expected)) == 200
    assert sum("__" in key for key in expected) == 200 - 23


def test_units_keep_their_size_and_order():
    samples = [SourceSample(f"{number}", (ImageRef("a.jpg"),), ()) for number in range(7)]
    ordinals = [[0, 1, 2], [3, 4, 5], [6]]
    for pieces in ([7], [1, 6], [3, 4], [2, 2, 2, 1], [1] * 7):
        coming = iter(samples)
        read = (batch for piece in pieces for batch in to_batches(islice(coming, piece)))
        with spooled(read, partial(cut_units, samples=3, images=None)) as batches:
            units = [batch.to_pydict() for batch in batches]
        assert [unit["ordinal"] for unit in units] == ordinals
        assert [unit["id"] for unit in units] == [[str(number) for number in unit] for unit in ordinals]

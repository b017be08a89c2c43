"""Prompts: every token knows its characters, nothing is lost, masks are upstream's."""

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchmint.errors import TextError, WeightsCorruptError
from patchmint.labelers.grounding_dino.arch import MAX_TEXT_TOKENS
from patchmint.labelers.grounding_dino.prompts import Vocabulary, caption_prompts, phrase_prompts
from patchmint.types import Text

VOCABULARY = Vocabulary.of_characters(0)
WORDS = ["a", "red", "fox", "jumps", "over", "the", "lazy", "dog", "42"]


def spans_of(prompts):
    return [token.span for prompt in prompts for token in prompt.tokens]


def test_tokens_stand_for_their_characters():
    text = "A Cat's   naïve\tsofa."
    tokens = VOCABULARY.tokenize(text)
    assert "".join(text[start:end] for start, end in (t.span for t in tokens)) == "ACat'snaïvesofa."
    assert [t.readable for t in tokens if text[t.span[0]] in "'."] == [False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a t-shirt", ["a", "t-shirt"]),
        ("3 o'clock", ["3", "o'clock"]),
        ("cat's and/or R&B", ["cat's", "and/or", "R&B"]),
        ("a - b", ["a", "-", "b"]),
        ("dogs' 'cat'", ["dogs", "'", "'", "cat", "'"]),
        ("fox.dog,cat", ["fox", ".", "dog", ",", "cat"]),
    ],
)
def test_what_is_one_word(text, words):
    tokens = VOCABULARY.tokenize(text)
    spans = {}
    for token in tokens:
        start, _ = spans.setdefault(token.word, token.span)
        spans[token.word] = (start, token.span[1])
    assert [text[start:end] for start, end in spans.values()] == words


def test_spans_hold_where_lower_case_is_longer():
    # "İ".lower() is two characters long: a pipeline that lowers first would shift every span after it
    text = "İİİ cat"
    tokens = VOCABULARY.tokenize(text)
    assert [text[t.span[0] : t.span[1]] for t in tokens][-3:] == ["c", "a", "t"]


def test_commands_in_a_caption_are_only_characters():
    prompt = caption_prompts(Text("a [SEP] b [CLS] c"), VOCABULARY)[0]
    assert (prompt.ids == VOCABULARY.sep).sum() == 1
    assert (prompt.ids == VOCABULARY.cls).sum() == 1


def test_prompt_has_one_closing_stop():
    for text in ("cat", "cat.", "cat ."):
        prompt = caption_prompts(Text(text), VOCABULARY)[0]
        assert list(prompt.ids[-2:]) == [VOCABULARY.stop, VOCABULARY.sep]
        assert (prompt.ids == VOCABULARY.stop).sum() == 1


@pytest.mark.parametrize("text", ["🐱🐱", "...", "!?", "猫", "—"])
def test_nothing_readable_is_no_prompt(text):
    assert caption_prompts(Text(text), VOCABULARY) == []
    assert phrase_prompts(Text(text), VOCABULARY) == []


@settings(max_examples=40)
@given(st.lists(st.sampled_from([*WORDS, "fox.", "dog,", "ok?"]), min_size=1, max_size=300))
def test_long_texts_lose_nothing_and_cut_no_word(words):
    text = " ".join(words)
    words = [match.span() for match in re.finditer(r"\w+", text)]
    prompts = caption_prompts(Text(text), VOCABULARY)
    assert all(len(prompt.ids) <= MAX_TEXT_TOKENS for prompt in prompts)
    assert spans_of(prompts) == [token.span for token in VOCABULARY.tokenize(text)]
    for prompt in prompts:
        first, last = prompt.tokens[0].span[0], prompt.tokens[-1].span[1]
        assert all(start >= last or end <= first or first <= start < end <= last for start, end in words)


def test_long_texts_are_cut_at_the_best_border():
    sentence = "a red fox jumps over the lazy dog"
    stops = caption_prompts(Text(". ".join([sentence] * 20)), VOCABULARY)
    assert len(stops) > 1
    assert all(prompt.tokens[-1].id == VOCABULARY.stop for prompt in stops[:-1])
    plain = Text(" ".join(["jumps"] * 200))
    assert all(plain.content[p.tokens[-1].span[1] :][:1] in {" ", ""} for p in caption_prompts(plain, VOCABULARY))
    commas = Text(", ".join([sentence] * 20))
    assert all(commas.content[p.tokens[-1].span[0]] == "," for p in caption_prompts(commas, VOCABULARY)[:-1])


def test_a_word_longer_than_a_prompt_is_still_read():
    # longer than 100 characters is [UNK] for WordPiece; many joined by hyphens is one "word" of many pieces
    text = Text("-".join(["abcdefgh"] * 60))
    prompts = caption_prompts(text, VOCABULARY)
    assert spans_of(prompts) == [token.span for token in VOCABULARY.tokenize(text.content)]
    assert all(len(prompt.ids) <= MAX_TEXT_TOKENS for prompt in prompts)


def test_50_kilobytes_of_text():
    prompts = caption_prompts(Text("lorem ipsum dolor " * 2800), VOCABULARY)
    assert sum(len(prompt.tokens) for prompt in prompts) == 2800 * 15


def test_phrases_are_sub_sentences_of_their_own():
    text = Text.from_phrases(["a cat", "the red sofa"])
    prompt = phrase_prompts(text, VOCABULARY)[0]
    assert [text.content[s:e] for s, e in prompt.phrases] == ["a cat", "the red sofa"]
    for token, phrase in zip(prompt.tokens, prompt.phrase_of, strict=True):
        if phrase >= 0:
            start, end = prompt.phrases[phrase]
            assert start <= token.span[0] < token.span[1] <= end
    assert (prompt.ids == VOCABULARY.stop).sum() == 2


def test_phrases_of_a_caption_by_their_spans():
    text = Text("Two cats sleep on a pink sofa", phrases=((0, 8), (18, 29)))
    prompt = phrase_prompts(text, VOCABULARY)[0]
    assert [text.content[s:e] for s, e in prompt.phrases] == ["Two cats", "a pink sofa"]
    assert "sleep" not in "".join(text.content[t.span[0] : t.span[1]] for t in prompt.tokens)


def test_many_phrases_need_many_prompts_and_none_is_lost():
    names = [f"thing number {n}" for n in range(80)]
    text = Text.from_phrases(names)
    prompts = phrase_prompts(text, VOCABULARY)
    assert len(prompts) > 1
    assert all(len(prompt.ids) <= MAX_TEXT_TOKENS for prompt in prompts)
    assert [text.content[s:e] for prompt in prompts for s, e in prompt.phrases] == names


def test_a_phrase_longer_than_a_prompt_keeps_its_name():
    text = Text.from_phrases(["short", "a b c d e f g h " * 40])
    prompts = phrase_prompts(text, VOCABULARY)
    assert len(prompts) == 3
    assert {span for prompt in prompts for span in prompt.phrases} == set(text.phrases)


@pytest.mark.parametrize(
    ("content", "phrases"),
    [
        ("a 3.5 mm lens . a cat", ["a 3.5 mm lens", "a cat"]),
        ("a cat. a dog.", ["a cat", "a dog"]),
        ("cat", ["cat"]),
        (" . cat .. ", ["cat ."]),
        ("v1.2.3 box.  a U.S.A-made lamp", ["v1.2.3 box", "a U.S.A-made lamp"]),
    ],
)
def test_a_list_is_cut_at_its_stops_only(content, phrases):
    prompt = phrase_prompts(Text(content), VOCABULARY)[0]
    assert [content[start:end] for start, end in prompt.phrases] == phrases


@pytest.mark.parametrize("phrase", ["a 3.5 mm lens", "is it ok? yes", "U.S. flag", "a cat.", "a cat . ."])
def test_a_phrase_with_stops_is_one_sub_sentence(phrase):
    prompt = phrase_prompts(Text.from_phrases(["x", phrase, "y"]), VOCABULARY)[0]
    places = prompt.places[prompt.phrase_of == 1]
    assert prompt.sees[np.ix_(places, places)].all()
    assert prompt.positions[places].tolist() == list(range(len(places)))
    others = prompt.places[(prompt.phrase_of == 0) | (prompt.phrase_of == 2)]
    assert not prompt.sees[np.ix_(places, others)].any()
    assert prompt.tokens[-1].readable  # one closing stop, none of the phrase's own


def test_wrong_phrases_are_refused():
    for spans in (((0, 4),), ((2, 2),), ((-1, 2),)):
        with pytest.raises(TextError, match="outside"):
            Text("cat", phrases=spans)
    with pytest.raises(TextError, match="empty"):
        Text.from_phrases([])
    with pytest.raises(TextError, match="blank"):
        Text.from_phrases(["cat", " "])


def test_a_file_that_is_no_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("cat\ndog\n")
    with pytest.raises(WeightsCorruptError, match=r"\[PAD\]"):
        Vocabulary.from_file(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", "cat", "cat"]))
    with pytest.raises(WeightsCorruptError, match="twice"):
        Vocabulary.from_file(tmp_path / "vocab.txt")
    (tmp_path / "vocab.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightsCorruptError, match="UTF-8"):
        Vocabulary.from_file(tmp_path / "vocab.bin")


@settings(max_examples=30)
@given(st.lists(st.sampled_from([*WORDS, ".", "?", ",", "fox."]), min_size=1, max_size=30))
def test_masks_and_positions_are_upstreams(words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from groundingdino.models.GroundingDINO.bertwarper import generate_masks_with_special_tokens

    prompts = caption_prompts(Text(" ".join(words)), VOCABULARY)
    special = [VOCABULARY.cls, VOCABULARY.sep, VOCABULARY.stop, VOCABULARY.question]
    for prompt in prompts:
        ids = torch.from_numpy(prompt.ids)[None]
        sees, positions = generate_masks_with_special_tokens({"input_ids": ids}, special, None)
        np.testing.assert_array_equal(prompt.sees, sees[0].numpy())
        np.testing.assert_array_equal(prompt.positions, positions[0].numpy())

"""Documents of drawn scenes: every answer is what the pictures show, worked out here from the words alone."""

import json
import re

import numpy as np
import pytest

from patchmint.demo.documents import ORDINALS, make_document, read_documents, write_documents
from patchmint.demo.shapes import COLOURS, SHAPES
from patchmint.demo.texts import NUMBERS
from patchmint.errors import InputError
from patchmint.geometry.rle import decode_mask
from patchmint.pipeline.sources.documents import read_document
from patchmint.samples import ImageRef

SEED = 11


@pytest.fixture(scope="module")
def documents():
    return [make_document(SEED, number) for number in range(40)]


def asked(documents, form):
    return [(each, exchange) for each in documents for exchange in each.exchanges if exchange.form == form]


def said(turn):
    return {word for word in re.findall(r"[a-z]+", turn.content) if word in {*COLOURS, *SHAPES}}


def showing(document, words):
    """Numbers of the pictures that have a thing of these words."""
    things = [[{thing.colour, thing.shape} for thing in scene.objects] for scene in document.pictures]
    return [number for number, there in enumerate(things) if any(words <= thing for thing in there)]


def test_a_document_depends_on_seed_and_number_only(documents):
    again = make_document(SEED, 3)
    assert [scene.jpeg for scene in again.pictures] == [scene.jpeg for scene in documents[3].pictures]
    assert again.exchanges == documents[3].exchanges
    assert make_document(SEED + 1, 3).exchanges != again.exchanges
    assert {len(document.pictures) for document in documents} == set(range(2, 7))


def test_which_picture(documents):
    answers = []
    for document, exchange in asked(documents, "which"):
        found = showing(document, said(exchange.question))
        assert len(found) <= 1
        answers.append(exchange.answer.content)
        assert answers[-1] == (f"The {ORDINALS[found[0]]} picture." if found else "None of them.")
    assert len(set(answers)) > 4
    assert 3 < answers.count("None of them.") < len(answers) / 2


def test_how_many_pictures(documents):
    answers = []
    for document, exchange in asked(documents, "count"):
        count = len(showing(document, said(exchange.question)))
        answers.append(exchange.answer.content.removesuffix("."))
        assert answers[-1] == (NUMBERS[count].capitalize() if count else "None")
    assert len(set(answers)) > 4


def test_what_has_changed(documents):
    answers = set()
    for document, exchange in asked(documents, "change"):
        first, second = (ORDINALS.index(word) for word in re.findall(r"the (\w+)", exchange.question.content))
        before, after = document.pictures[first], document.pictures[second]
        differ = np.abs(before.image.astype(int) - after.image).max(axis=2) > 40
        gone, new = set(before.objects) - set(after.objects), set(after.objects) - set(before.objects)
        told = exchange.answer.content
        answers.add(re.sub(r"\b(a|the|The)\b|\b(" + "|".join((*COLOURS, *SHAPES)) + r")\b", "", told))
        if told == "Nothing has changed.":
            assert before.jpeg == after.jpeg
            continue
        changed = before.mask(tuple(map(before.objects.index, gone))) | after.mask(tuple(map(after.objects.index, new)))
        ys, xs = np.nonzero(changed)
        around = np.zeros_like(changed)  # JPEG's blocks reach some pixels beyond
        around[max(0, ys.min() - 16) : ys.max() + 17, max(0, xs.min() - 16) : xs.max() + 17] = True
        assert differ.any()
        assert not (differ & ~around).any()
        (thing,) = gone or new
        assert {thing.colour, thing.shape} <= said(exchange.answer)
        assert len(gone) == (" new " not in told)
        assert len(new) == (" gone" not in told)
        if gone and new:
            (other,) = new
            assert told == f"The {thing.colour} {thing.shape} is {other.colour} now."
    assert len(answers) == 4


def test_a_phrase_names_the_objects_of_every_picture_that_its_words_are_true_of(documents):
    for document in documents:
        for turn in (turn for exchange in document.exchanges for turn in (exchange.question, exchange.answer)):
            for phrase in turn.phrases:
                words = set(turn.content[slice(*phrase.span)].split())
                assert words <= {*COLOURS, *SHAPES}
                for scene, objects in zip(document.pictures, phrase.objects, strict=True):
                    things = [{thing.colour, thing.shape} for thing in scene.objects]
                    assert list(objects) == [index for index, thing in enumerate(things) if words <= thing]


def test_no_question_is_asked_twice(documents):
    for document in documents:
        questions = [exchange.question.content for exchange in document.exchanges]
        assert len(set(questions)) == len(questions) >= 2


def test_written_documents_are_conversations_with_the_truth_beside_them(tmp_path):
    write_documents(tmp_path, seed=SEED, count=3)
    entries = json.loads((tmp_path / "conversations.json").read_text())
    truth = read_documents(tmp_path).documents
    for number, entry in enumerate(entries):
        made = make_document(SEED, number)
        read = read_document(entry, entry["id"], "", lambda path, _: ImageRef(path))
        assert [(tmp_path / image.path).read_bytes() for image in read.images] == [s.jpeg for s in made.pictures]
        assert [part.image for part in read.parts if part.image >= 0] == list(range(len(made.pictures)))
        turns = [turn for exchange in made.exchanges for turn in (exchange.question, exchange.answer)]
        texts = [part.text.strip() for part in read.parts if part.text.strip()]
        assert texts == [turn.content for turn in turns]
        for picture, (scene, told) in enumerate(zip(made.pictures, truth[entry["id"]], strict=True)):
            for turn, known in zip(turns, told.texts, strict=True):
                assert known.content == turn.content
                for phrase, true in zip(turn.phrases, known.phrases, strict=True):
                    named = scene.mask(phrase.objects[picture])
                    assert (decode_mask(true.mask) == named).all() if true.mask else not named.any()
    with pytest.raises(InputError, match="holds documents already"):
        write_documents(tmp_path, seed=SEED, count=3)

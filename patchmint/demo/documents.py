"""Documents of several scenes, with questions that no single picture answers, and the truth.

```
FOLDER/conversations.json      an entry a document, as LLaVA-Interleave's: `image` is a list, with a mark for each
FOLDER/documents.json          what each turn talks about, picture by picture, as `patchmint judge` reads it
FOLDER/pictures/NUMBER-PICTURE.jpg
```

A document depends on its seed and its number only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from patchmint.demo.dataset import check_same, make_once, read_truth_file, told_objects, told_text
from patchmint.demo.scenes import Scene, draw_scene, make_scene
from patchmint.demo.shapes import COLOURS, SHAPES, SceneObject
from patchmint.demo.texts import NUMBERS
from patchmint.errors import InputError
from patchmint.judging.truth import TrueImage
from patchmint.types import Span

TRUTH_FILE = "documents.json"
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
NOTHING_CHANGED = "Nothing has changed."
IN_NONE = "None of them."

_PICTURES = (2, 6)
_QUESTIONS = (2, 4)
_BY_CHANCE = 0.4  # of the questions are about any kind of thing, which mostly isn't there
_CHANGES = ("gone", "new", "colour", "nothing")
_TRIES = 40
_STREAM = 20  # keeps a document's pictures apart from the scenes of the same seed


@dataclass(frozen=True)
class DocumentPhrase:
    """A phrase of a turn.

    Attributes:
        span: its characters.
        objects: for each picture the indices of the objects that it names; none where it names something absent.
    """

    span: Span
    objects: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SceneTurn:
    """A question or an answer, without marks.

    Attributes:
        content: the text.
        phrases: what it names, in order.
    """

    content: str
    phrases: tuple[DocumentPhrase, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A question and its answer.

    Attributes:
        form: "which", "count" or "change".
        question, answer: the turns.
    """

    form: str
    question: SceneTurn
    answer: SceneTurn


@dataclass(frozen=True, eq=False)
class SceneDocument:
    """Several scenes and a conversation about them.

    Attributes:
        pictures: 2 to 6 scenes, without texts of their own.
        exchanges: at least two, all questions different.
    """

    pictures: tuple[Scene, ...]
    exchanges: tuple[Exchange, ...]


def make_document(seed: int, number: int) -> SceneDocument:
    """Make a document.

    Args:
        seed: of the data set.
        number: which document of it.
    """
    rng = np.random.default_rng((seed, number, _STREAM))
    count = int(rng.integers(_PICTURES[0], _PICTURES[1] + 1))
    scenes = [make_scene(int(rng.integers(1 << 31)), number, texts=0) for _ in range(count - 2)]
    before, after, said, words = _pair((seed, number, _STREAM), rng)
    first = int(rng.integers(count - 1))
    pictures = (*scenes[:first], before, after, *scenes[first:])
    exchanges = {}
    wanted = int(rng.integers(_QUESTIONS[0], _QUESTIONS[1] + 1))
    forms = rng.permutation(["change", *rng.choice(["which", "count"], wanted - 1)])
    for form in forms.tolist():
        exchange = _changed(pictures, first, said, words) if form == "change" else _asked(form, pictures, rng)
        exchanges[exchange.question.content] = exchange
    while len(exchanges) < _QUESTIONS[0]:  # the same was asked twice
        exchange = _asked("count", pictures, rng)
        exchanges[exchange.question.content] = exchange
    return SceneDocument(pictures, tuple(exchanges.values()))


def write_documents(folder: Path, *, seed: int, count: int, progress: Callable[[int], None] | None = None) -> None:
    """Make documents and write them; the same arguments give the same bytes.

    Args:
        folder: where to; made if need be.
        seed: of the documents.
        count: how many.
        progress: called with the number of documents done so far.

    Raises:
        InputError: the folder holds documents already.
    """
    if (folder / TRUTH_FILE).exists():
        raise InputError(f"{folder} holds documents already ({TRUTH_FILE}); choose another folder, or delete this one")
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    entries, truth = [], []
    for number in range(count):
        document = make_document(seed, number)
        name = f"{number:06d}"
        paths = [f"pictures/{name}-{picture}.jpg" for picture in range(len(document.pictures))]
        for path, scene in zip(paths, document.pictures, strict=True):
            (folder / path).write_bytes(scene.jpeg)
        turns: list[dict[str, str]] = []
        for exchange in document.exchanges:
            marks = "" if turns else "<image>\n" * len(paths)
            turns.append({"from": "human", "value": marks + exchange.question.content})
            turns.append({"from": "gpt", "value": exchange.answer.content})
        entries.append({"id": name, "image": paths, "conversations": turns})
        truth += [
            {
                "image_id": name,
                "image": picture,
                "forms": [exchange.form for exchange in document.exchanges],
                "objects": told_objects(scene),
                "texts": [
                    told_text(turn.content, ((each.span, each.objects[picture]) for each in turn.phrases))
                    for each in document.exchanges
                    for turn in (each.question, each.answer)
                ],
            }
            for picture, scene in enumerate(document.pictures)
        ]
        if progress:
            progress(number + 1)
    _write(folder / "conversations.json", entries)
    # Last: its presence says that the data set is whole.
    _write(folder / TRUTH_FILE, {"seed": seed, "images": truth})


@dataclass(frozen=True)
class DocumentTruth:
    """A whole data set.

    Attributes:
        seed: of its documents.
        documents: by id, for each picture what each turn names in it.
    """

    seed: int
    documents: dict[str, tuple[TrueImage, ...]]


def read_documents(folder: Path) -> DocumentTruth:
    """Read what `write_documents` wrote.

    Raises:
        InputError: it is missing, or isn't of that form.
    """
    told = read_truth_file(folder / TRUTH_FILE)
    documents: dict[str, tuple[TrueImage, ...]] = {}
    for entry in told.entries():
        documents[entry.id] = (*documents.get(entry.id, ()), entry.image)
    return DocumentTruth(told.seed, documents)


def obtain_documents(folder: Path, *, seed: int, count: int, progress: Callable[[int], None]) -> DocumentTruth:
    """Write documents, or take those that an earlier call with the same arguments wrote; as `obtain_scenes`.

    Raises:
        InputError: the folder holds others or something else, or can't be written.
    """
    make_once(folder, lambda partial: write_documents(partial, seed=seed, count=count, progress=progress))
    truth = read_documents(folder)
    check_same(folder, "documents", (truth.seed, len(truth.documents)), (seed, count))
    return truth


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _pair(seed: tuple[int, ...], rng: np.random.Generator) -> tuple[Scene, Scene, tuple[str, str], tuple[str, ...]]:
    """Two pictures of which one was made from the other, and what is said about it around which phrase."""
    while True:
        scene = make_scene(int(rng.integers(1 << 31)), 0, texts=0)
        alone = [thing for thing in scene.objects if sum(each.has(*_words(thing)) for each in scene.objects) == 1]
        if len(scene.objects) > 1 and alone:
            break
    thing = alone[rng.integers(len(alone))]
    before = after = scene.objects
    rest = tuple(each for each in before if each != thing)
    said: tuple[str, str] = ("", NOTHING_CHANGED)
    match _CHANGES[rng.integers(len(_CHANGES))]:
        case "gone":
            after, said = rest, ("The ", " is gone.")
        case "new":
            before, said = rest, ("There is a new ", ".")
        case "colour":
            other = _choice(tuple(colour for colour in COLOURS if not any(each.has(colour) for each in before)), rng)
            after = tuple(replace(each, colour=other) if each == thing else each for each in before)
            said = ("The ", f" is {other} now.")
    scenes = [draw_scene(scene.size, objects, seed) for objects in (before, after)]
    return scenes[0], scenes[1], said, () if said[1] == NOTHING_CHANGED else _words(thing)


def _changed(pictures: tuple[Scene, ...], first: int, said: tuple[str, str], words: tuple[str, ...]) -> Exchange:
    question = SceneTurn(f"What has changed from the {ORDINALS[first]} to the {ORDINALS[first + 1]} picture?")
    return Exchange("change", question, _turn(said[0], words, said[1], pictures) if words else SceneTurn(said[1]))


def _asked(form: str, pictures: tuple[Scene, ...], rng: np.random.Generator) -> Exchange:
    """A question about a kind of thing. "Which" is asked where one picture has it, or none; else "count"."""
    by_chance = rng.random() < _BY_CHANCE
    for _ in range(_TRIES):
        words: tuple[str, ...] = _choice(tuple(COLOURS), rng), _choice(SHAPES, rng)
        if not by_chance:
            scene = pictures[rng.integers(len(pictures))]
            words = _words(scene.objects[rng.integers(len(scene.objects))])
            words = words if form == "which" or rng.random() < 0.5 else words[1:]
        showing = [place for place, scene in enumerate(pictures) if any(thing.has(*words) for thing in scene.objects)]
        if form == "count" or len(showing) <= 1:
            break
    else:
        form = "count"
    a = "an" if words[0][0] in "aeiou" else "a"
    if form == "count":
        said = NUMBERS[len(showing)].capitalize() if showing else "None"
        return Exchange(form, _turn(f"How many pictures have {a} ", words, "?", pictures), SceneTurn(f"{said}."))
    answer = f"The {ORDINALS[showing[0]]} picture." if showing else IN_NONE
    return Exchange(form, _turn(f"Which picture has {a} ", words, "?", pictures), SceneTurn(answer))


def _turn(before: str, words: tuple[str, ...], after: str, pictures: tuple[Scene, ...]) -> SceneTurn:
    """A turn with one phrase, which names every object of any picture that all its words are true of."""
    named = tuple(tuple(index for index, thing in enumerate(scene.objects) if thing.has(*words)) for scene in pictures)
    name = " ".join(words)
    return SceneTurn(before + name + after, (DocumentPhrase((len(before), len(before) + len(name)), named),))


def _words(thing: SceneObject) -> tuple[str, ...]:
    return thing.colour, thing.shape


def _choice(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[rng.integers(len(words))]

"""Token sequences of text and images for the language model, with what is learnt of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from patchmint.errors import ConfigError, InputError, TextError
from patchmint.samples import NO_NUMBER, Part, Turn
from patchmint.training.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_LEARNT = -100
"""Label of what isn't learnt."""

IMAGE_MARK = "<image>"
"""Stands for an image in a text of several, and in a turn of a conversation."""


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One sequence for the language model.

    Attributes:
        input_ids: int64 (length,).
        labels: int64 (length,): the same ids where they are learnt, -100 where not. Not shifted: transformers'
            causal models do that themselves.
        state_position: where the language model's hidden state is the patch selector's global state; None: nowhere.
        image_positions: int64 (shown, 4): for each image that is shown, in order: its number, and where it begins, its
            slots begin, and it ends (the position after its last).
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    state_position: int | None = None
    image_positions: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """What stands for an image: its codes between two marks, then slots for continuous tokens (MaVEn); or one of both.

    Slots have no id of their own: 0 stands there, until `fill_slots` puts continuous tokens in the embeddings' places.

    Attributes:
        codes: what `VisualVocabulary.ids` takes; None: no codes and no marks (LLaVA).
        slots: number of continuous tokens.
    """

    codes: npt.ArrayLike | None = None
    slots: int = 0


Image = npt.ArrayLike | ImageTokens
"""An image in a sequence; an array is its codes alone."""


@dataclass(frozen=True)
class ConversationTemplate:
    """What stands around the turns of a conversation.

    Attributes:
        system: before the first turn, unless the conversation has a system's turn; that is followed by `after_human`.
        human: before what a human says.
        after_human: after it.
        gpt: before an answer. An answer ends with EOS.
    """

    system: str = ""
    human: str = "USER:\n"
    after_human: str = "\n"
    gpt: str = "ASSISTANT:\n"


_DEFAULT_TEMPLATE = ConversationTemplate()


class _Segment(NamedTuple):
    ids: Sequence[int] | npt.NDArray[np.int64]
    learnt: bool
    image: int = NO_NUMBER
    slots: int = 0


class TextEncoder:
    """Encodes texts that strangers wrote.

    A text that contains the literal of a visual token, of a mark or of any special token of the tokenizer (`</s>`) is
    encoded as the characters that it consists of, never as that token.

    Attributes:
        prefix: ids that the tokenizer puts before a text (BOS); empty where it puts none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: VisualVocabulary | None) -> None:
        self._tokenizer = tokenizer
        visual = range(vocabulary.text_size, vocabulary.end_id + 1) if vocabulary else ()
        # The unknown token stands for characters, so texts may have it.
        special = {*tokenizer.all_special_ids, *visual} - {tokenizer.unk_token_id}
        self._reserved = frozenset(special | {tokenizer.eos_token_id})
        self.prefix: list[int] = _prefix(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS.

        Raises:
            TextError: it is no valid Unicode, or can't be encoded without a special token.
        """
        ids = self._plain(text)
        if self._reserved.isdisjoint(ids):
            return ids
        # Unigram models know their special tokens as words, so `split_special_tokens` doesn't split those.
        split = [piece for token in ids for piece in (self._broken(token) if token in self._reserved else [token])]
        if not self._reserved.isdisjoint(split):
            raise TextError(f"the text {text[:80]!r} can't be encoded without the tokenizer's special tokens; drop it")
        return split

    def _broken(self, token: int) -> list[int]:
        literal = str(self._tokenizer.convert_ids_to_tokens(token))
        return self._plain(literal[:1]) + self._plain(literal[1:])

    def _plain(self, text: str) -> list[int]:
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        except (TypeError, ValueError) as error:
            raise TextError(f"the text {text!r:.80} can't be encoded: {error}; texts are valid Unicode") from error
        return cast(list[int], ids)


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    return ids[: mask.index(0)] if 0 in mask else []


class SequenceBuilder:
    """Makes sequences of texts and images: of their codes, of slots for continuous tokens, or of both (`ImageTokens`).

    Every sequence begins with the tokenizer's BOS where the tokenizer puts one. Texts between two images, and around
    them, are encoded one by one. What a text says never becomes a special token (`TextEncoder`).

    A sequence over `max_length` loses text, at that text's end; an image stays whole. Where text stands before the
    images (`text_to_image`, `state`), that text gets shorter. Else the sequence ends at `max_length`, and an image that
    would not fit whole is left out with all that follows it. A text that was cut has no EOS. A prompt is never cut.

    Can be pickled, so that a loader's workers can call it.

    All methods raise an InputError where codes are not the codebook's, and a TextError where a text can't be encoded.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: VisualVocabulary | None = None,
        *,
        max_length: int | None = None,
        template: ConversationTemplate = _DEFAULT_TEMPLATE,
    ) -> None:
        """Take a tokenizer, extended unless images have slots alone.

        Args:
            tokenizer: of Hugging Face.
            vocabulary: what `extend_tokenizer` returned for it; None: no image has codes.
            max_length: most ids in a sequence; None: no limit.
            template: for conversations.

        Raises:
            ConfigError: the tokenizer isn't extended as the vocabulary says, has no EOS, or the limit is not positive.
        """
        if vocabulary is not None:
            found = VisualVocabulary.of_tokenizer(tokenizer, vocabulary.codebook)
            if (found.text_size, found.eos_id) != (vocabulary.text_size, vocabulary.eos_id):
                raise ConfigError(
                    f"the vocabulary has {vocabulary.text_size} ids of text and EOS {vocabulary.eos_id}, the tokenizer "
                    f"{found.text_size} and {found.eos_id}; make it with VisualVocabulary.of_tokenizer"
                )
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no EOS; set its eos_token")
        if max_length is not None and max_length < 1:
            raise ConfigError(f"max_length must be at least 1, not {max_length}")
        self.vocabulary = vocabulary
        self._eos_id = int(tokenizer.eos_token_id)
        self._text = TextEncoder(tokenizer, vocabulary)
        self._max_length = max_length
        self._template = template

    def text(self, text: str) -> TokenSequence:
        """A text without images, then EOS; both are learnt.

        Raises:
            InputError: the limit leaves nothing to learn.
        """
        return self._joined([self._written(text, learnt=True), self._eos(learnt=True)])

    def image_to_text(self, image: Image, text: str) -> TokenSequence:
        """An image, then its text and EOS; the text and EOS are learnt.

        Raises:
            InputError: the limit leaves nothing to learn.
        """
        return self._joined([self._image(image, 0), self._written(text, learnt=True), self._eos(learnt=True)])

    def text_to_image(self, text: str, codes: npt.ArrayLike) -> TokenSequence:
        """A text, then its image; the image's codes and end mark are learnt.

        Raises:
            InputError: the image alone is over the limit.
        """
        image = self._image(ImageTokens(codes), 0)._replace(learnt=True)
        made = _sequence([*self._text_before(text, len(image.ids)), image])
        made.labels[made.image_positions[0, 1]] = NOT_LEARNT
        return made

    def state(self, image: Image, text: str = "") -> TokenSequence:
        """MaVEn's discrete state: an image, then EOS, where the language model's hidden state is the selector's input.

        Args:
            image: its codes.
            text: stands before the image, so that the state knows of it; "": the image alone.

        Returns:
            A sequence of which nothing is learnt, with `state_position`.

        Raises:
            InputError: the image alone is over the limit.
        """
        return self.document_state([image], text)

    def document_state(self, images: Sequence[Image], text: str = "") -> TokenSequence:
        """As `state`, of a document: a text, all images by number, then EOS. Without images it is the text's state.

        Raises:
            InputError: the images alone are over the limit.
        """
        segments = [*map(self._image, images, count()), self._eos(learnt=False)]
        made = _sequence([*self._text_before(text, sum(len(segment.ids) for segment in segments)), *segments])
        return replace(made, state_position=len(made.input_ids) - 1)

    def interleaved(self, text: str, images: Sequence[Image]) -> TokenSequence:
        """A text with images in it, then EOS; the text and EOS are learnt.

        Args:
            text: each `<image>` in it stands for an image.
            images: in order.

        Raises:
            InputError: there are more or fewer images than marks, or the limit leaves nothing to learn.
        """
        _check_count(text.count(IMAGE_MARK), len(images), "the text")
        return self.document(_split(text, count()), images)

    def conversation(self, turns: Sequence[Turn], images: Sequence[Image] = ()) -> TokenSequence:
        """A conversation; the answers are learnt, each with EOS after it.

        Args:
            turns: of roles human, gpt and system. `<image>` stands for an image where a human says it.
            images: in order.

        Raises:
            InputError: a role is unknown, there are more or fewer images than marks, or no answer is there or within
                the limit.
        """
        return self.document(_parts_with(turns, images), images)

    def document(self, parts: Sequence[Part], images: Sequence[Image] = ()) -> TokenSequence:
        """A document: texts and images in their order, an image wherever it is shown.

        Where somebody speaks the answers are learnt, each with EOS after it; else all texts are, with EOS at the end.
        Then texts that follow each other stand on lines of their own.

        Args:
            parts: as stored, or as `StageSample.parts` gives them.
            images: by number.

        Raises:
            InputError: a role is unknown, the parts show other images than there are, or nothing that is learnt is
                there or within the limit.
        """
        segments = self._document(parts, images)
        if not any(segment.learnt for segment in segments):
            raise InputError("nothing is learnt of it: there is no answer; for inference, or evaluation, use prompt()")
        return self._joined(segments)

    def prompt(self, said: Sequence[Part] | Sequence[Turn], images: Sequence[Image] = ()) -> TokenSequence:
        """What stands before an answer, for inference: the same ids as in `document` or `conversation` up to there.

        Args:
            said: parts or turns; where somebody speaks without a last answer, which is left out if there is one. Where
                nobody speaks all is the prompt: an image, say, whose text is to follow.
            images: as for `document` or `conversation`.

        Returns:
            A sequence of which nothing is learnt.

        Raises:
            InputError: it is over the limit; or as for `document` or `conversation`.
        """
        parts = [one for one in said if isinstance(one, Part)]
        if len(parts) < len(said):
            parts = _parts_with([one for one in said if not isinstance(one, Part)], images)
        segments = [_Segment(self._text.prefix, learnt=False), *self._document(parts, images, prompt=True)]
        if self._max_length is not None and _length(segments) > self._max_length:
            raise InputError(
                f"a prompt of {_length(segments)} ids is over max_length {self._max_length}; a prompt is never "
                "cut: raise max_length"
            )
        return _sequence([segment._replace(learnt=False) for segment in segments])

    def _document(self, parts: Sequence[Part], images: Sequence[Image], *, prompt: bool = False) -> list[_Segment]:
        shown = {part.image for part in parts if part.image != NO_NUMBER}
        if shown != set(range(len(images))):
            raise InputError(f"the parts show the images {sorted(shown)}, but there are {len(images)}; each is shown")
        if parts and not any(part.role for part in parts):
            segments = self._mixed(parts, images, learnt=True, between="\n")
            return segments if prompt else [*segments, self._eos(learnt=True)]
        template = self._template
        own_system = any(part.role == "system" for part in parts)
        segments = [self._written("" if own_system else template.system, learnt=False)]
        turns = list(_turns(parts))
        if prompt:
            turns = [*(turns[:-1] if turns and turns[-1][0] == "gpt" else turns), ("gpt", [])]
        for role, turn in turns:
            if role == "human":
                segments += self._mixed(turn, images, template.human, template.after_human)
            elif role == "gpt":
                segments += [self._written(template.gpt, learnt=False), *self._mixed(turn, images, learnt=True)]
                segments.append(self._eos(learnt=True))
            elif role == "system":
                segments += self._mixed(turn, images, after=template.after_human)
            else:
                raise InputError(f"a turn's role is {role[:40]!r}; human, gpt and system are known")
        return segments[:-1] if prompt else segments

    def _image(self, image: Image, number: int) -> _Segment:
        tokens = image if isinstance(image, ImageTokens) else ImageTokens(image)
        ids = [np.zeros(tokens.slots, np.int64)]
        if tokens.codes is not None:
            vocabulary = self.vocabulary
            if vocabulary is None:
                raise InputError("an image has codes, but the builder has no vocabulary; extend the tokenizer for them")
            codes = vocabulary.ids(tokens.codes)
            ids = [np.concatenate([[vocabulary.begin_id], codes, [vocabulary.end_id]]), *ids]
        return _Segment(np.concatenate(ids), learnt=False, image=number, slots=tokens.slots)

    def _written(self, text: str, *, learnt: bool) -> _Segment:
        return _Segment(self._text.encode(text), learnt)

    def _mixed(
        self,
        parts: Iterable[Part],
        images: Sequence[Image],
        before: str = "",
        after: str = "",
        *,
        learnt: bool = False,
        between: str = "",
    ) -> list[_Segment]:
        """Texts and images; texts that no image parts are encoded as one."""
        segments, text = [], before
        for part in parts:
            if part.image == NO_NUMBER:
                text += (between if text and part.text else "") + part.text
            else:
                segments += [self._written(text, learnt=learnt), self._image(images[part.image], part.image)]
                text = ""
        return [*segments, self._written(text + after, learnt=learnt)]

    def _eos(self, *, learnt: bool) -> _Segment:
        return _Segment([self._eos_id], learnt)

    def _text_before(self, text: str, others: int) -> list[_Segment]:
        """BOS and a text that leaves room for `others` ids."""
        ids = self._text.encode(text)
        if self._max_length is not None:
            room = self._max_length - others - len(self._text.prefix)
            if room < 0:
                raise InputError(
                    f"images take {self._max_length - room} ids with their marks, more than max_length "
                    f"{self._max_length}; images are never cut: raise max_length"
                )
            ids = ids[:room]
        return [_Segment(self._text.prefix, learnt=False), _Segment(ids, learnt=False)]

    def _joined(self, segments: list[_Segment]) -> TokenSequence:
        """BOS and the segments, as far as they are within the limit."""
        whole = [_Segment(self._text.prefix, learnt=False), *segments]
        made = _sequence(whole if self._max_length is None else _cut(whole, self._max_length))
        if (made.labels == NOT_LEARNT).all():
            raise InputError(
                f"nothing is learnt of a sequence of {_length(whole)} ids: no answer or text is within its first "
                f"{len(made.input_ids)}; raise max_length ({self._max_length}), or leave the sample out"
            )
        return made


def _length(segments: Iterable[_Segment]) -> int:
    return sum(len(segment.ids) for segment in segments)


def _cut(segments: list[_Segment], limit: int) -> list[_Segment]:
    kept = []
    for segment in segments:
        if len(segment.ids) <= limit:
            kept.append(segment)
            limit -= len(segment.ids)
            continue
        if segment.image == NO_NUMBER:
            kept.append(segment._replace(ids=segment.ids[:limit]))
        break
    return kept


def _sequence(segments: Sequence[_Segment]) -> TokenSequence:
    lengths = [len(segment.ids) for segment in segments]
    ids = np.concatenate([np.asarray(segment.ids, np.int64) for segment in segments])
    learnt = np.repeat([segment.learnt for segment in segments], lengths)
    shown = [
        (segment.image, end - length, end - segment.slots, end)
        for segment, length, end in zip(segments, lengths, accumulate(lengths), strict=True)
        if segment.image != NO_NUMBER
    ]
    positions = np.array(shown, np.int64).reshape(-1, 4)
    return TokenSequence(ids, np.where(learnt, ids, NOT_LEARNT), image_positions=positions)


def parts_of(turns: Iterable[Turn]) -> list[Part]:
    """The parts of a conversation: each `<image>` of a human is the next image."""
    numbers = count()
    parts: list[Part] = []
    for turn in turns:
        said = _split(turn.content, numbers) if turn.role == "human" else [Part(turn.content)]
        parts += [replace(said[0], role=turn.role), *said[1:]]
    return parts


def _split(text: str, numbers: Iterator[int]) -> list[Part]:
    """A text with marks as parts; it begins with a text, which may be empty."""
    first, *others = text.split(IMAGE_MARK)
    return [Part(first), *(part for other in others for part in (Part(image=next(numbers)), Part(other)))]


def _turns(parts: Iterable[Part]) -> Iterator[tuple[str, list[Part]]]:
    """Who speaks, and what; a turn begins with a role."""
    role, said = "", list[Part]()
    for part in parts:
        if part.role and said:
            yield role, said
            said = []
        role = part.role or role
        said.append(part)
    if said:
        yield role, said


def _parts_with(turns: Sequence[Turn], images: Sequence[Image]) -> list[Part]:
    parts = parts_of(turns)
    _check_count(sum(part.image != NO_NUMBER for part in parts), len(images), "the humans' turns")
    return parts


def _check_count(marks: int, images: int, where: str) -> None:
    if marks != images:
        raise InputError(
            f"{where} has {marks} {IMAGE_MARK} marks for {images} images; each image needs one mark, and each mark one "
            "image"
        )

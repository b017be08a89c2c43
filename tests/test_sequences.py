"""Sequences of text and images: what they hold, what is learnt, and that texts can't pass for images."""

import pickle

import numpy as np
import pytest
import torch
from text_tokenizers import TOKENIZERS, bert_like, gpt2_like, llama_like, small_llama, unigram
from tokenizers import AddedToken

from patchmint.errors import ConfigError, InputError, TextError
from patchmint.samples import Part, Turn
from patchmint.training.sequences import (
    NOT_LEARNT,
    ConversationTemplate,
    ImageTokens,
    SequenceBuilder,
    TextEncoder,
    parts_of,
)
from patchmint.training.vocabulary import Codebook, VisualVocabulary, extend_tokenizer, resize_embeddings

BOOK = Codebook("vqgan", (40,), "pad-64-bicubic", "f" * 64)
CODES = np.array([[3, 39], [7, 7]], np.uint16)
OTHER_CODES = np.array([[1, 2], [4, 0]], np.uint16)
PREFIXES = {"gpt2_like": [], "llama_like": ["<s>"], "unigram": ["<s>"], "bert_like": ["[CLS]"], "slow_bytes": []}


class Kit:
    """An extended tokenizer, and what tests want to know of it."""

    def __init__(self, make, **options):
        self.tokenizer = make()
        self.vocabulary = extend_tokenizer(self.tokenizer, BOOK)
        self.build = SequenceBuilder(self.tokenizer, self.vocabulary, **options)
        self.bos = self.tokenizer.convert_tokens_to_ids(PREFIXES[make.__name__])
        self.eos = [self.vocabulary.eos_id]

    def text(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def image(self, codes=CODES):
        first = self.vocabulary.text_size
        ids = [first + int(code) for code in codes.reshape(-1)]
        return [self.vocabulary.begin_id, *ids, self.vocabulary.end_id]


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS)
def kit(request):
    return Kit(request.param)


def is_visual(vocabulary, ids):
    """Which ids mean codes."""
    return (np.asarray(ids) >= vocabulary.text_size) & (np.asarray(ids) < vocabulary.begin_id)


def check(sequence, *parts):
    """Parts are (ids, learnt); a sequence is these and nothing else."""
    ids = [token for part, _ in parts for token in part]
    labels = [token if learnt else NOT_LEARNT for part, learnt in parts for token in part]
    assert sequence.input_ids.tolist() == ids
    assert sequence.labels.tolist() == labels
    assert sequence.input_ids.dtype == sequence.labels.dtype == np.int64


class TestForms:
    def test_image_to_text(self, kit):
        made = kit.build.image_to_text(CODES, "a cat")
        check(made, (kit.bos, False), (kit.image(), False), (kit.text("a cat"), True), (kit.eos, True))
        assert made.state_position is None

    def test_text_to_image(self, kit):
        begin, *rest = kit.image()
        made = kit.build.text_to_image("a cat", CODES)
        check(made, (kit.bos, False), (kit.text("a cat"), False), ([begin], False), (rest, True))
        assert made.image_positions.tolist() == [[0, len(made.input_ids) - 6, *[len(made.input_ids)] * 2]]

    @pytest.mark.parametrize("text", ["", "a cat"])
    def test_state(self, kit, text):
        made = kit.build.state(CODES, text)
        known = kit.text(text) if text else []
        check(made, (kit.bos, False), (known, False), (kit.image(), False), (kit.eos, False))
        assert made.input_ids[made.state_position] == kit.vocabulary.eos_id
        assert made.state_position == len(made.input_ids) - 1

    def test_several_images_in_a_text(self, kit):
        made = kit.build.interleaved("first <image> then <image>", [CODES, OTHER_CODES])
        one, other = ((kit.image(codes), False) for codes in (CODES, OTHER_CODES))
        first, then, last = ((kit.text(text), True) for text in ("first ", " then ", ""))
        check(made, (kit.bos, False), first, one, then, other, last, (kit.eos, True))

    def test_a_text_without_images(self, kit):
        check(kit.build.interleaved("a cat", []), (kit.bos, False), (kit.text("a cat"), True), (kit.eos, True))

    def test_conversation(self, kit):
        turns = [Turn("human", "<image>\nwhat is it?"), Turn("gpt", "a cat"), Turn("human", "so?"), Turn("gpt", "yes")]
        answers = [
            [(kit.text("ASSISTANT:\n"), False), (kit.text(said), True), (kit.eos, True)] for said in ("a cat", "yes")
        ]
        question = [(kit.text("USER:\n"), False), (kit.image(), False), (kit.text("\nwhat is it?\n"), False)]
        made = kit.build.conversation(turns, [CODES])
        check(made, (kit.bos, False), *question, *answers[0], (kit.text("USER:\nso?\n"), False), *answers[1])

    def test_a_text_alone(self, kit):
        check(kit.build.text("a <image>"), (kit.bos, False), (kit.text("a <image>"), True), (kit.eos, True))
        check(kit.build.document_state([], "a cat"), (kit.bos, False), (kit.text("a cat"), False), (kit.eos, False))

    def test_pickled(self, kit):
        made, again = (b.image_to_text(CODES, "a cat") for b in (kit.build, pickle.loads(pickle.dumps(kit.build))))
        assert made.input_ids.tolist() == again.input_ids.tolist()


class TestSlots:
    def test_codes_then_slots(self, kit):
        both, bare = ImageTokens(CODES, slots=3), ImageTokens(slots=2)
        made = kit.build.interleaved("a <image> <image> cat", [both, bare])
        image = (kit.image() + [0] * 3, False)
        texts = [(kit.text(text), True) for text in ("a ", " ", " cat")]
        check(made, (kit.bos, False), texts[0], image, texts[1], ([0, 0], False), texts[2], (kit.eos, True))
        first = len(kit.bos) + len(texts[0][0])
        second = first + 9 + len(texts[1][0])
        assert made.image_positions.tolist() == [[0, first, first + 6, first + 9], [1, second, second, second + 2]]

    def test_never_cut(self):
        for limit, slots in ((9, 1), (8, 0)):
            made = Kit(gpt2_like, max_length=limit).build.interleaved("a<image>", [ImageTokens(CODES, slots=2)])
            assert len(made.image_positions) == slots

    def test_none_are_learnt_of_a_text(self):
        with pytest.raises(InputError, match="not integers"):
            Kit(gpt2_like).build.text_to_image("a cat", ImageTokens(CODES, slots=2))

    def test_without_codes_no_vocabulary_is_needed(self):
        tokenizer = gpt2_like()
        build = SequenceBuilder(tokenizer)
        text = tokenizer.encode("a cat")
        check(
            build.image_to_text(ImageTokens(slots=4), "a cat"),
            ([0] * 4, False),
            (text, True),
            ([tokenizer.eos_token_id], True),
        )
        assert build.text("<|endoftext|>").input_ids.tolist().count(tokenizer.eos_token_id) == 1
        with pytest.raises(InputError, match="the builder has no vocabulary"):
            build.image_to_text(CODES, "a cat")
        with pytest.raises(ConfigError, match="has no EOS"):
            SequenceBuilder(bert_like())


class TestPrompts:
    TURNS = (Turn("human", "<image>\nwhat?"), Turn("gpt", "a cat"), Turn("human", "so?"), Turn("gpt", "yes"))

    def test_the_ids_before_the_answer(self, kit):
        whole = kit.build.conversation(self.TURNS, [CODES]).input_ids.tolist()
        prompt = kit.build.prompt(self.TURNS[:3], [CODES])
        assert prompt.input_ids.tolist() + kit.text("yes") + kit.eos == whole
        assert (prompt.labels == NOT_LEARNT).all()
        for said in (self.TURNS, parts_of(self.TURNS)):
            assert kit.build.prompt(said, [CODES]).input_ids.tolist() == prompt.input_ids.tolist()
        assert prompt.image_positions[0, 0] == 0
        image = kit.build.prompt([Part(image=0)], [CODES]).input_ids.tolist()
        assert image + kit.text("a cat") + kit.eos == kit.build.image_to_text(CODES, "a cat").input_ids.tolist()

    def test_never_cut(self):
        length = len(Kit(gpt2_like).build.prompt(self.TURNS, [CODES]).input_ids)
        assert len(Kit(gpt2_like, max_length=length).build.prompt(self.TURNS, [CODES]).input_ids) == length
        with pytest.raises(InputError, match=f"{length} ids is over max_length {length - 1}"):
            Kit(gpt2_like, max_length=length - 1).build.prompt(self.TURNS, [CODES])


class TestConversations:
    def test_template(self):
        kit = Kit(gpt2_like, template=ConversationTemplate(system="Be brief.", human="[", after_human="]", gpt=" -> "))
        made = kit.build.conversation([Turn("human", "hi"), Turn("gpt", "ho")], [])
        asked = [(kit.text(said), False) for said in ("Be brief.", "[hi]", " -> ")]
        check(made, *asked, (kit.text("ho"), True), (kit.eos, True))

    def test_a_system_turn_takes_the_place_of_the_template_s(self):
        kit = Kit(gpt2_like, template=ConversationTemplate(system="Be brief.", human="[", after_human="]", gpt=" -> "))
        made = kit.build.conversation([Turn("system", "Be kind."), Turn("human", "hi"), Turn("gpt", "ho")], [])
        asked = [(kit.text(said), False) for said in ("Be kind.]", "[hi]", " -> ")]
        check(made, *asked, (kit.text("ho"), True), (kit.eos, True))

    def test_a_mark_in_an_answer_is_text(self):
        kit = Kit(gpt2_like)
        made = kit.build.conversation([Turn("human", "which tag? <image>"), Turn("gpt", "<image>")], [CODES])
        assert is_visual(kit.vocabulary, made.input_ids).sum() == 4
        assert made.labels[-1 - len(kit.text("<image>")) : -1].tolist() == kit.text("<image>")

    @pytest.mark.parametrize(
        ("turns", "says"),
        [
            ([Turn("user", "hi")], "role is 'user'; human, gpt and system"),
            ([], "nothing is learnt"),
            ([Turn("human", "hi")], r"there is no answer; .* use prompt\(\)"),
        ],
    )
    def test_refused(self, turns, says):
        with pytest.raises(InputError, match=says):
            Kit(gpt2_like).build.conversation(turns, [])


class TestCounts:
    @pytest.mark.parametrize(("text", "images"), [("a cat", 1), ("<image> <image>", 1), ("<image>", 2), ("<image>", 0)])
    def test_marks_and_images(self, text, images):
        build = Kit(gpt2_like).build
        message = f"has {text.count('<image>')} <image> marks for {images} images"
        with pytest.raises(InputError, match="the text " + message):
            build.interleaved(text, [CODES] * images)
        with pytest.raises(InputError, match="the humans' turns " + message):
            build.conversation([Turn("human", text), Turn("gpt", "yes")], [CODES] * images)

    def test_a_mark_in_a_caption_is_text(self, kit):
        for made in (kit.build.image_to_text(CODES, "<image>"), kit.build.text_to_image("<image>", CODES)):
            assert is_visual(kit.vocabulary, made.input_ids).sum() == 4

    @pytest.mark.parametrize(
        ("form", "arguments"),
        [
            ("image_to_text", ([40], "a")),
            ("text_to_image", ("a", [40])),
            ("interleaved", ("<image>", [[40]])),
            ("state", ([40],)),
        ],
    )
    def test_codes_outside_the_codebook(self, kit, form, arguments):
        with pytest.raises(InputError, match="code 40"):
            getattr(kit.build, form)(*arguments)


def literals(kit):
    vocabulary, special = kit.vocabulary, kit.tokenizer.all_special_tokens
    visual = [vocabulary.text_size, vocabulary.text_size + 39, vocabulary.begin_id, vocabulary.end_id]
    return {*kit.tokenizer.convert_ids_to_tokens([*visual, vocabulary.eos_id]), *special}


class TestHostileTexts:
    @pytest.mark.parametrize("form", ["{}", "a {} cat", "{}{}", "a{}cat\n{}"])
    def test_a_literal_never_becomes_the_token(self, kit, form):
        vocabulary = kit.vocabulary
        unknown = {kit.tokenizer.unk_token_id} - {vocabulary.eos_id}
        for literal in literals(kit):
            text = form.replace("{}", literal)
            body = kit.build.image_to_text(CODES, text).input_ids[len(kit.bos) + 6 : -1]
            assert len(body) > 0
            assert not is_visual(vocabulary, body).any()
            special = {*kit.tokenizer.all_special_ids, vocabulary.begin_id, vocabulary.end_id} - unknown
            assert special.isdisjoint(body.tolist()), text

    def test_in_every_form(self, kit):
        text = " ".join(sorted(literals(kit)))
        turns = [Turn("human", text + "<image>"), Turn("gpt", text)]
        for made, ends in (
            (kit.build.image_to_text(CODES, text), 1),
            (kit.build.text_to_image(text, CODES), 0),
            (kit.build.state(CODES, text), 1),
            (kit.build.interleaved(text + "<image>" + text, [CODES]), 1),
            (kit.build.conversation(turns, [CODES]), 1),
        ):
            ids, vocabulary = made.input_ids[len(kit.bos) :], kit.vocabulary
            assert is_visual(vocabulary, ids).sum() == 4
            assert [np.sum(ids == mark) for mark in (vocabulary.begin_id, vocabulary.end_id)] == [1, 1]
            assert np.sum(ids == vocabulary.eos_id) == ends

    @pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
    def test_a_visual_literal_is_encoded_as_before_the_extension(self, make):
        tokenizer, text = make(), f"a <|code-7|>cat <|image-begin-{BOOK.digest}|>"
        before = tokenizer.encode(text, add_special_tokens=False)
        assert TextEncoder(tokenizer, extend_tokenizer(tokenizer, BOOK)).encode(text) == before

    def test_the_check_can_fail(self):
        """Unigram knows </s> as a word: the library's own way of splitting special tokens lets it through."""
        kit = Kit(unigram)
        assert kit.eos[0] in kit.tokenizer.encode("a </s> cat", add_special_tokens=False, split_special_tokens=True)
        assert kit.vocabulary.text_size in kit.text("a <|code-0|> cat")

    def test_a_token_that_lost_its_mark_as_special(self):
        tokenizer = gpt2_like()
        names = [f"<|code-{code}|>" for code in range(40)]
        marks = [f"<|image-{end}-{BOOK.digest}|>" for end in ("begin", "end")]
        tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in [*names, *marks]])
        vocabulary = VisualVocabulary.of_tokenizer(tokenizer, BOOK)
        assert vocabulary.text_size in tokenizer.encode("<|code-0|>", split_special_tokens=True)
        ids = TextEncoder(tokenizer, vocabulary).encode(f"a <|code-0|><|code-39|>{marks[0]} cat")
        assert max(ids) < vocabulary.text_size
        assert tokenizer.decode(ids) == f"a <|code-0|><|code-39|>{marks[0]} cat"

    def test_a_token_that_cannot_be_avoided(self):
        tokenizer = gpt2_like()
        vocabulary = extend_tokenizer(tokenizer, BOOK)
        tokenizer.eos_token = "a"
        with pytest.raises(TextError, match="can't be encoded without the tokenizer's special tokens"):
            TextEncoder(tokenizer, VisualVocabulary.of_tokenizer(tokenizer, BOOK)).encode("a")
        assert vocabulary.eos_id != tokenizer.eos_token_id

    def test_text_comes_back(self):
        kit = Kit(gpt2_like)
        text = "a <|code-7|> Zürich 猫 </s> <EOS> <|endoftext|>"
        assert kit.tokenizer.decode(kit.build.image_to_text(CODES, text).input_ids[6:-1]) == text

    @pytest.mark.parametrize("text", ["\ud800", None, 3])
    def test_no_text(self, kit, text):
        with pytest.raises(TextError, match="can't be encoded"):
            kit.build.image_to_text(CODES, text)


class TestLimits:
    TEXT = "a cat on a sofa and the dog that runs in the snow"

    @pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
    def test_a_text_after_the_image_is_cut_at_its_end_and_has_no_eos(self, make):
        free, kit = Kit(make), Kit(make, max_length=12)
        whole, cut = (k.build.image_to_text(CODES, self.TEXT) for k in (free, kit))
        assert len(whole.input_ids) > 12
        assert len(cut.input_ids) == len(cut.labels) == 12
        assert kit.vocabulary.eos_id not in cut.labels

    @pytest.mark.parametrize("make", [gpt2_like, llama_like, bert_like])
    def test_a_text_before_the_image_is_cut_and_the_image_is_whole(self, make):
        kit = Kit(make, max_length=12)
        room = 12 - 6 - len(kit.bos)
        text, (begin, *rest) = kit.text(self.TEXT)[:room], kit.image()
        made = kit.build.text_to_image(self.TEXT, CODES)
        check(made, (kit.bos, False), (text, False), ([begin], False), (rest, True))
        state = kit.build.state(CODES, self.TEXT)
        check(state, (kit.bos, False), (text[:-1], False), (kit.image(), False), (kit.eos, False))
        assert state.state_position == 11

    def test_exactly_fitting(self):
        def within(limit):
            return Kit(gpt2_like, max_length=limit)

        length = len(Kit(gpt2_like).build.image_to_text(CODES, "a cat").input_ids)
        assert within(length).build.image_to_text(CODES, "a cat").labels[-1] >= 0
        kit = within(length - 1)
        assert kit.build.image_to_text(CODES, "a cat").input_ids.tolist() == kit.image() + kit.text("a cat")
        assert len(within(6).build.text_to_image("a", CODES).input_ids) == 6
        assert len(within(7).build.state(CODES, "a").input_ids) == 7

    @pytest.mark.parametrize("limit", range(8, 30))
    def test_no_image_is_ever_cut(self, limit):
        kit = Kit(gpt2_like, max_length=limit)
        made = kit.build.interleaved("a<image>cat<image>on<image>", [CODES, OTHER_CODES, CODES])
        ids = made.input_ids.tolist()
        assert len(ids) <= limit
        for codes in (CODES, OTHER_CODES):
            while kit.image(codes)[1] in ids:
                start = ids.index(kit.image(codes)[1]) - 1
                assert ids[start : start + 6] == kit.image(codes)
                del ids[start : start + 6]
        assert kit.vocabulary.begin_id not in ids
        assert not is_visual(kit.vocabulary, ids).any()

    def test_what_follows_a_left_out_image_is_left_out(self):
        kit = Kit(gpt2_like, max_length=4)
        check(kit.build.interleaved("a<image>a", [CODES]), (kit.text("a"), True))

    @pytest.mark.parametrize(
        ("limit", "use"),
        [
            (5, lambda build: build.text_to_image("a", CODES)),
            (6, lambda build: build.state(CODES)),
            (6, lambda build: build.image_to_text(CODES, "a")),
            (8, lambda build: build.conversation([Turn("human", "<image>"), Turn("gpt", "a")], [CODES])),
        ],
    )
    def test_too_small_to_learn_from(self, limit, use):
        with pytest.raises(InputError, match=r"max_length"):
            use(Kit(gpt2_like, max_length=limit).build)

    def test_no_limit_of_nothing(self):
        with pytest.raises(ConfigError, match="at least 1, not 0"):
            Kit(gpt2_like, max_length=0)


def test_tokenizer_of_another_vocabulary():
    vocabulary = extend_tokenizer(gpt2_like(), BOOK)
    other = bert_like()
    extend_tokenizer(other, BOOK)
    for tokenizer, says in ((gpt2_like(), "no visual tokens"), (other, "ids of text")):
        with pytest.raises(ConfigError, match=says):
            SequenceBuilder(tokenizer, vocabulary)


def test_tokens_added_after_the_extension_do_no_harm():
    tokenizer = gpt2_like()
    vocabulary = extend_tokenizer(tokenizer, BOOK)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    build = SequenceBuilder(tokenizer, vocabulary)
    assert tokenizer.pad_token_id not in build.image_to_text(CODES, "a <pad> cat").input_ids


@pytest.mark.filterwarnings("ignore:.*new (embeddings|lm_head)")
def test_a_model_learns_both_ways():
    """Captions and images of two kinds: after some steps each is told from the other, in both directions."""
    kit = Kit(llama_like)
    model = small_llama(kit.vocabulary.text_size, hidden_size=32)
    resize_embeddings(model, kit.vocabulary)
    pairs = [("a cat", CODES), ("snow", OTHER_CODES)]
    made = [kit.build.image_to_text(codes, text) for text, codes in pairs]
    made += [kit.build.text_to_image(text, codes) for text, codes in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        for sequence in made:
            ids, labels = torch.from_numpy(sequence.input_ids)[None], torch.from_numpy(sequence.labels)[None]
            model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for sequence in made:
            logits = model(input_ids=torch.from_numpy(sequence.input_ids)[None]).logits[0, :-1]
            labels = torch.from_numpy(sequence.labels)[1:]
            learnt = labels != NOT_LEARNT
            assert torch.equal(logits.argmax(-1)[learnt], labels[learnt])

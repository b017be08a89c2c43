"""Codes <-> ids, extended tokenizers and grown embeddings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from shard_data import LAYOUT, make_dataset, make_sample
from text_tokenizers import TOKENIZERS, bert_like, gpt2_like, llama_like, small_llama
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from patchmint.errors import ConfigError, InputError, ShardError, StorageError
from patchmint.shards.manifest import ModelEntry, read_manifest, write_manifest
from patchmint.storage import open_storage
from patchmint.training.sequences import SequenceBuilder
from patchmint.training.vocabulary import (
    Codebook,
    VisualVocabulary,
    extend_tokenizer,
    resize_embeddings,
    train_new_rows,
)

BOOK = Codebook("vqgan", (40,), "pad-64-bicubic", "f" * 64)
OTHER = replace(BOOK, fingerprint="e" * 64)
TWO = Codebook("pair", (5, 7), "squash-32", "pair 1.0")
NAMES = [f"<|code-{code}|>" for code in range(40)]
MARKS = [f"<|image-{end}-{BOOK.digest}|>" for end in ("begin", "end")]
CODES = np.array([[0, 39], [7, 7]], np.uint16)


@pytest.fixture
def manifest(tmp_path):
    found = read_manifest(open_storage(make_dataset(tmp_path, [[make_sample(0)]])))
    entry = ModelEntry(name="vqgan-f16-16384", sha256="a" * 64, size=1, licence="MIT")
    return found.model_copy(update={"models": {"tokenizer": entry}})


class TestCodebook:
    def test_of_a_data_set(self, manifest):
        assert Codebook.of(manifest) == Codebook("vqgan", (16384,), "pad-64-bicubic", "a" * 64)
        # a model without a file is known by its name
        entry = ModelEntry(name="seed 1.0 (acme)", sha256="", size=0, licence="")
        assert Codebook.of(manifest.model_copy(update={"models": {"tokenizer": entry}})).fingerprint == entry.name
        # a list of used codes makes another codebook
        used = ModelEntry(name="used.npy", sha256="b" * 64, size=1, licence="")
        remapped = manifest.model_copy(update={"models": {**manifest.models, "remap": used}})
        # and so does another rule
        tokens = manifest.layout.tokens.model_copy(update={"rule": "dot"})
        chosen = manifest.model_copy(update={"layout": manifest.layout.model_copy(update={"tokens": tokens})})
        assert len({Codebook.of(each).digest for each in (manifest, remapped, chosen)}) == 3

    def test_of_its_folder_or_its_manifest(self, manifest, tmp_path):
        write_manifest(open_storage(tmp_path), manifest)
        assert Codebook.of(tmp_path) == Codebook.of(str(tmp_path)) == Codebook.of(manifest)
        with pytest.raises(StorageError, match=r"nothing/dataset\.json.*check the path"):
            Codebook.of(tmp_path / "nothing")

    def test_digest_is_stable_and_differs_with_every_field(self):
        changes = ({"member": "b"}, {"codebook_sizes": (4, 36)}, {"preprocessing": "crop-64"}, {"fingerprint": "g"})
        changes += ({"rule": "dot"}, {"rule": "cosine"})
        digests = {replace(BOOK, **change).digest for change in changes} | {BOOK.digest}
        assert len(digests) == 7
        assert BOOK.digest == replace(BOOK, rule="nearest").digest == "1f82733a63bb"

    def test_no_codes_or_those_of_nobody(self, manifest):
        bare = manifest.model_copy(update={"layout": LAYOUT.model_copy(update={"tokens": None})})
        with pytest.raises(ConfigError, match=r"no codes; add them with `patchmint extend`"):
            Codebook.of(bare)
        with pytest.raises(ShardError, match="names no tokenizer"):
            Codebook.of(manifest.model_copy(update={"models": {}}))

    @pytest.mark.parametrize("sizes", [(), (0,), (4, 0)])
    def test_empty(self, sizes):
        with pytest.raises(ConfigError, match="codebook sizes"):
            replace(BOOK, codebook_sizes=sizes)


class TestIds:
    def test_a_code_is_offset_by_the_text(self):
        vocabulary = VisualVocabulary.after(1000, BOOK)
        ids = vocabulary.ids(CODES)
        assert ids.dtype == np.int64
        assert ids.tolist() == [1000, 1039, 1007, 1007]
        assert (vocabulary.begin_id, vocabulary.end_id, vocabulary.eos_id, vocabulary.size) == (1040, 1041, 1042, 1043)

    def test_codebooks_follow_one_another(self):
        """Codes lie in shards as here: uint16, with a last axis of the codebooks."""
        vocabulary = VisualVocabulary.after(1000, TWO)
        codes = np.array([[[0, 0], [4, 6]], [[1, 2], [3, 4]]], np.uint16)
        assert vocabulary.ids(codes).tolist() == [1000, 1005, 1004, 1011, 1001, 1007, 1003, 1009]
        assert vocabulary.ids(codes.reshape(4, 2)).tolist() == vocabulary.ids(codes).tolist()
        assert vocabulary.begin_id == 1012

    @pytest.mark.parametrize("dtype", ["uint16", "<u4", ">u2", "int64", "uint64"])
    def test_every_integer_type(self, dtype):
        ids = VisualVocabulary.after(150_000, BOOK).ids(CODES.astype(dtype))  # more than a uint16 holds
        assert ids.tolist() == [150_000, 150_039, 150_007, 150_007]

    @pytest.mark.parametrize(
        ("book", "codes", "message"),
        [
            (BOOK, [[0, 40]], r"code 40 at \(0, 1\) is outside its codebook, which has codes 0 to 39"),
            (BOOK, [-1], r"code -1 at \(0,\)"),
            (BOOK, np.array([2**64 - 1], np.uint64), "code 18446744073709551615"),
            (BOOK, [1.0, 2.0], "float64, not integers"),
            (BOOK, [True], "bool, not integers"),
            (BOOK, ["1"], "not integers"),
            (BOOK, [[1], [1, 2]], "no array of integers"),
            (BOOK, np.zeros((0, 4), int), r"shape \(0, 4\)"),
            (BOOK, 3, r"shape \(\)"),
            (BOOK, np.zeros((2, 3, 4), int), r"shape \(2, 3, 4\)"),
            (TWO, np.array([[4, 6], [5, 0]]), r"code 5 at \(1, 0\) is outside its codebook, which has codes 0 to 4"),
            (TWO, np.array([[0, 7]]), r"code 7 at \(0, 1\) .* 0 to 6"),
            (TWO, np.zeros((4, 3), int), r"last axis of 2 codebooks"),
            (TWO, np.zeros(2, int), r"shape \(2,\)"),
        ],
    )
    def test_refuses_codes(self, book, codes, message):
        with pytest.raises(InputError, match=message):
            VisualVocabulary.after(10, book).ids(codes)

    def test_refuses_a_negative_text(self):
        with pytest.raises(ConfigError, match=r"len\(tokenizer\)"):
            VisualVocabulary.after(-1, BOOK)


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
class TestEveryTokenizer:
    def test_code_c_is_the_id_after_the_text(self, make):
        tokenizer = make()
        before, own_eos = len(tokenizer), tokenizer.eos_token_id
        vocabulary = extend_tokenizer(tokenizer, BOOK)
        assert vocabulary.text_size == before
        assert tokenizer.convert_tokens_to_ids(NAMES) == [*range(before, before + 40)]
        assert tokenizer.convert_ids_to_tokens([vocabulary.begin_id, vocabulary.end_id]) == MARKS
        assert vocabulary.eos_id == tokenizer.eos_token_id
        assert vocabulary.eos_id == (before + 42 if own_eos is None else own_eos)
        assert vocabulary.size == len(tokenizer)

    def test_texts_are_encoded_as_before(self, make):
        tokenizer, text = make(), "a cat on a sofa, Zürich 猫"
        before = tokenizer(text)["input_ids"]
        extend_tokenizer(tokenizer, BOOK)
        assert tokenizer(text)["input_ids"] == before

    def test_extending_again_changes_nothing_and_for_another_codebook_is_refused(self, make):
        tokenizer, first = extended(make)
        size = len(tokenizer)
        assert extend_tokenizer(tokenizer, BOOK) == first == VisualVocabulary.of_tokenizer(tokenizer, BOOK)
        with pytest.raises(ConfigError, match=f"extended for codebook {BOOK.digest}, .* codebook {OTHER.digest}"):
            extend_tokenizer(tokenizer, OTHER)
        assert len(tokenizer) == size

    @pytest.mark.parametrize("book", [BOOK, TWO])
    def test_saved_and_loaded(self, make, book, tmp_path):
        tokenizer, vocabulary = extended(make, book)
        tokenizer.save_pretrained(tmp_path)
        loaded = type(tokenizer).from_pretrained(tmp_path)
        assert VisualVocabulary.of_tokenizer(loaded, book) == vocabulary
        assert extend_tokenizer(loaded, book) == vocabulary
        with pytest.raises(ConfigError, match=f"extended for codebook {book.digest}"):
            VisualVocabulary.of_tokenizer(loaded, OTHER)

    def test_codes_are_hidden_when_decoding(self, make):
        tokenizer, vocabulary = extended(make)
        text = tokenizer.encode("a cat", add_special_tokens=False)
        ids = [vocabulary.begin_id, *vocabulary.ids(CODES).tolist(), vocabulary.end_id, *text, vocabulary.eos_id]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a cat"


class TestOddTokenizers:
    def test_auto_tokenizer_loads_it(self, tmp_path):
        tokenizer, vocabulary = extended(llama_like)
        tokenizer.save_pretrained(tmp_path)
        assert VisualVocabulary.of_tokenizer(AutoTokenizer.from_pretrained(tmp_path), BOOK) == vocabulary

    def test_not_extended(self):
        with pytest.raises(ConfigError, match=f"no visual tokens; extend it for codebook {BOOK.digest}"):
            VisualVocabulary.of_tokenizer(gpt2_like(), BOOK)

    def test_tokens_added_later_count(self):
        tokenizer, vocabulary = extended(gpt2_like)
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        assert VisualVocabulary.of_tokenizer(tokenizer, BOOK) == replace(vocabulary, size=vocabulary.size + 1)

    @pytest.mark.parametrize(
        ("tokens", "message"),
        [
            (NAMES[:2], r"only partly extended .*: 40 of 42 .* missing \(<\|code-2\|>, "),
            (NAMES, r"2 of 42 .* missing \(<\|image-begin-"),
            (MARKS, r"40 of 42"),
            ([*MARKS, *NAMES], rf"out of order: <\|image-begin-{BOOK.digest}\|> has id"),
            ([*NAMES, *reversed(MARKS)], "out of order"),
            ([*NAMES, *MARKS, "<|code-40|>"], r"lacks \(<\|code-40\|>\)"),
            ([*NAMES, *MARKS, f"<|image-begin-{OTHER.digest}|>"], f"extended for codebook {OTHER.digest}"),
        ],
    )
    def test_extended_by_others(self, tokens, message):
        tokenizer = gpt2_like()
        tokenizer.add_tokens(tokens)
        for use in (extend_tokenizer, VisualVocabulary.of_tokenizer):
            with pytest.raises(ConfigError, match=message):
                use(tokenizer, BOOK)

    def test_without_anything_that_ends_a_text(self):
        tokenizer, _ = extended(bert_like)
        assert tokenizer.eos_token == "<EOS>"
        tokenizer.eos_token = None
        with pytest.raises(ConfigError, match="none that ends a text"):
            VisualVocabulary.of_tokenizer(tokenizer, BOOK)

    def test_ids_with_holes(self):
        holed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 5}, "a")))
        with pytest.raises(ConfigError, match=r"holes \(2 tokens, largest id 5\)"):
            extend_tokenizer(holed, BOOK)
        assert len(holed) == 2

    def test_a_whole_codebook(self):
        tokenizer = llama_like()
        before = len(tokenizer)
        vocabulary = extend_tokenizer(tokenizer, replace(BOOK, codebook_sizes=(16384,)))
        assert vocabulary.size == len(tokenizer) == before + 16386
        assert tokenizer.convert_tokens_to_ids("<|code-16383|>") == before + 16383


def llama(rows, *, tied):
    return small_llama(rows, tie_word_embeddings=tied)


def gpt2(rows, *, tied):
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=rows, n_embd=16, n_layer=1, n_head=2, n_positions=64, tie_word_embeddings=tied)
    return GPT2LMHeadModel(config)


def weights(model):
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


def extended(make, book=BOOK):
    tokenizer = make()
    return tokenizer, extend_tokenizer(tokenizer, book)


def copies(model):
    return [weight.detach().clone() for weight in weights(model)]


@pytest.mark.filterwarnings("ignore:.*new (embeddings|lm_head)")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("make", [llama, gpt2])
class TestEmbeddings:
    VOCABULARY = VisualVocabulary.after(300, BOOK)

    def test_grows_and_keeps_the_old_rows(self, make, tied):
        model = make(300, tied=tied)
        old = copies(model)
        resize_embeddings(model, self.VOCABULARY)
        for weight, before in zip(weights(model), old, strict=True):
            assert weight.shape == (343, 16)
            assert torch.equal(weight[:300], before)
            if tied or weight is weights(model)[0]:
                assert (weight[300:].std(0) / before.std(0) - 1).abs().max() < 0.5
            else:  # near the mean of what is there, so that the new ids are neither likely nor unlikely at first
                assert (weight[300:] - before.mean(0)).abs().max() < 1e-3
        assert (weights(model)[0] is weights(model)[1]) == tied
        assert model.config.vocab_size == 343

    def test_same_rows_every_time_and_random_numbers_untouched(self, make, tied):
        models = [make(300, tied=tied) for _ in range(2)]
        for seed, model in enumerate(models):
            torch.manual_seed(seed)
            expected = torch.rand(3)
            torch.manual_seed(seed)
            resize_embeddings(model, self.VOCABULARY)
            assert torch.equal(torch.rand(3), expected)
        assert all(map(torch.equal, *map(weights, models)))

    def test_again_after_training_changes_nothing(self, make, tied):
        model = make(300, tied=tied)
        resize_embeddings(model, self.VOCABULARY)
        with torch.no_grad():
            for weight in weights(model):
                weight.normal_()
        trained = copies(model)
        resize_embeddings(model, self.VOCABULARY)
        assert all(map(torch.equal, weights(model), trained))

    @pytest.mark.parametrize("rows", [320, 343, 500])
    def test_a_padded_model_never_shrinks(self, make, tied, rows):
        model = make(rows, tied=tied)
        old = copies(model)
        resize_embeddings(model, self.VOCABULARY)
        for weight, before in zip(weights(model), old, strict=True):
            assert len(weight) == max(rows, 343)
            assert torch.equal(weight[:rows], before)

    @pytest.mark.parametrize(("rows", "expected"), [(300, 384), (384, 384), (500, 512)])
    def test_a_multiple(self, make, tied, rows, expected):
        model = make(rows, tied=tied)
        resize_embeddings(model, self.VOCABULARY, pad_to_multiple_of=64)
        assert [len(weight) for weight in weights(model)] == [expected, expected]

    def test_refuses_a_model_with_fewer_rows_than_text_and_a_multiple_of_nothing(self, make, tied):
        model = make(299, tied=tied)
        with pytest.raises(ConfigError, match=r"299 rows, but its tokenizer had 300 tokens"):
            resize_embeddings(model, self.VOCABULARY)
        assert len(weights(model)[0]) == 299
        for wrong, says in (({"pad_to_multiple_of": 0}, "at least 1, not 0"), ({"spread": -1}, "0 or more, not -1")):
            with pytest.raises(ConfigError, match=says):
                resize_embeddings(make(300, tied=tied), self.VOCABULARY, **wrong)

    def test_learns_the_new_ids(self, make, tied):
        model = make(300, tied=tied)
        resize_embeddings(model, self.VOCABULARY)
        vocabulary = self.VOCABULARY
        ids = torch.tensor([[5, vocabulary.begin_id, *vocabulary.ids(CODES).tolist(), vocabulary.end_id, 6, 342]])
        model(input_ids=ids, labels=ids).loss.backward()
        gradient = weights(model)[0].grad
        assert gradient[300:][CODES.reshape(-1).astype(int)].abs().sum(1).min() > 0
        # as an input, an id that isn't there gets no gradient; a tied row gets one as an output that wasn't right
        assert bool(gradient[301].abs().sum() > 0) == tied
        assert weights(model)[1].grad[300:].abs().sum(1).min() > 0

    def test_nothing_but_the_new_rows_learns(self, make, tied):
        model, vocabulary = make(384, tied=tied), self.VOCABULARY
        model.get_parameter("lm_head.weight").requires_grad_(tied)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        learning = {name for name, value in model.named_parameters() if value.requires_grad}
        ids = torch.tensor([[5, vocabulary.begin_id, *vocabulary.ids(CODES).tolist(), vocabulary.end_id, 6, 342]])
        with train_new_rows(model, vocabulary) as parameters:
            assert len(parameters) == 2 - tied
            optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            model.zero_grad()
        for name, value in model.named_parameters():
            new = torch.zeros(len(value), dtype=torch.bool)
            new[300:343] = any(value is each for each in parameters)
            assert torch.equal(value[~new], before[name][~new]), name
            assert not new.any() or not torch.equal(value[new], before[name][new])
        assert {name for name, value in model.named_parameters() if value.requires_grad} == learning
        model(input_ids=ids, labels=ids).loss.backward()
        assert weights(model)[0].grad[6].abs().sum() > 0

    def test_saved_and_loaded(self, make, tied, tmp_path):
        model = make(300, tied=tied)
        resize_embeddings(model, self.VOCABULARY)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        resize_embeddings(loaded, self.VOCABULARY)
        assert all(map(torch.equal, weights(model), weights(loaded)))


@pytest.mark.parametrize(("spread", "least", "most"), [(1.0, 0.1, 2), (0, 0, 0.001)])
def test_a_state_sees_which_codes_an_image_has(spread, least, most):
    """Its relative change when all 256 codes are exchanged, in a model that hasn't learnt any."""
    tokenizer = gpt2_like()
    vocabulary = extend_tokenizer(tokenizer, replace(BOOK, codebook_sizes=(1024,)))
    llm = small_llama(vocabulary.text_size, hidden_size=64, num_hidden_layers=2)
    resize_embeddings(llm, vocabulary, spread=spread)
    builder = SequenceBuilder(tokenizer, vocabulary)
    codes = np.random.default_rng(0).integers(0, 1024, (2, 16, 16))
    one, other = (torch.from_numpy(builder.state(each, "a cat on a sofa").input_ids)[None] for each in codes)
    with torch.no_grad():
        state, moved = (llm(ids, output_hidden_states=True).hidden_states[-1][0, -1] for ids in (one, other))
    assert least <= (moved - state).norm() / state.norm() < most

"""Documents in training: what stages and batches have of each image, sequences against a reading by hand, mixtures."""

import json
import pickle
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_data import DOCUMENTS, make_document, stored
from test_sequences import CODES, OTHER_CODES, Kit, check
from text_tokenizers import gpt2_like
from training_data import LOADER_WARNINGS, RICH, cut, digest, finished, samples

from patchmint.errors import ConfigError, InputError
from patchmint.samples import Part, Turn
from patchmint.shards.reader import StoredSample
from patchmint.training.continuous import grid_tokens
from patchmint.training.dataset import StageDataset
from patchmint.training.loader import StageLoader, collate
from patchmint.training.selector import PatchSelector, selector_loss
from patchmint.training.sequences import SequenceBuilder, parts_of
from patchmint.training.vocabulary import Codebook, extend_tokenizer
from patchmint.training.webdataset import SampleDecoder

pytestmark = LOADER_WARNINGS

LAYOUT = RICH.model_copy(update={"documents": True})
COUNTS = (1, 3, 2, 6, 1, 2, 5)


def documents(layout=LAYOUT):
    return [make_document(number, count, layout=layout, turns=number % 3 != 2) for number, count in enumerate(COUNTS)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("documents") / "set", cut(documents(), 3, 4), layout=LAYOUT)


def test_stage_1_has_labels_and_features_by_image(data):
    made = {sample.planned.key: sample for sample in documents()}
    chosen = set()
    for sample in [*StageDataset(data, 1), *StageDataset(data, 1, seed=3)]:
        source = made[sample.key].planned.sample
        assert sample.text == source.texts[sample.text_index].content
        chosen.add(sample.text_index)
        for texts, written, image in zip(source.image_texts, made[sample.key].images, sample.images, strict=True):
            assert image.labelled == (sample.text_index in texts)
            if image.labelled:
                at = texts.index(sample.text_index)
                np.testing.assert_array_equal(image.selector[0], written.selector[at])
                np.testing.assert_array_equal(image.coverage[0], written.coverage[at])
            else:
                assert not image.selector.any()
                assert not image.coverage.any()
                assert not image.feature_selector.any()
            np.testing.assert_array_equal(image.codes, written.codes[..., 0])
            np.testing.assert_array_equal(image.features[0], written.features)
            assert image.pixels.shape == (1, 3, 56, 84)
    assert chosen == {0, 1}


def test_texts_that_label_nothing_are_not_chosen(tmp_path):
    sample = make_document(0, 1)
    source = replace(sample.planned.sample, image_texts=((1,),))
    only = replace(sample.images[0], selector=sample.images[0].selector[1:], coverage=sample.images[0].coverage[1:])
    told = replace(sample, planned=replace(sample.planned, sample=source), images=(only,))
    data = finished(tmp_path / "set", [[told]], layout=DOCUMENTS)
    assert {StageDataset(data, 1, seed=seed)[0].text_index for seed in range(5)} == {1}


def test_batches_have_images_flat_with_offsets(data):
    found = list(StageDataset(data, 1, shuffle=False))
    batch = collate(found)
    assert batch.image_offsets.tolist() == [0, *np.cumsum(COUNTS)]
    flat = [image for sample in found for image in sample.images]
    assert batch.label_mask.tolist() == [image.labelled for image in flat]
    for name in ("pixels", "selector", "coverage", "codes", "features", "feature_selector", "token_order"):
        assert torch.equal(getattr(batch, name), torch.stack([getattr(image, name) for image in flat])), name
    assert len(batch) == len(batch.texts) == len(COUNTS)
    first, end = batch.image_offsets[3:5]
    assert torch.equal(batch.codes[first:end], torch.stack([image.codes for image in found[3].images]))
    assert batch.to("cpu").image_offsets.tolist() == batch.image_offsets.tolist()


def test_a_picture_is_a_sample_of_one_image(tmp_path, data):
    pictures = collate(list(StageDataset(finished(tmp_path / "set", [samples(3)]), 1)))
    assert pictures.image_offsets.tolist() == [0, 1, 2, 3]
    assert pictures.label_mask.all()
    one, several = (StageDataset(data, 2)[number] for number in (0, 1))
    assert torch.equal(one.codes, one.images[0].codes)
    with pytest.raises(InputError, match="'d0001' has 3 images; read codes of its `images`"):
        _ = several.codes


def test_documents_with_too_many_images_are_left_out_and_counted(data):
    dataset = StageDataset(data, 2, shuffle=False, max_images=3)
    assert [len(sample.images) for sample in dataset] == [count for count in COUNTS if count <= 3]
    assert dataset.skipped == 2
    loader = StageLoader(StageDataset(data, 2, shuffle=False, max_images=3), 3)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [3, 2]  # the last had one sample, which was left out
    assert loader.skipped == 2
    assert "'d0003' of" in batches[1].skipped[0]
    assert "6 images, max_images is 3" in batches[1].skipped[0]
    with pytest.raises(InputError, match="6 images"):
        _ = dataset[3]
    with pytest.raises(ConfigError, match=r"max_images \(0\)"):
        StageDataset(data, 2, max_images=0)


def test_batches_are_the_same_with_workers_and_after_a_resume(data):
    def loader(workers=0):
        return StageLoader(
            StageDataset(data, include=("labels", "codes", "features"), max_images=5), 2, num_workers=workers
        )

    expected = [digest(batch) for batch in loader()]
    assert [digest(batch) for batch in loader(workers=2)] == expected
    halted = loader()
    next(iter(halted))
    resumed = loader()
    resumed.load_state_dict(json.loads(json.dumps(halted.state_dict())))
    assert [digest(batch) for batch in resumed] == expected[1:]


def codes_of(members, count):
    return [StoredSample("k", 0, 0, {"x.npy": members[f"{n}.vqgan.npy"]}).array("x.npy") for n in range(count)]


def brute_force(kit, members):
    """(ids, learnt) of a document, walking through KEY.json."""
    told = json.loads(members["json"])
    codes = codes_of(members, len(told["images"]))
    speaks = any(part["role"] for part in told["sequence"])
    pieces, text, speaker = [(kit.bos, False)], "", ""
    learnt = not speaks

    def flush():
        nonlocal text
        pieces.append((kit.text(text), learnt))
        text = ""

    def end():
        nonlocal text
        text += "\n" if speaker == "human" else ""
        flush()
        if speaker in ("gpt", ""):
            pieces.append((kit.eos, True))

    for number, part in enumerate(told["sequence"]):
        if part["role"]:
            if number:
                end()
            speaker, learnt = part["role"], part["role"] == "gpt"
            if learnt:
                pieces.append((kit.text("ASSISTANT:\n"), False))
            else:
                text = "USER:\n"
        if part["image"] >= 0:
            flush()
            pieces.append((kit.image(codes[part["image"]]), False))
        else:
            text += part["text"]
    end()
    return pieces


def big_kit():
    """With a vocabulary for the codes of `data`."""
    kit = Kit(gpt2_like)
    kit.tokenizer = gpt2_like()
    kit.vocabulary = extend_tokenizer(kit.tokenizer, Codebook("vqgan", (16384,), "pad-64-bicubic", "f" * 64))
    kit.build = SequenceBuilder(kit.tokenizer, kit.vocabulary)
    kit.eos = [kit.vocabulary.eos_id]
    return kit


def test_sequences_against_a_reading_by_hand(data):
    kit = big_kit()
    members = {sample.key: sample.members for sample in stored(data)}
    for sample in StageDataset(data, include=["codes"]):
        made = kit.build.document(sample.parts, [image.codes for image in sample.images])
        check(made, *brute_force(kit, members[sample.key]))
        assert sample.conversation == ()


class TestSequences:
    kit = Kit(gpt2_like)

    def test_a_conversation_is_a_document(self):
        turns = [Turn("system", "Be kind."), Turn("human", "<image> or <image>?"), Turn("gpt", "<image> is text")]
        parts = parts_of(turns)
        assert [part.role for part in parts] == ["system", "human", "", "", "", "", "gpt"]
        assert [part.image for part in parts] == [-1, -1, 0, -1, 1, -1, -1]
        one = self.kit.build.conversation(turns, [CODES, OTHER_CODES])
        other = self.kit.build.document(parts, [CODES, OTHER_CODES])
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.labels, other.labels)

    def test_an_image_shown_twice_and_texts_that_no_image_parts(self):
        kit = self.kit
        spoken = [Part(image=0, role="human"), Part("a, "), Part("b"), Part(image=0), Part("c", role="gpt"), Part("d")]
        check(
            kit.build.document(spoken, [CODES]),
            (kit.text("USER:\n"), False),
            (kit.image(), False),
            (kit.text("a, b"), False),
            (kit.image(), False),
            (kit.text("\n"), False),
            (kit.text("ASSISTANT:\n"), False),
            (kit.text("cd"), True),
            (kit.eos, True),
        )
        plain = [Part("One."), Part("Two."), Part(image=0), Part(""), Part("Three.")]
        check(
            kit.build.document(plain, [CODES]),
            (kit.text("One.\nTwo."), True),
            (kit.image(), False),
            (kit.text("Three."), True),
            (kit.eos, True),
        )

    def test_an_image_is_whole_or_not_there(self):
        kit = self.kit
        parts = [Part("a"), Part(image=0), Part(image=1)]
        whole = kit.build.document(parts, [CODES, OTHER_CODES])
        images = len(kit.image())
        for limit in range(1, len(whole.input_ids)):
            short = SequenceBuilder(kit.tokenizer, kit.vocabulary, max_length=limit)
            cut_off = short.document(parts, [CODES, OTHER_CODES])
            assert cut_off.input_ids.tolist() == whole.input_ids[: len(cut_off.input_ids)].tolist()
            held = sum((cut_off.input_ids == kit.vocabulary.begin_id).tolist())
            assert held == sum((cut_off.input_ids == kit.vocabulary.end_id).tolist()) == (limit - 1) // images

    def test_a_state_of_several_images(self):
        kit = self.kit
        made = kit.build.document_state([CODES, OTHER_CODES], "which?")
        check(
            made,
            (kit.text("which?"), False),
            (kit.image(), False),
            (kit.image(OTHER_CODES), False),
            (kit.eos, False),
        )
        assert made.state_position == len(made.input_ids) - 1
        with pytest.raises(InputError, match="images take 13 ids"):
            SequenceBuilder(kit.tokenizer, kit.vocabulary, max_length=12).document_state([CODES, CODES])

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ([Part("a"), Part(image=1)], "show the images"),
            ([Part("a")], "show the images"),
            ([Part(image=0, role="user"), Part("a")], "role is 'user'"),
            ([Part(image=0, role="human"), Part("a")], "nothing is learnt"),
        ],
    )
    def test_refused(self, parts, message):
        with pytest.raises(InputError, match=message):
            self.kit.build.document(parts, [CODES])


def test_pictures_and_documents_are_mixed_in_stage_4(tmp_path, data):
    pictures = finished(tmp_path / "pictures", cut(samples(5, layout=RICH), 5), layout=RICH)
    mixed = StageDataset([pictures, data], 4, shuffle=False)
    batch = collate(list(mixed))
    assert batch.datasets == (0,) * 5 + (1,) * len(COUNTS)
    assert batch.image_offsets.tolist() == [0, 1, 2, 3, 4, *(5 + np.cumsum([0, *COUNTS]))]
    assert len(batch.pixels) == len(batch.codes) == 5 + sum(COUNTS)
    assert batch.parts[0] == tuple(parts_of(batch.conversations[0]))
    assert [len(turns) > 0 for turns in batch.conversations] == [True] * 5 + [False] * len(COUNTS)
    assert all(batch.parts)


def test_other_readers_samples_are_decoded_as_ours(data):
    decode = pickle.loads(pickle.dumps(SampleDecoder(data)))
    wanted = list(StageDataset(data, 1, shuffle=False, text="first"))
    for read, sample in zip(stored(data), wanted, strict=True):
        # `datasets` has a column for each image of the longest document
        found = decode({"__key__": read.key, **read.members, "40.jpg": None})
        assert (found["key"], found["text"], len(found["images"])) == (sample.key, sample.text, len(sample.images))
        assert [part["image"] for part in found["parts"]] == [part.image for part in read.parts]
        for entry, image in zip(found["images"], sample.images, strict=True):
            assert entry["labelled"] == image.labelled
            for name in ("pixels", "selector", "codes", "features", "feature_selector"):
                assert np.array_equal(entry[name], getattr(image, name)), name
    parsed = stored(data)[1]
    rows = {"json": json.loads(parsed.members["json"]), "1.vqgan.npy": wanted[1].images[1].codes.tolist()}
    assert np.array_equal(decode(parsed.members | rows)["images"][1]["codes"], wanted[1].images[1].codes)


def test_an_image_that_no_text_labels_may_come_with_empty_lists(tmp_path):
    """`datasets` makes them of arrays without a row."""
    sample = make_document(0, 2)
    source = replace(sample.planned.sample, image_texts=((0, 1), ()))
    bare = replace(sample.images[1], selector=sample.images[1].selector[:0], coverage=sample.images[1].coverage[:0])
    images = (sample.images[0], replace(bare, phrases=()))
    made = replace(sample, planned=replace(sample.planned, sample=source), images=images)
    data = finished(tmp_path / "set", [[made]], layout=DOCUMENTS)
    (read,) = stored(data)
    found = SampleDecoder(data)({"__key__": read.key, **read.members, "1.selector.npy": [], "1.coverage.npy": []})
    wanted = StageDataset(data, 1)[0].images[1]
    assert not found["images"][1]["labelled"]
    assert np.array_equal(found["images"][1]["selector"], wanted.selector)


def test_the_page_of_documents(tmp_path, data):
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    section = page.partition("\n### Documents\n")[2].partition("\n### ")[0]
    groups = page.partition("\n### Groups\n")[2].partition("\n### ")[0]
    (pairs,) = re.findall(r"```python\n(.*?)```", groups, re.DOTALL)
    mixture, selector_step = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    pictures = finished(tmp_path / "pictures", [samples(4, layout=RICH)], layout=RICH)
    names = {"StageDataset": StageDataset, "builder": big_kit().build, "torch": torch, "selector_loss": selector_loss}
    names |= {"Turn": Turn, "zlib": zlib}
    exec(pairs.replace("/data/coco", str(pictures)), names)
    batch = collate(list(names["dataset"]))
    assert batch.image_positions[:, :2].tolist() == [[0, 0], [0, 1], [1, 2], [1, 3]]
    exec(mixture.replace("/data/pictures", str(pictures)).replace("/data/documents", str(data)), names)
    assert len(list(names["dataset"])) == 4 + len(COUNTS)
    batch = collate(list(StageDataset(data, 1, shuffle=False)))
    names |= {
        "batch": batch,
        "grid_tokens": grid_tokens,
        "selector": PatchSelector(5, 8),
        "state": torch.zeros(len(COUNTS), 8),
    }
    names["dataset"] = StageDataset(data)
    exec(selector_step, names)
    assert names["owner"].tolist() == [number for number, count in enumerate(COUNTS) for _ in range(count)]
    assert names["mask"].sum() == batch.label_mask.sum() * 6
    assert torch.isfinite(names["loss"])

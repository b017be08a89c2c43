"""Grounding DINO at tiny size: against upstream's own forward, alone against any batch, and what becomes a phrase.

Runs under transformers 5 and, by test_transformers4.py, under 4.57.
"""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from seeded_weights import shake
from skimage import data

from patchmint.errors import WeightsCorruptError, WeightsMismatchError
from patchmint.labelers.box_rules import BoxRules
from patchmint.labelers.grounding_dino.arch import TINY, GroundingDinoArch, detector_size, infer_arch
from patchmint.labelers.grounding_dino.detector import GroundingDino, select
from patchmint.labelers.grounding_dino.encoders import encode_images, encode_prompts
from patchmint.labelers.grounding_dino.model import load_grounding_dino, untrained
from patchmint.labelers.grounding_dino.prompts import Vocabulary, caption_prompts, phrase_prompts
from patchmint.labelers.grounding_dino.transformer import match
from patchmint.types import Text
from patchmint.weights.architecture import ARCH_METADATA_KEY
from patchmint.weights.loading import StateFile

CPU = torch.device("cpu")
CAPTIONS = ["a cat on a sofa. two dogs?", "x", "the quick fox jumps. a lazy dog, in the sun", "red. blue thing. c"]
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def model():
    model = untrained(TINY)
    shake(model)
    return model


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.of_characters(TINY.text_vocabulary)


@pytest.fixture(scope="module")
def detector(model, vocabulary):
    return GroundingDino(model, TINY, vocabulary)


@pytest.fixture(scope="module")
def photographs():
    """Four real photographs of unlike sizes and shapes."""
    return [data.astronaut(), data.coffee(), data.chelsea()[:, 150:250], data.rocket()[100:180]]


def run(model, detector, photographs, prompts):
    with torch.inference_mode():
        pixels = [detector.preprocess(photograph) for photograph in photographs]
        return match(model, encode_images(model, pixels), encode_prompts(model, prompts, CPU))


def differences(one, other):
    finite = torch.isfinite(one.logits)
    assert torch.equal(finite, torch.isfinite(other.logits))
    assert finite.any()
    return (one.logits - other.logits)[finite].abs().max().item(), (one.boxes - other.boxes).abs().max().item()


def upstream_forward(model, vocabulary, pixels, captions, tmp_path):
    """Upstream's own `forward` on the same weights, with the tokenizer of transformers that it expects."""
    from groundingdino.util.inference import preprocess_caption

    pieces = sorted(vocabulary._tokenizer.get_vocab().items(), key=lambda item: item[1])
    if transformers.__version__.startswith("4."):
        file = tmp_path / "vocab.txt"
        file.write_text("\n".join(piece for piece, _ in pieces))
        tokenizer = transformers.BertTokenizerFast(vocab_file=str(file))
    else:
        tokenizer = transformers.BertTokenizerFast(vocab=dict(pieces))
    model.tokenizer = tokenizer
    model.specical_tokens = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return model(torch.stack(pixels), captions=[preprocess_caption(caption) for caption in captions])


@pytest.mark.parametrize("index", range(4))
def test_equals_upstream(model, detector, vocabulary, photographs, tmp_path, index):
    prompt = caption_prompts(Text(CAPTIONS[index]), vocabulary)[0]
    ours = run(model, detector, [photographs[index]], [prompt])
    pixels = detector.preprocess(photographs[index])
    theirs = upstream_forward(model, vocabulary, [pixels], [CAPTIONS[index]], tmp_path)
    finite = torch.isfinite(theirs["pred_logits"])
    assert torch.equal(finite, torch.isfinite(ours.logits))
    assert (theirs["pred_logits"] - ours.logits)[finite].abs().max() < TOLERANCE
    assert (theirs["pred_boxes"] - ours.boxes).abs().max() < TOLERANCE
    assert theirs["pred_logits"][finite].std() > 0.5  # else agreement would mean little


def test_any_batch_gives_what_each_gives_alone(model, detector, vocabulary, photographs):
    prompts = [caption_prompts(Text(caption), vocabulary)[0] for caption in CAPTIONS]
    batch = run(model, detector, photographs, prompts)
    for row in range(4):
        alone = run(model, detector, [photographs[row]], [prompts[row]])
        logits, boxes = differences(alone, type(batch)(batch.logits[row][None], batch.boxes[row][None]))
        assert logits < TOLERANCE
        assert boxes < TOLERANCE


def test_upstream_mixes_captions_in_a_batch(model, detector, vocabulary, photographs, tmp_path):
    """Why we have a forward of our own: if upstream were mended, this would tell."""
    pixels = [detector.preprocess(photographs[0])] * 2
    captions = [CAPTIONS[0], CAPTIONS[3]]
    together = upstream_forward(model, vocabulary, pixels, captions, tmp_path)
    alone = upstream_forward(model, vocabulary, pixels[:1], captions[:1], tmp_path)
    finite = torch.isfinite(alone["pred_logits"][0])
    assert (together["pred_logits"][0] - alone["pred_logits"][0])[finite].abs().max() > 0.1


def test_texts_of_an_image_share_its_backbone_pass(detector, photographs, monkeypatch):
    from patchmint.labelers.grounding_dino import detector as module

    sizes = []
    original = module.encode_images
    monkeypatch.setattr(module, "encode_images", lambda m, pixels: sizes.append(len(pixels)) or original(m, pixels))
    texts = [Text(caption) for caption in CAPTIONS]
    together = detector.detect(photographs[:1], [texts])[0]
    assert sizes == [1]
    apart = [detector.detect(photographs[:1], [[text]])[0] for text in texts]
    np.testing.assert_allclose(together.scores, np.concatenate([each.scores for each in apart]), atol=1e-4)
    np.testing.assert_array_equal(together.text_index, np.repeat(np.arange(4), [len(each.scores) for each in apart]))
    np.testing.assert_array_equal(together.spans, np.concatenate([each.spans for each in apart]))


def test_detections_do_not_depend_on_the_batch(detector, photographs):
    texts = [[Text(CAPTIONS[0]), Text("🐱")], [Text(CAPTIONS[2])], [Text("red thing")], [Text(CAPTIONS[1])]]
    together = detector.detect(photographs, texts)
    for photograph, its_texts, found in zip(photographs, texts, together, strict=True):
        alone = detector.detect([photograph], [its_texts])[0]
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.5)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_array_equal(found.spans, alone.spans)
        assert not (found.text_index == 1).any()


def test_boxes_are_the_models_in_pixels(model, detector, vocabulary, photographs):
    height, width = photographs[1].shape[:2]
    found = detector.detect(photographs[1:2], [[Text(CAPTIONS[1])]])[0]
    raw = run(model, detector, photographs[1:2], [caption_prompts(Text(CAPTIONS[1]), vocabulary)[0]])
    x, y, w, h = raw.boxes[0].numpy().T * np.array([[width], [height], [width], [height]])
    theirs = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1).clip(0, [width, height] * 2)
    scores = raw.logits[0, :, 1].sigmoid().numpy()
    assert len(found.scores) == (scores > 0.35).sum() > 3
    nearest = np.abs(found.boxes[:, None] - theirs[None]).max(-1).argmin(axis=1)
    np.testing.assert_allclose(found.boxes, theirs[nearest], atol=0.1)
    np.testing.assert_allclose(found.scores, scores[nearest], atol=1e-5)


def test_phrases_are_whole_words_of_the_text(detector, photographs):
    caption = "a Cat on a sofa, two dogs in front of naïve paintings. 3 o'clock"
    found = detector.detect(photographs[:1], [[Text(caption)]])[0]
    assert len(found.scores)
    borders = {0, len(caption)} | {i for i in range(1, len(caption)) if not (caption[i - 1 : i + 1]).isalnum()}
    for (start, end), box, score in zip(found.spans, found.boxes, found.scores, strict=True):
        assert start in borders
        assert end in borders
        assert start < end
        assert 0.35 < score <= 1
        assert (box >= 0).all()
        assert box[0] <= box[2] <= photographs[0].shape[1]
        assert box[1] <= box[3] <= photographs[0].shape[0]


def test_phrases_that_are_named_or_cut_are_what_is_found(detector, photographs):
    for text in (Text("Two cats sleep on a pink sofa", phrases=((0, 8), (18, 29))), Text("Two cats. A pink sofa.")):
        asked = set(BoxRules(splits=True).spans(text))
        (found,) = BoxRules(True, 0.1).detect(detector, photographs[:1], [[text]], [detector.prepare(photographs[0])])
        assert len(asked) == 2
        assert {tuple(span) for span in found.spans.tolist()} == asked


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (900, 2), (40, 800), (4, 4)])
def test_extreme_shapes(detector, size):
    """Upstream fails where a side rounds to nothing, and where there are fewer positions than queries."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = detector.detect([image, data.astronaut()], [[Text("a cat")], [Text("a woman")]])
    alone = detector.detect([image], [[Text("a cat")]])[0]
    np.testing.assert_allclose(found[0].scores, alone.scores, atol=1e-4)


def test_more_queries_than_places(vocabulary):
    """A narrow image has fewer positions than the model has queries: the rest stand nowhere, and say nothing."""
    arch = replace(TINY, queries=300)
    model = untrained(arch)
    shake(model)
    # Padding all looks alike; make what it looks like score higher than any real place, so that it would be taken.
    model.transformer.enc_output_norm.bias.data += 0.3
    detector = GroundingDino(model, arch, vocabulary)
    prompts = [caption_prompts(Text(caption), vocabulary)[0] for caption in CAPTIONS[:2]]
    images = [np.ascontiguousarray(data.coffee()[:10]), data.coffee()]
    batch = run(model, detector, images, prompts)
    places = sum(level.shape[1] * level.shape[2] for level in encode_one(model, detector, images[0]).levels)
    assert places < 300
    assert torch.isfinite(batch.logits[0]).any(-1).sum() == places
    assert torch.isfinite(batch.logits[1]).any(-1).all()
    alone = run(model, detector, images[:1], prompts[:1])
    logits, _ = differences(alone, type(batch)(batch.logits[:1], batch.boxes[:1]))
    assert logits < TOLERANCE


@pytest.mark.parametrize(("family", "least"), [("grounding-dino", 1e-3), ("mm-grounding-dino", 1e-5)])
def test_the_last_boxes_reach_as_far_as_their_publishers(family, least, vocabulary):
    """The layer before moves all boxes to the border, and the last one lets them be."""
    model = untrained(replace(TINY, family=family))
    heads = torch.nn.ModuleList(torch.nn.Linear(256, 4) for _ in range(TINY.decoder_layers))
    for head in heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, 20.0 * (head is not heads[-1]))
    model.bbox_embed = model.transformer.decoder.bbox_embed = heads
    detector = GroundingDino(model, TINY, vocabulary)
    found = run(model, detector, [data.coffee()], [caption_prompts(Text("a cup"), vocabulary)[0]])
    np.testing.assert_allclose(found.boxes, 1 - least, atol=2e-6)


def encode_one(model, detector, image):
    with torch.inference_mode():
        return encode_images(model, [detector.preprocess(image)])[0]


def chosen(scores, prompt, box=(0.5, 0.5, 0.5, 0.5), image_size=(10, 10), text_index=0):
    """What `select` makes of these scores, at the default thresholds."""
    boxes = np.tile(np.float32(box), (len(scores), 1))
    limits = {"box_threshold": 0.35, "text_threshold": 0.25}
    return select(scores, boxes, prompt, image_size=image_size, text_index=text_index, **limits)


def scores_for(prompt, wanted, content):
    scores = np.zeros((1, 256), np.float32)
    for token, place in zip(prompt.tokens, prompt.places, strict=True):
        for word, score in wanted.items():
            start = content.index(word)
            if start <= token.span[0] < start + len(word):
                scores[0, place] = score
    return scores


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"cat": 0.9}, ["cat"]),
        ({"big": 0.5, "cat": 0.9}, ["big cat"]),
        ({"cat": 0.9, "sofa": 0.4}, ["cat"]),  # upstream would say "cat sofa"
        ({"sofa": 0.9, "Two": 0.8}, ["sofa"]),  # a phrase stays within its sub-sentence
        ({"cat": 0.34}, []),
        ({"cat": 0.36, "big": 0.2}, ["cat"]),
        ({"shirt": 0.9}, ["t-shirt"]),  # words joined by a hyphen are one name
    ],
)
def test_which_words_name_a_box(vocabulary, wanted, expected):
    content = "A big cat on a sofa. Two dogs. a red t-shirt"
    prompt = caption_prompts(Text(content), vocabulary)[0]
    scores = scores_for(prompt, wanted, content)
    found = chosen(scores, prompt, box=(0.5, 0.25, 0.5, 0.1), image_size=(100, 200), text_index=3)
    assert [content[start:end] for start, end in found.spans] == expected
    if expected:
        np.testing.assert_allclose(found.boxes, [[50, 20, 150, 30]])
        assert found.text_index.tolist() == [3]


def test_one_piece_of_a_word_claims_the_whole_word(vocabulary):
    content = "a caterpillar"
    prompt = caption_prompts(Text(content), vocabulary)[0]
    scores = np.zeros((1, 256), np.float32)
    scores[0, prompt.places[5]] = 0.9  # one letter: with this vocabulary a "##" piece
    found = chosen(scores, prompt)
    assert [content[start:end] for start, end in found.spans] == ["caterpillar"]


def test_a_stop_or_the_start_names_nothing(vocabulary):
    prompt = caption_prompts(Text("a cat. a dog"), vocabulary)[0]
    scores = np.zeros((3, 256), np.float32)
    scores[0, 0] = scores[1, len(prompt.ids) - 1] = 0.99  # [CLS], [SEP]
    scores[2, list(prompt.ids).index(vocabulary.stop)] = 0.99
    found = chosen(scores, prompt)
    assert len(found.scores) == 0


def test_each_asked_phrase_gets_what_its_own_words_claim(vocabulary):
    """Against all pairs of queries and phrases, one by one; overlapping and equal phrases take nothing from others."""
    text = Text.from_phrases(["circle", "red circle", "a dog", "circle"])
    prompt = phrase_prompts(text, vocabulary)[0]
    scores = np.random.default_rng(0).random((40, 256), dtype=np.float32) ** 4
    equal = [[t for t, of in enumerate(prompt.phrase_of) if of == phrase] for phrase in (0, 3)]
    noise = 1e-6 * np.random.default_rng(1).random((40, 6), dtype=np.float32)
    scores[:, prompt.places[equal[1]]] = scores[:, prompt.places[equal[0]]] + noise
    boxes = np.random.default_rng(2).random((40, 4), dtype=np.float32)
    found = select(scores, boxes, prompt, image_size=(1, 1), text_index=0, box_threshold=0.5, text_threshold=0.25)
    pairs = []
    for query in range(40):
        for phrase, span in enumerate(prompt.phrases):
            own = [t for t, of in enumerate(prompt.phrase_of) if of == (0 if phrase == 3 else phrase)]
            score = max(scores[query, prompt.places[t]] for t in own if prompt.tokens[t].readable)
            if score > 0.5:
                pairs.append((-score, query, phrase, span))
    pairs.sort()
    assert len({span for *_, span in pairs}) == 4
    assert 20 < len(pairs) < 160
    assert [tuple(span) for span in found.spans.tolist()] == [span for *_, span in pairs]
    assert found.scores.tolist() == [-score for score, *_ in pairs]
    upper_left = boxes[:, :2] - boxes[:, 2:] / 2
    np.testing.assert_array_equal(found.boxes[:, :2], upper_left[[query for _, query, *_ in pairs]].clip(0, 1))


def test_equal_phrases_get_the_same_boxes_alone_and_in_a_batch(model, vocabulary, photographs):
    detector = GroundingDino(model, TINY, vocabulary)
    text = Text.from_phrases(["a cat", "cat", "a dog", "a cat"])
    others = [Text("something else")], [Text("a very long text of words")]
    alone = detector.detect(photographs[:1], [[text]], 0.1)[0]
    batch = detector.detect(photographs[:2], [[text, *others[0]], others[1]], 0.1)[0]
    first, second, length = text.phrases[0], text.phrases[3], len(alone.scores)
    for found in (alone, batch):
        spans, own = found.spans.tolist(), found.text_index == 0
        of = [[i for i, span in enumerate(spans) if own[i] and tuple(span) == wanted] for wanted in (first, second)]
        assert len(of[0])
        np.testing.assert_array_equal(found.boxes[of[0]], found.boxes[of[1]])
        np.testing.assert_array_equal(found.scores[of[0]], found.scores[of[1]])
    assert batch.spans[:length].tolist() == alone.spans.tolist()


@pytest.mark.parametrize(
    "size", [(480, 640), (640, 480), (800, 800), (800, 1000), (333, 1999), (2000, 301), (801, 799)]
)
def test_detector_size_is_upstreams(size):
    import groundingdino.datasets.transforms as upstream
    from PIL import Image

    image = Image.new("RGB", (size[1], size[0]))
    resized, _ = upstream.RandomResize([800], max_size=1333)(image, None)
    assert detector_size(size, 800, 1333) == (resized.height, resized.width)


@pytest.mark.parametrize("size", [(1, 1_000_000), (10_000, 2), (1, 5000)])
def test_no_side_passes_the_limit(size):
    height, width = detector_size(size, 800, 1333)
    assert min(height, width) >= 1
    assert max(height, width) <= 1333


def test_nan_is_no_empty_label(detector, photographs, monkeypatch):
    parameter = detector.model.transformer.level_embed
    monkeypatch.setattr(parameter, "data", torch.full_like(parameter, float("nan")))
    with pytest.raises(WeightsCorruptError, match="NaN"):
        detector.detect(photographs[:1], [[Text("a cat")]])


@pytest.mark.parametrize(
    "change",
    [
        {"swin_dim": 0},
        {"swin_depths": []},
        {"backbone_stages": [7]},
        {"levels": 1},
        {"text_heads": 3},
        {"queries": 10**12},
        {"text_vocabulary": 10**11},
        {"swin_depths": [10_000] * 4},
        {"short_side": 0},
        {"colour": 1},
        {"queries": "24"},
    ],
)
def test_hostile_descriptions_are_refused(change):
    with pytest.raises(WeightsMismatchError, match="metadata"):
        infer_arch({}, {ARCH_METADATA_KEY: json.dumps(json.loads(TINY.to_json()) | change)})


def test_checkpoints_load_by_their_own_description(model, tmp_path):
    tensors = dict(model.state_dict())
    state = StateFile(tmp_path / "tiny.safetensors", tensors, {ARCH_METADATA_KEY: TINY.to_json()})
    loaded, arch = load_grounding_dino(state)
    assert arch == TINY
    for (name, mine), (_, theirs) in zip(loaded.state_dict().items(), tensors.items(), strict=True):
        assert torch.equal(mine, theirs), name
    with pytest.raises(WeightsMismatchError, match="groundingdino-swint-ogc"):
        infer_arch(tensors, {})
    with pytest.raises(WeightsMismatchError, match="metadata"):
        GroundingDinoArch.from_metadata({ARCH_METADATA_KEY: '{"swin_dim": "wide"}'})
    del tensors["transformer.level_embed"]
    with pytest.raises(WeightsMismatchError, match="level_embed"):
        load_grounding_dino(StateFile(tmp_path / "tiny.safetensors", tensors, state.metadata))


def test_vocabulary_must_fit_the_model(model):
    pieces = {piece: n for n, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?"])}
    large = pieces | {f"word{n}": n + 6 for n in range(300)}
    for unfit in (large, pieces):
        with pytest.raises(WeightsMismatchError, match="vocabulary"):
            GroundingDino(model, TINY, Vocabulary(unfit))

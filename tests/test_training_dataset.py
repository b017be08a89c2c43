"""What a stage is given of a sample, and what is said where something is missing, damaged or can't be mixed."""

import io
import pickle
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from inspect_data import texted
from PIL import Image
from shard_data import LAYOUT, commit_unit, make_dataset, renamed, write_plan
from text_tokenizers import gpt2_like
from torch.utils.data import DataLoader
from training_data import FEATURES, GRID, LOADER_WARNINGS, RICH, cut, digest, finished, samples

from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.reader import SampleReader, SampleRef
from patchmint.datasets.rows import iter_tables
from patchmint.errors import ConfigError, InputError, ShardError, StorageError
from patchmint.geometry import RleMasks, coverage_to_uint8, grid_preset
from patchmint.geometry.coverage import pool_coverage
from patchmint.geometry.rle import encode_masks
from patchmint.samples import Part, Turn
from patchmint.shards.layout import GridLayout
from patchmint.shards.schema import ImageDocument
from patchmint.training.dataset import StageDataset
from patchmint.training.loader import collate
from patchmint.training.sequences import ImageTokens, SequenceBuilder, TokenSequence

HOSTILE = "<image> <|code-3|> <|endoftext|> </s> \x1b[31m {{x}} <script>alert(1)</script>\u202e"

pytestmark = LOADER_WARNINGS


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("rich") / "set", cut(samples(9, layout=RICH), 4, 5), layout=RICH)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("plain") / "set", cut(samples(9), 4, 5))


def by_key(dataset):
    return {sample.key: sample for sample in dataset}


def tensors(sample):
    return {name for name, value in vars(sample.images[0]).items() if torch.is_tensor(value)}


def keys_of(*made):
    return [sample.key for dataset in made for sample in dataset]


def test_stage_1(rich):
    made = {sample.planned.key: sample for sample in samples(9, layout=RICH)}
    found = by_key(StageDataset(rich, 1))
    assert found.keys() == made.keys()
    for key, sample in found.items():
        stored = made[key]
        text = sample.text_index
        assert sample.text == stored.planned.sample.texts[text].content
        assert np.array_equal(sample.selector, stored.selector[text].reshape(1, 4, 6))
        assert np.array_equal(sample.coverage, stored.coverage[text].reshape(1, 4, 6))
        assert np.array_equal(sample.codes, stored.codes[..., 0])
        assert sample.codes.dtype == torch.int64
        assert np.array_equal(sample.features, stored.features.reshape(1, 7, 5))
        assert sample.features.dtype == torch.float16
        pooled = pool_coverage(stored.coverage, 4, (2, 3))[text]
        assert np.array_equal(sample.feature_coverage[0], pooled)
        assert np.array_equal(sample.feature_selector[0], pooled > RICH.threshold)
        assert (sample.pixels.shape, sample.pixels.dtype) == ((1, 3, 56, 84), torch.uint8)
        assert sample.sequences == {}


def test_what_other_stages_are_given(rich, plain):
    for stage, data, include, wanted in (
        (2, rich, None, {"codes", "code_mask"}),
        (3, rich, None, {"features", "feature_mask"}),
        (4, plain, None, {"pixels", "codes", "code_mask"}),
        (None, rich, ["features", "pixels"], {"features", "feature_mask", "pixels"}),
        (None, plain, ["labels"], {"selector", "coverage", "patch_mask", "token_order"}),
        (None, plain, [], set()),
        (None, plain, None, {"selector", "coverage", "patch_mask", "token_order", "codes", "code_mask", "pixels"}),
    ):
        for sample in StageDataset(data, stage, include=include):
            assert tensors(sample) == wanted, (stage, include)
            assert sample.conversation == (Turn("human", "<image>\nwhat?"), Turn("gpt", "a cat"))


def test_codes_of_padding_are_marked(tmp_path):
    """A wide image fills the two rows in the middle of its square."""
    (made,) = samples(1)
    wide = replace(made, image=made.image.model_copy(update={"height": 19}), phrases=())
    batch = collate(list(StageDataset(finished(tmp_path / "set", [[wide]]), 2)))
    assert batch.code_mask[0].all(1).tolist() == batch.code_mask[0].any(1).tolist() == [False, True, True, False]


def test_features_on_the_labels_grid_keep_the_labels(tmp_path):
    layout = LAYOUT.model_copy(update={"features": FEATURES.model_copy(update={"grid": (4, 6), "leading": 0})})
    data = finished(tmp_path / "set", [samples(3, layout=layout)], layout=layout)
    for sample in StageDataset(data, 1):
        assert torch.equal(sample.feature_selector, sample.selector)
        assert torch.equal(sample.feature_coverage, sample.coverage)


def test_several_codebooks(tmp_path):
    tokens = LAYOUT.tokens.model_copy(update={"codebook_sizes": (8, 70_000)})
    layout = LAYOUT.model_copy(update={"tokens": tokens})
    made = samples(3, layout=layout)
    found = by_key(StageDataset(finished(tmp_path / "set", [made], layout=layout), 2))
    for stored in made:
        assert np.array_equal(found[stored.planned.key].codes, stored.codes)


@pytest.mark.parametrize(
    ("grid", "orientation"),
    [
        *((grid, 1) for grid in ("llava-1.5-pretrain", "llava-1.5-finetune", "siglip-so400m-384", "seed-224")),
        *((grid, 6) for grid in ("llava-1.5-finetune", "llava-1.6")),
    ],
)
def test_pixels_lie_under_the_labels(tmp_path, grid, orientation):
    """A white rectangle on black, labelled by its own mask: white pixels are exactly where the coverage says so."""
    preset = grid_preset(grid)
    white = np.zeros((300, 500), np.uint8)
    white[40:130, 60:220] = 255
    data = finished(tmp_path / "set", [[rectangle(white, preset, orientation)]], layout=layout_of(preset), grid=grid)
    (sample,) = StageDataset(data, 1)
    views, rows, cols = sample.coverage.shape
    px, shape = preset.patch_px, (preset.rows * preset.patch_px, preset.cols * preset.patch_px)
    assert sample.pixels.shape == (views, 3, *preset.input_size)
    patches = sample.pixels[:, 0, : shape[0], : shape[1]].float().reshape(views, rows, px, cols, px).mean((2, 4))
    assert views == (3 if grid == "llava-1.6" else 1)
    full, empty = sample.coverage == 255, sample.selector == 0
    assert full.sum() > 4
    assert patches[full].min() > 240
    assert patches[empty].max() < 130  # grey where the image was padded
    share = sample.coverage.float()[~empty] / 255
    assert (patches[~empty] / 255 - share).abs().max() < 0.15


def layout_of(grid):
    form = GridLayout(rows=grid.rows, cols=grid.cols, patch_px=grid.patch_px, fit=grid.fit.value)
    return LAYOUT.model_copy(update={"grid": form, "min_coverage": 0.0})


def rectangle(white, grid, orientation):
    height, width = white.shape
    placement = grid.place(white.shape)
    masks = RleMasks(encode_masks((white > 0)[None]))
    coverage = coverage_to_uint8(masks.coverage([0], placement))[None]
    image, file = Image.fromarray(white), io.BytesIO()
    exif = Image.Exif()
    if orientation == 6:  # stored turned to the left; shown turned back
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    image.convert("RGB").save(file, "PNG", exif=exif)
    return replace(
        samples(1, layout=LAYOUT.model_copy(update={"min_coverage": None}))[0],
        data=file.getvalue(),
        image=ImageDocument(width=width, height=height, format="png", mode="RGB", orientation=orientation),
        views=len(placement.views),
        coverage=coverage,
        selector=(coverage > 0).astype(np.uint8),
    )


def test_texts_by_seed_and_epoch(plain):
    chosen = set()
    for seed in range(4):
        dataset = StageDataset(plain, 2, seed=seed)
        for _ in range(2):
            chosen.add(tuple(sorted((sample.key, sample.text_index) for sample in dataset)))
    assert len(chosen) > 4  # of four samples with two texts
    one, other = ([digest(sample) for sample in StageDataset(plain, 2)] for _ in range(2))
    assert one == other
    assert {sample.text_index for sample in StageDataset(plain, 2, text="first")} == {0}


def test_blank_texts_are_not_chosen(tmp_path):
    """Their labels are empty whatever the image shows."""
    made = samples(2)
    data = finished(tmp_path / "set", [[made[0], texted(made[1], "  ", "second text")]])
    for choice in ("first", "random"):
        assert by_key(StageDataset(data, 2, text=choice))["s0001"].text == "second text"


def test_hostile_texts_are_texts(tmp_path):
    turns = (Turn("human", HOSTILE), Turn("gpt", HOSTILE))
    data = finished(tmp_path / "set", [[texted(samples(1)[0], HOSTILE, conversation=turns)]])
    batch = collate(list(StageDataset(data, 4)))
    assert (batch.texts, batch.conversations) == ((HOSTILE,), (turns,))


def spell(sample):
    ids = np.array([ord(sign) for sign in sample.text], np.int64)
    return TokenSequence(ids, ids, state_position=len(ids) - 1 if len(ids) > 15 else None)


def test_sequences_are_made_of_samples(plain):
    for sample in StageDataset(plain, 2, sequences=spell):
        assert "".join(map(chr, sample.sequences[""].input_ids)) == sample.text


def refuse(sample):
    raise InputError("it is too long")


def test_a_refused_sequence_names_its_sample(plain):
    with pytest.raises(InputError, match=r"sample 's000\d' of .*shards/.*it is too long"):
        list(StageDataset(plain, 2, sequences=refuse))


def test_batches_are_padded_and_masked(tmp_path):
    preset = grid_preset("llava-1.6")
    wide, tall = (rectangle(np.zeros(shape, np.uint8), preset, 1) for shape in ((300, 900), (672, 672)))
    data = finished(tmp_path / "set", [[wide, renamed(tall, "tall")]], layout=layout_of(preset), grid="llava-1.6")
    one, other = StageDataset(data, 1, sequences=spell, shuffle=False, text="first")
    batch = collate([one, other], pad_id=9)
    assert (len(one.pixels), len(other.pixels)) == (4, 5)
    assert batch.view_mask.tolist() == [[True] * 4 + [False], [True] * 5]
    assert torch.equal(batch.pixels[0, :4], one.pixels)
    assert not batch.pixels[0, 4].any()
    assert torch.equal(batch.selector[1], other.selector)
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape


def two_sequences(sample):
    """A document's state, and a talk in which its last image comes first, with slots."""
    images = [ImageTokens(slots=number) for number in range(len(sample.images))]
    build = SequenceBuilder(gpt2_like())
    shown = [Part(image=number) for number in reversed(range(len(images)))]
    return {"state": build.document_state(images, "a cat"), "talk": build.document([*shown, Part(sample.text)], images)}


def test_sequences_by_name_say_where_images_stand(plain):
    dataset = StageDataset(plain, include=(), group=3, shuffle=False, text="first", sequences=two_sequences)
    batch = collate(list(dataset))
    assert (batch.keys[1], len(batch), batch.image_offsets.tolist()) == ("s0003+s0004+s0005", 3, [0, 3, 6, 9])
    state, talk = batch.sequences["state"], batch.sequences["talk"]
    assert state.input_ids.shape != talk.input_ids.shape
    text = state.state_positions[0] - 3
    expected = [[0, text, text, text], [1, text, text, text + 1], [2, text + 1, text + 1, text + 3]]
    assert state.image_positions[:3, 1:].tolist() == expected
    assert talk.image_positions[:, :2].tolist() == [[row, 3 * row + n] for row in range(3) for n in (2, 1, 0)]
    assert talk.image_positions[3:6, 2:].tolist() == [[0, 0, 2], [2, 2, 3], [3, 3, 3]]
    left = collate(list(dataset), pad_left=True).sequences["talk"]
    shifts = (talk.attention_mask == 0).sum(1)
    assert len(shifts.unique()) > 1
    assert torch.equal(left.image_positions[:, 2:], talk.image_positions[:, 2:] + shifts.repeat_interleave(3)[:, None])
    assert batch.to("meta").sequences["talk"].labels.is_meta
    with pytest.raises(InputError, match=r"read input_ids of the batch's `sequences`.*\(state, talk\)"):
        _ = batch.input_ids
    with pytest.raises(InputError, match="different names"):
        collate([dataset[0], StageDataset(plain, include=())[0]])


def test_sequences_are_padded_and_masked(plain):
    made = list(StageDataset(plain, 2, sequences=spell, text="first"))
    batch = collate(made, pad_id=7)
    longest = max(len(sample.text) for sample in made)
    assert batch.input_ids.shape == (9, longest)
    for row, sample in enumerate(made):
        length = len(sample.text)
        assert batch.input_ids[row, :length].tolist() == [ord(sign) for sign in sample.text]
        assert batch.input_ids[row, length:].eq(7).all()
        assert batch.labels[row, :length].equal(batch.input_ids[row, :length])
        assert batch.labels[row, length:].eq(-100).all()
        assert batch.attention_mask[row].tolist() == [1] * length + [0] * (longest - length)
        assert batch.state_positions[row] == (length - 1 if length > 15 else -1)
    left = collate(made, pad_id=7, pad_left=True)
    for row, sample in enumerate(made):
        assert torch.equal(
            left.input_ids[row].flip(0)[: len(sample.text)], batch.input_ids[row][: len(sample.text)].flip(0)
        )
        assert left.attention_mask[row].flip(0).equal(batch.attention_mask[row])
        assert left.state_positions[row] == (longest - 1 if len(sample.text) > 15 else -1)
    moved = batch.to("meta")
    assert moved.input_ids.is_meta
    assert moved.keys == batch.keys
    with pytest.raises(InputError, match="no sample"):
        collate([])


@pytest.mark.parametrize("workers", [0, 2])
def test_under_a_plain_loader(plain, workers):
    dataset = StageDataset(plain, 2, rank=0, world_size=1)
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate)
        epochs.append([key for batch in loader for key in batch.keys])
        assert sorted(epochs[-1]) == [f"s{number:04}" for number in range(9)]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("remainder", "lengths", "different"), [("keep", [5, 4], 9), ("drop", [4, 4], 8), ("repeat", [5, 5], 9)]
)
def test_ranks_part_an_epoch(plain, remainder, lengths, different):
    parts = [keys_of(StageDataset(plain, 2, rank=rank, world_size=2, remainder=remainder)) for rank in (0, 1)]
    assert [len(part) for part in parts] == lengths
    assert len(set(parts[0] + parts[1])) == different


@pytest.mark.parametrize("stop", range(10))
def test_a_data_set_goes_on_where_it_stopped(plain, stop):
    whole = StageDataset(plain, 1)
    expected = [digest(sample) for _ in range(2) for sample in whole]
    begun = StageDataset(plain, 1)
    iterator = iter(begun)
    for _ in range(stop):
        next(iterator)
    state = begun.state_dict()
    after = StageDataset(plain, 1)
    after.load_state_dict(state)
    rest = [digest(sample) for _ in range(2) for sample in after]
    assert rest == expected[stop:]
    assert pickle.loads(pickle.dumps(after)).state_dict() == after.state_dict()


def test_mixed_by_weight(tmp_path):
    one = finished(tmp_path / "one", cut(samples(9), 4, 5))
    two = finished(tmp_path / "two", [samples(4, prefix="t")])
    keys = keys_of(StageDataset([one, two], 2))
    assert len(keys) == len(set(keys)) == 13
    weighted = StageDataset([(one, 1), (two, 2)], 2, samples_per_epoch=10)
    seen = Counter()
    for _ in range(9):
        epoch = list(weighted)
        assert Counter(sample.dataset for sample in epoch) == {0: 3, 1: 7}
        seen.update(keys_of(epoch))
    # 27 of 9 samples; 63 of 4
    assert {seen[f"s{number:04}"] for number in range(9)} == {3}
    assert sorted(seen[f"t{number:04}"] for number in range(4)) == [15, 16, 16, 16]
    assert StageDataset([(one, 1), (two, 2)], 2).samples_per_epoch == 13


OTHER_PREPROCESSING = LAYOUT.tokens.model_copy(update={"preprocessing": "other"})


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"grid": LAYOUT.grid.model_copy(update={"rows": 3})}, {"grid": GRID | {"rows": 3}}, "patch grids differ"),
        ({"min_coverage": 0.0}, {}, r"thresholds of labels .* differ"),
        ({"tokens": OTHER_PREPROCESSING}, {}, "codebooks differ"),
        ({}, {"model": "another"}, "codebooks differ"),
        ({"features": FEATURES}, {}, "features differ"),
    ],
    ids=["grid", "threshold", "codebook", "model", "features"],
)
def test_what_cant_be_mixed(tmp_path, plain, changes, options, says):
    layout = LAYOUT.model_copy(update=changes)
    other = finished(tmp_path / "other", [samples(2, layout=layout)], layout=layout, **options)
    with pytest.raises(ConfigError, match=says):
        StageDataset([plain, other], 1)


def test_what_a_stage_lacks(tmp_path, plain):
    bare = LAYOUT.model_copy(update={"min_coverage": None, "tokens": None})
    data = finished(tmp_path / "bare", [samples(2, layout=bare)], layout=bare)
    for stage, lacked in ((1, "patch labels"), (2, "codes"), (3, "features"), (4, "codes")):
        with pytest.raises(ConfigError, match=rf"no {lacked}; `patchmint extend`"):
            StageDataset(data, stage)
    assert len(list(StageDataset(data, include=["pixels"]))) == 2
    with pytest.raises(ConfigError, match="include pixels"):
        StageDataset(plain, 3)


def test_no_conversations(tmp_path):
    data = finished(tmp_path / "set", [[texted(sample, "a cat", conversation=()) for sample in samples(2)]])
    with pytest.raises(ConfigError, match=r"no conversations.*source kind llava"):
        StageDataset(data, 4)


def test_no_data_set(tmp_path):
    unfinished = tmp_path / "unfinished"
    write_plan(unfinished, {0: 3, 1: 2})
    commit_unit(unfinished, 0, samples(3), [])
    for data, kind, says in (
        (tmp_path / "nothing", ConfigError, r"no dataset.json; it isn't a patchmint data set.*`patchmint build`"),
        (unfinished, ConfigError, r"isn't finished.*`patchmint status"),
        ("ftp://somewhere/else", StorageError, "unknown kind"),
        (make_dataset(tmp_path / "empty", [[]]), ConfigError, "no sample was written"),
    ):
        with pytest.raises(kind, match=says):
            StageDataset(data, 1)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("shards/000001.tar", None, "lacks shards/000001.tar, .* the copy isn't complete"),
        ("sidecars/000001.parquet", None, "lacks sidecars/000001.parquet"),
        ("shards/000001.tar", b"x", "the copy isn't complete"),
        ("sidecars/000001.parquet", b"x", "isn't a patchmint table"),
        ("sidecars/000001.parquet", "sidecars/000000.parquet", "has 4 rows, not 5"),
        ("sidecars/000000.parquet", "sidecars/000001.parquet", "has 5 rows, not 4"),
    ],
)
def test_incomplete_copies(tmp_path, plain, file, content, says):
    copy = shutil.copytree(plain, tmp_path / "copy")
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content if isinstance(content, bytes) else (copy / content).read_bytes())
    with pytest.raises(ShardError, match=says):
        StageDataset(copy, 1)


def test_a_manifest_without_its_grid(tmp_path, plain):
    made = make_dataset(tmp_path / "set", [samples(2)])
    with pytest.raises(ShardError, match=r"the grid in dataset.json .* can't be used"):
        list(StageDataset(made, 1))
    other = finished(tmp_path / "other", [samples(2)], grid="seed-224")
    with pytest.raises(ShardError, match="names the grid 'seed-224'"):
        list(StageDataset(other, 1))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stage": 5}, "a stage of MaVEn"),
        ({"include": ["codes"]}, "or include, not stage 2 and"),
        ({"stage": None, "include": ["code"]}, "choose of pixels"),
        ({"group": 0}, r"group \(0\)"),
        ({"seed": -1}, "mustn't be negative"),
        ({"shuffle_window": 0}, "at least 1"),
        ({"text": "last"}, "text is random or first"),
        ({"on_error": "ignore"}, "on_error is raise or skip"),
        ({"samples_per_epoch": 5}, "goes with weights"),
        *(({"data": data}, "data is the folder") for data in ([], 3, ["a", ("b", 1)])),
        *(({"data": [("a", weight)]}, "positive") for weight in (0, float("nan"))),
        ({"rank": 3, "world_size": 2}, "no rank 3"),
    ],
)
def test_wrong_settings(plain, arguments, says):
    with pytest.raises(ConfigError, match=says):
        StageDataset(**({"data": plain, "stage": 2} | arguments))


def test_weights_that_give_nothing(plain):
    with pytest.raises(ConfigError, match=r"has none of .*raise samples_per_epoch"):
        StageDataset([(plain, 1), (plain, 1000)], 2, samples_per_epoch=5)


def test_states_of_other_runs(tmp_path, plain):
    own = StageDataset(plain, 2)
    state = own.state_dict()
    for other, says in (
        (StageDataset(plain, 2, seed=1), "seed: 0 there, 1 here"),
        (StageDataset(plain, 1), r'include: \["codes"\] there, \["codes", "labels", "pixels"\] here'),
        (StageDataset(plain, 2, rank=0, world_size=2), "world_size: 1 there, 2 here"),
        (StageDataset([plain, plain], 2), "datasets"),
        (StageDataset([(plain, 1)], 2, samples_per_epoch=4), "draws"),
        (StageDataset(finished(tmp_path / "set", cut(samples(9), 5, 4)), 2), "datasets"),
    ):
        with pytest.raises(ConfigError, match=f"belongs to another run: .*{says}"):
            other.load_state_dict(state)
    with pytest.raises(ConfigError, match="a state of this kind"):
        own.load_state_dict({"epoch": 1})
    with pytest.raises(ConfigError, match="no epoch -1"):
        own.set_epoch(-1)


def damaged(plain, folder, key, ending, change):
    """A copy in which a member of one sample is changed; its length stays."""
    data = shutil.copytree(plain, folder)
    opened = open_dataset(data)
    keys = [name for _, table in iter_tables(opened, ["key"]) for name in table["key"].to_pylist()]
    place = SampleReader([opened]).locate(SampleRef(0, 0, keys.index(key)))
    held = bytearray((data / place.tar).read_bytes())
    start = held.index(f"{key}.{ending}".encode(), place.offset, place.offset + place.size)
    change(held, start)
    (data / place.tar).write_bytes(held)
    return data


def overwrite(at, new):
    def change(held, start):
        held[start + at : start + at + len(new)] = new

    return change


def link(held, start):
    """Make the member a symbolic link, with the checksum of one."""
    held[start + 156 : start + 157] = b"2"
    held[start + 148 : start + 156] = b" " * 8
    held[start + 148 : start + 156] = b"%06o\0 " % sum(held[start : start + 512])


@pytest.mark.parametrize(
    ("ending", "change", "says"),
    [
        ("jpg", overwrite(512, b"no image"), "its jpg can't be read"),
        ("jpg", overwrite(0, b"xx"), "no member where its sidecar has one.*bad checksum"),
        ("json", overwrite(512, b"no json"), "KEY.json isn't of the form"),
        ("selector.npy", overwrite(512, b"no npy"), "no .npy file"),
        ("selector.npy", overwrite(512 + 10, b"{'descr': '|i1'"), r"its selector.npy is int8"),
        ("coverage.npy", overwrite(0, bytes(512)), "no member where its sidecar has one"),
        ("vqgan.npy", overwrite(512, b"no npy"), "no .npy file"),
        ("txt", link, "'s0005.txt', a symbolic link"),
    ],
)
def test_damaged_samples(tmp_path, plain, ending, change, says):
    data = damaged(plain, tmp_path / "set", "s0005", ending, change)
    with pytest.raises(ShardError, match=rf"sample 's0005' of .*set \(shards/000001.tar, byte \d+\): .*{says}"):
        list(StageDataset(data, 1))


def test_damaged_samples_are_skipped_where_asked(tmp_path, plain, caplog):
    data = damaged(plain, tmp_path / "set", "s0005", "json", overwrite(512, b"no json"))
    dataset = StageDataset(data, 1, on_error="skip")
    assert sorted(keys_of(dataset)) == [f"s{number:04}" for number in range(9) if number != 5]
    assert dataset.skipped == 1
    assert "skipped sample 's0005'" in caplog.text


def test_images_that_are_not_as_recorded_or_too_large(tmp_path):
    (made,) = samples(1)
    file = io.BytesIO()
    Image.new("RGB", (2000, 1000)).save(file, "PNG")
    large = ImageDocument(width=2000, height=1000, format="png", mode="RGB", orientation=1)
    for name, wrong, says in (
        ("size", replace(made, image=made.image.model_copy(update={"width": 41})), "40 x 30 pixels, .* says 41 x 30"),
        ("limit", replace(made, data=file.getvalue(), image=large), "2.0 megapixels, over the limit of 1"),
    ):
        with pytest.raises(ShardError, match=says):
            list(StageDataset(finished(tmp_path / name, [[wrong]]), 1))


def test_a_tar_that_is_gone(tmp_path, plain):
    dataset = StageDataset(shutil.copytree(plain, tmp_path / "set"), 2)
    (tmp_path / "set/shards/000001.tar").unlink()
    with pytest.raises(StorageError, match="no such file"):
        list(dataset)

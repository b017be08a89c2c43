"""Data sets whose grid is a function of the image: built, verified, looked into, trained on and extended."""

import json
import os
import re
import signal
from functools import partial
from pathlib import Path

import builds
import numpy as np
import pyarrow.parquet as pq
import pytest
from builds import make_config, make_input
from inspect_data import answer, inspect
from PIL import Image
from shard_data import joined, members_of, stored, tar_of

from patchmint.config import UNTRAINED, BuildConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.extension import check_extension
from patchmint.datasets.verify import verify_all, verify_column
from patchmint.errors import ConfigError, ShardError
from patchmint.geometry import GRID_PRESETS, grid_preset
from patchmint.geometry.presets import grid_of_settings, grid_settings
from patchmint.shards.layout import GridLayout
from patchmint.shards.manifest import read_manifest
from patchmint.shards.schema import SampleDocument, read_key_json
from patchmint.shards.verify import verify, verify_tars
from patchmint.storage import open_storage
from patchmint.training import StageDataset, collate

GRIDS = ("qwen3-vl", "internvl3", "siglip2-naflex", "molmo2", "llava-next-hf")
SIZES = [(640, 300), (64, 64), (40, 700), (30, 2000), (333, 500), (600, 9000)]
"""Width and height; Qwen-VL's processor takes none that is more than 200 times as long as wide."""
TOO_OBLONG = (1, 300)


def source_of(folder):
    make_input(folder, [f"thing {place}" for place in range(len(SIZES) + 1)])
    for place, size in enumerate([*SIZES, TOO_OBLONG]):
        Image.new("RGB", size, (place * 30, 90, 200)).save(folder / f"{place:03d}.jpg")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Data sets by grid, and the config of the first."""
    folder = tmp_path_factory.mktemp("native")
    source = source_of(folder / "in")
    limits = {"max_reject_share": 0.5}
    made = {
        make_config(folder / f"{grid}.yaml", source, folder / grid, 3, grid=grid, limits=limits): folder / grid
        for grid in GRIDS
    }
    assert builds.exit_code(builds.fork(partial(_build, made))) == 0
    return {out.name: out for out in made.values()}


def _build(made):
    with builds.warmed():
        for config, out in made.items():
            builds.build_here(config, out)


@pytest.fixture(scope="module")
def documented():
    """The reader of token orders in docs/format.md, which doesn't use patchmint."""
    page = (Path(__file__).parent.parent / "docs/format.md").read_text()
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def token_order" in part)
    names = {"json": json, "np": np}
    exec(code, names)
    return names["token_order"]


@pytest.mark.parametrize("grid", GRIDS)
def test_samples_tell_their_grid(built, grid, documented):
    samples = list(stored(built[grid]))
    # an image that the consumer refuses is a reject
    assert len(samples) == len(SIZES) + (not grid.startswith("qwen"))
    shapes = set()
    for sample in samples:
        document = sample.document
        placed = grid_preset(grid).place((document.image.height, document.image.width))
        assert sample.selector.shape == sample.coverage.shape == (1, *placed.shape)
        assert document.placement.token_order().tolist() == placed.token_order().tolist()
        assert documented(json.loads(sample.members["json"])["grid"]).tolist() == placed.token_order().tolist()
        assert document.placement.cell_box(0, 0) == placed.cell_box(0, 0)
        assert (document.grid.rows, document.grid.cols, document.grid.views) == (
            placed.rows,
            placed.cols,
            len(placed.views),
        )
        shapes.add(placed.shape)
    assert len(shapes) > 1
    sidecars = [pq.read_table(path) for path in sorted((built[grid] / "sidecars").glob("*.parquet"))]
    told = [row for table in sidecars for row in table.select(["rows", "cols", "views"]).to_pylist()]
    assert told == [sample.document.grid.model_dump(include={"rows", "cols", "views"}) for sample in samples]
    assert list(verify(open_storage(built[grid]))) == []
    layout = read_manifest(open_storage(built[grid])).layout.grid
    assert layout.grid == open_dataset(built[grid]).grid == grid_preset(grid)


@pytest.mark.parametrize("name", GRID_PRESETS)
def test_layouts_tell_the_grid(name):
    grid = GRID_PRESETS[name]
    layout = GridLayout.of(grid)
    again = GridLayout.model_validate_json(layout.model_dump_json())
    assert again == layout
    assert again.grid in (None, grid)
    assert grid_of_settings(json.loads(json.dumps(grid_settings(grid)))) == grid
    assert ("settings" in layout.model_dump()) == (len({grid.place(size).shape for size in SIZES}) > 1)


def changed(folder, out, change):
    """The first shard with the first sample's members changed."""
    tar = next((folder / "shards").glob("*.tar"))
    members = members_of(tar.read_bytes())
    out.write_bytes(
        tar_of([(name, change(name, data) if place < 6 else data) for place, (name, data) in enumerate(members)])
    )
    return out


def _with_grid(name, data, **changes):
    if not name.endswith(".json"):
        return data
    document = json.loads(data)
    placement = json.loads(document["grid"]["placement_json"])
    placement["views"][0] |= {key: value for key, value in changes.items() if key != "rows"}
    document["grid"] |= {"placement_json": json.dumps(placement)} | {k: v for k, v in changes.items() if k == "rows"}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "changes", [{"rows": 3}, {"token": 5}, {"y": [0, 1, 0]}, {"seen": [0, 99, 0, 1]}, {"x_borders": [0, 32]}]
)
def test_placements_that_cannot_be_are_found(built, tmp_path, changes):
    tar = changed(built["qwen3-vl"], tmp_path / "0.tar", partial(_with_grid, **changes))
    found = list(verify_tars(open_storage(tmp_path), ["0.tar"]))
    assert {finding.code for finding in found} & {"document-grid", "array-shape"}, found
    document = members_of(tar.read_bytes())[1][1]
    with pytest.raises(ShardError):
        _ = read_key_json(document).placement.rows


def test_a_placement_of_another_image_is_found(built):
    from patchmint.shards.checks import check_document

    samples = list(stored(built["internvl3"]))
    layout = read_manifest(open_storage(built["internvl3"])).layout
    ours, other = samples[0].document, samples[2].document
    assert list(check_document(ours, ours.key, layout)) == []
    wrong = SampleDocument.model_construct(**dict(ours) | {"grid": other.grid})
    assert [code for code, _ in check_document(wrong, ours.key, layout)] == ["document-grid"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))


def test_they_are_looked_into(built, tmp_path):
    for grid, out in built.items():
        assert answer("stats", out)["positions"]["relative"] == (grid != "llava-next-hf")
        assert inspect("show", out, "#2", rc=0).stdout
        assert inspect("show", out, "#2", "--png", tmp_path / f"{grid}.png", rc=0)
    qwen = built["qwen3-vl"]
    inspect("gallery", built["molmo2"], tmp_path / "gallery", rc=0)
    assert answer("find", qwen, "--where", "rows * cols > 200")["found"] == sum(
        np.prod(grid_preset("qwen3-vl").place(size[::-1]).shape) > 200 for size in SIZES
    )
    assert "other grids" in inspect("diff", qwen, built["internvl3"]).stdout
    inspect("diff", qwen, qwen, rc=0)


def test_positions_are_relative(built):
    """What is kept of an image that is all one thing is kept everywhere."""
    positions = answer("stats", built["internvl3"])["positions"]
    selector = np.array(positions["selector"])
    assert selector.shape == (24, 24)
    whole = []
    for sample in stored(built["internvl3"]):
        placement = sample.document.placement
        rows, cols = placement.cells_of(placement.overview)
        view = placement.views[placement.overview]
        ys, xs = placement.edges(view)
        kept = sample.selector[0, rows, cols]
        height, width = placement.image_size
        middles = (np.arange(2400) + 0.5) / 2400
        y, x = (
            np.searchsorted(edges, middles * length, side="right") - 1 for edges, length in ((ys, height), (xs, width))
        )
        inside = (y[:, None] < view.rows) & (x < view.cols)
        seen = np.where(inside, kept[np.ix_(y.clip(0, view.rows - 1), x.clip(0, view.cols - 1))], 0)
        whole.append(seen.reshape(24, 100, 24, 100).mean(axis=(1, 3)))
    assert np.allclose(selector, np.mean(whole, axis=0), atol=0.02)


@pytest.mark.parametrize("grid", GRIDS)
def test_batches_pad_and_mask(built, grid):
    samples = list(StageDataset(built[grid], stage=1, shuffle=False))
    batch = collate(samples)
    rows, cols = (max(sample.selector.shape[axis] for sample in samples) for axis in (1, 2))
    assert batch.selector.shape == batch.patch_mask.shape == (len(samples), batch.view_mask.shape[1], rows, cols)
    for place, (sample, own) in enumerate(zip(samples, stored(built[grid]), strict=True)):
        placement = own.document.placement
        order = batch.token_order[place].numpy()
        expected = placement.token_order()
        labels = np.where(expected < 0, 9, own.coverage[0].reshape(-1)[expected])
        given = np.where(order < 0, 9, batch.coverage[place].reshape(-1).numpy()[order])
        assert given[: len(labels)].tolist() == labels.tolist()
        assert (order[len(labels) :] == -1).all()
        assert int(batch.patch_mask[place].sum()) == int((placement.inside > 0).sum())
        assert not batch.selector[place][~batch.patch_mask[place]].any()
        views, rows, cols = sample.selector.shape
        assert not batch.coverage[place, :, rows:].any()
        assert not batch.coverage[place, views:].any()
    if grid == "llava-next-hf":
        assert batch.pixels is not None
    else:
        assert batch.pixels is None
        assert [tuple(image.shape) for image in batch.images] == [
            (3, own.document.image.height, own.document.image.width) for own in stored(built[grid])
        ]
        assert batch.to("cpu").images[0].shape == batch.images[0].shape


def test_extending_labels_another_grid(built, tmp_path):
    base = {"kind": "patchmint", "uri": str(built["qwen3-vl"])}
    out = built["qwen3-vl"] / "columns" / "labels"
    config = make_config(tmp_path / "c.yaml", "", out, 3, source=base, grid="internvl3", tokens=None)
    assert builds.exit_code(builds.fork(partial(_build, {config: out}))) == 0
    again = joined(built["qwen3-vl"], ["labels"])
    theirs = {sample.key: sample for sample in stored(built["internvl3"])}
    assert len(again) == len(SIZES)
    for sample in again:
        for member in ("coverage.npy", "vqgan.npy"):
            assert sample.members.get(member) == theirs[sample.key].members.get(member)
        assert sample.document.grid == theirs[sample.key].document.grid
    assert list(verify_all(open_storage(built["qwen3-vl"]))) == []
    given = json.loads(config.read_text())
    with pytest.raises(ConfigError, match=r"labels in .* lie on"):
        check_extension(BuildConfig.parse(given | {"labels": None, "tokens": {}}))


@pytest.mark.parametrize("pool", [None, (3, 4)])
def test_features_are_added_and_read_in_batches(built, tmp_path, pool):
    """Each image has a feature a cell, which lies where the labels of that cell do, in a batch as well."""
    data, name = built["qwen3-vl"], f"features-{'a' if pool else 'b'}"
    base, out = {"kind": "patchmint", "uri": str(data)}, data / "columns" / name
    config = make_config(
        *(tmp_path / "c.yaml", "", out, 3),
        source=base,
        grid="qwen3-vl",
        labels=None,
        tokens=None,
        models={"vit": UNTRAINED},
        features={"pool": pool},
    )
    assert builds.exit_code(builds.fork(partial(_build, {config: out}))) == 0
    assert list(verify_column(open_storage(data), name)) == []
    samples = joined(data, [name])
    for sample, before in zip(samples, stored(data), strict=True):
        cells = sample.document.placement.tokens if pool is None else 12
        assert sample.features.shape == (cells, 128)
        assert sample.members["coverage.npy"] == before.members["coverage.npy"]
    batch = collate(list(StageDataset(data, stage=1, shuffle=False, columns=[name])))
    assert batch.features.shape == (*batch.feature_mask.flatten(2).shape, 128)
    assert batch.feature_mask.shape == batch.feature_selector.shape
    for place, sample in enumerate(samples):
        rows, cols = sample.document.placement.shape if pool is None else pool
        whole = batch.features[place, 0].unflatten(0, batch.feature_mask.shape[2:]).numpy()
        assert (whole[:rows, :cols].reshape(-1, 128) == sample.features).all()
        assert batch.feature_mask[place, 0, :rows, :cols].all()
        assert batch.feature_mask[place].sum() == rows * cols
        assert not whole[rows:].any()
        assert not whole[:, cols:].any()
    without = collate(list(StageDataset(data, include=["features"], shuffle=False, columns=[name])))
    assert without.selector is None
    assert (without.feature_mask == batch.feature_mask).all()
    one = next(iter(StageDataset(data, stage=1, shuffle=False, columns=[name])))
    if pool is None:
        assert (one.feature_selector == one.selector).all()


@pytest.mark.kill
def test_killed_in_the_middle_it_ends_the_same(built, tmp_path):
    expected = builds.digests(built["internvl3"])
    config = built["internvl3"].with_suffix(".yaml")
    for step in (20, 40):
        out = tmp_path / str(step)
        assert builds.exit_code(builds.fork(partial(_killed, config, out, step))) == -signal.SIGKILL
        builds.check_half_done(out, expected)
        assert builds.exit_code(builds.fork(partial(_build, {config: out}))) == 0
        builds.check_files(out, expected)


def _killed(config, out, step):
    with builds.warmed():
        import faults

        steps = iter(range(10_000))
        faults.watch(lambda when, name: os.kill(os.getpid(), signal.SIGKILL) if next(steps) == step else None)
        builds.build_here(config, out)


def test_a_dry_run_counts_the_cells(built):
    from patchmint.pipeline.plan.estimate import _added_bytes

    config = BuildConfig.load(built["qwen3-vl"].with_suffix(".yaml"), {"tokens": None})
    small, large = (_added_bytes(config, 1, 1, 1, [size, TOO_OBLONG]) for size in ((320, 320), (640, 640)))
    assert large - small == 2 * (20 * 20 - 10 * 10)

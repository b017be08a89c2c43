"""Label grids pooled by the bins by which features are pooled."""

import numpy as np
import pytest
import torch

from patchmint.errors import InputError
from patchmint.features.encoder import pool_grid
from patchmint.geometry import adaptive_bins, pool_coverage

SIZES = [(24, 12), (24, 24), (24, 1), (24, 10), (27, 13), (27, 14), (27, 9), (27, 26), (16, 5), (7, 3), (3, 7), (1, 4)]


@pytest.mark.parametrize(("length", "bins"), SIZES)
def test_bins_are_torchs(length, bins):
    # Each column of the identity shows in which bins one cell takes part, and with which share.
    shares = torch.nn.AdaptiveAvgPool2d((bins, length))(torch.eye(length, dtype=torch.float64)[None])[0].numpy()
    for (start, end), share in zip(adaptive_bins(length, bins), shares, strict=True):
        expected = np.zeros(length)
        expected[start:end] = 1 / (end - start)
        np.testing.assert_allclose(share, expected, atol=1e-12)


@pytest.mark.parametrize(("length", "bins"), [(24, 0), (0, 3), (24, -1)])
def test_bins_that_cannot_be_are_refused(length, bins):
    with pytest.raises(InputError, match="can't be pooled"):
        adaptive_bins(length, bins)


@pytest.mark.parametrize(("view", "bins"), [*(((n, n), (b, b)) for n, b in SIZES), ((4, 6), (2, 3))])
def test_coverage_is_the_mean_of_its_cells_rounded_up(view, bins):
    rng = np.random.default_rng(0)
    coverage = rng.integers(0, 256, (3, *view), dtype=np.uint8) * (rng.random((3, *view)) < 0.3)
    pooled = pool_coverage(coverage.astype(np.uint8), view[0], bins)
    assert pooled.dtype == np.uint8
    assert pooled.shape == (3, *bins)
    expected = torch.nn.AdaptiveAvgPool2d(bins)(torch.from_numpy(coverage).double()).numpy()
    np.testing.assert_array_equal(pooled, np.ceil(expected - 1e-9))


def test_any_overlap_stays_and_nothing_else_appears():
    coverage = np.zeros((1, 24, 24), dtype=np.uint8)
    coverage[0, 5, 7] = 1
    pooled = pool_coverage(coverage, 24, (2, 2))
    np.testing.assert_array_equal(pooled[0], [[1, 0], [0, 0]])
    assert pool_coverage(np.full((1, 24, 24), 255, np.uint8), 24, (5, 7)).min() == 255


def test_views_are_pooled_each_by_itself():
    rng = np.random.default_rng(1)
    views = rng.integers(0, 256, (5, 2, 27, 27), dtype=np.uint8)  # five views, two texts
    stacked = np.concatenate(list(views), axis=1)
    expected = np.concatenate([pool_coverage(view, 27, (13, 10)) for view in views], axis=1)
    np.testing.assert_array_equal(pool_coverage(stacked, 27, (13, 10)), expected)


def test_an_image_without_texts():
    assert pool_coverage(np.zeros((0, 24, 24), np.uint8), 24, (12, 12)).shape == (0, 12, 12)


@pytest.mark.parametrize(
    "coverage",
    [np.zeros((24, 24), np.uint8), np.zeros((1, 25, 24), np.uint8), np.zeros((1, 24, 24), np.float32)],
    ids=["no-texts-axis", "half-a-view", "shares"],
)
def test_other_arrays_are_refused(coverage):
    with pytest.raises(InputError, match="coverage to pool"):
        pool_coverage(coverage, 24, (12, 12))


@pytest.mark.parametrize(("length", "bins"), [(24, 12), (27, 13), (16, 5)])
def test_labels_lie_on_the_features_that_saw_them(length, bins):
    """What one patch holds turns up in the same tokens of the features as of the labels."""
    for row, col in ((0, 0), (3, length - 1), (length // 2, length // 2), (length - 1, 1)):
        coverage = np.zeros((1, length, length), np.uint8)
        coverage[0, row, col] = 255
        tokens = torch.from_numpy(coverage.reshape(1, -1, 1)).double()
        features = pool_grid(tokens, (length, length), (bins, bins))[0, :, 0].numpy()
        np.testing.assert_array_equal(pool_coverage(coverage, length, (bins, bins)).ravel() > 0, features > 0)

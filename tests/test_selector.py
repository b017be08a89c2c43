"""The patch selector against plain counting, and whether it learns."""

import math

import pytest
import torch

from patchmint.errors import InputError
from patchmint.training.selector import PatchSelector, auc, keep_patches, recall_at_keep, selector_loss


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"),
    [
        *((576, 0.25, 144), (576, 0.1, 57), (729, 0.25, 182), (570, 0.1, 57)),
        *((300, 0.21, 63), (900, 0.13, 117), (3, 0.25, 0), (5, 1, 5)),
    ],
)
def test_as_many_stay_as_the_paper_says(patches, ratio, kept):
    scores = torch.randn(2, patches)
    stay = keep_patches(scores, ratio)
    assert stay.sum(1).tolist() == [kept, kept]
    if 0 < kept < patches:
        assert scores[0][stay[0]].min() >= scores[0][~stay[0]].max()


def test_padding_neither_stays_nor_counts():
    scores = torch.tensor([[9.0, 1, 2, 3, 4], [5, 4, 3, 2, 1]])
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    assert keep_patches(scores, 0.5, mask).int().tolist() == [[0, 0, 0, 1, 1], [1, 1, 0, 0, 0]]
    labels = torch.tensor([[1, 0, 0, 1, 1], [1, 0, 0, 0, 1]])
    assert recall_at_keep(scores, labels, 0.5, mask).tolist() == [1.0, 0.5]
    assert auc(scores, labels, mask).tolist() == [1.0, 0.5]


def test_auc_is_scikit_learns_ties_and_all():
    from sklearn.metrics import roc_auc_score  # seconds, of each worker of a test run

    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (20, 60), generator=generator).float()
    labels = (torch.rand(20, 60, generator=generator) < 0.2).long()
    expected = [roc_auc_score(truth, row) for truth, row in zip(labels.numpy(), scores.numpy(), strict=True)]
    assert auc(scores, labels).tolist() == pytest.approx(expected, abs=1e-12)


def test_an_image_with_nothing_to_rank_says_so():
    scores = torch.randn(2, 4)
    labels = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    assert all(map(math.isnan, auc(scores, labels).tolist()))
    assert math.isnan(recall_at_keep(scores, labels)[0])
    assert recall_at_keep(scores, labels)[1] == 0.25


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="flatten the patch grid"):
        selector_loss(torch.zeros(1, 4), torch.zeros(1, 2, 2))
    with pytest.raises(InputError, match="keep_ratio"):
        keep_patches(torch.zeros(1, 4), 0)
    with pytest.raises(InputError, match="no patch counts"):
        selector_loss(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool))


def test_padding_teaches_nothing():
    logits = torch.randn(2, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    selector_loss(logits, torch.ones(2, 4), mask).backward()
    assert (logits.grad[0, 2:] == 0).all()
    assert (logits.grad[mask] != 0).all()


def test_it_learns_what_depends_on_patch_and_state_together():
    """A patch counts if its feature agrees with the state: neither alone tells."""
    torch.manual_seed(0)
    model = PatchSelector(8, 8, hidden=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def task(count):
        patches, state = torch.randn(count, 30, 8), torch.randn(count, 8)
        return patches, state, (patches[..., 0] * state[:, None, 0] > 0.3).long()

    for _ in range(300):
        patches, state, labels = task(64)
        optimizer.zero_grad()
        selector_loss(model(patches, state), labels).backward()
        optimizer.step()
    patches, state, labels = task(200)
    with torch.no_grad():
        assert auc(model(patches, state), labels).nanmean() > 0.85
        # another text's state: chance
        assert abs(float(auc(model(patches, state.roll(1, 0)), labels).nanmean()) - 0.5) < 0.1

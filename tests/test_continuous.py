"""From features to the language model's input: those on the grid, the kept ones, and their places in a sequence."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from text_tokenizers import gpt2_like, small_llama
from training_data import FEATURES, RICH, finished, samples

from patchmint.errors import InputError
from patchmint.training import (
    ImageTokens,
    Part,
    PatchSelector,
    Projector,
    SequenceBuilder,
    StageDataset,
    collate,
    fill_slots,
    gather_kept,
    grid_tokens,
    keep_patches,
    kept_count,
)

STI = FEATURES.model_copy(update={"connector": "sti", "select_feature": "patch", "leading": 0, "trailing": 2})


@pytest.mark.parametrize(("spec", "tokens"), [(FEATURES, [1, 2, 3, 4, 5, 6]), (STI, [0, 1, 2, 3, 4, 5])])
def test_the_selector_sees_the_tokens_on_the_grid(spec, tokens):
    layout = SimpleNamespace(features=spec)
    features = torch.arange(spec.tokens)[:, None].expand(2, 3, -1, 5).float()
    on_grid = grid_tokens(features, layout)
    assert on_grid[1, 2, :, 0].tolist() == tokens
    assert PatchSelector(5, 4)(on_grid.flatten(1, 2), torch.zeros(2, 4)).shape == (2, 3 * 6)
    for other, wrong in ((layout, features[:, :, 1:]), (SimpleNamespace(features=None), features)):
        with pytest.raises(InputError, match="aren't the data set's"):
            grid_tokens(wrong, other)


def test_features_of_an_images_own_grid_all_lie_on_it():
    spec = FEATURES.model_copy(update={"grid": (0, 0), "leading": 0})
    assert grid_tokens(torch.zeros(2, 1, 35, 5), SimpleNamespace(features=spec)).shape == (2, 1, 35, 5)


def test_kept_patches_come_in_their_order_over_the_views():
    patches = torch.arange(2 * 2 * 6).reshape(2, 2, 6, 1).float()
    kept = torch.zeros(2, 2, 2, 3, dtype=torch.bool)
    kept[0, 1, 0, 2] = kept[0, 0, 1, 1] = kept[0, 1, 1, 0] = kept[1, 0, 0, 0] = True
    found = gather_kept(patches, kept)
    assert found.positions.tolist() == [[4, 8, 9], [0, -1, -1]]
    assert found.patches[..., 0].tolist() == [[4, 8, 9], [12, 0, 0]]
    assert found.mask.tolist() == [[True] * 3, [True, False, False]]
    assert gather_kept(patches, kept & False).patches.shape == (2, 0, 1)
    with pytest.raises(InputError, match="take grid_tokens"):
        gather_kept(patches, kept[:, :1])


def test_slots_are_filled_wherever_an_image_is_shown():
    embeddings = torch.zeros(2, 7, 4, requires_grad=True)
    projector = Projector(3, 4)
    continuous = projector(torch.randn(3, 2, 3))
    # the first sequence shows image 1, without slots, then 0 twice; the other one image 2, with one slot
    positions = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 2, 4], [0, 0, 4, 5, 7], [1, 2, 3, 3, 4]])
    filled = fill_slots(embeddings, positions, continuous)
    expected = torch.zeros(2, 7, 4)
    expected[0, 2:4] = expected[0, 5:7] = continuous[0]
    expected[1, 3] = continuous[2, 0]
    assert torch.equal(filled, expected)
    filled.sum().backward()
    assert embeddings.grad[..., 0].tolist() == [[1, 1, 0, 0, 1, 0, 0], [1, 1, 1, 0, 1, 1, 1]]
    assert projector[0].weight.grad.abs().sum() > 0
    assert torch.equal(fill_slots(embeddings, positions[:0], continuous), embeddings)
    with pytest.raises(InputError, match="has 2 slots, but there are 1 tokens"):
        fill_slots(embeddings, positions, continuous[:, :1])


@pytest.mark.parametrize("left", [False, True])
def test_a_batch_says_what_its_samples_say_alone(tmp_path, left):
    data = finished(tmp_path / "set", [samples(4, layout=RICH)], layout=RICH)
    tokenizer = gpt2_like()
    builder, llm, projector = SequenceBuilder(tokenizer), small_llama(len(tokenizer)), Projector(5, 16)

    def prompt(sample):
        image = ImageTokens(slots=kept_count(sample.feature_mask.sum(), 0.5))
        return builder.prompt([Part("Look: "), Part(image=0), Part(sample.text)], [image])

    def answers(batch):
        patches = grid_tokens(batch.features, RICH).flatten(1, 2).float()
        kept = gather_kept(patches, keep_patches(patches[..., 0], 0.5, batch.feature_mask.flatten(1)))
        embeddings = llm.get_input_embeddings()(batch.input_ids)
        embeddings = fill_slots(embeddings, batch.image_positions, projector(kept.patches))
        positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        read = llm(inputs_embeds=embeddings, attention_mask=batch.attention_mask, position_ids=positions)
        return read.logits[torch.arange(len(batch)), positions.argmax(1)]  # the first of equals: the prompt's last

    made = list(StageDataset(data, include=["features"], sequences=prompt, shuffle=False, text="first"))
    with torch.no_grad():
        together = answers(collate(made, pad_left=left))
        alone = torch.cat([answers(collate([sample])) for sample in made])
        other = answers(collate([replace(made[0], images=made[1].images)]))
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(other[0], alone[0], atol=1e-3)


def test_as_many_slots_as_patches_stay():
    assert [kept_count(n, 0.25) for n in (576, torch.tensor(577), 3)] == [144, 144, 0]

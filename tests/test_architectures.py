"""What all networks share: their architectures survive as metadata, and the seed alone decides untrained weights."""

import pytest
import torch

from patchmint.features.arch import OFFICIAL, untrained_arch
from patchmint.features.model import untrained_vit
from patchmint.geometry import grid_preset
from patchmint.labelers.grounding_dino import arch as dino
from patchmint.labelers.grounding_dino.model import untrained as untrained_dino
from patchmint.labelers.sam import arch as sam
from patchmint.labelers.sam.model import build_sam
from patchmint.labelers.sam.model import untrained as untrained_sam
from patchmint.tokenizers.vqgan import arch as vqgan
from patchmint.tokenizers.vqgan.model import untrained_vqgan
from patchmint.weights.architecture import ARCH_METADATA_KEY

VIT = untrained_arch(grid_preset("seed-224"))
UNTRAINED = {
    "grounding dino": (untrained_dino, dino.TINY),
    "sam": (untrained_sam, sam.TINY),
    "vqgan": (untrained_vqgan, vqgan.TINY),
    "vit": (untrained_vit, VIT),
}


@pytest.mark.parametrize("name", UNTRAINED)
def test_untrained_weights_depend_on_the_seed_alone(name):
    make, arch = UNTRAINED[name]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (make(arch, seed) for seed in (1, 1, 2))
    build_sam(sam.TINY)
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training
    for (key, mine), same in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, same), key
    assert any(not torch.equal(*pair) for pair in zip(first.parameters(), other.parameters(), strict=True))


def test_architectures_survive_as_metadata():
    tiny = [arch for _, arch in UNTRAINED.values()]
    official = [arch for known in (OFFICIAL, dino.OFFICIAL, sam.OFFICIAL, vqgan.OFFICIAL) for arch in known.values()]
    for arch in (*tiny, *official):
        assert type(arch).from_metadata({ARCH_METADATA_KEY: arch.to_json()}) == arch

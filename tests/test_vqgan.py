"""VQGAN at tiny sizes: equal to upstream's modules put together by hand, bounded memory, remap, bad input."""

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.quantize import VectorQuantizer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchmint.errors import ConfigError, InputError, WeightsMismatchError
from patchmint.geometry.processing import fit_image
from patchmint.interfaces import Tokenizer, Tokens
from patchmint.tokenizers.vqgan import quantize
from patchmint.tokenizers.vqgan.arch import OFFICIAL, TINY
from patchmint.tokenizers.vqgan.model import Vqgan, infer_arch, load_vqgan, untrained_vqgan
from patchmint.tokenizers.vqgan.quantize import MAX_SCORES, EntriesCodebook, best_codes
from patchmint.tokenizers.vqgan.remap import Remap
from patchmint.tokenizers.vqgan.tokenizer import VqganTokenizer
from patchmint.weights.architecture import ARCH_METADATA_KEY
from patchmint.weights.loading import StateFile

GUMBEL = replace(TINY, rule="logit")
SIZE = TINY.resolution
# Upstream's own words for TINY, written out so that a slip in `upstream_config` shows.
DDCONFIG = {
    "double_z": False,
    "z_channels": 32,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}


def photo(name):
    return np.asarray(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"))


PHOTOS = [photo("astronaut.png"), photo("coffee.png"), photo("chelsea.png"), photo("rocket.jpg")]


class Upstream:
    """VQModel and GumbelVQ (GitHub's taming/models/vqgan.py), from the modules that PyPI's package has."""

    def __init__(self, *, gumbel):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.encoder, self.decoder = Encoder(**DDCONFIG).eval(), Decoder(**DDCONFIG).eval()
            self.quant_conv, self.post_quant_conv = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
            self.quantizer = VectorQuantizer(64, 32, beta=0.25)
            self.proj, self.embed = nn.Conv2d(32, 64, 1), nn.Embedding(64, 32)
        self.gumbel = gumbel

    def state_dict(self):
        parts = {name: getattr(self, name) for name in ("encoder", "decoder", "quant_conv", "post_quant_conv")}
        if self.gumbel:
            parts |= {"quantize.proj": self.proj, "quantize.embed": self.embed}
        else:
            parts["quantize"] = self.quantizer
        return {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def latents(self, x):
        return self.quant_conv(self.encoder(x))

    @torch.no_grad()
    def encode(self, x):
        h = self.latents(x)
        if self.gumbel:  # GumbelQuantize.forward's hard one-hot, at a noise of zero
            return nn.functional.softmax(self.proj(h), dim=1).argmax(dim=1)
        return self.quantizer(h)[2][2].reshape(len(x), *h.shape[2:])

    @torch.no_grad()
    def decode(self, codes):
        batch, rows, cols = codes.shape
        if self.gumbel:
            one_hot = nn.functional.one_hot(codes, 64).permute(0, 3, 1, 2).float()
            quant = torch.einsum("bnhw,nd->bdhw", one_hot, self.embed.weight)
        else:
            quant = self.quantizer.get_codebook_entry(codes.flatten(), (batch, rows, cols, 32))
        return self.decoder(self.post_quant_conv(quant))


def pixels_of(images):
    squashed = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in images]
    scaled = (np.stack(squashed) / 127.5 - 1.0).astype(np.float32)
    return torch.from_numpy(scaled).permute(0, 3, 1, 2)


def state(tensors):
    return StateFile(Path("tiny.safetensors"), tensors, {ARCH_METADATA_KEY: TINY.to_json()})


def ours(upstream):
    model = Vqgan(GUMBEL if upstream.gumbel else TINY).eval()
    model.load_state_dict(upstream.state_dict(), strict=True)
    return model


def tiny_tokenizer(model=None, **options):
    model = untrained_vqgan(TINY, 0) if model is None else model
    return VqganTokenizer(model, **({"name": "tiny", "size": SIZE, "fit": "squash"} | options))


def codes_of(tokenizer, images=PHOTOS):
    return np.stack([tokens.codes for tokens in tokenizer.tokenize(images)])


@pytest.mark.parametrize("gumbel", [False, True])
def test_codes_and_decoded_images_equal_upstreams(gumbel):
    upstream = Upstream(gumbel=gumbel)
    model = ours(upstream)
    x = pixels_of(PHOTOS)
    codes = model.encode(x)
    assert codes.dtype == torch.int64
    assert codes.shape == (4, 8, 8)
    assert len(codes.unique()) > 16
    assert torch.equal(codes, upstream.encode(x))
    # A grey level is 8e-3. Upstream's Gumbel vectors have another memory layout, in which convolutions round otherwise.
    torch.testing.assert_close(model.decode(codes), upstream.decode(codes), rtol=0, atol=1e-4)


def test_a_loaded_state_tokenizes_and_decodes_as_upstream_does(capfd):
    upstream = Upstream(gumbel=False)
    losses = {"loss.logvar": torch.zeros(()), "colorize": torch.zeros(3, 5, 1, 1)}
    tokenizer = tiny_tokenizer(load_vqgan(state(upstream.state_dict() | losses)), batch_size=3)
    tokens = tokenizer.tokenize(PHOTOS)
    codes = np.stack([item.codes[..., 0] for item in tokens])
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, upstream.encode(pixels_of(PHOTOS)))
    previews = tokenizer.decode(tokens)
    assert len(previews) == 4
    for preview, image in zip(previews, upstream.decode(torch.from_numpy(codes).long()), strict=True):
        assert preview.dtype == np.uint8
        assert preview.shape == (SIZE, SIZE, 3)
        reference = (image.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(preview - reference).max() <= 0.501
    assert capfd.readouterr() == ("", "")


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_search_never_holds_all_distances():
    torch.manual_seed(0)
    codebook = EntriesCodebook(16384, 8)
    latents = torch.randn(1, 8, 64, 64) / 16384
    with torch.no_grad(), Largest() as largest:
        codes = codebook.codes(latents)
    assert len(codes.unique()) > 1000
    assert 16384 <= largest.elements <= MAX_SCORES < 64 * 64 * 16384


@pytest.mark.parametrize("max_scores", [1, 999, 1000, 7000, 1 << 22])
def test_chunks_do_not_change_codes(max_scores, monkeypatch):
    monkeypatch.setattr(quantize, "MAX_SCORES", max_scores)
    # Whole numbers, so that scores are exact and any order of summation gives the same.
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randint(-9, 10, (77, 16), generator=generator).float()
    entries = torch.randint(-9, 10, (1000, 16), generator=generator).float()
    expected = (vectors[:, None].long() - entries.long()).square().sum(dim=2).argmin(dim=1)
    found = best_codes(vectors, entries, entries.square().sum(dim=1) / -2)
    assert torch.equal(found, expected)


def test_lowest_code_wins_a_tie_and_no_positions_are_no_error():
    codebook = EntriesCodebook(6, 2)
    codebook.embedding.weight.data = torch.tensor([[9.0, 9], [1, 0], [0, 1], [1, 0], [0, 1], [-1, 0]])
    latents = torch.tensor([[1.0, 0], [0, 1], [0, 0]]).t().reshape(1, 2, 1, 3)
    assert codebook.codes(latents).tolist() == [[[1, 2, 1]]]
    assert codebook.codes(torch.empty(0, 2, 4, 4)).shape == (0, 4, 4)


def test_search_stays_float32_under_autocast():
    torch.manual_seed(0)
    vectors, entries = torch.randn(500, 32), torch.randn(1000, 32)
    bias = entries.square().sum(dim=1) / -2
    expected = best_codes(vectors, entries, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(best_codes(vectors, entries, bias), expected)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_spec_and_fit(fit):
    tokenizer = tiny_tokenizer(fit=fit)
    assert isinstance(tokenizer, Tokenizer)
    spec = tokenizer.spec
    assert (spec.name, spec.grid_shape, spec.codebook_sizes) == ("tiny", (8, 8), (64,))
    assert (spec.preprocessing, spec.can_decode) == (f"{fit}-64-bicubic", True)
    assert spec.cells is not None
    assert (spec.cells.rows, spec.cells.cols, spec.cells.patch_px, spec.cells.fit) == (8, 8, 8, fit)
    wide = PHOTOS[1][:200]
    fitted = fit_image(wide, spec.cells)[0]
    assert fitted.shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(tokenizer.tokenize([wide])[0].codes, tiny_tokenizer().tokenize([fitted])[0].codes)


def test_fits_differ_on_a_wide_image():
    codes = [codes_of(tiny_tokenizer(fit=fit), [PHOTOS[1][:200]]) for fit in ("squash", "crop", "pad")]
    assert all((codes[a] != codes[b]).mean() > 0.2 for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("arch", [TINY, GUMBEL])
def test_a_batch_of_unlike_sizes_gives_what_each_image_gives(arch):
    images = [*PHOTOS, PHOTOS[0][:2, :3], PHOTOS[1][:20], PHOTOS[2][:, :9]]
    model = untrained_vqgan(arch, 0)
    tokenizer = tiny_tokenizer(model, batch_size=3)
    together = codes_of(tokenizer, images)
    alone = np.concatenate([codes_of(tokenizer, [image]) for image in images])
    # Convolutions may round otherwise in a batch (1e-5 was seen), so a near tie may fall otherwise. None did here.
    assert (together != alone).sum() <= 0.01 * alone.size
    weight, bias = model.quantize.scorer()
    scores = torch.einsum("bdhw,nd->bhwn", model.latents(pixels_of(images)).double(), weight.detach().double())
    scores = scores + bias.detach().double()
    chosen = scores.gather(-1, torch.from_numpy(together).long())[..., 0]
    assert (scores.amax(dim=-1) - chosen).max() < 1e-3 * scores.std()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_reduced_precision_chooses_mostly_the_same_codes(precision):
    codes, others = (codes_of(tiny_tokenizer(precision=dtype)) for dtype in (torch.float32, precision))
    assert (codes != others).mean() < (0.01 if precision == torch.float16 else 0.05)


def test_what_overflows_float16_is_encoded_in_float32():
    model = untrained_vqgan(TINY, 0)
    for weight in model.encoder.conv_in.parameters():
        weight.data *= 1e6
    half, full = (codes_of(tiny_tokenizer(model, precision=dtype)) for dtype in (torch.float16, torch.float32))
    assert len(np.unique(full)) > 5
    assert (half == full).all()


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_one_pixel_and_flat_images(fit):
    # GroupNorm magnifies rounding on flat images, so a batch may differ here; one at a time must not.
    flat = np.full((40, 30, 3), 200, np.uint8)
    tokenizer = tiny_tokenizer(fit=fit, batch_size=1)
    first, again = (codes_of(tokenizer, [flat[:1, :1], flat]) for _ in range(2))
    assert first.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(first, again)


def test_another_size_than_the_models_own():
    tokenizer = tiny_tokenizer(size=96, fit="crop")
    tokens = tokenizer.tokenize(PHOTOS[:2])
    assert tokenizer.spec.grid_shape == (12, 12)
    assert tokens[0].codes.shape == (12, 12, 1)
    assert tokenizer.decode(tokens)[0].shape == (96, 96, 3)


def test_nothing_in_nothing_out():
    assert tiny_tokenizer().tokenize([]) == []
    assert tiny_tokenizer().decode([]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "anyres"}, "pad, crop or squash"),
        ({"fit": "stretch"}, "pad, crop or squash"),
        ({"size": 60}, "multiple"),
        ({"size": 0}, "multiple"),
        ({"batch_size": 0}, "batch_size"),
        ({"remap": Remap(np.arange(5), 1024)}, "1024"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_tokenizer(**options)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((8, 8), np.int32), "shape"),
        (np.zeros((4, 4, 1), np.int32), "shape"),
        (np.zeros((8, 8, 1), np.float32), "integer"),
        (np.full((8, 8, 1), 64, np.int32), "0 to 63"),
        (np.full((8, 8, 1), -1, np.int32), "0 to 63"),
    ],
)
def test_codes_that_are_not_this_tokenizers(codes, message):
    with pytest.raises(InputError, match=message):
        tiny_tokenizer().decode([Tokens(codes)])


def test_remap_round_trip_and_unknown_codes():
    used = np.array([7, 3, 60, 12])
    codes = np.array([[3, 7], [60, 5]])
    extra = Remap(used, 64)
    assert extra.size == 5
    assert extra.to_used(codes).tolist() == [[1, 0], [2, 4]]
    assert extra.to_all(extra.to_used(codes)).tolist() == [[3, 7], [60, 7]]


def test_tokenizer_writes_and_reads_remapped_codes(tmp_path):
    plain = tiny_tokenizer()
    tokens = plain.tokenize(PHOTOS)
    used = np.unique([item.codes for item in tokens])[::-1].copy()
    np.save(tmp_path / "used.npy", used.astype(np.int64))
    remapped = tiny_tokenizer(remap=Remap.load(tmp_path / "used.npy", 64))
    assert remapped.spec.codebook_sizes == (len(used) + 1,)
    written = remapped.tokenize(PHOTOS)
    for item, original in zip(written, tokens, strict=True):
        assert item.codes.dtype == np.int32
        np.testing.assert_array_equal(used[item.codes], original.codes)
    for one, other in zip(remapped.decode(written), plain.decode(tokens), strict=True):
        np.testing.assert_array_equal(one, other)


def test_gumbel_chooses_among_used_codes_only():
    """GumbelQuantize.forward: "continue only with used logits"."""
    upstream = Upstream(gumbel=True)
    x = pixels_of(PHOTOS)
    used = np.array([40, 3, 17, 60, 22, 9])
    with torch.no_grad():
        expected = upstream.proj(upstream.latents(x))[:, used].argmax(dim=1).numpy()
    assert len(np.unique(expected)) > 2
    codes = codes_of(tiny_tokenizer(ours(upstream), remap=Remap(used, 64)))
    np.testing.assert_array_equal(codes[..., 0], expected)


@pytest.mark.parametrize(
    "used",
    [
        np.array([1.0, 2.0]),
        np.array([[1, 2]]),
        np.array([], np.int64),
        np.array([1, 64]),
        np.array([-1, 2]),
        np.array([5, 5]),
        np.array([True, False]),
        np.array([2**64 - 1], np.uint64),
        np.array([(1,)], [("a", "<i8")]),
    ],
)
def test_bad_list_of_used_codes(used, tmp_path):
    np.save(tmp_path / "used.npy", used)
    with pytest.raises(ConfigError, match=r"used\.npy"):
        Remap.load(tmp_path / "used.npy", 64)


def npy(header, body=b""):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + body


def test_hostile_remap_files(tmp_path):
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (ran,)

    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([Bomb()], dtype=object), allow_pickle=True)
    hostile = {
        "objects": objects.read_bytes(),
        "pickle": pickle.dumps(Bomb()),
        "empty": b"",
        "page": b"<!DOCTYPE html>",
        "zip": b"PK\x03\x04",
        "huge": npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000,), }\n"),
        "overflow": npy("{'descr': '<i8', 'fortran_order': False, 'shape': (%s,), }\n" % ("9" * 40)),
        "negative": npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-3,), }\n", bytes(99)),
        "cut": npy("{'descr': '<i8', 'fortran_order': False, 'shape': (9,), }\n", bytes(9)),
        "tokens": npy("((("),
        "deep": npy("(" * 9000),
        "minus": npy("-" * 9000 + "1"),
    }
    for name, content in hostile.items():
        path = tmp_path / f"{name}.npy"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{name}.npy can't be read"):
            Remap.load(path, 64)
    with pytest.raises(ConfigError, match="can't be read"):
        Remap.load(tmp_path / "missing.npy", 64)
    assert not ran.exists()


def shapes_of(arch):
    with torch.device("meta"):
        return Vqgan(arch).state_dict()


@pytest.mark.parametrize(
    "arch", [*OFFICIAL.values(), replace(OFFICIAL["vqgan-imagenet-f16-1024"], n_embed=8192)], ids=[*OFFICIAL, "coco"]
)
def test_official_architectures_are_told_from_their_weights(arch):
    assert infer_arch({**shapes_of(arch), "loss.logvar": torch.zeros(())}, {}, told=arch.rule) == arch


def test_metadata_names_the_architecture():
    assert infer_arch(shapes_of(GUMBEL), {ARCH_METADATA_KEY: GUMBEL.to_json()}) == GUMBEL


def test_unknown_weights_name_the_known_architectures():
    for tensors in (shapes_of(TINY), {"quantize.embedding.weight": torch.zeros(3)}, {}):
        with pytest.raises(WeightsMismatchError, match="vqgan-imagenet-f16-16384, vqgan-gumbel-f8-8192, llamagen"):
            infer_arch(tensors, {})


@pytest.mark.parametrize(
    "change",
    [
        {"n_embed": "64"},
        {"n_embed": True},
        {"num_res_blocks": 10**9},
        {"num_res_blocks": 60_000},
        {"ch": 65_536, "ch_mult": [65_536] * 3},
        {"ch": 33},
        {"ch_mult": []},
        {"ch_mult": [1] * 10_000},
        {"resolution": 63},
        {"rule": "logit", "embed_dim": 16},
        {"rule": "random"},
        {"n_embed": 65},
        *["", "[]", "{}", "[" * 100_000],
    ],
)
def test_hostile_metadata(change):
    text = change if isinstance(change, str) else json.dumps(asdict(TINY) | change)
    with pytest.raises(WeightsMismatchError, match=ARCH_METADATA_KEY):
        infer_arch(shapes_of(TINY), {ARCH_METADATA_KEY: text})


def test_a_state_that_lacks_a_key_or_has_one_too_many():
    tensors = Upstream(gumbel=False).state_dict()
    lacking = {key: tensor for key, tensor in tensors.items() if key != "decoder.conv_in.bias"}
    for wrong in (tensors | {"quantize.used": torch.zeros(4)}, lacking):
        with pytest.raises(WeightsMismatchError):
            load_vqgan(state(wrong))


def test_an_untrained_model_uses_many_codes():
    assert len(np.unique(codes_of(tiny_tokenizer(untrained_vqgan(TINY, 1), fit="pad")))) > 16

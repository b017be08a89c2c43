"""VQGAN at tiny sizes: equal to upstream's modules put together by hand, bounded memory, remap, bad input."""

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

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
from patchmint.tokenizers.vqgan.arch import OFFICIAL, TINY, VqganArch
from patchmint.tokenizers.vqgan.model import Vqgan, infer_arch, load_vqgan, untrained_vqgan
from patchmint.tokenizers.vqgan.quantize import MAX_SCORES, NearestCodebook, best_codes
from patchmint.tokenizers.vqgan.remap import Remap
from patchmint.tokenizers.vqgan.tokenizer import VqganTokenizer
from patchmint.types import RgbImage
from patchmint.weights.architecture import ARCH_METADATA_KEY
from patchmint.weights.loading import StateFile

GUMBEL = replace(TINY, gumbel=True)
SIZE = TINY.resolution
# Upstream's own words for TINY, written out so that a slip in `upstream_config` shows.
DDCONFIG: dict[str, Any] = {
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


def photo(name: str) -> RgbImage:
    return np.asarray(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"))


PHOTOS = [photo("astronaut.png"), photo("coffee.png"), photo("chelsea.png"), photo("rocket.jpg")]


class Upstream:
    """VQModel and GumbelVQ (GitHub's taming/models/vqgan.py), from the modules that PyPI's package has."""

    def __init__(self, *, gumbel: bool) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.encoder, self.decoder = Encoder(**DDCONFIG).eval(), Decoder(**DDCONFIG).eval()
            self.quant_conv, self.post_quant_conv = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
            self.quantizer = VectorQuantizer(64, 32, beta=0.25)
            self.proj, self.embed = nn.Conv2d(32, 64, 1), nn.Embedding(64, 32)
        self.gumbel = gumbel

    def state_dict(self) -> dict[str, Tensor]:
        parts: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "decoder": self.decoder,
            "quant_conv": self.quant_conv,
            "post_quant_conv": self.post_quant_conv,
        }
        parts |= (
            {"quantize.proj": self.proj, "quantize.embed": self.embed} if self.gumbel else {"quantize": self.quantizer}
        )
        return {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        h = self.latents(x)
        if self.gumbel:  # GumbelQuantize.forward's hard one-hot, at a noise of zero
            return nn.functional.softmax(self.proj(h), dim=1).argmax(dim=1)
        return self.quantizer(h)[2][2].reshape(len(x), *h.shape[2:])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        batch, rows, cols = codes.shape
        if self.gumbel:
            one_hot = nn.functional.one_hot(codes, 64).permute(0, 3, 1, 2).float()
            quant = torch.einsum("bnhw,nd->bdhw", one_hot, self.embed.weight)
        else:
            quant = self.quantizer.get_codebook_entry(codes.flatten(), (batch, rows, cols, 32))
        return self.decoder(self.post_quant_conv(quant))


def pixels_of(images: list[RgbImage]) -> Tensor:
    squashed = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in images]
    scaled = (np.stack(squashed) / 127.5 - 1.0).astype(np.float32)
    return torch.from_numpy(scaled).permute(0, 3, 1, 2)


def state(tensors: dict[str, Tensor], **metadata: str) -> StateFile:
    return StateFile(Path("tiny.safetensors"), tensors, {ARCH_METADATA_KEY: TINY.to_json()} | metadata)


def ours(upstream: Upstream) -> Vqgan:
    model = Vqgan(GUMBEL if upstream.gumbel else TINY).eval()
    model.load_state_dict(upstream.state_dict(), strict=True)
    return model


def tiny_tokenizer(arch: VqganArch = TINY, *, fit: str = "squash", **options: Any) -> VqganTokenizer:
    return VqganTokenizer(untrained_vqgan(arch, 0), name="tiny", size=SIZE, fit=fit, **options)


# --- equal to upstream


@pytest.mark.parametrize("gumbel", [False, True])
def test_codes_and_decoded_images_equal_upstreams(gumbel: bool) -> None:
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


def test_codes_equal_a_literal_search_through_all_differences() -> None:
    upstream = Upstream(gumbel=False)
    x = pixels_of(PHOTOS)
    z = upstream.latents(x).permute(0, 2, 3, 1).reshape(-1, 1, 32).double()
    distances = (z - upstream.quantizer.embedding.weight.detach().double()[None]).square().sum(dim=2)
    assert torch.equal(ours(upstream).encode(x).flatten(), distances.argmin(dim=1))


def test_tokenizer_prepares_pixels_as_upstreams_data_sets_do() -> None:
    upstream = Upstream(gumbel=False)
    tokenizer = VqganTokenizer(ours(upstream), name="tiny", size=SIZE, fit="squash")
    expected = upstream.encode(pixels_of(PHOTOS)).numpy()
    for tokens, codes in zip(tokenizer.tokenize(PHOTOS), expected, strict=True):
        assert tokens.codes.dtype == np.int32
        np.testing.assert_array_equal(tokens.codes[..., 0], codes)


def test_gumbel_codes_are_deterministic() -> None:
    model, x = untrained_vqgan(GUMBEL, 0), pixels_of(PHOTOS)
    assert torch.equal(model.encode(x), model.encode(x))


def test_a_preview_is_the_decoded_image() -> None:
    upstream = Upstream(gumbel=False)
    tokenizer = VqganTokenizer(ours(upstream), name="tiny", size=SIZE, fit="squash", batch_size=3)
    tokens = tokenizer.tokenize(PHOTOS)
    previews = tokenizer.decode(tokens)
    drawn = upstream.decode(torch.from_numpy(np.stack([item.codes[..., 0] for item in tokens])).long())
    assert len(previews) == 4
    for preview, image in zip(previews, drawn, strict=True):
        assert preview.dtype == np.uint8
        assert preview.shape == (SIZE, SIZE, 3)
        reference = (image.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(preview - reference).max() <= 0.501


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.decode(tokenizer.tokenize(PHOTOS[:1]))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


# --- the nearest-code search


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_search_never_holds_all_distances() -> None:
    torch.manual_seed(0)
    codebook = NearestCodebook(16384, 8)
    latents = torch.randn(1, 8, 64, 64) / 16384
    with torch.no_grad(), Largest() as largest:
        codes = codebook.codes(latents)
    assert len(codes.unique()) > 1000
    assert 16384 <= largest.elements <= MAX_SCORES < 64 * 64 * 16384


@pytest.mark.parametrize("max_scores", [1, 999, 1000, 7000, 1 << 22])
def test_chunks_do_not_change_codes(max_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "MAX_SCORES", max_scores)
    # Whole numbers, so that scores are exact and any order of summation gives the same.
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randint(-9, 10, (77, 16), generator=generator).float()
    entries = torch.randint(-9, 10, (1000, 16), generator=generator).float()
    expected = (vectors[:, None].long() - entries.long()).square().sum(dim=2).argmin(dim=1)
    found = best_codes(vectors, entries, entries.square().sum(dim=1) / -2)
    assert torch.equal(found, expected)


def test_lowest_code_wins_a_tie_and_no_positions_are_no_error() -> None:
    codebook = NearestCodebook(6, 2)
    codebook.embedding.weight.data = torch.tensor([[9.0, 9], [1, 0], [0, 1], [1, 0], [0, 1], [-1, 0]])
    latents = torch.tensor([[1.0, 0], [0, 1], [0, 0]]).t().reshape(1, 2, 1, 3)
    assert codebook.codes(latents).tolist() == [[[1, 2, 1]]]
    assert codebook.codes(torch.empty(0, 2, 4, 4)).shape == (0, 4, 4)


def test_search_stays_float32_under_autocast() -> None:
    torch.manual_seed(0)
    vectors, entries = torch.randn(500, 32), torch.randn(1000, 32)
    bias = entries.square().sum(dim=1) / -2
    expected = best_codes(vectors, entries, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(best_codes(vectors, entries, bias), expected)


# --- the tokenizer


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_spec_and_fit(fit: str) -> None:
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


def test_fits_differ_on_a_wide_image() -> None:
    codes = [tiny_tokenizer(fit=fit).tokenize([PHOTOS[1][:200]])[0].codes for fit in ("squash", "crop", "pad")]
    assert all((codes[a] != codes[b]).mean() > 0.2 for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("arch", [TINY, GUMBEL])
def test_a_batch_of_unlike_sizes_gives_what_each_image_gives(arch: VqganArch) -> None:
    images = [*PHOTOS, PHOTOS[0][:2, :3], PHOTOS[1][:20], PHOTOS[2][:, :9]]
    model = untrained_vqgan(arch, 0)
    tokenizer = VqganTokenizer(model, name="tiny", size=SIZE, fit="squash", batch_size=3)
    together = np.stack([tokens.codes for tokens in tokenizer.tokenize(images)])
    alone = np.stack([tokenizer.tokenize([image])[0].codes for image in images])
    # Convolutions may round otherwise in a batch (1e-5 was seen), so a near tie may fall otherwise. None did here.
    assert (together != alone).sum() <= 0.01 * alone.size
    weight, bias = model.quantize.scorer()
    scores = torch.einsum("bdhw,nd->bhwn", model.latents(pixels_of(images)).double(), weight.detach().double())
    scores = scores + bias.detach().double()
    chosen = scores.gather(-1, torch.from_numpy(together).long())[..., 0]
    assert (scores.amax(dim=-1) - chosen).max() < 1e-3 * scores.std()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_reduced_precision_chooses_mostly_the_same_codes(precision: torch.dtype) -> None:
    exact, reduced = (tiny_tokenizer(precision=dtype) for dtype in (torch.float32, precision))
    codes, others = (np.stack([t.codes for t in tokenizer.tokenize(PHOTOS)]) for tokenizer in (exact, reduced))
    assert (codes != others).mean() < (0.01 if precision == torch.float16 else 0.05)


def test_what_overflows_float16_is_encoded_in_float32() -> None:
    model = untrained_vqgan(TINY, 0)
    for weight in model.encoder.conv_in.parameters():
        weight.data *= 1e6
    tokenizers = [
        VqganTokenizer(model, name="tiny", size=SIZE, fit="squash", precision=dtype)
        for dtype in (torch.float16, torch.float32)
    ]
    half, full = (np.stack([t.codes for t in tokenizer.tokenize(PHOTOS)]) for tokenizer in tokenizers)
    assert len(np.unique(full)) > 5
    assert (half == full).all()


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_one_pixel_and_flat_images(fit: str) -> None:
    # GroupNorm magnifies rounding on flat images, so a batch may differ here; one at a time must not.
    flat = np.full((40, 30, 3), 200, np.uint8)
    tokenizer = tiny_tokenizer(fit=fit, batch_size=1)
    first, again = tokenizer.tokenize([flat[:1, :1], flat]), tokenizer.tokenize([flat[:1, :1], flat])
    for one, other in zip(first, again, strict=True):
        assert one.codes.shape == (8, 8, 1)
        np.testing.assert_array_equal(one.codes, other.codes)


def test_another_size_than_the_models_own() -> None:
    tokenizer = VqganTokenizer(untrained_vqgan(TINY, 0), name="tiny", size=96, fit="crop")
    tokens = tokenizer.tokenize(PHOTOS[:2])
    assert tokenizer.spec.grid_shape == (12, 12)
    assert tokens[0].codes.shape == (12, 12, 1)
    assert tokenizer.decode(tokens)[0].shape == (96, 96, 3)


def test_nothing_in_nothing_out() -> None:
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
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VqganTokenizer(untrained_vqgan(TINY, 0), **({"name": "tiny", "size": 64, "fit": "pad"} | options))


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
def test_codes_that_are_not_this_tokenizers(codes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_tokenizer().decode([Tokens(codes)])


# --- remap


def test_remap_round_trip_and_unknown_codes() -> None:
    used = np.array([7, 3, 60, 12])
    codes = np.array([[3, 7], [60, 5]])
    extra = Remap(used, 64)
    assert extra.size == 5
    assert extra.to_used(codes).tolist() == [[1, 0], [2, 4]]
    assert extra.to_all(extra.to_used(codes)).tolist() == [[3, 7], [60, 7]]


def test_tokenizer_writes_and_reads_remapped_codes(tmp_path: Path) -> None:
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


def test_gumbel_chooses_among_used_codes_only() -> None:
    """GumbelQuantize.forward: "continue only with used logits"."""
    upstream = Upstream(gumbel=True)
    x = pixels_of(PHOTOS)
    used = np.array([40, 3, 17, 60, 22, 9])
    with torch.no_grad():
        expected = upstream.proj(upstream.latents(x))[:, used].argmax(dim=1).numpy()
    assert len(np.unique(expected)) > 2
    remap = Remap(used, 64)
    tokenizer = VqganTokenizer(ours(upstream), name="tiny", size=SIZE, fit="squash", remap=remap)
    codes = np.stack([item.codes[..., 0] for item in tokenizer.tokenize(PHOTOS)])
    np.testing.assert_array_equal(codes, expected)


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
def test_bad_list_of_used_codes(used: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "used.npy", used)
    with pytest.raises(ConfigError, match=r"used\.npy"):
        Remap.load(tmp_path / "used.npy", 64)


def npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + body


def test_hostile_remap_files(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
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


# --- weights


def shapes_of(arch: VqganArch) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Vqgan(arch).state_dict()


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_architectures_are_told_from_their_weights(name: str) -> None:
    arch = OFFICIAL[name]
    assert infer_arch({**shapes_of(arch), "loss.logvar": torch.zeros(())}, {}) == arch


def test_published_models_with_another_codebook_are_told_too() -> None:
    coco = replace(OFFICIAL["vqgan-imagenet-f16-1024"], n_embed=8192)
    assert infer_arch(shapes_of(coco), {}) == coco


def test_metadata_names_the_architecture() -> None:
    assert VqganArch.from_metadata({ARCH_METADATA_KEY: GUMBEL.to_json()}) == GUMBEL
    assert infer_arch(shapes_of(GUMBEL), {ARCH_METADATA_KEY: GUMBEL.to_json()}) == GUMBEL


def test_unknown_weights_name_the_known_architectures() -> None:
    for tensors in (shapes_of(TINY), shapes_of(GUMBEL), {"quantize.embedding.weight": torch.zeros(3)}, {}):
        with pytest.raises(WeightsMismatchError, match="vqgan-imagenet-f16-16384, vqgan-gumbel-f8-8192"):
            infer_arch(tensors, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps(asdict(TINY) | {"n_embed": "64"}),
        json.dumps(asdict(TINY) | {"n_embed": True}),
        json.dumps(asdict(TINY) | {"num_res_blocks": 10**9}),
        json.dumps(asdict(TINY) | {"num_res_blocks": 60_000}),
        json.dumps(asdict(TINY) | {"ch": 65_536, "ch_mult": [65_536] * 3}),
        json.dumps(asdict(TINY) | {"ch": 33}),
        json.dumps(asdict(TINY) | {"ch_mult": []}),
        json.dumps(asdict(TINY) | {"ch_mult": [1] * 10_000}),
        json.dumps(asdict(TINY) | {"resolution": 63}),
        json.dumps(asdict(TINY) | {"gumbel": True, "embed_dim": 16}),
        json.dumps(asdict(TINY) | {"n_embed": 65}),
    ],
)
def test_hostile_metadata(text: str) -> None:
    with pytest.raises(WeightsMismatchError, match=ARCH_METADATA_KEY):
        infer_arch(shapes_of(TINY), {ARCH_METADATA_KEY: text})


def test_a_state_loads_without_its_losses() -> None:
    upstream = Upstream(gumbel=False)
    tensors = upstream.state_dict() | {"loss.logvar": torch.zeros(()), "colorize": torch.zeros(3, 5, 1, 1)}
    tokenizer = VqganTokenizer(load_vqgan(state(tensors)), name="tiny", size=SIZE, fit="squash")
    expected = upstream.encode(pixels_of(PHOTOS[:1])).numpy()[0]
    np.testing.assert_array_equal(tokenizer.tokenize(PHOTOS[:1])[0].codes[..., 0], expected)


def test_a_state_that_lacks_a_key_or_has_one_too_many() -> None:
    tensors = Upstream(gumbel=False).state_dict()
    with pytest.raises(WeightsMismatchError):
        load_vqgan(state(tensors | {"quantize.used": torch.zeros(4)}))
    del tensors["decoder.conv_in.bias"]
    with pytest.raises(WeightsMismatchError):
        load_vqgan(state(tensors))


def test_untrained_is_seeded_and_leaves_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = untrained_vqgan(TINY, 1)
    assert torch.equal(torch.rand(3), expected)
    again, other = untrained_vqgan(TINY, 1).state_dict(), untrained_vqgan(TINY, 2).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.state_dict().items())
    assert not torch.equal(first.quant_conv.weight, other["quant_conv.weight"])
    tokenizer = VqganTokenizer(first, name="tiny", size=SIZE, fit="pad")
    codes = np.stack([tokens.codes for tokens in tokenizer.tokenize(PHOTOS)])
    assert len(np.unique(codes)) > 16

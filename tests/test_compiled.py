"""Compiled networks: the same answers, few shapes, and no harm where nothing can be compiled."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from builds import STAND_IN, build_here, make_config, make_input
from seeded_weights import shake

from patchmint.annotate.models import AnnotationModels
from patchmint.cli.status import _shown
from patchmint.compute import compiled as compiled_module
from patchmint.compute.compiled import Compiled, CompiledPart, Graphed, OwnKernel, batch_sizes, kernels_ran
from patchmint.compute.compiled import ran as compiled_calls
from patchmint.compute.devices import computing_in
from patchmint.config import AnnotatorConfig
from patchmint.errors import ConfigError
from patchmint.jobs.status import status
from patchmint.labelers import grounded_sam
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino import deformable, encoders, swin, transformer
from patchmint.labelers.grounding_dino import model as dino_model
from patchmint.labelers.grounding_dino.prompts import Vocabulary, caption_prompts
from patchmint.labelers.sam import image_encoder
from patchmint.labelers.sam.arch import TINY
from patchmint.labelers.sam.image_encoder import ImageEncoder
from patchmint.labelers.sam.model import untrained
from patchmint.pipeline.driver import build as driver
from patchmint.pipeline.plan import make_retry_plan, models
from patchmint.shards.plan import ModelRecord, load_plan, load_plans
from patchmint.storage import open_storage
from patchmint.tokenizers.vqgan import arch as vqgan_arch
from patchmint.tokenizers.vqgan import model as vqgan_model
from patchmint.tokenizers.vqgan import tokenizer as vqgan_tokenizer
from patchmint.types import Text

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # its own, when it looks for compilers


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    compiled_calls.clear()
    yield
    torch._dynamo.reset()


class Compiler:
    """A backend that keeps the code as it is, and remembers for which batch sizes it was asked."""

    def __init__(self):
        self.sizes = []
        self.fault = None
        self.given = ()

    def __call__(self, graph, inputs):
        names = [node.name for node in graph.graph.find_nodes(op="placeholder")]
        given = (each for name, each in zip(names, inputs, strict=True) if "parameters" not in name)
        self.sizes.append(next(each.shape[0] for each in given if getattr(each, "ndim", 0) == 4))

        def run(*values):
            if self.fault is not None:
                raise self.fault
            self.given = values
            return graph.forward(*values)

        return run


@pytest.fixture
def compiler():
    return Compiler()


def double(batch):
    return [batch * 2, batch.mean(dim=(1, 2, 3))]


def images(count, side=4, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (12, (1, 2, 4, 8, 12)), (16, (1, 2, 4, 8, 16))]
)
def test_a_batch_is_padded_to_less_than_twice_its_size(most, sizes):
    assert batch_sizes(most) == sizes
    assert all(next(size for size in sizes if size >= count) < 2 * count for count in range(1, most + 1))


def test_answers_are_those_of_the_batch_without_its_padding(compiler):
    compiled = Compiled(double, name="it", sizes=lambda _: batch_sizes(8), backend=compiler)
    for count in (5, 8, 7, 1, 3, 6):
        batch = images(count, seed=count)
        for ours, theirs in zip(compiled(batch), double(batch), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert compiler.sizes == [8, 1, 4]
    assert compiled_calls["it"] == 6
    assert torch.equal(compiler.given[0], torch.cat([batch, batch[-1:], batch[-1:]]))  # no zeros, of 6 as 8


def test_padding_keeps_the_memory_format(compiler):
    compiled = Compiled(double, name="it", sizes=lambda _: (4,), backend=compiler)
    for count in (4, 3, 2):
        compiled(images(count).contiguous(memory_format=torch.channels_last))
    assert compiler.sizes == [4]


def test_shapes_beyond_the_bound_run_as_they_are(compiler, capsys):
    compiled = Compiled(double, name="it", sizes=lambda _: (2,), most_shapes=2, backend=compiler)
    for side in (4, 5, 6, 7, 4, 6):
        for ours, theirs in zip(compiled(images(2, side)), double(images(2, side)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert compiler.sizes == [2, 2]
    assert capsys.readouterr().err == ""


def test_batches_that_fit_no_size_run_as_they_are(compiler):
    asked = []
    compiled = Compiled(double, name="it", sizes=lambda sides: asked.append(sides) or (8,), backend=compiler)
    for count in (9, 3, 1):  # too many, and too few to be padded
        assert len(compiled(images(count))[0]) == count
    assert compiler.sizes == []
    assert asked == [(4, 4)] * 3
    compiled(images(4))
    assert compiler.sizes == [8]


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(capsys):
    calls = []

    def no_compiler(graph, inputs):
        calls.append(1)
        raise OSError("there is no compiler here\nand much more")

    compiled = Compiled(double, name="the network", sizes=lambda _: batch_sizes(4), backend=no_compiler)
    for count in (3, 4, 1):
        assert torch.equal(compiled(images(count))[0], images(count) * 2)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("the network could not be compiled and runs as it is") == 1
    assert "there is no compiler here" in told.err
    assert told.err.count("\n") == 1
    assert calls == [1]
    assert not compiled_calls


def test_a_network_in_pieces_is_not_taken_for_a_compiled_one(capsys):
    def broken(batch):
        torch._dynamo.graph_break()
        return [batch * 2]

    compiled = Compiled(broken, name="the network", sizes=lambda _: (2,), backend="eager")
    assert torch.equal(compiled(images(2))[0], broken(images(2))[0])
    assert "could not be compiled" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("too much"), torch.AcceleratorError("the device is gone")])
def test_a_lack_of_memory_is_no_failure_to_compile(compiler, fault, capsys):
    """Whoever asks takes fewer images then."""
    compiled = Compiled(double, name="it", sizes=lambda _: (2,), backend=compiler)
    compiler.fault = fault
    with pytest.raises(type(fault)):
        compiled(images(2))
    compiler.fault = None
    compiled(images(2))
    assert compiler.sizes == [2]
    assert capsys.readouterr().err == ""


def test_two_programs_are_sams_encoder(compiler, monkeypatch, capsys):
    """One for blocks with windows and one for whole pictures, for any batch, with the attention of a GPU."""
    monkeypatch.setattr(image_encoder, "CompiledPart", partial(CompiledPart, backend=compiler))
    monkeypatch.setattr(image_encoder, "_fused", lambda x: True)
    arch = replace(TINY, depth=5, global_attn_indexes=(1, 4))
    encoder = ImageEncoder(untrained(arch, seed=3).image_encoder, torch.bfloat16)
    squares = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), computing_in(torch.bfloat16, squares.device):
        expected = encoder(squares)
        encoder.compile()
        torch.testing.assert_close(encoder(squares), expected)
        for count in (3, 2, 1):
            torch.testing.assert_close(encoder(squares[:count]), expected[:count], atol=0.05, rtol=0.05)
    assert len(compiler.sizes) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_detectors_backbone_compiles_whole(compiler, dtype, monkeypatch, capsys):
    monkeypatch.setattr(encoders, "Compiled", partial(Compiled, backend=compiler))
    monkeypatch.setattr(encoders, "pixels_at_once", lambda device: 4 * 64 * 80)
    model = dino_model.untrained(replace(dino_arch.TINY, swin_depths=(2, 1, 1, 1)))
    dino_model.store_reduced(model, dtype)
    swin.fuse_windows(model, dtype)
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randn(3, *size, generator=generator) for size in [(64, 80)] * 7 + [(80, 64)]]
    with torch.inference_mode(), computing_in(dtype, torch.device("cpu")):
        expected = encoders.encode_images(model, pixels)
        encoders.compile_backbone(model, torch.device("cpu"))
        found = encoders.encode_images(model, pixels)
    for ours, theirs in zip(found, expected, strict=True):
        for level, wanted in zip(ours.levels, theirs.levels, strict=True):
            torch.testing.assert_close(level, wanted)
    assert compiler.sizes == [4]  # of one size, 4 and 3 padded; the single one of another runs as it is
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not torch.__version__.startswith("2.11"), reason="slow; `make test-torch211` runs it")
def test_three_programs_are_the_detectors_transformer(monkeypatch, capsys):
    """One for the encoder's layers and two for the decoder's, the last of which moves no box: for any images, texts."""
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(transformer, "CompiledPart", partial(CompiledPart, backend=backend))
    monkeypatch.setattr(transformer, "works_in_parts", lambda device: False)  # as on a GPU
    monkeypatch.setattr(deformable, "_in_one_kernel", lambda query: True)  # one operation,
    monkeypatch.setattr(deformable._kernel, "_failed", True)  # in which without a GPU there are others
    model = dino_model.untrained(replace(dino_arch.TINY, encoder_layers=2, decoder_layers=3))
    vocabulary = Vocabulary.of_characters(dino_arch.TINY.text_vocabulary)
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cpu")
    with torch.inference_mode():
        sizes = [(64, 80), (64, 80), (96, 64), (128, 160)]
        images = encoders.encode_images(model, [torch.randn(3, *size, generator=generator) for size in sizes])
        texts = [Text("a red cat"), Text("dogs"), Text("a long text of words"), Text("this")]
        prompts = encoders.encode_prompts(model, [caption_prompts(text, vocabulary)[0] for text in texts], device)
        pairs = [(images[:count], prompts[:count]) for count in (2, 3, 4)]
        expected = [transformer.match(model, *pair) for pair in pairs]
        transformer.compile_layers(model)
        delattr(model.transformer, transformer._GRAPH)
        for pair, wanted in zip(pairs, expected, strict=True):
            found = transformer.match(model, *pair)
            torch.testing.assert_close(found.boxes, wanted.boxes)
            torch.testing.assert_close(found.logits, wanted.logits)
    assert len(made) == 3
    assert capsys.readouterr().err == ""


def test_without_a_kernel_of_our_own_torchs_run_and_it_is_said_once(capsys):
    def fail():
        raise ImportError("there is no Triton")

    kernel = OwnKernel("what it does")
    before = kernels_ran["what it does"]
    assert kernel.run(lambda: torch.ones(1), lambda: torch.zeros(1)) == 1
    for _ in range(2):
        assert kernel.run(fail, lambda: torch.zeros(1)) == 0
    assert capsys.readouterr().err.count("what it does could not be compiled") == 1
    assert kernels_ran["what it does"] == before + 1


@pytest.fixture
def graphs(monkeypatch):
    """Graphs without a GPU: each replay computes anew, into the memory of the first answers."""
    made = []

    def cuda_graph(run):
        made.append(answers := run())

        def replay():
            for kept, answer in zip(answers, run(), strict=True):
                kept.copy_(answer)
            return answers

        return replay

    monkeypatch.setattr(compiled_module, "cuda_graph", cuda_graph)
    return made


def of_rows(x, hidden):
    """For each row, of what isn't hidden."""
    return x.masked_fill(hidden, 0).sum(1), (~hidden).sum(1)


def test_a_graph_gives_what_the_function_does_for_tensors_of_fewer_rows_and_columns(graphs):
    graphed = Graphed(of_rows, name="it")
    generator = torch.Generator().manual_seed(0)
    given = []
    for rows, columns in ((3, 5), (4, 8), (2, 3), (4, 5), (3, 8)):
        tensors = torch.rand(rows, columns, generator=generator), torch.rand(rows, columns, generator=generator) < 0.3
        given.append((graphed(tensors, [(4, 8), (4, 8)]), of_rows(*tensors)))
    for ours, theirs in given:  # after all replays: no answer is another's memory
        torch.testing.assert_close(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert len(graphs) == 1
    assert [len(answer) for answer in graphs[0]] == [4, 4]
    assert compiled_calls["it"] == 4  # a graph is made of what comes twice


def test_there_are_so_many_graphs_and_no_more(graphs):
    graphed = Graphed(of_rows, name="it", most_shapes=2)
    for columns in (1, 1, 2, 3, 3, 2, 2, 1, 3):
        x = torch.ones(2, columns)
        assert graphed((x, x > 1), [(2, columns)] * 2)[0].tolist() == [columns] * 2
    assert [answer.shape for answer, _ in graphs] == [(2,), (2,)]
    assert compiled_calls["it"] == 4  # of 1 and 3


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch, capsys):
    fault = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")

    def cuda_graph(run):
        raise fault

    monkeypatch.setattr(compiled_module, "cuda_graph", cuda_graph)
    x = torch.ones(2, 2)
    graphed = Graphed(of_rows, name="it")
    for _ in range(3):
        assert graphed((x, x > 1), [(2, 2)] * 2)[0].tolist() == [2, 2]
    assert capsys.readouterr().err.count("it could not be compiled") == 1
    for fault in (torch.AcceleratorError("CUDA error: an illegal memory access"), torch.OutOfMemoryError("too much")):
        graphed = Graphed(of_rows, name="it")
        graphed((x, x > 1), [(2, 2)] * 2)
        with pytest.raises(type(fault)):
            graphed((x, x > 1), [(2, 2)] * 2)


def test_the_detectors_decoder_is_a_graph_for_pairs_of_many_sizes(graphs, monkeypatch, capsys):
    """Padded to more pairs, positions and words, which none of them sees."""
    monkeypatch.setattr(transformer, "_POSITIONS_A_STEP", 256)
    monkeypatch.setattr(transformer, "pairs_at_once", lambda *_: 32)
    monkeypatch.setattr(transformer, "CompiledPart", lambda function, **_: function)
    model = dino_model.untrained(dino_arch.TINY)
    shake(model)
    vocabulary = Vocabulary.of_characters(dino_arch.TINY.text_vocabulary)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        sizes = [(96, 64), (64, 80), (64, 96), (96, 80), (64, 80)]
        images = encoders.encode_images(model, [torch.randn(3, *size, generator=generator) for size in sizes])
        texts = [Text(text) for text in ("a cat", "dogs", "a red fox", "this", "big")]
        prompts = [caption_prompts(text, vocabulary)[0] for text in texts]
        features = encoders.encode_prompts(model, prompts, torch.device("cpu"))
        pairs = [(images[start:end], features[start:end]) for start, end in ((0, 3), (1, 4), (0, 4), (2, 5))]
        expected = [transformer.match(model, *pair) for pair in pairs]
        transformer.compile_layers(model)
        found = [transformer.match(model, *pair) for pair in pairs]
    assert [len(answer) for answer, _ in graphs] == [4]  # four pairs, of three
    assert compiled_calls.total() == 3
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.boxes, wanted.boxes, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.logits, wanted.logits, atol=1e-3, rtol=1e-4)
    assert capsys.readouterr().err == ""


def test_vqgans_encoder_compiles_whole(compiler, monkeypatch, capsys):
    monkeypatch.setattr(vqgan_model, "Compiled", partial(Compiled, backend=compiler))
    model = vqgan_model.untrained_vqgan(vqgan_arch.TINY, seed=0).to(memory_format=torch.channels_last)
    encode = vqgan_model.compiled_encoder(model.encoder, 4)
    with torch.inference_mode():
        for count in (4, 3):
            pixels = images(count, side=64).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(model.latents(pixels, encode), model.latents(pixels))
    assert compiler.sizes == [4]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("wanted", [True, False])
def test_the_setting_reaches_every_network(wanted, monkeypatch):
    told = {}
    makers = {"GroundingDino": grounded_sam, "SamMasker": grounded_sam, "VqganTokenizer": vqgan_tokenizer}
    for name, module in makers.items():
        original = getattr(module, name)

        def make(*given, which=name, original=original, **settings):
            told[which] = settings["compiled"]
            return original(*given, **settings)

        monkeypatch.setattr(module, name, make)
    AnnotationModels.load(AnnotatorConfig.parse({"models": "untrained-tiny"}), "cpu", compiled=wanted)
    assert told == dict.fromkeys(makers, wanted)


def test_nothing_is_compiled_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    loaded = AnnotationModels.load(AnnotatorConfig.parse({"models": "untrained-tiny"}), "cpu", compiled=True)
    assert not hasattr(loaded.segmenter.detector.model, encoders._COMPILED)
    assert loaded.segmenter.masker._encoder._run == image_encoder._Block.__call__
    assert loaded.tokenizers["vqgan"]._encoder is loaded.tokenizers["vqgan"]._model.encoder


def test_workers_compile_if_the_plan_says_so_and_go_on_with_that(monkeypatch, tmp_path):
    told = []
    original = AnnotationModels.load

    def load(config, device, **settings):
        told.append(settings)
        return original(config, device, **settings)

    monkeypatch.setattr(AnnotationModels, "load", load)
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setattr(driver, "runs_on_gpu", lambda config: True)
    make_input(tmp_path / "in", ["one thing", "another"])
    for name, wanted, pays in (("a", True, 10), ("b", None, 10), ("c", None, -1), ("d", False, -1)):
        monkeypatch.setattr(models, "_PAYS", pays)
        runner = {"kind": "local", "num_cpus": 1, "device": "cpu", "compile": wanted}
        build_here(
            make_config(tmp_path / f"{name}.yaml", tmp_path / "in", tmp_path / name, runner=runner), tmp_path / name
        )
        found = status(str(tmp_path / name))
        assert told.pop() == {"compiled": found.last_run["compiled"]} == {"compiled": name in "ac"}
        said = "".join(map(str, _shown(name, found).renderables))
        assert ("not compiled on GPUs" in said) == (name in "bd")
    storage = open_storage(tmp_path / "c")
    plan = load_plan(storage)
    monkeypatch.setattr(models, "_PAYS", 10)
    assert make_retry_plan(storage, [plan], [0]).compiled  # though it wouldn't pay
    assert load_plans(storage)[1].compiled
    config = make_config(tmp_path / "c.yaml", tmp_path / "in", tmp_path / "c", runner=runner)  # compile: false
    with pytest.raises(ConfigError, match="compile: true there, false here"):
        build_here(config, tmp_path / "c")


@pytest.mark.parametrize(("images", "role", "size", "pays"), [
    (4_000_000, "masker", 2_564_550_879, False), (5_000_000, "masker", 2_564_550_879, True),
    (5_000_000, "masker", 25_000_000, False), (5_000_000, "vit", 2_564_550_879, False),
])  # fmt: skip
def test_compiling_pays_for_many_images_and_large_models(images, role, size, pays):
    """A vision encoder isn't compiled."""
    assert models.compile_pays(images, {role: ModelRecord(role, "its name", size=size)}) is pays

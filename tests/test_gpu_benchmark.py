"""`benchmarks/gpu.py`, as far as it can be tried without a GPU: what it counts, how it keeps to its time."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import warm
from builds import benchmark_modules

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    """The script and its helpers."""
    main, build, flops = benchmark_modules("gpu", "gpu_build", "gpu_flops")
    return SimpleNamespace(main=main, build=build, flops=flops)


@pytest.mark.parametrize(("sam", "published"), [("vit-b", 0.97), ("vit-h", 5.96)])
def test_sams_arithmetic_is_what_is_published(gpu, sam, published):
    arch = gpu.flops.sam_arch.OFFICIAL[f"sam-{sam}"]
    assert gpu.flops.sam_flops(arch, torch.device("cpu")) / 1e12 == pytest.approx(published, abs=0.005)


def test_idle_is_the_time_that_no_span_covers(gpu):
    def span(start, seconds, cat="device"):
        return {"cat": cat, "ph": "X", "ts": start * 1e6, "dur": seconds * 1e6}

    events = [
        span(1, 3),
        span(2, 1),  # within the first
        span(3.5, 1.5),  # overlaps it
        span(7, 1),
        span(0, 10, "models"),
        {"ph": "M", "name": "thread_name"},
    ]
    trace = {"traceEvents": events, "otherData": {"events_left_out": 0}}
    assert gpu.build.idle_by_spans(trace, 10.0) == pytest.approx(0.5)
    assert gpu.build.idle_by_spans(trace | {"traceEvents": events[-2:]}, 10.0) is None
    assert gpu.build.idle_by_spans(trace | {"otherData": {"events_left_out": 1}}, 10.0) is None


def test_idle_by_looks_is_that_of_the_builds_own_time(gpu):
    looks = [(99.0, 0.0), (100.5, 1.0), (101.5, 0.5), (102.5, 0.0)]
    assert gpu.build.idle_by_looks(looks, 100.0, 2.0) == pytest.approx(0.25)
    assert gpu.build.idle_by_looks([], 100.0, 2.0) is None


def test_what_there_is_no_time_for_is_left_out_and_what_fails_is_told(gpu):
    arguments = SimpleNamespace(device="cpu", tiny=False, seconds=100.0, only=["a", "b", "c"])
    run = gpu.main.Run(arguments)
    assert not run._try("a", 1000, lambda: pytest.fail("there was no time"))
    assert run._try("b", 10, lambda: 1 / 0)
    assert run._try("c", 10, lambda: None)
    assert run.found["left_out"] == ["a"]
    assert run.found["failed"] == {"b": "ZeroDivisionError: division by zero"}


def test_parity_sees_a_difference(gpu, monkeypatch):
    """On the CPU in float32 there is none; with another format there is a small one."""
    module = gpu.main.parity.__globals__
    formats = {"of": torch.float32}
    monkeypatch.setitem(module, "_precision", lambda *_: formats["of"])
    monkeypatch.setitem(module, "PHOTOGRAPHS", module["PHOTOGRAPHS"][1:2])
    same = gpu.main.parity(torch.device("cpu"), tiny=True)
    assert {name: value for name, value in same.items() if value != name.startswith("equal")} == {}
    formats["of"] = torch.bfloat16
    for name, value in gpu.main.parity(torch.device("cpu"), tiny=True).items():
        assert 0.8 < value < 1 if name.startswith("equal") else 0 < value < 0.5, (name, value)


def test_stages_are_measured_with_tiny_models(tmp_path):
    """Without Grounding DINO, which takes seconds, and the builds, which take half a minute."""
    script = (
        "import sys, gpu, gpu_stages; gpu_stages._SECONDS = 0.05; all_of = gpu_stages.stages\n"
        "gpu.stages = lambda tiny: [stage for stage in all_of(tiny) if 'DINO' not in stage.name]\n"
        f"sys.argv = ['gpu.py', '--device', 'cpu', '--tiny', '--only', 'peak', 'auto', 'float32', '--json', "
        f"{str(tmp_path / 'found.json')!r}]\n"
        "gpu.main()"
    )
    done = warm.run([sys.executable, "-c", script], cwd=FOLDER)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["failed"] == {}
    assert found["left_out"] == []
    stages = {"SAM tiny encoder", "VQGAN f16 codes", "SAM mask decoder", "ViT features"}
    assert {row["stage"] for row in found["rows"]} == stages
    assert {row["compiled"] for row in found["rows"]} == {False}
    theirs = {row["stage"] for row in found["rows"] if row["setting"] == "transformers"}
    assert theirs == found["to_transformers"].keys() == {"SAM tiny encoder", "SAM mask decoder"}
    for row in found["rows"]:
        assert row["rate"] > 0
        assert row["tflops"] == pytest.approx(row["rate"] * row["tflop"])
        assert row["of_measured_peak"] == pytest.approx(row["tflops"] / found["peak"]["measured"]["bfloat16"])
        assert row["stage"] in done.stdout
    assert sum(row["setting"] == "float32" for row in found["rows"]) == 4

"""Triton's kernels without a GPU: equal by its interpreter, and compiled for the GPU that is to run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="there is no Triton for this platform")
from patchmint.compute import kernels  # noqa: E402


def test_kernels_give_what_torch_does():
    """By Triton's interpreter, which has to be chosen before Triton is imported."""
    options = ["-q", "-n0", "--noconftest", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "interpreted_kernels.py"],
        cwd=Path(__file__).parent,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def resources(kernel, tmp_path, types, constants, **options):
    """Registers a thread, and bytes that don't fit into them, of a kernel compiled for an H200."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # pointers, and strides of official sizes
    counts = ("queries", "positions", "rows", "places")
    whole = [place for place, name in enumerate(types) if types[name] != "fp32" and name not in counts]
    aligned = {(place,): [["tt.divisibility", 16]] for place in whole}
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
    made = triton.compile(source, GPUTarget("cuda", 90, 32), kernels.OPTIONS | options)
    (tmp_path / "cubin").write_bytes(made.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    said = subprocess.run([tool, "-res-usage", tmp_path / "cubin"], capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return found["REG"], found["STACK"] + found["LOCAL"], made.asm["ptx"]


@pytest.mark.parametrize(("dtype", "numbers"), [("bf16", 2), ("fp32", 4)])
def test_deformable_attention_of_official_size_spills_nothing_on_an_h200(tmp_path, dtype, numbers):
    types = {"values": f"*{dtype}", "learned": "*fp32", "reference": "*fp32", "sizes": "*fp32", "start": "*i32"}
    types |= {"out": f"*{dtype}", "queries": "i32", "positions": "i32"}
    constants = kernels.deformable_constants(heads=8, levels=4, points=4, channels=256, numbers=numbers)
    registers, spilled, ptx = resources(kernels.deformable_sums_kernel, tmp_path, types, constants)
    assert spilled == 0
    assert 16 < registers <= 96
    # a row of 32 channels by threads that read 16 bytes each
    assert ptx.count("ld.global.v4.b32") == {"bf16": 8, "fp32": 16}[dtype]


@pytest.mark.parametrize("width", [64, 80])
def test_sams_attention_of_official_size_spills_nothing_on_an_h200(tmp_path, width):
    types = dict.fromkeys(("query", "key", "value", "found", "out"), "*bf16") | {"scale": "fp32"}
    types |= {f"{each}_{axis}": "i32" for each in ("query", "key", "value") for axis in ("image", "head", "place")}
    constants = kernels.attention_constants(side=64, heads=16, width=width)
    kernel, options = kernels.attention_by_rows_kernel, kernels.ATTENTION_OPTIONS
    registers, spilled, ptx = resources(kernel, tmp_path, types, constants, **options)
    assert spilled == 0
    assert 96 < registers <= 224
    assert "wgmma.mma_async" in ptx
    assert ("m64n16k16" in ptx) == (width == 80)  # as wide as it is, not padded


@pytest.mark.parametrize(("channels", "dtype"), [(1280, "bf16"), (256, "fp32")])
def test_norms_of_sums_of_official_size_spill_nothing_on_an_h200(tmp_path, channels, dtype):
    types = {"x": "*fp32", "y": "*bf16", "weight": "*fp32", "bias": "*fp32", "summed": "*fp32", "normed": f"*{dtype}"}
    types |= {"epsilon": "fp32", "rows": "i32"}
    constants = kernels.norm_constants(channels, keep=True)
    registers, spilled, ptx = resources(kernels.norm_of_sum_kernel, tmp_path, types, constants)
    assert spilled == 0
    assert 16 < registers <= 128
    assert "ld.global.v4.b32" in ptx


@pytest.mark.parametrize("channels", [128, 512])
def test_group_norms_of_official_size_spill_nothing_on_an_h200(tmp_path, channels):
    constants = kernels.group_constants(channels, groups=32)
    types = {"x": "*fp16", "moments": "*fp32", "places": "i32"}
    assert resources(kernels.group_moments_kernel, tmp_path, types, constants | {"STEPS": 128})[1] == 0
    types = {"x": "*fp16", "moments": "*fp32", "weight": "*fp32", "bias": "*fp32", "out": "*fp16"}
    types |= {"epsilon": "fp32", "places": "i32"}
    registers, spilled, ptx = resources(kernels.silu_of_norm_kernel, tmp_path, types, constants)
    assert spilled == 0
    assert registers <= 168
    assert "ld.global.v4.b32" in ptx

"""Norms in kernels of our own on GPUs, with what stands before or behind them; elsewhere torch's.

torch has a kernel for each of these steps, each of which reads and writes everything, mostly in float32; and its group
norm takes channels-last images apart and leaves it to the next convolution to put them together again.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchmint.compute.compiled import OwnKernel

_kernel = OwnKernel("norms of sums")
_group_kernel = OwnKernel("group norm")


def add_and_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a residual network does between two layers: add what the last one gave, and norm it for the next.

    Args:
        x: float32 (..., C).
        y: the same shape, in any format.
        norm: of the last axis.
        dtype: that the next layer computes in.

    Returns:
        `x + y`, float32, and its norm: in `dtype` from a kernel, else in float32, for autocast to reduce.
    """
    if not _in_one_kernel(x):
        summed = x + y
        return summed, norm(summed)
    return _in_one(x, y, norm, dtype, keep=True)


def norm_of_sum(x: Tensor, y: Tensor, norm: nn.LayerNorm) -> Tensor:
    """The norm of `x + y`, both (..., C): float32."""
    if not _in_one_kernel(x):
        return cast(Tensor, norm(x + y))
    return _in_one(x, y, norm, torch.float32, keep=False)[1]


def silu_of_norm(x: Tensor, norm: nn.GroupNorm, dtype: torch.dtype) -> Tensor:
    """SiLU of the group norm of images (B, C, H, W), which a convolution in `dtype` is to follow.

    Computed in float32. In `dtype` and channels-last from the kernel, else as torch gives it.
    """
    channels = x.shape[1]
    fits = channels.bit_count() == norm.num_groups.bit_count() == 1
    on_gpu = x.is_cuda and not torch.is_grad_enabled()
    if not (fits and on_gpu and x.is_contiguous(memory_format=torch.channels_last)):
        return functional.silu(norm(x))
    return cast(Tensor, _silu_of_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, dtype))


def _in_one_kernel(x: Tensor) -> bool:
    """A compiler joins these steps by itself, and with more besides."""
    return x.is_cuda and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _in_one(x: Tensor, y: Tensor, norm: nn.LayerNorm, dtype: torch.dtype, *, keep: bool) -> tuple[Tensor, Tensor]:
    # contiguous here and not in the operation, where what it costs would be seen by nobody
    answers = _norm_of_sum(x.contiguous(), y.contiguous(), norm.weight, norm.bias, norm.eps, dtype, keep)
    return cast(tuple[Tensor, Tensor], answers)


@torch.library.custom_op("patchmint::norm_of_sum", mutates_args=())
def _norm_of_sum(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor]:
    """The sum, empty unless it is to be kept, and its norm."""

    def run() -> tuple[Tensor, Tensor]:
        from patchmint.compute.kernels import norm_of_sum

        return norm_of_sum(x, y, weight, bias, epsilon, dtype, keep=keep)

    def instead() -> tuple[Tensor, Tensor]:
        summed = x + y
        normed = functional.layer_norm(summed, summed.shape[-1:], weight, bias, epsilon).to(dtype)
        return (summed if keep else summed.new_empty(0)), normed

    return _kernel.run(run, instead)


@_norm_of_sum.register_fake
def _(
    x: Tensor, _y: Tensor, _weight: Tensor, _bias: Tensor, _epsilon: float, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if keep else 0), x.new_empty(x.shape, dtype=dtype)


@torch.library.custom_op("patchmint::silu_of_norm", mutates_args=())
def _silu_of_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, dtype: torch.dtype) -> Tensor:
    def run() -> Tensor:
        from patchmint.compute.kernels import silu_of_norm

        return silu_of_norm(x, weight, bias, groups, epsilon, dtype)

    def instead() -> Tensor:
        normed = functional.group_norm(x.float(), groups, weight, bias, epsilon)
        return functional.silu(normed).to(dtype, memory_format=torch.channels_last)

    return _group_kernel.run(run, instead)


@_silu_of_norm.register_fake
def _(x: Tensor, _weight: Tensor, _bias: Tensor, _groups: int, _epsilon: float, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)

"""Kernels, bytes, FLOPs and waits of code for CUDA, counted without a GPU, for `gpu_paper.py`.

Tensors are torch's fake ones: they say that they lie on CUDA, have shapes, types and strides, and no numbers. Each
operation that would start a kernel is counted where it is dispatched, after autocast and torch's own decompositions.
What isn't seen: kernels that an operation starts beside its own (a sort's passes, a convolution's transposes), caches.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gpu_kernels
import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from patchmint.compute import compiled

SHORTEST = 2.5e-6
"""Seconds that any kernel takes."""
SHORTEST_IN_GRAPH = 1.5e-6
"""The same where the host doesn't start it, but a graph: a guess."""
BANDWIDTH = 3.6e12
"""Bytes a second of elementwise kernels; an H200's memory gives 4.3e12."""
GATHERED = 5e12
"""Bytes a second of dependent reads of short rows, most of which the cache has."""
PRODUCTS, CONVOLUTIONS, ATTENTION, FULL = 600e12, 400e12, 350e12, 50e12
"""FLOP/s of an H200: bfloat16 products (its measured peak is 790e12), convolutions, attention; float32 products."""
_HEAD_WIDTHS = (32, 64, 96, 128, 192, 256)
"""Of flash attention's kernels; others are padded."""

_NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias",
    "lift_fresh", "detach", "alias", "expand", "view", "set_", "resize_",
}  # fmt: skip
_GATHERS = {"index", "gather", "embedding", "index_select"}
_ALONE = {"topk", "sort", "native_group_norm"}
_WAITS = {"nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal"}


@dataclass
class Count:
    """What a stage does; of it all, or for each image.

    Attributes:
        kernels: that run.
        starts: by the host; a graph of kernels is one.
        bytes: read and written, each tensor of each kernel whole.
        flops: of products, convolutions and attention.
        blocking_copies: times that the host waits until the device has done all it was given.
        seconds: by the roofline of the constants above.
    """

    kernels: float = 0
    starts: float = 0
    bytes: float = 0
    flops: float = 0
    blocking_copies: float = 0
    seconds: float = 0

    def __add__(self, other: Count) -> Count:
        return Count(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def per(self, images: int) -> Count:
        """A share of it."""
        return Count(*(value / images for value in vars(self).values()))

    def as_row(self) -> dict[str, float]:
        """For a table or JSON."""
        return {
            "ms": self.seconds * 1e3,
            "gbytes": self.bytes / 1e9,
            "tflop": self.flops / 1e12,
            "kernels": self.kernels,
            "starts": self.starts,
            "blocking_copies": self.blocking_copies,
        }


@dataclass
class Kernel:
    """One of them.

    Attributes:
        name: of the operation.
        dtype: of its answer.
        count: what it does.
        inside: names of the functions around it that `Counter.within` was told of.
    """

    name: str
    dtype: torch.dtype
    count: Count
    inside: tuple[str, ...]


@dataclass
class _Op:
    """An operation inside of something compiled.

    Attributes:
        kernel: what it would be by itself.
        alone: whether a compiler leaves it a kernel of its own.
        reads, writes: bytes by memory.
    """

    kernel: Kernel
    alone: bool
    reads: dict[int, int]
    writes: dict[int, int]


@dataclass
class Counter(TorchDispatchMode):
    """Counts all that is dispatched while it is on.

    Attributes:
        kernels: in order.
        waits: what each blocking copy was: operation and shapes.
        attention: of each fused attention the shapes of queries and keys, whether there was a mask, and whether it may
            be cuDNN's.
    """

    kernels: list[Kernel] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    attention: list[tuple[tuple[int, ...], tuple[int, ...], bool, bool]] = field(default_factory=list)
    _inside: list[str] = field(default_factory=list)
    _off: bool = False
    _shortest: float = SHORTEST
    _region: list[_Op] | None = None
    _held: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def clear(self) -> None:
        """Forget what was counted, of setting models up say."""
        for found in (self.kernels, self.waits, self.attention):
            found.clear()

    @property
    def total(self) -> Count:
        """Of everything."""
        return self.of()

    def of(self, inside: str | None = None) -> Count:
        """Of what ran inside a function, or of everything."""
        kept = [kernel.count for kernel in self.kernels if inside is None or inside in kernel.inside]
        return sum(kept, Count())

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Kernels in the block are those of `name`."""
        self._inside.append(name)
        try:
            yield
        finally:
            self._inside.pop()

    def compiled(self, function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        """In the place of `torch.compile`: what it does by itself is counted as a compiler would fuse it."""

        def run(*arguments: Any, **named: Any) -> Any:
            self._region = []
            try:
                with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
                    answer = function(*arguments, **named)
                kept = {_memory(leaf) for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)}
                self.kernels += fused(self._region, kept, self._shortest)
            finally:
                self._region, self._held = None, []
            return answer

        return run

    def graph(self, run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
        """In the place of `patchmint.compute.compiled.cuda_graph`: capturing costs nothing, replaying all that ran."""
        before, self.kernels, self._shortest = self.kernels, [], SHORTEST_IN_GRAPH
        try:
            answers = run()
        finally:
            captured, self.kernels, self._shortest = self.kernels, before, SHORTEST
        for number, kernel in enumerate(captured):
            kernel.count.starts = float(number == 0)

        def replay() -> tuple[Tensor, ...]:
            self.kernels += captured
            return answers

        return replay

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "prim" and func.overloadpacket not in flop_registry:
            with self:  # inference mode hands over operations whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if func.overloadpacket.__name__ == "_local_scalar_dense" and isinstance(args[0], FakeTensor):
            if args[0].device.type == "cuda":
                self._wait("item", [args[0]])
            return True if args[0].dtype == torch.bool else 1
        out = func(*args, **kwargs)
        if not self._off and func.namespace != "prim":
            self._note(func, args, kwargs, out)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        devices = {leaf.device.type for leaf in (*given, *made)}
        if "cuda" not in devices:
            return
        copies = name in ("_to_copy", "copy_") and len(devices) > 1
        told_not_to = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
        picks = name == "index" and any(leaf.dtype == torch.bool for leaf in given[1:])
        if name in _WAITS or picks or (copies and not told_not_to):
            self._wait(name, given)
        if name in _NO_KERNEL or func.is_view or copies or name in _WAITS:
            return
        self._add(name, given, made, *_work(func, name, args, kwargs, given, made, out))

    def _wait(self, name: str, given: list[Tensor]) -> None:
        self.waits.append(f"{name} of {', '.join(str(tuple(each.shape)) for each in given)}")
        self.kernels.append(Kernel(name, given[0].dtype, Count(blocking_copies=1), tuple(self._inside)))

    def _add(
        self, name: str, given: list[Tensor], made: list[Tensor], moved: float, flops: float, rate: float,
        more: int = 0, gathered: float = 0,
    ) -> None:  # fmt: skip
        shortest = self._shortest
        seconds = max(shortest, moved / BANDWIDTH, flops / rate, gathered / GATHERED) + more * shortest
        count = Count(kernels=1 + more, starts=1 + more, bytes=moved, flops=flops, seconds=seconds)
        kernel = Kernel(name, made[0].dtype, count, tuple(self._inside))
        if self._region is None:
            self.kernels.append(kernel)
            return
        self._held += [*given, *made]  # or another tensor could get the memory of one that is gone
        reads, writes = ({_memory(each): _size(each) for each in side} for side in (given, made))
        self._region.append(_Op(kernel, flops > 0 or gathered > 0 or name in _ALONE, reads, writes))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """In the place of torch's fused attention, whose kernel torch wouldn't choose without a device."""
        query, key, value = (_autocast(each) for each in (query, key, value))
        self._off = True
        out = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
        self._off = False
        given = [query, key, value, *([] if attn_mask is None else [attn_mask])]
        moved = sum(_size(each) for each in (*given, out))
        width = next((width for width in _HEAD_WIDTHS if width >= query.shape[-1]), query.shape[-1])
        flops = 4 * math.prod(query.shape[:-1]) * key.shape[-2] * width
        allowed = torch.backends.cuda.cudnn_sdp_enabled()
        self.attention.append((tuple(query.shape), tuple(key.shape), attn_mask is not None, allowed))
        self._add("attention", given, [out], moved, flops, ATTENTION if query.dtype != torch.float32 else FULL)
        return out


def fused(ops: list[_Op], kept: set[int], shortest: float) -> list[Kernel]:
    """Kernels that a compiler makes of operations: what only moves numbers joins what it gets them from, or shares.

    Two may be one kernel unless a product of matrices, or the like, lies between them on any way. Such a kernel reads
    what others made and writes what others read.

    Args:
        ops: in order.
        kept: memory of what is given back.
        shortest: seconds that any kernel takes.
    """
    group = list(range(len(ops)))  # of each operation the first one it is joined with
    level = [0] * len(ops)
    maker: dict[int, int] = {}
    readers: dict[tuple[int, int], int] = {}

    def first(op: int) -> int:
        while group[op] != op:
            op = group[op]
        return op

    for number, op in enumerate(ops):
        sources = [maker[each] for each in op.reads if each in maker]
        level[number] = max((level[source] + (op.alone or ops[source].alone) for source in sources), default=0)
        if not op.alone:
            shared = [readers[key] for each in op.reads if (key := (each, level[number])) in readers]
            near = [source for source in sources if not ops[source].alone and level[source] == level[number]]
            for other in (*near, *shared):
                one, two = sorted((first(number), first(other)))
                group[two] = one
            readers.update({(each, level[number]): number for each in op.reads})
        maker.update(dict.fromkeys(op.writes, number))

    members: dict[int, list[int]] = {}
    for number in range(len(ops)):
        members.setdefault(first(number), []).append(number)
    return [_one([ops[number] for number in each], ops, kept, shortest) for each in members.values()]


def _one(together: list[_Op], ops: list[_Op], kept: set[int], shortest: float) -> Kernel:
    if together[0].alone:
        return together[0].kernel
    made = {memory: size for op in together for memory, size in op.writes.items()}
    read = {memory: size for op in together for memory, size in op.reads.items() if memory not in made}
    inside = set(map(id, together))
    wanted = kept | {memory for op in ops if id(op) not in inside for memory in op.reads}
    moved = sum(read.values()) + sum(size for memory, size in made.items() if memory in wanted)
    kernel = together[-1].kernel
    count = Count(1, 1, moved, 0, 0, max(shortest, moved / BANDWIDTH))
    return Kernel("fused", kernel.dtype, count, kernel.inside)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _autocast(tensor: Tensor) -> Tensor:
    wanted = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tensor.dtype
    return tensor.to(wanted)


def _size(tensor: Tensor) -> int:
    """Bytes in memory: what is expanded counts once."""
    numbers = math.prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step or n == 0)
    return numbers * tensor.element_size()


def _work(
    func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor], out: Any
) -> tuple[float, float, float, int] | tuple[float, float, float, int, float]:
    """Bytes, FLOPs and the FLOP/s of an operation, how many kernels it is beyond one, and bytes of rows picked out."""
    written = sum(map(_size, made))
    moved: float = sum(map(_size, given)) + written
    if func.namespace == "patchmint":
        work = gpu_kernels.WORK[name](*args, **kwargs)
        return moved + work.again, work.flops, work.rate, work.more, work.gathered
    if name in _GATHERS:
        moved = 2 * written + sum(_size(each) for each in given if not each.is_floating_point())
    elif name.startswith("_embedding_bag"):
        rows, places = given[0], given[1]
        moved = sum(map(_size, given)) + _size(made[0])
        return moved, 0, 1, 0, places.numel() * rows.shape[-1] * rows.element_size()
    elif name in (
        "zeros",
        "ones",
        "full",
        "zeros_like",
        "ones_like",
        "full_like",
        "fill_",
        "zero_",
        "arange",
        "eye",
        "new_zeros",
        "new_full",
    ):
        moved = written
    elif name == "copy_":
        moved = _size(given[1]) + written
    packet = func.overloadpacket
    if name == "_addmm_activation":
        packet = torch.ops.aten.addmm
    if packet not in flop_registry:
        return moved, 0, 1, {"topk": 4, "sort": 4, "native_group_norm": 2, "native_layer_norm": 0}.get(name, 0)
    flops = flop_registry[packet](*args, **kwargs, out_val=out)
    full = given[-1].dtype == torch.float32
    if "convolution" in name:
        return moved, flops, FULL * 4 if full else CONVOLUTIONS, int(args[2] is not None)
    # `baddbmm` copies what is added first
    return moved, flops, FULL if full else PRODUCTS, int(name == "baddbmm")


@contextmanager
def counting() -> Iterator[Counter]:
    """Tensors made in the block are fake, CUDA can be had, and what is asked of it is counted."""
    counter = Counter()
    event = SimpleNamespace(record=lambda *_: None, synchronize=lambda: None, query=lambda: True)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for target, name, value in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (torch._dynamo, "mark_dynamic", lambda *_: None),
            (torch.cuda, "Event", lambda *_, **__: event),
            (torch.cuda, "current_stream", lambda *_: None),
            (Tensor, "pin_memory", lambda self: self),
            (Tensor, "numpy", _numpy),
            (nn.Module, "_apply", _apply),
            (torch, "compile", counter.compiled),
            (compiled, "cuda_graph", counter.graph),
            (nn.functional, "scaled_dot_product_attention", counter.attend),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(counter)
        yield counter


_REAL_NUMPY = Tensor.numpy


def _numpy(tensor: Tensor, *arguments: Any, **named: Any) -> np.ndarray:
    """Zeros for what has no numbers."""
    if isinstance(tensor, FakeTensor):
        return np.zeros(tensor.shape, np.dtype(str(tensor.dtype).removeprefix("torch.")))
    return _REAL_NUMPY(tensor, *arguments, **named)


def on_cuda(make: Callable[[], nn.Module]) -> Any:
    """A model whose weights say that they lie on CUDA, for use within `counting`; its numbers are never made."""
    real = torch.linspace  # Swin reads numbers out of one while it is built
    on_cpu = mock.patch.object(torch, "linspace", lambda *given, **named: real(*given, **named | {"device": "cpu"}))
    with _disable_current_modes(), on_cpu, torch.device("meta"):
        model = make()
    moved = lambda each: torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cuda")  # noqa: E731
    return _apply(model, moved).eval()


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """`nn.Module.to`, for weights that are fake: torch's own wants to swap them in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(change(weight), requires_grad=False)
        part._buffers.update({name: change(each) for name, each in part._buffers.items() if each is not None})
    return module

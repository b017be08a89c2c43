"""Networks compiled for a GPU by `torch.compile`, or captured as CUDA graphs, for a bounded number of input shapes.

A compiled network has fewer kernels and passes over memory between its products. Each shape of input is a program of
its own (`dynamic=False`: kernels for shapes that are known are faster), which takes tens of seconds to make, so shapes
must be few: a batch is padded up to one of a few sizes, and beyond a number of shapes the network runs as it is.

Mode "default", without "max-autotune", which tries out products for minutes, in each worker, where the vendor's are
near the peak; and without CUDA graphs. These save the launching of kernels, a fraction of the time that most networks'
kernels run, while each shape holds memory of its own. What has many short kernels is captured by itself (`Graphed`).
Compiled kernels are kept on disk by torch, so a worker that starts anew has them in seconds.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from patchmint.compute.memory import ran_out

_T = TypeVar("_T")
Answer = TypeVar("Answer", Tensor, list[Tensor])
Tensors = tuple[Tensor, ...]

_MOST_SHAPES = 8
"""`torch._dynamo.config.recompile_limit`, beyond which torch itself gives up."""


def batch_sizes(most: int) -> tuple[int, ...]:
    """Powers of two up to `most`, and that itself: what a batch may be padded to."""
    return (*(2**power for power in range((most - 1).bit_length())), most)


ran: Counter[str] = Counter()
"""Calls that ran compiled, by the name of what ran."""
kernels_ran: Counter[str] = Counter()
"""Calls that ran in a kernel of ours, by its name."""


class _Telling:
    """Something that runs compiled until that fails, for whatever reason (no compiler here, say), and then as it is.

    Whoever asked for it is told on stderr.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._failed = False

    def _tried(self, run: Callable[[], _T], counter: Counter[str] = ran) -> _T | None:
        """Run, and count it; None if that can't be done."""
        try:
            answer = run()
        except torch.AcceleratorError:
            raise  # whoever asks gives the device up
        except Exception as error:
            if ran_out(error):
                raise  # whoever asks takes fewer images
            # Compilers fail in many ways, none of which whoever runs the network need care about.
            self._fail(error)
            return None
        counter[self._name] += 1
        return answer

    def _fail(self, error: Exception) -> None:
        self._failed = True
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        print(f"patchmint: {self._name} could not be compiled and runs as it is: {reason}", file=sys.stderr)


class OwnKernel(_Telling):
    """A kernel of ours for GPUs (`patchmint.compute.kernels`), and what gives the same without it."""

    def run(self, kernel: Callable[[], _T], instead: Callable[[], _T]) -> _T:
        """Run the kernel; once that has failed (no Triton here, no compiler), what there is instead."""
        answer = None if self._failed else self._tried(kernel, kernels_ran)
        return instead() if answer is None else answer


def cuda_graph(run: Callable[[], Tensors]) -> Callable[[], Tensors]:
    """Capture what is handed to a GPU, and give what hands all of it over again at once.

    Args:
        run: reads and writes the same memory each time. The tensors that it gives are overwritten by the next replay,
            of any graph.
    """
    stream = torch.cuda.current_stream()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(stream)
    with torch.cuda.stream(aside):
        for _ in range(2):  # kernels are chosen and compiled, and libraries take their memory
            run()
    stream.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Of this thread only: others pin memory meanwhile, which a capture of all threads forbids.
    with torch.cuda.graph(graph, pool=_graphs_memory(), capture_error_mode="thread_local"):
        answers = run()

    def replay() -> Tensors:
        graph.replay()
        return answers

    return replay


@cache
def _graphs_memory() -> Any:
    """That all graphs compute in, which run one after another."""
    return torch.cuda.graph_pool_handle()


class Graphed(_Telling):
    """A function of tensors as CUDA graphs, for what has many short kernels: the host starts all of them at once.

    Each set of shapes is a graph of its own, captured when it comes for the second time, and holds memory. So shapes
    must be few: tensors are padded up to shapes that the caller chooses, and beyond a number of graphs, or once
    capturing has failed, the function runs as it is.
    """

    def __init__(self, function: Callable[..., Tensors], *, name: str, most_shapes: int = _MOST_SHAPES) -> None:
        """Nothing is captured before it is called.

        Args:
            function: of tensors; gives some that begin with the first one's first axis, the batch. It must not wait
                for the device.
            name: of the network, in messages.
            most_shapes: so many graphs, of the first shapes that come twice.
        """
        super().__init__(name)
        self._function = function
        self._most_shapes = most_shapes
        self._seen: Counter[tuple[tuple[int, ...], ...]] = Counter()
        self._graphs: dict[tuple[tuple[int, ...], ...], tuple[list[Tensor], Callable[[], Tensors]]] = {}

    def __call__(self, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Tensors:
        """Run it.

        Args:
            tensors: to run it on; always of the same types.
            shapes: to which they are padded, at the end of each axis: along the first with copies of the last row,
                along others with zeros, or True. The batch's own answers must not depend on that.
        """
        key = tuple(shapes)
        self._seen[key] += 1
        has_room = len(self._graphs) < self._most_shapes and self._seen[key] > 1
        answers = None
        if not self._failed and (key in self._graphs or has_room):
            answers = self._tried(lambda: self._replayed(tensors, key))
        return self._function(*tensors) if answers is None else answers

    def _tried(self, run: Callable[[], _T], counter: Counter[str] = ran) -> _T | None:
        try:
            return super()._tried(run, counter)
        except torch.AcceleratorError as error:
            if "captur" not in str(error):
                raise
            self._fail(error)  # the device is sound, and only forbids something while a graph is captured
            return None

    def _replayed(self, tensors: Sequence[Tensor], shapes: tuple[tuple[int, ...], ...]) -> Tensors:
        if shapes not in self._graphs:
            made = [each.new_empty(shape) for each, shape in zip(tensors, shapes, strict=True)]
            _fill(made, tensors)
            self._graphs[shapes] = made, cuda_graph(lambda: self._function(*made))
        buffers, replay = self._graphs[shapes]
        _fill(buffers, tensors)
        return tuple(each[: len(tensors[0])].clone() for each in replay())


def _fill(buffers: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    for buffer, tensor in zip(buffers, tensors, strict=True):
        count = len(tensor)
        if buffer.shape[1:] != tensor.shape[1:]:
            buffer.fill_(tensor.dtype == torch.bool)
        buffer[tuple(map(slice, tensor.shape))] = tensor
        if len(buffer) > count:
            buffer[count:] = buffer[count - 1]


class CompiledPart(_Telling):
    """What a network does many times over, compiled once for all places of one kind, and for any batch.

    A whole network would be compiled anew for each size of batch, and takes minutes; its blocks take seconds.

    Example:
        >>> run = CompiledPart(Block.__call__, name="the encoder", axes=[(0,)])
        >>> for block in blocks:
        ...     x = run(block, x)
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        axes: Sequence[tuple[int, ...]],
        backend: str = "inductor",
    ) -> None:
        """Nothing is compiled before it is called.

        Args:
            function: of an object and tensors, the first (B, ...). Objects are of one kind if they have the same
                numbers and shapes of weights.
            name: of the network, in messages.
            axes: of each tensor those whose sizes change from call to call; all others are compiled in.
            backend: of `torch.compile`.
        """
        super().__init__(name)
        self._function = function
        self._axes = axes
        # Whole or not at all: a part in pieces would be slow without a word.
        self._compiled = torch.compile(function, fullgraph=True, backend=backend)

    def __call__(self, part: Any, *tensors: Any) -> Any:
        """Run it; a batch of one as it is, for which torch would compile it once more."""
        answer = None
        if len(tensors[0]) > 1 and not self._failed:
            for tensor, axes in zip(tensors, self._axes, strict=True):
                for axis in axes:
                    torch._dynamo.mark_dynamic(tensor, axis)
            answer = self._tried(lambda: self._compiled(part, *tensors))
        return self._function(part, *tensors) if answer is None else answer


class Compiled(_Telling, Generic[Answer]):
    """A function of a batch of images, compiled; answers are those of the function but for rounding.

    What can't be compiled runs as it is: shapes beyond the bound, and, once compiling has failed, everything.

    Example:
        >>> encode = Compiled(encoder, name="the encoder", sizes=lambda _: batch_sizes(16))
        >>> encode(torch.zeros(5, 3, 1024, 1024, device="cuda")).shape[0]  # as 8 images
        5
    """

    def __init__(
        self,
        function: Callable[[Tensor], Answer],
        *,
        name: str,
        sizes: Callable[[tuple[int, int]], Sequence[int]],
        most_shapes: int = _MOST_SHAPES,
        backend: str = "inductor",
    ) -> None:
        """Nothing is compiled before it is called.

        Args:
            function: takes (B, C, H, W), and gives a tensor or a list of tensors that begin with B. Always called in
                the same number format, gradient mode and memory format: a change of those compiles anew.
            name: what to call it in messages.
            sizes: for (H, W) the batch sizes that there may be, rising. A batch for which all are too small, or which
                would be padded to more than twice its size, runs as it is.
            most_shapes: so many pairs of batch size and (H, W) are compiled, the first that come.
            backend: of `torch.compile`.
        """
        super().__init__(name)
        self._function: Callable[[Tensor], Answer] = function
        self._sizes = sizes
        self._most_shapes = most_shapes
        self._backend = backend
        self._compiled: dict[tuple[int, ...], Callable[[Tensor], Answer]] = {}

    def __call__(self, batch: Tensor) -> Answer:
        """Run it on a batch (B, C, H, W)."""
        count = batch.shape[0]
        size = self._size(count, (batch.shape[2], batch.shape[3]))
        shape = (size, *batch.shape[1:])
        if not size or self._failed or (shape not in self._compiled and len(self._compiled) >= self._most_shapes):
            return self._function(batch)
        # Repeated rather than filled up with zeros, on which some norms leave float16's range.
        padded = torch.cat([batch] + [batch[-1:]] * (size - count)) if size > count else batch
        answer = self._tried(lambda: self._run(padded, shape))
        if answer is None:
            return self._function(batch)
        return answer if size == count else _cut(answer, count)

    def _size(self, count: int, sides: tuple[int, int]) -> int:
        """The batch size that so many images get; 0 = none."""
        size = next((size for size in self._sizes(sides) if size >= count), 0)
        return size if size <= 2 * count else 0

    def _run(self, padded: Tensor, shape: tuple[int, ...]) -> Answer:
        if shape not in self._compiled:
            # Whole or not at all: a network in pieces would be slow without a word.
            made = torch.compile(self._function, fullgraph=True, dynamic=False, backend=self._backend)
            self._compiled[shape] = made
        return self._compiled[shape](padded)


def _cut(answer: Answer, count: int) -> Answer:
    if isinstance(answer, Tensor):
        return answer[:count]
    return [each[:count] for each in answer]

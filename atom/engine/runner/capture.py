"""Recording what the device is told, to tell it again with one call.

`Recorder` is all that the graphs know of CUDA. Tests put another one in its place that re-executes
operations on CPU tensors, so that padding, static buffers and the choice of graphs are tested
without a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Graph(Protocol):
    """What was recorded. `replay` enqueues it on the current stream, over the same memory."""

    def replay(self) -> None: ...


class Recorder(Protocol):
    """Records graphs that share one memory pool, and are therefore replayed one at a time.

    What is recorded does not run. Tensors made while recording belong to the pool: their memory is
    given to what is recorded later as soon as nothing refers to them, which is right as long as
    replays keep the order of recording within a step. What a replay is read for must be kept by
    `alias`, or by hand.
    """

    def session(self) -> AbstractContextManager[None]:
        """Recording and its warm-up runs happen inside."""
        ...

    def record(self, body: Callable[[], T]) -> tuple[Graph, T]:
        """All that `body` launches, as one graph."""
        ...

    def begin(self) -> None:
        """Record from here to `end`."""
        ...

    def end(self) -> Graph: ...

    def alias(self, tensor: Tensor) -> Tensor:
        """The same memory, without holding on to it."""
        ...

    def used_bytes(self) -> int:
        """Of the device, by everyone: differences tell what graphs take."""
        ...


class _Memory:
    """Device memory in the form that `torch.as_tensor` takes without a copy."""

    def __init__(self, pointer: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "strides": None,
            "version": 3,
        }


class CudaRecorder:
    """CUDA or HIP graphs of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graph: torch.cuda.CUDAGraph | None = None

    @contextmanager
    def session(self) -> Iterator[None]:
        # A collection in mid-recording could free tensors of the device, which would be recorded
        # as a fault. Collected here once: per graph, as torch's own context does, takes seconds.
        gc.collect()
        enabled = gc.isenabled()
        gc.disable()
        torch.cuda.synchronize(self._device)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()  # what warm-up runs took on this stream serves no other one
            if enabled:
                gc.enable()

    def record(self, body: Callable[[], T]) -> tuple[Graph, T]:
        self.begin()
        try:
            result = body()
        except BaseException:
            self._abandon()
            raise
        return self.end(), result

    def begin(self) -> None:
        assert self._graph is None, "recording already"
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: NCCL's watchdog, another thread, may query events meanwhile.
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end(self) -> Graph:
        assert self._graph is not None, "not recording"
        graph, self._graph = self._graph, None
        graph.capture_end()
        return graph

    def _abandon(self) -> None:
        """Leave the stream usable after a failure; the failure itself is what gets reported."""
        if self._graph is not None:
            with suppress(RuntimeError):
                self._graph.capture_end()
            self._graph = None

    def alias(self, tensor: Tensor) -> Tensor:
        spanned = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        memory = _Memory(tensor.data_ptr(), spanned * tensor.element_size())
        flat = torch.as_tensor(memory, device=tensor.device).view(tensor.dtype)
        return flat.as_strided(tensor.shape, tensor.stride())

    def used_bytes(self) -> int:
        torch.cuda.synchronize(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free

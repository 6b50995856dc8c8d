"""What goes to the device and comes back in a decode step that is one graph.

A graph reads and writes fixed addresses, and the host may be two steps ahead of the device. Why
nothing is overwritten too early:

- The packet on the device is one buffer. The copy into it is enqueued on the stream that replays
  graphs, so it starts when the graph before, its last reader, has ended.
- The staging buffer that this copy reads, and the buffer in which tokens land, belong to a slot.
  `SlotRing.take` gives a slot out again only after the event that follows all of its copies.
- A graph writes its tokens twice: into the token pool, for the next step, and into the slot's row
  of `tokens`, for the side stream that carries them to the host while the next graph runs. No other
  step writes that row until the slot is taken again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atom.engine.plan import StepOutput

NUM_SLOTS = 4  # two steps are in flight under overlap
_ALIGN = 16


class HostPacket(NamedTuple):
    """One step of `size` sequences, as the host writes it."""

    slot: NDArray[np.int64]  # [1] row of `SlotRing.tokens`
    rows: NDArray[np.int32]  # [size] batch rows; -1: padding
    computed: NDArray[np.int32]  # [size] tokens whose KV exists
    new_blocks: NDArray[np.int32]  # [size] the block that begins with this step's token; -1: none
    new_window_blocks: NDArray[np.int32]  # the same of the window table


class DevicePacket(NamedTuple):
    """The same, as the graph reads it."""

    slot: Tensor
    rows: Tensor
    computed: Tensor
    new_blocks: Tensor
    new_window_blocks: Tensor


_FIELDS = ((np.int64, torch.int64),) + ((np.int32, torch.int32),) * 4


def _ranges(size: int) -> list[tuple[int, int]]:
    """First byte and end of each field."""
    ranges, at = [], 0
    for count, (dtype, _) in zip((1, size, size, size, size), _FIELDS, strict=True):
        end = at + count * np.dtype(dtype).itemsize
        ranges.append((at, end))
        at = -(-end // _ALIGN) * _ALIGN
    return ranges


def packet_bytes(size: int) -> int:
    return _ranges(size)[-1][1]


def host_packet(buffer: NDArray[np.uint8], size: int) -> HostPacket:
    parts: list[Any] = [
        buffer[start:end].view(dtype)
        for (start, end), (dtype, _) in zip(_ranges(size), _FIELDS, strict=True)
    ]
    return HostPacket(*parts)


def device_packet(buffer: Tensor, size: int) -> DevicePacket:
    return DevicePacket(
        *(
            buffer[start:end].view(dtype)
            for (start, end), (_, dtype) in zip(_ranges(size), _FIELDS, strict=True)
        )
    )


class _Now:
    """An event on CPU, where everything has happened when it is enqueued."""

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Views(NamedTuple):
    """A slot's buffers cut to one size."""

    host: HostPacket
    staged: Tensor  # [bytes] uint8, pinned
    target: Tensor  # [bytes] uint8 on the device
    landing: Tensor  # [size] int64, pinned
    tokens: Tensor  # [size] int64 on the device


class Slot:
    """The buffers of one step in flight."""

    def __init__(self, index: int, sizes: Sequence[int], packet: Tensor, tokens: Tensor) -> None:
        cuda = packet.device.type != "cpu"
        self.index = index
        staging = torch.zeros(packet.numel(), dtype=torch.uint8, pin_memory=cuda)
        landing = torch.zeros(tokens.shape[1], dtype=torch.int64, pin_memory=cuda)
        self.landed = landing.numpy()
        event: Any = torch.cuda.Event if cuda else _Now
        self.computed = event()  # the graph has written its tokens
        self.done = event()  # the device has no more use of this slot
        self.step: GraphStep | None = None  # whose tokens are in `landed`, or will be
        self.views = {
            size: _Views(
                host_packet(staging.numpy(), size),
                staging[: packet_bytes(size)],
                packet[: packet_bytes(size)],
                landing[:size],
                tokens[index, :size],
            )
            for size in sizes
        }

    def release(self) -> None:
        """Wait until the device is through with it, and let its step have its tokens."""
        if self.step is not None:
            self.step.fetch()
            self.step = None
        self.done.synchronize()


class SlotRing:
    """`packet` and `tokens` [NUM_SLOTS, largest size] int64 are what graphs are recorded over."""

    def __init__(
        self, sizes: Sequence[int], device: torch.device, copies: torch.cuda.Stream | None
    ) -> None:
        largest = max(sizes)
        self._copies = copies
        self.packet = torch.zeros(packet_bytes(largest), dtype=torch.uint8, device=device)
        self.tokens = torch.zeros((NUM_SLOTS, largest), dtype=torch.int64, device=device)
        self._slots = [Slot(i, sizes, self.packet, self.tokens) for i in range(NUM_SLOTS)]
        self._next = 0

    def take(self) -> Slot:
        """The slot of the oldest step. Waits only for a device that is `NUM_SLOTS` steps behind."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % NUM_SLOTS
        slot.release()
        return slot

    def send(self, slot: Slot, size: int) -> None:
        """Enqueue the copy of the slot's packet to where the graph reads it."""
        views = slot.views[size]
        views.target.copy_(views.staged, non_blocking=True)
        if self._copies is not None:
            slot.done.record()  # of the copy at least; `deliver` and `hold` move it on

    def hold(self, slot: Slot) -> None:
        """Keep the slot until what the side stream was told so far has been done."""
        if self._copies is not None:
            slot.done.record(self._copies)

    def deliver(self, slot: Slot, size: int, count: int, tokens: Tensor | None = None) -> GraphStep:
        """Enqueue the copy of the graph's tokens to the host, or of `tokens` [count] int64 in their
        place, beside what comes next."""
        landing, source = slot.views[size].landing, slot.views[size].tokens
        if tokens is not None:
            landing, source = landing[:count], tokens
        if self._copies is None:
            landing.copy_(source)
        else:
            slot.computed.record()
            self._copies.wait_event(slot.computed)
            with torch.cuda.stream(self._copies):
                landing.copy_(source, non_blocking=True)
            slot.done.record(self._copies)
            if tokens is not None:
                tokens.record_stream(self._copies)
        slot.step = GraphStep(slot, count)
        return slot.step


class GraphStep:
    """A launched decode step of tokens alone. They leave the slot when they are asked for, or when
    the slot is needed."""

    __slots__ = ("_count", "_slot", "_tokens")

    def __init__(self, slot: Slot, count: int) -> None:
        self._slot = slot
        self._count = count
        self._tokens: NDArray[np.int32] | None = None

    def fetch(self) -> NDArray[np.int32]:
        if self._tokens is None:
            self._slot.done.synchronize()
            self._tokens = self._slot.landed[: self._count].astype(np.int32)
        return self._tokens

    def wait(self) -> StepOutput:
        return StepOutput(self.fetch(), None, None)

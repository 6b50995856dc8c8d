"""A model's forward as a recorded list of native operations: the CPU's counterpart of a GPU graph.

The model runs once over tensors of the largest sizes. Nothing is computed: every native operation
is written down with its addresses. A run is then one call that walks the list on all threads at
once, with the step's own sizes and inputs, and no Python in between. A model that touches data
by any other means cannot be recorded; `record` then says what it met.
"""

from __future__ import annotations

import ctypes
import dataclasses
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from atom.ops.contracts import AttentionMetadata
from atom.ops.cpu import native
from atom.ops.cpu.arena import Arena
from atom.ops.cpu.elementwise import gather_rows

# `SizeKind` in native/pool.h.
_TOKENS, _SEQS, _LOGITS = 1, 2, 3
# Order of `Dyn::input`.
_INPUTS = (
    "input_ids",
    "positions",
    "slot_mapping",
    "block_table",
    "cu_seqlens_q",
    "seq_lens",
    "logits_indices",
    "window_slots",
    "window_table",
)
Opener = Callable[[str], AbstractContextManager[Any]]
# Dyn: eight sizes, twelve addresses.
_DYN = struct.Struct("=20q")
_ROWS_OFFSET = 8 * (8 + _INPUTS.index("logits_indices"))


class CannotRecord(Exception):
    """Why a model has no recorded program; it runs operation by operation instead."""


class _NothingButViews(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses every torch operation that would read or write data."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        if not func.is_view:
            raise CannotRecord(f"{func} is not a native operation")
        return func(*args, **(kwargs or {}))


class _Recording:
    """What `native` writes to while the model runs over dummies."""

    def __init__(
        self, sizes: dict[int, int], inputs: dict[str, Tensor], scope_of: Callable[[], str]
    ) -> None:
        self.nodes: list[tuple[int, bytes]] = []
        self.scopes: list[str] = []  # of each
        self._scope_of = scope_of
        self.arena = Arena()
        self._sizes = sizes
        self._numbers = {t.data_ptr(): _INPUTS.index(name) for name, t in inputs.items()}

    def add(self, op: int, args: bytes) -> None:
        self.nodes.append((op, args))
        self.scopes.append(self._scope_of())

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.arena.empty(shape, dtype)

    def rows(self, count: int) -> tuple[int, int]:
        kind = self._sizes.get(count)
        if kind is None:
            raise CannotRecord(f"{count} rows are none of the step's sizes")
        return 1, kind

    def address(self, tensor: Tensor) -> int:
        number = self._numbers.get(tensor.data_ptr())
        if number is None:
            raise CannotRecord("an operation reads a step input that was computed, not given")
        return number

    def table_stride(self, table: Tensor) -> int:
        return -1


class Program:
    """Runs steps of up to `max_tokens` tokens and `max_seqs` sequences; see `run`."""

    def __init__(
        self, recording: _Recording, head: int, logits: Tensor, max_tokens: int, max_seqs: int
    ) -> None:
        """`head`: the entry from which on hidden states become logits."""
        lib = native.load()
        self.max_tokens, self.max_seqs = max_tokens, max_seqs
        self.num_nodes = len(recording.nodes)
        self._head = head
        self._logits = logits
        self._arena = recording.arena  # what the addresses point into
        self._args = [ctypes.create_string_buffer(args, len(args)) for _, args in recording.nodes]
        size = self._node_bytes = lib.atom_node_bytes()
        self._nodes = ctypes.create_string_buffer(size * self.num_nodes)
        base = ctypes.addressof(self._nodes)
        for i, (op, _) in enumerate(recording.nodes):
            lib.atom_make_node(base + i * size, op, ctypes.addressof(self._args[i]))
        self._base = base
        self._run = lib.atom_run
        self._dyn = ctypes.create_string_buffer(_DYN.size)
        self._ops = [op for op, _ in recording.nodes]
        self.scopes = tuple(recording.scopes)  # of each entry, "" for none
        self._times: Any = None
        self._marked: Callable[[int, int], None] | None = None
        self._every_row = torch.arange(max_tokens, dtype=torch.int64)

    @classmethod
    def record(
        cls,
        forward: Callable[[Tensor, Tensor, AttentionMetadata], Tensor],
        compute_logits: Callable[[Tensor], Tensor],
        *,
        max_tokens: int,
        max_seqs: int,
        scope_of: Callable[[], str] = str,
    ) -> Program:
        """Record `compute_logits` of sampled rows of `forward(input_ids, positions, attention)`.

        The model's caches must be bound; caches and weights must stay where they are for as long
        as the program is used. `scope_of` says, while the model runs, what computes: see `mark`.
        Raises `CannotRecord`.
        """
        # Three sizes that differ, so that each tensor's rows tell which of them it follows.
        tokens, logits_rows = max_tokens, max_seqs + (max_seqs == max_tokens)
        seqs = max(tokens, logits_rows) + 1
        inputs = _dummies(tokens, seqs, logits_rows)
        sizes = {tokens: _TOKENS, seqs: _SEQS, logits_rows: _LOGITS}
        recording = _Recording(sizes, inputs, scope_of)
        meta = AttentionMetadata(
            num_tokens=tokens,
            num_seqs=seqs,
            max_query_len=1,
            max_seq_len=1,
            slot_mapping=inputs["slot_mapping"],
            block_table=inputs["block_table"],
            cu_seqlens_q=inputs["cu_seqlens_q"],
            seq_lens=inputs["seq_lens"],
        )
        meta.window = dataclasses.replace(
            meta, slot_mapping=inputs["window_slots"], block_table=inputs["window_table"]
        )
        only_native: Any = _NothingButViews()  # type: ignore[no-untyped-call]
        with torch.inference_mode(), native.recording(recording), only_native:
            hidden = forward(inputs["input_ids"], inputs["positions"], meta)
            head = len(recording.nodes)  # `hidden` lives on, so the head may run again
            logits = compute_logits(gather_rows(hidden, inputs["logits_indices"]))
        return cls(recording, head, logits, max_tokens, max_seqs)

    def fits(self, num_tokens: int, num_seqs: int) -> bool:
        return num_tokens <= self.max_tokens and num_seqs <= self.max_seqs

    def run(
        self,
        input_ids: Tensor,
        positions: Tensor,
        meta: AttentionMetadata,
        logits_indices: Tensor | None,
    ) -> Tensor:
        """One step. `logits_indices` [L] int64: rows of the step that are sampled, None: all.

        Returns logits [L, vocab] float32, the caller's until the next run.
        """
        index = self._bind(input_ids, positions, meta, logits_indices)
        self._walk(0, self.num_nodes)
        return self._logits[: index.shape[0]]

    def run_hidden(self, input_ids: Tensor, positions: Tensor, meta: AttentionMetadata) -> None:
        """One step up to its hidden states; `logits` goes on from there, as often as wanted."""
        self._bind(input_ids, positions, meta, None)
        self._walk(0, self._head)

    def logits(self, rows: Tensor | None) -> Tensor:
        """Of `rows` [L] int64 of the last run, at most `max_seqs`; None: all. See `run`."""
        rows = self._every_row[: self._num_tokens] if rows is None else rows
        count = rows.shape[0]
        assert count <= self.max_seqs, count
        struct.pack_into("=q", self._dyn, 8 * _LOGITS, count)
        struct.pack_into("=q", self._dyn, _ROWS_OFFSET, rows.data_ptr())
        self._walk(self._head, self.num_nodes)
        return self._logits[:count]

    def _bind(
        self,
        input_ids: Tensor,
        positions: Tensor,
        meta: AttentionMetadata,
        logits_indices: Tensor | None,
    ) -> Tensor:
        """Enter a step's sizes and addresses; returns the rows that have logits."""
        tokens = self._num_tokens = meta.num_tokens
        assert self.fits(tokens, meta.num_seqs)
        index = self._every_row[:tokens] if logits_indices is None else logits_indices
        window = meta if meta.window is None else meta.window
        assert window.block_table.stride(0) == meta.block_table.stride(0)
        _DYN.pack_into(
            self._dyn,
            0,
            *(1, tokens, meta.num_seqs, index.shape[0], meta.block_table.stride(0), 0, 0, 0),
            input_ids.data_ptr(),
            positions.data_ptr(),
            meta.slot_mapping.data_ptr(),
            meta.block_table.data_ptr(),
            meta.cu_seqlens_q.data_ptr(),
            meta.seq_lens.data_ptr(),
            index.data_ptr(),
            window.slot_mapping.data_ptr(),
            window.block_table.data_ptr(),
            *(0, 0, 0),
        )
        return index

    def _walk(self, first: int, last: int) -> None:
        """Run the entries from `first` up to `last`."""
        if self._marked is not None:
            return self._marked(first, last)
        times = self._times
        if times is not None:
            times = ctypes.byref(times, first * ctypes.sizeof(ctypes.c_int64))
        self._run(self._base + first * self._node_bytes, last - first, self._dyn, times)

    def mark(self, scope: Opener | None, op: Opener | None) -> None:
        """From now on run entry by entry, the neighbours of one scope within `scope(name)` and each
        within `op(name)`, for a profiler to see: it sees nothing of a run at once. None ends it."""
        self._marked = None
        if scope is not None and op is not None:
            names = native.op_names()
            entries = [
                (where, f"cpu::{names[kind]}", self._base + i * self._node_bytes)
                for i, (where, kind) in enumerate(zip(self.scopes, self._ops, strict=True))
            ]
            self._marked = partial(self._one_by_one, entries, scope, op)

    def _one_by_one(
        self, entries: list[tuple[str, str, int]], scope: Opener, op: Opener, first: int, last: int
    ) -> None:
        """`entries`: scope, name and address of each."""
        for name, run in groupby(entries[first:last], key=itemgetter(0)):
            with scope(name):
                for _, op_name, address in run:
                    with op(op_name):
                        self._run(address, 1, self._dyn, None)

    def times(self, run: Callable[[], object]) -> list[tuple[str, int]]:
        """Operation and nanoseconds of each entry in the last of the runs that `run` makes."""
        names = native.op_names()
        self._times = (ctypes.c_int64 * self.num_nodes)()
        try:
            run()
            return [(names[op], ns) for op, ns in zip(self._ops, self._times, strict=True)]
        finally:
            self._times = None


def _dummies(tokens: int, seqs: int, logits: int) -> dict[str, Tensor]:
    """Inputs of the recording: only their addresses and sizes matter."""

    def wide(count: int) -> Tensor:
        return torch.from_numpy(np.empty(count, np.int64))

    def narrow(*shape: int) -> Tensor:
        return torch.from_numpy(np.empty(shape, np.int32))

    return {
        "input_ids": wide(tokens),
        "positions": wide(tokens),
        "slot_mapping": wide(tokens),
        "block_table": narrow(seqs, 2),
        "cu_seqlens_q": narrow(seqs + 1),
        "seq_lens": narrow(seqs),
        "logits_indices": wide(logits),
        "window_slots": wide(tokens),
        "window_table": narrow(seqs, 2),
    }

"""Where the time of some steps went: items whose times sum to the steps' times, to the nanosecond.

A step's time is the span of its GPU work. It is cut into items:

    span = own times of kernels + idle - overlap

- own: a kernel's time less what earlier kernels of its stream still cover. Kernels of one stream
  overlap where they are launched early; the wait within the later one is not its work.
- idle: nothing runs. It belongs to the module of the kernel that comes next, as "host" for as long
  as that kernel's launch had not even been called, as "gap" for the rest.
- overlap: what several streams do at once, taken off again.

It knows one rank's steps; what differs between two traces is `atom.trace.diff`'s.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atom.trace.types import I64, RankModel, Step

F64 = NDArray[np.float64]
B1 = NDArray[np.bool_]


class Kind(enum.IntEnum):
    """Of an `Item`."""

    KERNEL = 0
    HOST = 1  # idle: the next kernel's launch had not been called
    GAP = 2  # idle: it had been
    OVERLAP = 3  # negative: what streams did at once


class Item(NamedTuple):
    """Something that takes time in a step. Kernels of one name in one module are one item."""

    kind: Kind
    module: str  # without the layer's number; "" unknown
    kernel: str  # as in the file; "" unless a kernel


@dataclass(frozen=True, slots=True)
class Attribution:
    """Of [S] steps to [K] items. `ns.sum(axis=1)` is `span` exactly."""

    items: list[Item]
    ns: I64  # [S, K]
    calls: I64  # [S, K] kernels, or gaps
    span: I64  # [S] first start to last end
    busy: I64  # [S] union of all kernels
    sums: I64  # [S] sum of all durations
    by_layer: I64  # [K, L + 1] over all steps; layer i at i + 1, outside of layers at 0
    layer_ns: I64  # [S, L + 1] own times of kernels by layer
    position: F64  # [K] mean place of the item's kernels within their module's run of kernels

    def __len__(self) -> int:
        return len(self.span)


def attribute(
    model: RankModel, steps: Sequence[Step], rename: Callable[[str], str] = lambda name: name
) -> Attribution:
    """The time of `steps`, which have GPU work, by item. `rename` maps modules' names."""
    assert steps
    assert all(len(step.rows) for step in steps)
    table = _Rows.of(model, steps)
    modules, module_of = _modules(model, table.rows, rename)
    own, union_of_streams = _own(table)
    gaps, host, busy = _idle(table)
    names = model.trace.gpu.name[table.rows].astype(np.int64)
    layers = model.layer[table.rows].astype(np.int64) + 1

    items: list[Item] = []
    parts: list[tuple[I64, I64, I64]] = []  # item of a row (-1: none), ns, layer
    width = int(names.max()) + 1
    kernels, inverse = np.unique(module_of * width + names, return_inverse=True)
    for code in kernels.tolist():
        name = model.trace.strings[code % width]
        items.append(Item(Kind.KERNEL, modules[code // width], name))
    parts.append((inverse.astype(np.int64), own, layers))
    for kind, wait in ((Kind.HOST, host), (Kind.GAP, gaps - host)):
        waits = np.flatnonzero(wait)
        found, inverse = np.unique(module_of[waits], return_inverse=True)
        number = np.full(len(wait), -1, dtype=np.int64)
        number[waits] = inverse + len(items)
        items += [Item(kind, modules[m], "") for m in found.tolist()]
        parts.append((number, wait, layers))
    items.append(Item(Kind.OVERLAP, "", ""))
    ns, calls, by_layer = _matrices(table, parts, len(items), model.num_layers)
    ns[:, -1] = busy - union_of_streams
    by_layer[-1, 0] = ns[:, -1].sum()
    return Attribution(
        items=items,
        ns=ns,
        calls=calls,
        span=table.last_end() - table.first_start(),
        busy=busy,
        sums=_per_step(table, table.end - table.start),
        by_layer=by_layer,
        layer_ns=_layer_ns(table, layers, own, by_layer.shape[1]),
        position=_positions(table, module_of, parts[0][0], len(kernels), len(items)),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """The GPU rows of all steps, by step and start; times are since the step's first start."""

    rows: I64
    step: I64  # 0 .. S - 1
    start: I64
    end: I64
    stream: I64  # device and stream as one number
    launch: I64  # -1 unknown
    first: I64  # [S] index of the step's first row
    origin: I64  # [S]

    @staticmethod
    def of(model: RankModel, steps: Sequence[Step]) -> _Rows:
        gpu = model.trace.gpu
        rows = np.concatenate([step.rows for step in steps])
        step = np.repeat(np.arange(len(steps)), [len(s.rows) for s in steps])
        order = np.lexsort((rows, gpu.ts[rows], step))
        rows, step = rows[order], step[order]
        first = np.flatnonzero(np.diff(step, prepend=-1))
        origin = gpu.ts[rows[first]]
        base = origin[step]
        launch = model.launch[rows]
        return _Rows(
            rows=rows,
            step=step,
            start=gpu.ts[rows] - base,
            end=gpu.ts[rows] + gpu.dur[rows] - base,
            stream=gpu.device[rows].astype(np.int64) * (1 << 32) + gpu.stream[rows],
            # A launch before the step began is as good as one at its begin.
            launch=np.where(launch < 0, -1, np.maximum(launch - base, 0)),
            first=first,
            origin=origin,
        )

    def first_start(self) -> I64:
        return np.zeros(len(self.first), dtype=np.int64)

    def last_end(self) -> I64:
        return np.maximum.reduceat(self.end, self.first)


def _own(table: _Rows) -> tuple[I64, I64]:
    """Each row's own time within its stream, and per step their sum: the streams' unions."""
    order = np.lexsort((np.arange(len(table.rows)), table.stream, table.step))
    step, stream = table.step[order], table.stream[order]
    fresh = np.diff(step, prepend=-1) != 0
    fresh[1:] |= stream[1:] != stream[:-1]
    covered = _end_before(table.end[order], np.cumsum(fresh) - 1)
    own = np.empty(len(order), dtype=np.int64)
    own[order] = np.maximum(table.end[order] - np.maximum(table.start[order], covered), 0)
    return own, _per_step(table, own)


def _idle(table: _Rows) -> tuple[I64, I64, I64]:
    """Idle time before each row; how much of it the host had not called the launch; busy [S]."""
    before = _end_before(table.end, table.step)
    gaps = np.maximum(table.start - before, 0)
    host = np.clip(np.where(table.launch < 0, 0, table.launch - before), 0, gaps)
    return gaps, host, table.last_end() - _per_step(table, gaps)


def _end_before(end: I64, segment: I64) -> I64:
    """The latest end of the earlier rows of the same segment; 0 before the first.

    One running maximum serves all segments: each is lifted above all that come before it.
    """
    lift = segment * (int(end.max(initial=0)) + 1)
    running = np.maximum.accumulate(end + lift)
    before = np.concatenate((np.zeros(1, dtype=np.int64), running[:-1]))
    return np.maximum(before - lift, 0)


def _per_step(table: _Rows, values: I64) -> I64:
    total: I64 = np.add.reduceat(values, table.first)
    return total


def _modules(model: RankModel, rows: I64, rename: Callable[[str], str]) -> tuple[list[str], I64]:
    """The renamed modules, and each row's index among them."""
    names = [rename(name) if name else "" for name in (*model.modules, "")]
    known = {name: i for i, name in enumerate(dict.fromkeys(names))}
    index = np.array([known[name] for name in names], dtype=np.int64)
    return list(known), index[model.module[rows].astype(np.int64)]  # -1 is the last: ""


def _matrices(
    table: _Rows, parts: Sequence[tuple[I64, I64, I64]], num_items: int, num_layers: int
) -> tuple[I64, I64, I64]:
    """[S, K] ns and calls, [K, L + 1] ns. Sums below 2**53 ns (104 days) are exact in float64."""
    num_steps = len(table.first)
    ns = np.zeros(num_steps * num_items)
    calls = np.zeros(num_steps * num_items, dtype=np.int64)
    deep = max(num_layers, int(max(layers.max() for _, _, layers in parts))) + 1
    by_layer = np.zeros(num_items * deep)
    for number, values, layers in parts:
        rows = np.flatnonzero(number >= 0)
        cell = table.step[rows] * num_items + number[rows]
        ns += np.bincount(cell, weights=values[rows], minlength=len(ns))
        calls += np.bincount(cell, minlength=len(calls))
        cell = number[rows] * deep + layers[rows]
        by_layer += np.bincount(cell, weights=values[rows], minlength=len(by_layer))
    shape = (num_steps, num_items)
    whole = ns.astype(np.int64).reshape(shape)
    return whole, calls.reshape(shape), by_layer.astype(np.int64).reshape(num_items, deep)


def _layer_ns(table: _Rows, layers: I64, own: I64, width: int) -> I64:
    cell = table.step * width + layers
    sums = np.bincount(cell, weights=own, minlength=len(table.first) * width)
    return sums.astype(np.int64).reshape(-1, width)


def _positions(table: _Rows, module_of: I64, item: I64, num_kernels: int, num_items: int) -> F64:
    """Mean number of a kernel within its run: rows one after another of one module."""
    fresh: B1 = np.diff(module_of, prepend=-1) != 0
    fresh |= np.diff(table.step, prepend=-1) != 0
    starts = np.flatnonzero(fresh)
    place = np.arange(len(module_of)) - starts[np.cumsum(fresh) - 1]
    count = np.bincount(item, minlength=num_kernels)
    position = np.zeros(num_items)
    position[:num_kernels] = np.bincount(item, weights=place, minlength=num_kernels) / count
    return position

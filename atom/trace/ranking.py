"""What takes most time, by kernel, module, layer, class or operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atom.trace import intervals
from atom.trace.kernels import kernel_class, short_names
from atom.trace.types import I64, NONE, RankModel

Keys = tuple[I64, list[str]]  # of each row a number, and what the numbers stand for
BY = ("kernel", "module", "layer", "class", "op")
UNKNOWN = {"module": "(no module found)", "layer": "(outside of layers)", "op": "(no operator)"}


@dataclass(frozen=True, slots=True)
class TopRow:
    """One kernel, module, ... over the chosen steps. ns."""

    name: str  # for people
    full_name: str  # a kernel's name as in the file, else as `name`
    kernel_class: str  # of most of its time
    calls: int  # rows of GPU work
    own_ns: int  # what no earlier kernel covers: rows of a table add up to the busy time
    share: float  # own time of the busy time, 0 to 1
    total_ns: int  # sum of durations; above the own time where kernels overlap
    mean_ns: float  # duration
    min_ns: int
    max_ns: int
    where: str  # of a kernel: its module with most time; of others: their kernel with most time
    where_share: float  # of its time


@dataclass(frozen=True, slots=True)
class Top:
    """Rows by own time."""

    by: str
    kind: str  # of steps; "" all work but captures and warm-ups
    steps: int
    calls: int
    total_ns: int  # sum of durations
    busy_ns: int  # union of the work, of each device: the sum of own times
    names: int  # how many rows there are, whatever of them is kept in `rows`
    rows: tuple[TopRow, ...]


def selected(model: RankModel, kind: str = "") -> tuple[I64, int]:
    """Rows of GPU work in the steps of a kind, and how many steps: without a kind all work, also
    that of no step, but captures and warm-ups."""
    steps = model.steps
    chosen = np.array([s.counts and kind in ("", s.kind) for s in steps] + [kind == ""], bool)
    rows = np.flatnonzero(chosen[model.step])  # -1, no step, is the last entry
    return rows, sum(bool(chosen[s.index]) for s in steps)


def top(model: RankModel, by: str = "kernel", kind: str = "") -> Top:
    """Everything that the selection did, by own time; ties by name."""
    return tops(model, [by], kind)[by]


def tops(model: RankModel, bys: Sequence[str], kind: str = "") -> dict[str, Top]:
    """One selection ranked in several ways."""
    rows, steps = selected(model, kind)
    own = own_times(model, rows)
    keys = {by: _keys(model, rows, by) for by in {*bys, "kernel", "module", "class"}}
    return {by: _rank(model, by, kind, rows, steps, own, keys) for by in bys}


def _rank(
    model: RankModel, by: str, kind: str, rows: I64, steps: int, own: I64, keys: Mapping[str, Keys]
) -> Top:
    dur = model.trace.gpu.dur[rows]
    key, names = keys[by]
    count = len(names)
    own_of, total = _sums(key, own, count), _sums(key, dur, count)
    calls = np.bincount(key, minlength=count)
    low, high = np.full(count, np.iinfo(np.int64).max), np.zeros(count, np.int64)
    np.minimum.at(low, key, dur)
    np.maximum.at(high, key, dur)
    where = _most(keys[by], keys["module" if by == "kernel" else "kernel"], own)
    classes = _most(keys[by], keys["class"], own)
    short = short_names(keys["kernel"][1])
    busy = int(own.sum())
    found = tuple(
        TopRow(
            name=short[names[i]] if by == "kernel" else names[i],
            full_name=names[i],
            kernel_class=classes[i][0],
            calls=int(calls[i]),
            own_ns=int(own_of[i]),
            share=int(own_of[i]) / busy if busy else 0.0,
            total_ns=int(total[i]),
            mean_ns=int(total[i]) / int(calls[i]),
            min_ns=int(low[i]),
            max_ns=int(high[i]),
            where=where[i][0] if by == "kernel" else short[where[i][0]],
            where_share=where[i][1],
        )
        for i in sorted(range(count), key=lambda i: (-int(own_of[i]), -int(total[i]), names[i]))
    )
    return Top(by, kind, steps, len(rows), int(dur.sum()), busy, len(found), found)


def own_times(model: RankModel, rows: I64) -> I64:
    """Own time of each of these rows among them, on its device; parallel to `rows`."""
    gpu = model.trace.gpu
    own = np.zeros(len(rows), np.int64)
    for device in np.unique(gpu.device[rows]):
        chosen = gpu.device[rows] == device
        own[chosen] = intervals.own_lengths(gpu.ts[rows[chosen]], gpu.end[rows[chosen]])
    return own


def _keys(model: RankModel, rows: I64, by: str) -> Keys:
    """A number for each row, and what the numbers stand for."""
    assert by in BY, by
    names = model.trace.gpu.name[rows]
    if by == "kernel":
        return _text(model, names, str)
    if by == "class":
        return _text(model, names, kernel_class)
    if by == "op":
        return _text(model, model.op[rows], str, UNKNOWN["op"])
    unknown = UNKNOWN[by]
    if by == "module":
        return _named(model.module[rows], lambda i: model.modules[i] if i >= 0 else unknown)
    return _named(model.layer[rows], lambda i: f"layer {i}" if i >= 0 else unknown)


def _text(
    model: RankModel,
    ids: np.ndarray[tuple[int], np.dtype[np.int32]],
    of: Callable[[str], str],
    unknown: str = "",
) -> Keys:
    strings = model.trace.strings
    return _named(ids, lambda i: of(strings[i]) if i >= 0 else unknown)


def _named(ids: np.ndarray[tuple[int], np.dtype[np.int32]], name: Callable[[int], str]) -> Keys:
    seen = np.zeros(int(ids.max(initial=NONE)) + 2, bool)
    seen[ids + 1] = True  # no sort: ids are small, rows are many
    found = np.flatnonzero(seen) - 1
    texts = [name(int(i)) for i in found]
    names = sorted(set(texts))
    index = {text: i for i, text in enumerate(names)}
    of = np.full(len(seen), NONE, np.int64)
    of[found + 1] = [index[text] for text in texts]
    return of[ids + 1], names


def _sums(keys: I64, values: I64, count: int) -> I64:
    """By key. Floats hold integers exactly up to 2**53 ns, which is 104 days."""
    sums: I64 = np.bincount(keys, values, count).astype(np.int64)
    return sums


def _most(keys: Keys, inner: Keys, own: I64) -> list[tuple[str, float]]:
    """Of each key, the inner name with most own time and its share of the key's."""
    (key, names), (inside, inner_names) = keys, inner
    shape = len(names), max(len(inner_names), 1)
    pair, cells = key * shape[1] + inside, shape[0] * shape[1]
    times = _sums(pair, own, cells).reshape(shape)
    there = np.bincount(pair, minlength=cells).reshape(shape) > 0
    best = np.where(there, times, NONE).argmax(axis=1).tolist()  # those without time count, too
    whole = times.sum(axis=1).tolist()
    return [
        (inner_names[name], int(times[i, name]) / whole[i] if whole[i] else 1.0)
        for i, name in enumerate(best)
    ]

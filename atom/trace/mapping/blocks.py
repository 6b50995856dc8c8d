"""Layers of a forward that has no scopes: blocks of kernels that repeat.

A guess, and called one: what repeats is found exactly, but where in the circle of kernels a layer
begins is judged by the kernels' classes (a norm between the end of an MLP and an attention), and a
block that holds several attentions is so many layers of different kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atom.trace.mapping.align import align
from atom.trace.mapping.names import Names
from atom.trace.mapping.repeats import Repeat, find_repeat
from atom.trace.types import I32, NONE

_MLP = ("activation", "moe")
BEFORE, AFTER = "before_layers", "after_layers"


@dataclass(frozen=True, slots=True)
class Blocks:
    """[n] for each kernel of one forward."""

    layer: I32  # 0-based; -1 outside
    part: list[str]  # "gemm.0": the layer's first GEMM; before_layers, after_layers; "" not known
    num_layers: int
    period: int  # kernels of the block that repeats
    kinds: int  # distinct sequences of kernels among the layers
    exact: float  # share of the layers' kernels that lie in blocks which repeat exactly


@dataclass(frozen=True, slots=True)
class _Circle:
    """One period, cut into layers."""

    name: I32
    cuts: tuple[int, ...]  # where each layer begins, ascending
    offset: int  # position in the sequence, modulo the period, of the circle's first element


def find_layers(name: I32, work: Sequence[str], names: Names | None = None) -> Blocks | None:
    """Layers of a forward, kernels in time order; `work` [n] is each kernel's class.

    `names` lets layers that deviate (the first norm, a dense layer among experts, a kernel the
    file lacks) be compared by more than equality. `None` if nothing repeats three times.
    """
    classes = np.asarray(work, dtype=object)
    attention: NDArray[np.bool_] = classes == "attention"
    marked = attention if attention.any() else np.ones(len(name), bool)
    repeat = find_repeat(name, marked)
    if repeat is None:
        return None
    circle = _cut(name, classes, repeat)
    attention &= np.isin(name, circle.name)  # others only prepare it, once for all layers
    layer = np.full(len(name), NONE, np.int32)
    position = np.full(len(name), NONE, np.int32)
    num_layers, exact = _lay(name, attention, repeat, circle, names, layer, position)
    if not num_layers:
        return None
    _fill(layer)
    kinds = {name[layer == k].tobytes() for k in range(num_layers)}
    inside = int((layer >= 0).sum())
    return Blocks(
        layer=layer,
        part=_parts(layer, work),
        num_layers=num_layers,
        period=repeat.period,
        kinds=len(kinds),
        exact=exact / inside,
    )


def _cut(name: I32, classes: NDArray[np.object_], repeat: Repeat) -> _Circle:
    """The longest run's block, turned so that it begins with a layer."""
    longest = int(np.argmax(repeat.end - repeat.start))
    start, period = int(repeat.start[longest]), repeat.period
    circle = classes[start : start + period].tolist()
    cuts = sorted(set(_layer_starts(circle)))
    # The first layer's norm adds no residual: another kernel, just before the repeats begin.
    if len(cuts) <= 1 and start and circle[-1] == "norm" == classes[start - 1]:
        cuts = [period - 1]
    turn = cuts[0] if cuts else 0
    return _Circle(
        name=np.roll(name[start : start + period], -turn),
        cuts=tuple(cut - turn for cut in cuts) or (0,),
        offset=(start + turn) % period,
    )


def _layer_starts(circle: Sequence[str]) -> list[int]:
    """Where each layer begins: one for each attention that work of another layer precedes.

    Between the MLP before it and the attention it is the first norm, or, without one, what
    follows the MLP's last product. Where the MLP shows nothing but products, it is the last norm
    with a product between it and the attention.
    """
    n = len(circle)
    found = []
    for at, work in enumerate(circle):
        if work != "attention":
            continue
        back = next((k for k in range(1, n) if circle[(at - k) % n] in (*_MLP, "attention")), n)
        between = [(at - back + k) % n for k in range(1, back)]
        if circle[(at - back) % n] in _MLP:
            norm = next((i for i in between if circle[i] == "norm"), None)
            found.append(_after_mlp(circle, between, at) if norm is None else norm)
            continue
        products = [k for k, i in enumerate(between) if circle[i] == "gemm"]
        norms = [
            i
            for k, i in enumerate(between)
            if circle[i] == "norm" and products and k < products[-1]
        ]
        found += norms[-1:]
    return found


def _after_mlp(circle: Sequence[str], between: Sequence[int], attention: int) -> int:
    """No norm of its own: behind the first product and what adds up its parts."""
    product = next((k for k, i in enumerate(between) if circle[i] == "gemm"), None)
    if product is None:
        return between[0] if between else attention
    rest = between[product + 1 :]
    return next((i for i in rest if circle[i] not in ("communication", "reduction")), attention)


def _lay(
    name: I32,
    attention: NDArray[np.bool_],
    repeat: Repeat,
    circle: _Circle,
    names: Names | None,
    layer: I32,
    position: I32,
) -> tuple[int, int]:
    """Fill `layer` and `position` in the circle; number of layers, and kernels in exact blocks."""
    period, each = repeat.period, len(circle.cuts)
    of_circle = np.searchsorted(circle.cuts, np.arange(period), side="right") - 1
    per_block = max(int(attention[_any_block(repeat)].sum()), 1)
    done, at, exact = 0, 0, 0
    for start, end in zip(repeat.start.tolist(), repeat.end.tolist(), strict=True):
        first = start + (circle.offset - start) % period
        count = (end - first) // period
        if count < 1 or first < at or not np.array_equal(name[first : first + period], circle.name):
            continue
        done += _lay_other(name, attention, slice(at, first), circle, per_block, names, layer, done)
        rows = np.arange(first, first + count * period)
        nth = rows - first
        layer[rows] = done + nth // period * each + of_circle[nth % period]
        position[rows] = nth % period
        done, at, exact = done + count * each, first + count * period, exact + len(rows)
    done += _lay_other(name, attention, slice(at, len(name)), circle, per_block, names, layer, done)
    return done, exact


def _any_block(repeat: Repeat) -> slice:
    longest = int(np.argmax(repeat.end - repeat.start))
    start = int(repeat.start[longest])
    return slice(start, start + repeat.period)


def _lay_other(
    name: I32,
    attention: NDArray[np.bool_],
    part: slice,
    circle: _Circle,
    per_block: int,
    names: Names | None,
    layer: I32,
    done: int,
) -> int:
    """Layers that deviate from the block, as many as there are attentions; their number."""
    each = len(circle.cuts)
    per_layer = per_block / each
    count = round(int(attention[part].sum()) / per_layer)
    if not count:
        return 0
    blocks = -(-count // each)
    wanted: I32 = np.tile(circle.name, blocks).astype(np.int32)
    of_circle = np.searchsorted(circle.cuts, np.arange(len(circle.name)), side="right") - 1
    nth = np.repeat(np.arange(blocks) * each, len(circle.name))
    belongs: I32 = (nth + np.tile(of_circle, blocks)).astype(np.int32)
    wanted, belongs = wanted[belongs < count], belongs[belongs < count]
    ours = np.ascontiguousarray(name[part])
    table = None
    theirs = wanted
    if names is not None:
        table, ours, theirs = names.costs(ours, wanted)
    aligned = align(ours, theirs, belongs, table)
    if aligned is None:
        return 0
    has = np.flatnonzero(aligned.partner >= 0)
    found = belongs[aligned.partner[has]]
    # A layer must have an attention of its own, or it is a norm that looks like one of a layer's.
    real = {int(k) for k in np.unique(found[attention[part][has]])}
    number = {k: done + i for i, k in enumerate(sorted(real))}
    rows = has + part.start
    layer[rows] = [number.get(int(k), NONE) for k in found]
    return len(real)


def _fill(layer: I32) -> None:
    """Kernels between two of the same layer are the layer's."""
    known = np.flatnonzero(layer >= 0)
    if len(known) < 2:
        return
    before = np.searchsorted(known, np.arange(len(layer)), side="right") - 1
    after = np.minimum(before + 1, len(known) - 1)
    left = np.where(before >= 0, layer[known[np.maximum(before, 0)]], NONE)
    right = layer[known[after]]
    hole = (layer < 0) & (before >= 0) & (before < len(known) - 1) & (left == right)
    layer[hole] = left[hole]


def _parts(layer: I32, work: Sequence[str]) -> list[str]:
    """The layer's first norm, its first GEMM, ..."""
    known = np.flatnonzero(layer >= 0)
    first, last = int(known[0]), int(known[-1])
    seen: dict[tuple[int, str], int] = {}
    parts = []
    for at, (number, kind) in enumerate(zip(layer.tolist(), work, strict=True)):
        if number < 0:
            parts.append(BEFORE if at < first else AFTER if at > last else "")
            continue
        count = seen.get((number, kind), 0)
        seen[number, kind] = count + 1
        parts.append(f"{kind}.{count}")
    return parts

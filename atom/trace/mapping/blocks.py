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
    layout = _Layout(name, attention, circle, names)
    layout.lay(repeat)
    if not layout.num_layers:
        return None
    layout.fill()
    layer, num_layers = layout.layer, layout.num_layers
    kinds = {name[layer == k].tobytes() for k in range(num_layers)}
    inside = int((layer >= 0).sum())
    return Blocks(
        layer=layer,
        part=_parts(layer, work),
        num_layers=num_layers,
        period=repeat.period,
        kinds=len(kinds),
        exact=layout.exact / inside,
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


class _Layout:
    """Layers while they are laid along the sequence, from its beginning to its end."""

    def __init__(
        self, name: I32, attention: NDArray[np.bool_], circle: _Circle, names: Names | None
    ) -> None:
        self.name, self.attention, self.circle, self.names = name, attention, circle, names
        self.layer = np.full(len(name), NONE, np.int32)
        self.position = np.full(len(name), NONE, np.int32)  # in the circle
        self.num_layers = 0
        self.exact = 0  # kernels in blocks that repeat exactly
        period = len(circle.name)
        self.of_circle = np.searchsorted(circle.cuts, np.arange(period), side="right") - 1

    def lay(self, repeat: Repeat) -> None:
        """Whole blocks first where they repeat, what deviates between and around them."""
        period, each, at = repeat.period, len(self.circle.cuts), 0
        for start, end in zip(repeat.start.tolist(), repeat.end.tolist(), strict=True):
            first = start + (self.circle.offset - start) % period
            first += -(-max(at - first, 0) // period) * period
            count = (end - first) // period
            block = self.name[first : first + period]
            if count < 1 or not np.array_equal(block, self.circle.name):
                continue
            self._other(at, first)
            rows = np.arange(first, first + count * period)
            nth = rows - first
            self.layer[rows] = self.num_layers + nth // period * each + self.of_circle[nth % period]
            self.position[rows] = nth % period
            self.num_layers += count * each
            self.exact += len(rows)
            at = first + count * period
        self._other(at, len(self.name))

    def _other(self, start: int, end: int) -> None:
        """Layers that deviate from the block, as many as there are attentions."""
        each, block = len(self.circle.cuts), self.circle.name
        of_block = max(int(np.isin(block, np.unique(self.name[self.attention])).sum()), 1)
        count = round(int(self.attention[start:end].sum()) * each / of_block)
        if not count:
            return
        blocks = -(-count // each)
        number = np.repeat(np.arange(blocks) * each, len(block)) + np.tile(self.of_circle, blocks)
        belongs: I32 = number[number < count].astype(np.int32)
        wanted: I32 = np.tile(block, blocks)[: len(belongs)].astype(np.int32)
        ours, table = np.ascontiguousarray(self.name[start:end]), None
        if self.names is not None:
            table, ours, wanted = self.names.costs(ours, wanted)
        aligned = align(ours, wanted, belongs, table)
        if aligned is None:
            return
        has = np.flatnonzero(aligned.partner >= 0)
        found = belongs[aligned.partner[has]]
        # A layer must have an attention of its own, or it is a norm that looks like one of a layer.
        real = sorted({int(k) for k in found[self.attention[start:end][has]]})
        kept = np.isin(found, real)
        rows = has[kept] + start
        self.layer[rows] = self.num_layers + np.searchsorted(real, found[kept])
        self.position[rows] = aligned.partner[has[kept]] % len(block)
        self.num_layers += len(real)

    def fill(self) -> None:
        """Kernels between two of the same layer are the layer's; those between two layers are of
        the one that seems unfinished, if the other seems whole."""
        layer, position = self.layer, self.position
        known = np.flatnonzero(layer >= 0)
        before = np.searchsorted(known, np.arange(len(layer)), side="right") - 1
        between = (layer < 0) & (before >= 0) & (before < len(known) - 1)
        left = known[np.maximum(before, 0)]
        right = known[np.minimum(before + 1, len(known) - 1)]
        begins = np.isin(position[right], self.circle.cuts)
        finished = np.isin(position[left] + 1, (*self.circle.cuts, len(self.circle.name)))
        same = layer[left] == layer[right]
        of_left = between & (same | (begins & ~finished))
        of_right = between & ~same & finished & ~begins
        self.layer = np.where(of_left, layer[left], np.where(of_right, layer[right], layer))


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

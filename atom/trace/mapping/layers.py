"""Layers by blocks for the steps of a trace that says nothing of modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atom.trace.kernels import kernel_class
from atom.trace.mapping.blocks import Blocks, find_layers
from atom.trace.mapping.names import Names
from atom.trace.types import I32, I64, NONE, RankTrace

_MAIN = 0.5  # share of kernels that the layers must cover, or the side streams are left out


@dataclass(frozen=True, slots=True)
class MappedBlocks:
    """[N] arrays are parallel to trace.gpu; rows of no step given have -1."""

    layer: I32
    part: I32  # index into parts; -1 not known
    parts: list[str]  # "norm.0", "gemm.0", ..., "before_layers", "after_layers"
    num_layers: int  # of most steps; 0: nothing repeats
    notes: tuple[str, ...]


def map_blocks(trace: RankTrace, steps: Sequence[I64]) -> MappedBlocks:
    """Layers of each step's rows (ascending in time); steps of equal kernels share the work."""
    names = Names()
    number = names.of(trace.strings, trace.gpu.name, trace.gpu.kind)
    works = np.array([kernel_class(name) for name in names.known], dtype=object)
    layer = np.full(len(trace.gpu), NONE, np.int32)
    part = np.full(len(trace.gpu), NONE, np.int32)
    parts: dict[str, int] = {}
    known: dict[bytes, tuple[I64, I32, I32, Blocks] | None] = {}
    votes: Counter[int] = Counter()
    exact: list[float] = []
    for rows in steps:
        stream = trace.gpu.stream[rows]
        key = number[rows].tobytes() + np.unique(stream, return_inverse=True)[1].tobytes()
        if key not in known:
            known[key] = _step(number[rows], stream, works, names, parts)
        found = known[key]
        votes[found[3].num_layers if found else 0] += 1
        if found is None:
            continue
        at, its_layer, its_part, blocks = found
        layer[rows[at]], part[rows[at]] = its_layer, its_part
        exact.append(blocks.exact)
    return MappedBlocks(layer, part, list(parts), _most(votes), _notes(votes, exact))


def _step(
    name: I32, stream: I32, works: np.ndarray, names: Names, parts: dict[str, int]
) -> tuple[I64, I32, I32, Blocks] | None:
    """Positions in the step, their layers and parts; the blocks themselves."""
    streams, counts = np.unique(stream, return_counts=True)
    main = np.flatnonzero(stream == streams[np.argmax(counts)]) if len(streams) else stream
    best: tuple[np.ndarray, Blocks] | None = None
    for at in (np.arange(len(name)), main):
        blocks = find_layers(name[at], works[name[at]].tolist(), names)
        if blocks is not None and (best is None or blocks.exact > best[1].exact):
            best = (at, blocks)
        if len(streams) <= 1 or (blocks is not None and blocks.exact > 1 - 1e-9):
            break
    if best is None:
        return None
    at, blocks = best
    indices = [parts.setdefault(p, len(parts)) if p else NONE for p in blocks.part]
    return at.astype(np.int64), blocks.layer, np.array(indices, np.int32), blocks


def _most(votes: Counter[int]) -> int:
    real = Counter({k: v for k, v in votes.items() if k})
    return real.most_common(1)[0][0] if real else 0


def _notes(votes: Counter[int], exact: Sequence[float]) -> tuple[str, ...]:
    most = _most(votes)
    if not most:
        return ("no scopes, and no block of kernels repeats: layers are not known",)
    notes = [
        f"no scopes: {most} layers guessed from blocks of kernels that repeat"
        f" ({100 * min(exact):.0f}% of their kernels exactly); a layer is taken to begin at the"
        " norm before its attention"
    ]
    others = {k: v for k, v in votes.items() if k != most}
    for count, steps in sorted(others.items()):
        what = f"{count} layers" if count else "no layers"
        notes.append(f"{steps} of {sum(votes.values())} steps show {what} rather than {most}")
    return tuple(notes)

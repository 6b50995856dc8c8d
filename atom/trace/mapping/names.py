"""When two kernels' names may stand for the same work, and how far-fetched that is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from atom.trace.cxx import demangle, parse
from atom.trace.kernels import kernel_class
from atom.trace.mapping.align import ALIAS, CLASS, FAMILY, NEVER, SAME
from atom.trace.types import I8, I32, GpuKind

# Launches that no kernel's name is known of.
ANY_KERNEL, ANY_COPY, ANY_FILL = "?kernel", "?copy", "?fill"
_ANY = {GpuKind.KERNEL: ANY_KERNEL, GpuKind.MEMCPY: ANY_COPY, GpuKind.MEMSET: ANY_FILL}

# Work that another kernel of its class may do at the same place: the choice depends on sizes.
_CHOSEN_BY_SIZE = (
    "gemm",
    "attention",
    "moe",
    "norm",
    "communication",
    "copy",
    "memset",
    "sampling",
)
_TENSILE = re.compile(r"^Cijk_([A-Za-z]+_){1,2}")
_FILL = re.compile(r"FillFunctor|fill_?buffer|^memset", re.IGNORECASE)


class Names:
    """Numbers for names across files: equal names, equal numbers."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def number(self, name: str) -> int:
        return self.known.setdefault(name, len(self.known))

    def of(self, strings: Sequence[str], name: I32, kind: I8) -> I32:
        """[n] numbers of `strings[name]`; where the name is -1, of "some kernel", "some copy"."""
        wild = np.array([self.number(_ANY[GpuKind(k)]) for k in range(3)], np.int32)
        used = np.unique(name[name >= 0])
        table = np.zeros(int(used[-1]) + 1 if len(used) else 1, np.int32)
        for index in used:
            table[index] = self.number(strings[int(index)])
        return np.where(name >= 0, table[np.maximum(name, 0)], wild[kind]).astype(np.int32)

    def costs(self, a: I32, b: I32) -> tuple[I32, I32, I32]:
        """Table of costs for `align`, and both sequences as its rows and columns."""
        names = list(self.known)
        rows, at = np.unique(a, return_inverse=True)
        columns, to = np.unique(b, return_inverse=True)
        table = np.full((len(rows), len(columns)), NEVER, np.int32)
        left = [names[int(i)] for i in rows]
        right = [names[int(i)] for i in columns]
        for y, theirs in enumerate(right):
            for x, ours in enumerate(left):
                table[x, y] = substitution(ours, theirs)
        return table, at.astype(np.int32), to.astype(np.int32)


def substitution(replayed: str, captured: str) -> int:
    """Cost of letting a replayed kernel stand for a captured one; NEVER if it cannot."""
    if replayed == captured:
        return SAME
    work = kernel_class(replayed)
    if captured.startswith("?"):
        fits = {ANY_COPY: work == "copy", ANY_FILL: work == "memset"}.get(captured)
        # A kernel without a name may be any kernel; a copy is a copy by any name.
        return ALIAS if fits is None else SAME if fits else NEVER
    # Custom all-reduces are captured as a fill of their buffer by some warm-ups.
    if work == "communication" and _FILL.search(captured):
        return ALIAS
    if work != kernel_class(captured):
        return NEVER
    if work in ("copy", "memset"):  # ROCm runs copies and fills as kernels of its own
        return ALIAS
    if family(replayed) == family(captured):
        return FAMILY
    return CLASS if work in _CHOSEN_BY_SIZE else NEVER


@lru_cache(maxsize=65536)
def family(name: str) -> str:
    """The name without what depends on sizes: template arguments, tile sizes, running numbers."""
    tensile = _TENSILE.match(name)
    if tensile:
        return tensile[0]
    head = parse(demangle(name)).head
    if head.startswith("nvjet"):
        return "nvjet"
    return re.sub(r"\d+", "#", head)

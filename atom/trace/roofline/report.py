"""The roofline of a profile: work and time of each product, attention and expert layer.

Time is that of the kernels that did the work; a norm in the same module is not in it. Of a kernel
that was launched early and waited for the one before it on its stream, only what it ran alone
counts, as in `atom trace summary`: a share above 100 % is work done meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atom.trace.groups import shape_of
from atom.trace.intervals import own_lengths
from atom.trace.roofline.book import Book
from atom.trace.roofline.devices import Ceilings
from atom.trace.roofline.work import Work
from atom.trace.types import I64, RankModel


@dataclass(frozen=True, slots=True)
class RooflineRow:
    """All calls of one module (or operator) with one shape, in steps of one kind."""

    step: str  # "decode bs=32"
    module: str  # "self_attn.qkv_proj"; an operator in parentheses where no module is known
    kind: str  # "gemm", "attention", "moe"
    shape: str
    kernels: tuple[str, ...]  # distinct names, as in the file
    bits: int  # of the numbers that are multiplied
    calls: int
    total_ns: int  # of the calls: their kernels, less what earlier ones of the stream cover
    flops: float  # of all calls
    nbytes: float
    keys: int  # that attention saw in all calls
    floor_ns: float  # no call can be faster than the later of its bytes and its operations
    compute_calls: int  # whose operations take longer than their bytes
    note: str = ""

    @property
    def mean_ns(self) -> float:
        return self.total_ns / self.calls

    @property
    def flops_per_s(self) -> float:
        return self.flops / (self.total_ns * 1e-9)

    @property
    def bytes_per_s(self) -> float:
        return self.nbytes / (self.total_ns * 1e-9)

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.nbytes

    @property
    def bound(self) -> str:
        """ "memory" or "compute": which ceiling is the lower one for most of the calls."""
        return "compute" if 2 * self.compute_calls > self.calls else "memory"

    @property
    def share(self) -> float:
        """Of the ceiling: floor over time."""
        return self.floor_ns / self.total_ns


@dataclass(frozen=True, slots=True)
class Roofline:
    """`rows` by descending total time."""

    ceilings: Ceilings
    rows: list[RooflineRow]
    covered_ns: int  # of the time of `rows`
    total_ns: int  # of all GPU work in the steps, counted alike
    num_steps: int
    left_out: Mapping[str, int] = field(default_factory=dict)  # why -> ns of product-like kernels


@dataclass(slots=True)
class _Sum:
    """A row that is being added up."""

    first: Work
    calls: int = 0
    spent_ns: int = 0
    flops: float = 0.0
    nbytes: float = 0.0
    keys: int = 0
    floor_ns: float = 0.0
    compute_calls: int = 0
    names: set[int] = field(default_factory=set)

    def add(self, work: Work, calls: int, spent_ns: int, ceilings: Ceilings) -> None:
        bytes_s = work.nbytes / ceilings.bandwidth
        flops_s = work.flops / ceilings.flops_of(work.bits)
        self.calls += calls
        self.spent_ns += spent_ns
        self.flops += calls * work.flops
        self.nbytes += calls * work.nbytes
        self.keys += calls * work.keys
        self.floor_ns += calls * 1e9 * max(bytes_s, flops_s)
        self.compute_calls += calls * (flops_s > bytes_s)


def roofline(model: RankModel, ceilings: Ceilings, kind: str | None = None) -> Roofline:
    """Of the steps that count, or of those of `kind` alone."""
    steps = [s for s in model.steps if s.counts and (kind is None or s.kind == kind)]
    sums: dict[tuple[str, str, str, str], _Sum] = {}
    left_out: dict[str, int] = defaultdict(int)
    book, own = Book(model), _own_ns(model)
    covered = 0
    for step in steps:
        shape, times = str(shape_of(step)), own[step.rows]
        for calls in book.calls(step.rows):
            spent = int(times[calls.places].sum())
            work, why = book.work(step, calls.source)
            if work is None:
                left_out[why] += spent
                continue
            covered += spent
            key = (shape, calls.module, work.kind, work.shape)
            one = sums.setdefault(key, _Sum(work))
            one.add(work, calls.num_calls, spent, ceilings)
            one.names |= calls.names
    found = [_row(key, one, model) for key, one in sums.items() if one.spent_ns > 0]
    found.sort(key=lambda row: (-row.total_ns, row.step, row.module))
    total = sum(int(own[step.rows].sum()) for step in steps)
    return Roofline(ceilings, found, covered, total, len(steps), dict(left_out))


def _row(key: tuple[str, str, str, str], one: _Sum, model: RankModel) -> RooflineRow:
    step, module, kind, shape = key
    return RooflineRow(
        step,
        module,
        kind,
        shape,
        kernels=tuple(sorted(model.trace.strings[i] for i in one.names)),
        bits=one.first.bits,
        calls=one.calls,
        total_ns=one.spent_ns,
        flops=one.flops,
        nbytes=one.nbytes,
        keys=one.keys,
        floor_ns=one.floor_ns,
        compute_calls=one.compute_calls,
        note=one.first.note,
    )


def _own_ns(model: RankModel) -> I64:
    """[N] of each row what no earlier one of its stream covers."""
    gpu = model.trace.gpu
    own = np.zeros(len(gpu), np.int64)
    streams = gpu.device.astype(np.int64) << 32 | gpu.stream
    for stream in np.unique(streams):
        rows = np.flatnonzero(streams == stream)
        own[rows] = own_lengths(gpu.ts[rows], gpu.end[rows])
    return own


def as_json(found: Roofline) -> dict[str, Any]:
    """For --json: plain values, units in the names."""
    ceilings = found.ceilings
    return {
        "device": ceilings.device,
        "ceilings": {
            "bytes_per_s": ceilings.bandwidth,
            "flops_per_s_by_bits": {str(bits): value for bits, value in ceilings.flops.items()},
            "source": ceilings.source,
        },
        "steps": found.num_steps,
        "gpu_ns": found.total_ns,
        "covered_ns": found.covered_ns,
        "left_out_ns": dict(found.left_out),
        "rows": [
            {
                "step": row.step,
                "module": row.module,
                "kind": row.kind,
                "shape": row.shape,
                "kernels": list(row.kernels),
                "bits": row.bits,
                "calls": row.calls,
                "total_ns": row.total_ns,
                "flops": row.flops,
                "bytes": row.nbytes,
                "keys": row.keys,
                "bytes_per_s": row.bytes_per_s,
                "flops_per_s": row.flops_per_s,
                "intensity_flops_per_byte": row.intensity,
                "bound": row.bound,
                "floor_ns": row.floor_ns,
                "share_of_roof": row.share,
                "note": row.note,
            }
            for row in found.rows
        ],
    }

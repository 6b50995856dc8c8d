"""Collectives: how long, how much of it is exposed, at what bandwidth; which rank is waited for.

algbw = bytes / time, busbw = algbw * f, with f = 2(n-1)/n for all-reduce and (n-1)/n for
all-gather, reduce-scatter and all-to-all over n ranks (nccl-tests' convention; bytes are those of
the whole buffer: of an all-gather's output, of a reduce-scatter's input). Both only where the trace
says the size; a kernel's time includes waiting for the other ranks, so bandwidths are lower bounds.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atom.trace import intervals
from atom.trace.groups import shape_of
from atom.trace.kernels import collective, short_names
from atom.trace.timeline import Work
from atom.trace.types import I8, I64, NONE, RankModel, Step

_ITEM_BYTES = {
    "double": 8, "long": 8, "long int": 8, "float": 4, "int": 4, "half": 2, "c10::half": 2,
    "bfloat16": 2, "c10::bfloat16": 2, "short": 2, "byte": 1, "char": 1, "signed char": 1,
    "unsigned char": 1, "bool": 1, "float8_e4m3fn": 1, "c10::float8_e4m3fn": 1,
    "c10::float8_e4m3fnuz": 1, "c10::float8_e5m2": 1,
}  # fmt: skip
# A collective's name in Kineto's arguments -> ours.
_KINETO = {
    "allreduce": "all_reduce",
    "_allgather_base": "all_gather",
    "allgather": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter": "reduce_scatter",
    "all_to_all": "all_to_all",
    "all_to_allv": "all_to_all",
    "broadcast": "broadcast",
    "send": "send_recv",
    "recv": "send_recv",
}


@dataclass(frozen=True, slots=True)
class Collective:
    """One kernel of communication over the steps that count. ns."""

    kind: str  # "all_reduce", ...; "collective": its name does not say
    name: str
    full_name: str
    calls: int
    total_ns: int
    mean_ns: float
    min_ns: int
    max_ns: int
    exposed_ns: int  # union of it that no computation covers
    sized_calls: int  # of them the trace says the size; the rest is about these
    nbytes: float  # mean; 0 if no size is known
    ranks: int  # in the group; 0 unknown
    algbw_gbps: float  # 1e9 bytes/s; 0 unknown
    busbw_gbps: float


@dataclass(frozen=True, slots=True)
class RankShare:
    """One rank beside the others, over the steps that all ranks have. Mean ns per step."""

    rank: int
    steps: int
    gpu_ns: float
    busy_ns: float
    communication_ns: float  # sum of durations
    wait_ns: float  # of it, beyond the rank that took least in the same collective


@dataclass(frozen=True, slots=True)
class Skew:
    """Files of different ranks share no clock: only durations are compared."""

    ranks: tuple[RankShare, ...]
    steps: int  # compared
    collectives: int  # compared, all steps
    straggler: int  # the rank that waits least, if others wait for it; -1 none
    note: str  # what could not be compared, else ""


def bus_factor(kind: str, ranks: int) -> float:
    """f of busbw = algbw * f; 0 where no convention is known."""
    if ranks < 2:
        return 0.0
    share = (ranks - 1) / ranks
    factors = {"all_reduce": 2 * share, "broadcast": 1.0, "send_recv": 1.0}
    return factors.get(
        kind, share if kind in ("all_gather", "reduce_scatter", "all_to_all") else 0.0
    )


def collectives(model: RankModel, work: I8, world: int = 0) -> list[Collective]:
    """By kernel, most time first. `world`: ranks of a group where the rows do not say."""
    gpu, trace = model.trace.gpu, model.trace
    counts = np.array([s.counts for s in model.steps] + [False], bool)
    in_steps = counts[model.step]
    computing = in_steps & (work == Work.COMPUTE)
    computation = intervals.union(gpu.ts[computing], gpu.end[computing])
    rows = np.flatnonzero(in_steps & (work == Work.COMMUNICATION))
    ids = np.unique(gpu.name[rows]).tolist()
    short = short_names(trace.strings[i] for i in ids)
    world = world or world_size(model)
    found = [_collective(model, rows[gpu.name[rows] == i], computation, short, world) for i in ids]
    return sorted(found, key=lambda c: (-c.total_ns, c.full_name))


def world_size(model: RankModel) -> int:
    """Of the process group, as the file has it; 0 if it does not say."""
    info = model.trace.other.get("distributedInfo")
    size = info.get("world_size") if isinstance(info, dict) else None
    size = size or model.trace.atom.get("tp_size")
    return size if isinstance(size, int) else 0


def _collective(
    model: RankModel,
    rows: I64,
    computation: intervals.Spans,
    short: Mapping[str, str],
    world: int,
) -> Collective:
    gpu, trace = model.trace.gpu, model.trace
    dur = gpu.dur[rows]
    name = trace.strings[int(gpu.name[rows[0]])]
    own = intervals.union(gpu.ts[rows], gpu.end[rows])
    kind = collective(name)
    sizes, times = [], []
    group = world
    facts: dict[tuple[int, int], tuple[str, int, int]] = {}
    for row in rows.tolist():
        key = int(gpu.args[row]), int(model.op_args[row])
        if key not in facts:
            args, op_args, op = (
                trace.strings[i] if i >= 0 else "" for i in (*key, int(model.op[row]))
            )
            facts[key] = _size(kind, args, op_args, op, world)
        said, nbytes, ranks = facts[key]
        kind, group = said or kind, ranks or group
        if nbytes > 0:
            sizes.append(nbytes)
            times.append(int(gpu.dur[row]))
    # Total bytes over total time: calls of several sizes weigh by what they move.
    algbw = sum(sizes) / sum(times) if sum(times) else 0.0
    return Collective(
        kind=kind,
        name=short[name],
        full_name=name,
        calls=len(rows),
        total_ns=int(dur.sum()),
        mean_ns=float(dur.mean()),
        min_ns=int(dur.min()),
        max_ns=int(dur.max()),
        exposed_ns=intervals.subtract_length(own, computation),
        sized_calls=len(sizes),
        nbytes=statistics.fmean(sizes) if sizes else 0.0,
        ranks=group,
        algbw_gbps=algbw,
        busbw_gbps=algbw * bus_factor(kind, group),
    )


def _size(kind: str, row: str, op_args: str, op: str, world: int) -> tuple[str, int, int]:
    """The collective, the bytes of its buffer and its ranks, as far as they are known: ("", -1, 0).

    From Kineto's arguments of the row, else from the recorded shapes of a collective operator.
    """
    args = _object(row)
    said = _KINETO.get(str(args.get("Collective name", "")).lower(), "")
    kind = said or kind
    ranks = args.get("Group size", 0)
    ranks = ranks if isinstance(ranks, int) else 0
    item = _ITEM_BYTES.get(str(args.get("dtype", "")).lower(), 0)
    count = args.get("Out msg nelems" if kind == "all_gather" else "In msg nelems")
    if item and isinstance(count, int) and count > 0:
        return said, count * item, ranks
    if not collective(op):
        return said, NONE, ranks
    shapes = _object(op_args)
    dims, types = shapes.get("Input Dims"), shapes.get("Input type")
    if not (isinstance(dims, list) and isinstance(types, list)):
        return said, NONE, ranks
    for shape, kind_of in zip(dims, types, strict=False):
        item = _ITEM_BYTES.get(str(kind_of).lower(), 0)
        if item and isinstance(shape, list) and shape and all(isinstance(n, int) for n in shape):
            times = (ranks or world) if kind == "all_gather" else 1
            return said, math.prod(shape) * item * times or NONE, ranks
    return said, NONE, ranks


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def skew(models: Sequence[RankModel], works: Sequence[I8]) -> Skew | None:
    """None for a single rank."""
    if len(models) < 2:
        return None
    steps = [[s for s in m.steps if s.counts and len(s.rows)] for m in models]
    for per_rank in steps:
        per_rank.sort(key=lambda s: (s.gpu_start, s.index))
    common = min(map(len, steps))
    shapes = [[shape_of(s) for s in per_rank[:common]] for per_rank in steps]
    if any(row != shapes[0] for row in shapes[1:]):
        return Skew((), 0, 0, NONE, "the ranks ran different steps: nothing to compare")
    notes = []
    if any(len(per_rank) != common for per_rank in steps):
        notes.append(f"the ranks have {_spread(steps)} steps: the first {common} are compared")
    sums, waits, compared, uneven = _waits(models, works, steps, common)
    if uneven:
        notes.append(f"{uneven} steps have different numbers of collectives: no waits from them")
    shares = tuple(
        RankShare(
            rank=m.trace.rank,
            steps=common,
            gpu_ns=sum(s.gpu_ns for s in per_rank[:common]) / max(common, 1),
            busy_ns=sum(s.busy_ns for s in per_rank[:common]) / max(common, 1),
            communication_ns=total / max(common, 1),
            wait_ns=wait / max(common - uneven, 1),
        )
        for m, per_rank, total, wait in zip(models, steps, sums, waits, strict=True)
    )
    return Skew(shares, common, compared, _straggler(shares), "; ".join(notes))


def _waits(
    models: Sequence[RankModel], works: Sequence[I8], steps: Sequence[Sequence[Step]], common: int
) -> tuple[list[int], list[int], int, int]:
    """Per rank: time in collectives, and of it the time beyond the fastest rank's in the same one;
    collectives compared; steps whose numbers of collectives differ."""
    sums, waits = [0] * len(models), [0] * len(models)
    compared = uneven = 0
    for i in range(common):
        taken = []
        for m, work, per_rank in zip(models, works, steps, strict=True):
            rows = per_rank[i].rows
            taken.append(m.trace.gpu.dur[rows[work[rows] == Work.COMMUNICATION]])
        for r, dur in enumerate(taken):
            sums[r] += int(dur.sum())
        if len({len(dur) for dur in taken}) > 1:
            uneven += 1
            continue
        table = np.stack(taken)
        compared += table.shape[1]
        for r, wait in enumerate((table - table.min(axis=0, initial=2**62)).sum(axis=1).tolist()):
            waits[r] += wait
    return sums, waits, compared, uneven


def _straggler(shares: Sequence[RankShare]) -> int:
    """The rank that waits least, if the others lose a hundredth of a step to it."""
    order = sorted(shares, key=lambda s: s.wait_ns)
    if len(order) < 2 or order[1].wait_ns - order[0].wait_ns < 0.01 * order[0].gpu_ns:
        return NONE
    return order[0].rank


def _spread(steps: Sequence[Sequence[Step]]) -> str:
    counts = sorted({len(per_rank) for per_rank in steps})
    return f"{counts[0]} to {counts[-1]}"

"""Where a GPU's time goes: computing, exposed communication and copies, idle and why; by step too.

Identities, asserted: computation + exposed communication + exposed copies + idle = span, with
exposed communication what no computation covers, exposed copies what neither covers; the parts of
idle sum to it. Everything is a union unless its name says sum: kernels overlap, also on one stream.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields

import numpy as np

from atom.trace import intervals
from atom.trace.groups import shape_of
from atom.trace.intervals import Spans
from atom.trace.kernels import kernel_class
from atom.trace.types import I8, I64, NONE, GpuKind, RankModel, RankTrace

NUM_GAPS = 5  # longest idle gaps that are told one by one


class Work(enum.IntEnum):
    """What a row of GPU work is to a timeline. Copies are what copy engines or rocclr do."""

    COMPUTE = 0
    COMMUNICATION = 1
    COPY = 2


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle time by what the next piece of work was waiting for. ns each."""

    host_ns: int = 0  # its launch had not been called yet
    launch_ns: int = 0  # called, but not returned when the device ran dry: launch latency
    queued_ns: int = 0  # launched before, and waiting: gaps between kernels, other streams' events
    copy_ns: int = 0  # as queued, beside a copy
    unknown_ns: int = 0  # the file does not have its launch

    @property
    def total_ns(self) -> int:
        return self.host_ns + self.launch_ns + self.queued_ns + self.copy_ns + self.unknown_ns


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch in which the device did nothing."""

    start_ns: int
    ns: int
    host_ns: int  # of it, until the next work's launch was called; -1 unknown
    before: str  # kernel that ended before it, as in the file
    after: str  # kernel that ended it
    step: int  # index of the step of `after`; -1 none


@dataclass(frozen=True, slots=True)
class DeviceTime:
    """One device over one or more stretches of time that begin and end with work. ns each."""

    device: int
    start_ns: int
    span_ns: int
    busy_ns: int
    sum_ns: int  # of durations within the window
    computation_ns: int
    communication_ns: int  # union of it, hidden or not
    exposed_communication_ns: int
    copy_ns: int  # union, hidden or not
    exposed_copy_ns: int
    idle_ns: int
    idle: Idle
    concurrent_ns: int  # at least two streams at work
    streams: int
    rows: int
    gaps: tuple[Gap, ...]  # the longest


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step. computation + exposed communication + exposed copies + other + idle = gpu_ns."""

    index: int
    kind: str
    shape: str  # e.g. "decode bs=32"
    label: str
    part: int  # which of the rank's files, from 0
    start_ns: int
    gpu_ns: int  # span of its GPU work: what a step takes
    busy_ns: int
    sum_ns: int
    computation_ns: int
    exposed_communication_ns: int
    exposed_copy_ns: int
    other_ns: int  # within its span, when only work of other steps or of none ran
    idle_ns: int  # within its span, when the rank's devices did nothing
    idle_before_ns: int  # idle since the step before it ended; 0 for a file's first
    cpu_ns: int  # the label's span on the host
    lead_ns: int  # from the call of its first launch to its first work
    lead_known: bool
    rows: int
    graph_launches: int
    tokens: int  # of the label; -1 if it does not say
    warning: str


def work_of(trace: RankTrace) -> I8:
    """`Work` of each row of GPU work. [N]"""
    ids, inverse = np.unique(trace.gpu.name, return_inverse=True)
    names = [trace.strings[int(i)] for i in ids]
    by_class = {"communication": Work.COMMUNICATION, "copy": Work.COPY, "memset": Work.COPY}
    of_name = np.array([by_class.get(kernel_class(n), Work.COMPUTE) for n in names], np.uint8)
    found = of_name[inverse] if len(ids) else np.empty(0, np.uint8)
    return np.where(trace.gpu.kind == GpuKind.KERNEL, found, np.uint8(Work.COPY)).astype(np.uint8)


def part_starts(trace: RankTrace) -> I64:
    """Where the files begin that a rank's trace was joined of: time between them is nobody's."""
    parts = trace.other.get("parts")
    starts = [int(p["start"]) for p in parts] if isinstance(parts, list) else [0]
    return np.array(starts, np.int64)


def windows(model: RankModel) -> list[tuple[int, int]]:
    """Of each file: from the first to the last GPU work of the steps that count; of all its work
    where no step of the rank counts."""
    counted = [s for s in model.steps if s.counts and s.gpu_start >= 0]
    gpu = model.trace.gpu
    start = np.array([s.gpu_start for s in counted], np.int64) if counted else gpu.ts
    end = np.array([s.gpu_end for s in counted], np.int64) if counted else gpu.end
    part = np.searchsorted(part_starts(model.trace), start, side="right")
    return [
        (int(start[part == each].min()), int(end[part == each].max()))
        for each in np.unique(part).tolist()
    ]


def device_times(model: RankModel, work: I8) -> list[DeviceTime]:
    """Each device of the file over `windows`, each cut to the work that it had in it."""
    gpu = model.trace.gpu
    found: dict[int, DeviceTime] = {}
    for low, high in windows(model):
        inside = (gpu.ts < high) & (gpu.end > low)
        for device in np.unique(gpu.device[inside]).tolist():
            rows = np.flatnonzero(inside & (gpu.device == device))
            time = _device_time(model, work, rows, low, high)
            found[device] = _added(found[device], time) if device in found else time
    return [found[device] for device in sorted(found)]


def _added(a: DeviceTime, b: DeviceTime) -> DeviceTime:
    """Both stretches of one device together."""
    kept = {"device": a.device, "start_ns": a.start_ns, "streams": max(a.streams, b.streams)}
    names = [f.name for f in fields(Idle)]
    idle = Idle(**{name: getattr(a.idle, name) + getattr(b.idle, name) for name in names})
    gaps = sorted((*a.gaps, *b.gaps), key=lambda gap: -gap.ns)[:NUM_GAPS]
    summed = {
        f.name: getattr(a, f.name) + getattr(b, f.name)
        for f in fields(DeviceTime)
        if f.name not in (*kept, "idle", "gaps")
    }
    return DeviceTime(**kept, **summed, idle=idle, gaps=tuple(gaps))


def _device_time(model: RankModel, work: I8, rows: I64, low: int, high: int) -> DeviceTime:
    gpu = model.trace.gpu
    start, end = np.clip(gpu.ts[rows], low, high), np.clip(gpu.end[rows], low, high)
    kind = work[rows]

    def of(*kinds: Work) -> int:
        chosen = np.isin(kind, kinds)
        return intervals.union_length(start[chosen], end[chosen])

    busy = intervals.union(start, end)
    low, high = (int(busy.start[0]), int(busy.end[-1])) if len(busy.start) else (low, low)
    computation = of(Work.COMPUTE)
    with_communication = of(Work.COMPUTE, Work.COMMUNICATION)
    idle, gaps = _idle(model, work, rows, busy)
    span = high - low
    assert idle.total_ns == span - busy.length, (idle, span, busy.length)
    streams = _stream_unions(gpu.stream[rows], start, end)
    return DeviceTime(
        device=int(gpu.device[rows[0]]),
        start_ns=low,
        span_ns=span,
        busy_ns=busy.length,
        sum_ns=int((end - start).sum()),
        computation_ns=computation,
        communication_ns=of(Work.COMMUNICATION),
        exposed_communication_ns=with_communication - computation,
        copy_ns=of(Work.COPY),
        exposed_copy_ns=busy.length - with_communication,
        idle_ns=idle.total_ns,
        idle=idle,
        concurrent_ns=_at_once(streams),
        streams=len(streams),
        rows=len(rows),
        gaps=gaps,
    )


def _stream_unions(stream: np.ndarray[tuple[int], np.dtype[np.int32]], start: I64, end: I64) -> (
    list[Spans]
):  # fmt: skip
    order = np.argsort(stream, kind="stable")
    cuts = np.flatnonzero(np.diff(stream[order])) + 1
    return [intervals.union(start[each], end[each]) for each in np.split(order, cuts)]


def _at_once(streams: list[Spans]) -> int:
    starts = np.concatenate([s.start for s in streams])
    ends = np.concatenate([s.end for s in streams])
    return int(intervals.depth_lengths(starts, ends)[2:].sum())


def _idle(model: RankModel, work: I8, rows: I64, busy: Spans) -> tuple[Idle, tuple[Gap, ...]]:
    """Idle time between merged spans of work, by the launch of the work that ends each gap."""
    gpu = model.trace.gpu
    start, end = busy.end[:-1], busy.start[1:]
    if not len(start):
        return Idle(), ()
    real = rows[gpu.dur[rows] > 0]  # a row without duration neither fills nor ends a gap
    after = real[np.searchsorted(gpu.ts[real], end, side="left")]
    by_end = real[np.argsort(gpu.end[real], kind="stable")]
    before = by_end[np.searchsorted(gpu.end[by_end], start, side="right") - 1]
    launch, length = model.launch[after], end - start
    known = launch >= 0
    same_call = launch == model.launch[before]  # within a graph
    dry = known & ~same_call & (_call_ends(model.trace, launch) > start)
    host = np.where(dry, np.maximum(np.minimum(launch, end) - start, 0), 0)
    beside_copy = (work[after] == Work.COPY) | (work[before] == Work.COPY)
    idle = Idle(
        host_ns=int(host.sum()),
        launch_ns=int(np.where(dry, length - host, 0).sum()),
        queued_ns=int(length[known & ~dry & ~beside_copy].sum()),
        copy_ns=int(length[known & ~dry & beside_copy].sum()),
        unknown_ns=int(length[~known].sum()),
    )
    longest = np.argsort(-length, kind="stable")[:NUM_GAPS]
    gaps = tuple(
        Gap(
            start_ns=int(start[i]),
            ns=int(length[i]),
            host_ns=int(host[i]) if known[i] else NONE,
            before=model.kernel_name(int(before[i])),
            after=model.kernel_name(int(after[i])),
            step=int(model.step[after[i]]),
        )
        for i in longest.tolist()
    )
    return idle, gaps


def _call_ends(trace: RankTrace, launch: I64) -> I64:
    """When the calls returned that began at these times; the time itself where there is none."""
    runtime = trace.runtime
    if not len(runtime):
        return launch
    begun, first = np.unique(runtime.ts, return_index=True)
    ends = np.maximum.reduceat(runtime.ts + runtime.dur, first)
    index = np.minimum(np.searchsorted(begun, launch), len(begun) - 1)
    found: I64 = np.where(begun[index] == launch, ends[index], launch)
    return found


def step_times(model: RankModel, work: I8) -> list[StepTime]:
    """Every step that counts and has GPU work, by its start on the GPU."""
    gpu, steps = model.trace.gpu, model.steps
    count = len(steps)

    def covered(*kinds: Work) -> I64:
        group = np.where(np.isin(work, kinds), model.step, NONE)
        return intervals.union_length_by(group, gpu.ts, gpu.end, count)

    computation = covered(Work.COMPUTE)
    with_communication = covered(Work.COMPUTE, Work.COMMUNICATION)
    busy = covered(*Work)
    everything = intervals.union(gpu.ts, gpu.end)
    active = intervals.within(everything, [s.gpu_start for s in steps], [s.gpu_end for s in steps])
    kept = [s for s in steps if s.counts and s.gpu_start >= 0 and len(s.rows)]
    kept.sort(key=lambda s: (s.gpu_start, s.index))
    # Idle since whatever step ended last: steps may overlap.
    starts = np.array([s.gpu_start for s in kept], np.int64)
    ended = np.maximum.accumulate(np.array([s.gpu_end for s in kept], np.int64))
    part = np.searchsorted(part_starts(model.trace), starts, side="right") - 1
    first = np.append(True, np.diff(part) != 0)[: len(starts)]
    since = np.where(first, starts, np.concatenate((starts[:1], ended[:-1])))
    before = np.maximum(starts - since, 0) - intervals.within(everything, since, starts)
    found = []
    for step, idle_before, file in zip(kept, before.tolist(), part.tolist(), strict=True):
        i = step.index
        launch = int(model.launch[step.rows[0]])
        idle = step.gpu_ns - int(active[i])
        other = int(active[i] - busy[i])
        assert idle >= 0, (step.label, idle)
        assert other >= 0, (step.label, other)
        assert busy[i] == step.busy_ns, (step.label, busy[i], step.busy_ns)
        tokens = step.fields.get("tok", step.fields.get("toks", step.fields.get("bs")))
        found.append(
            StepTime(
                index=i,
                kind=step.kind,
                shape=str(shape_of(step)) if step.fields else step.kind,
                label=step.label,
                part=file,
                start_ns=step.gpu_start,
                gpu_ns=step.gpu_ns,
                busy_ns=step.busy_ns,
                sum_ns=step.sum_ns,
                computation_ns=int(computation[i]),
                exposed_communication_ns=int(with_communication[i] - computation[i]),
                exposed_copy_ns=int(busy[i] - with_communication[i]),
                other_ns=other,
                idle_ns=idle,
                idle_before_ns=idle_before,
                cpu_ns=step.cpu_ns,
                lead_ns=step.gpu_start - launch if launch >= 0 else 0,
                lead_known=launch >= 0,
                rows=len(step.rows),
                graph_launches=step.graph_launches,
                tokens=tokens if isinstance(tokens, int) else NONE,
                warning=step.warning,
            )
        )
    return found

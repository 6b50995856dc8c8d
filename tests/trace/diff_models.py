"""Hand-made `RankModel`s for the tests of the comparison: kernels as tuples, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atom.trace.types import (
    NONE,
    Analysis,
    CpuEvents,
    GpuAnnotations,
    GpuEvents,
    Match,
    MatchReport,
    RankModel,
    RankTrace,
    RuntimeEvents,
    Step,
)


class K(NamedTuple):
    """A kernel: times in ns since the step's start."""

    name: str
    start: int
    dur: int
    module: str = ""
    layer: int = NONE
    stream: int = 7
    launch: int | None = None  # ns since the step's start; None: unknown


class S(NamedTuple):
    """A step: its kernels and label."""

    kernels: Sequence[K]
    kind: str = "decode"
    fields: Mapping[str, Any] = {"bs": 4, "tok": 4}
    graph_launches: int = 0
    warning: str = ""


def serial(
    parts: Sequence[tuple[str, int, str, int]], gap: int = 1000, late: Mapping[int, int] = {}
) -> list[K]:
    """Kernels (name, ns, module, layer) one after another, `gap` ns between; `late`: the host
    calls this kernel's launch so many ns after the one before has ended."""
    made, now = [], 0
    for i, (name, dur, module, layer) in enumerate(parts):
        wait = late.get(i, 0)
        start = now + (max(gap, wait) if i else 0)
        made.append(K(name, start, dur, module, layer, launch=now + wait if wait else 0))
        now = start + dur
    return made


def model(
    steps: Sequence[S],
    *,
    rank: int = 0,
    between: int = 10_000,
    other: Mapping[str, Any] | None = None,
    layers_by: str = "scope",
) -> RankModel:
    strings: dict[str, int] = {"": 0}
    modules: dict[str, int] = {}
    rows: list[tuple[int, ...]] = []
    spans: list[tuple[int, int, int]] = []
    origin = 5_000
    for step in steps:
        first = len(rows)
        kernels = sorted(step.kernels, key=lambda k: k.start)
        base = origin - (kernels[0].start if kernels else 0)
        for k in kernels:
            name = strings.setdefault(k.name, len(strings))
            module = modules.setdefault(k.module, len(modules)) if k.module else NONE
            launch = NONE if k.launch is None else base + k.launch
            rows.append((name, base + k.start, k.dur, k.stream, module, k.layer, launch))
        end = max((r[1] + r[2] for r in rows[first:]), default=origin)
        spans.append((first, len(rows), end))
        origin = end + between
    columns = np.array(rows, dtype=np.int64).reshape(-1, 7).T
    name, ts, dur, stream, module, layer, launch = columns
    count = len(ts)
    zero, none = np.zeros(count, dtype=np.int32), np.full(count, NONE, dtype=np.int64)
    trace = RankTrace(
        path=Path(f"rank_{rank}.json"),
        rank=rank,
        origin_us=0.0,
        strings=list(strings),
        tracks=[],
        cpu=_empty(CpuEvents),
        runtime=_empty(RuntimeEvents),
        gpu=GpuEvents(
            name=name.astype(np.int32),
            ts=ts,
            dur=dur,
            kind=zero.astype(np.uint8),
            device=zero,
            stream=stream.astype(np.int32),
            correlation=none,
            external=none,
            graph_node=none,
            nbytes=none,
            args=zero,
        ),
        gpu_annotations=_empty(GpuAnnotations),
        other=dict(other or {}),
        counts={},
        num_bytes=0,
    )
    made = [
        _step(i, step, span, ts, dur)
        for i, (step, span) in enumerate(zip(steps, spans, strict=True))
    ]
    known = int(np.count_nonzero(module >= 0))
    return RankModel(
        trace=trace,
        steps=made,
        step=np.repeat(np.arange(len(steps)), [b - a for a, b, _ in spans]).astype(np.int32),
        layer=layer.astype(np.int32),
        module=module.astype(np.int32),
        op=zero,
        op_args=zero,
        match=np.where(module >= 0, Match.LAUNCH, Match.NONE).astype(np.uint8),
        launch=launch,
        modules=list(modules),
        num_layers=int(layer.max(initial=-1)) + 1,
        layers_by=layers_by,
        report=MatchReport({Match.LAUNCH: known, Match.NONE: count - known}, {}, {}),
    )


def analysis(*steps: S, **keywords: Any) -> Analysis:
    return Analysis([model(steps, **keywords)])


def _step(index: int, step: S, span: tuple[int, int, int], ts: Any, dur: Any) -> Step:
    first, last, end = span
    rows = np.arange(first, last, dtype=np.int64)
    start = int(ts[first]) if last > first else -1
    return Step(
        index=index,
        kind=step.kind,
        label=f"{step.kind} {index}",
        fields=step.fields,
        found_by="label",
        cpu_start=-1,
        cpu_end=-1,
        gpu_start=start,
        gpu_end=end if last > first else -1,
        busy_ns=0,
        sum_ns=int(dur[first:last].sum()),
        rows=rows,
        graph_launches=step.graph_launches,
        warning=step.warning,
    )


def _empty(kind: Any) -> Any:
    nothing = np.empty(0, dtype=np.int64)
    return kind(**dict.fromkeys(kind.__dataclass_fields__, nothing))

"""Explained ranks made of rows, without a file: for arithmetic against brute force."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atom.trace.types import (
    NONE,
    CpuEvents,
    GpuAnnotations,
    GpuEvents,
    GpuKind,
    Match,
    MatchReport,
    RankModel,
    RankTrace,
    RuntimeEvents,
    Step,
)


@dataclass(frozen=True)
class Row:
    """One row of GPU work; times in ns."""

    start: int
    ns: int
    name: str = "nvjet"
    step: int = NONE
    stream: int = 7
    device: int = 0
    launch: int = NONE
    layer: int = NONE
    module: int = NONE
    args: str = ""
    op: str = ""
    op_args: str = ""

    @property
    def end(self) -> int:
        return self.start + self.ns


def covered(rows: Sequence[Row]) -> set[int]:
    """Every nanosecond in which one of the rows ran."""
    return {t for row in rows for t in range(row.start, row.end)}


def model_of(
    rows: Sequence[Row],
    kinds: Sequence[str] = (),  # of steps
    *,
    fields: Sequence[dict[str, int]] = (),
    modules: Sequence[str] = (),
    other: dict[str, object] | None = None,
    rank: int = 0,
) -> RankModel:
    """Rows must come in the order of their starts."""
    strings: list[str] = []

    def text(value: str) -> int:
        if not value:
            return NONE
        if value not in strings:
            strings.append(value)
        return strings.index(value)

    def column(values: Sequence[int], dtype: type = np.int64) -> np.ndarray:
        return np.array(values, dtype)

    memory = {"Memcpy": GpuKind.MEMCPY, "Memset": GpuKind.MEMSET}
    gpu = GpuEvents(
        name=column([text(r.name) for r in rows], np.int32),
        ts=column([r.start for r in rows]),
        dur=column([r.ns for r in rows]),
        kind=column([memory.get(r.name[:6], GpuKind.KERNEL) for r in rows], np.uint8),
        device=column([r.device for r in rows], np.int32),
        stream=column([r.stream for r in rows], np.int32),
        correlation=column([i + 1 for i in range(len(rows))]),
        external=column([NONE] * len(rows)),
        graph_node=column([NONE] * len(rows)),
        nbytes=column([NONE] * len(rows)),
        args=column([text(r.args) for r in rows], np.int32),
    )
    empty = column([])
    none32 = column([], np.int32)
    kinds8 = column([], np.uint8)
    op = column([text(r.op) for r in rows], np.int32)
    op_args = column([text(r.op_args) for r in rows], np.int32)
    trace = RankTrace(
        path=Path(f"rank_{rank}/made.json"),
        rank=rank,
        origin_us=0.0,
        strings=strings,
        tracks=[],
        cpu=CpuEvents(none32, empty, empty, none32, kinds8, empty, none32),
        runtime=RuntimeEvents(none32, empty, empty, none32, empty, empty, none32),
        gpu=gpu,
        gpu_annotations=GpuAnnotations(none32, empty, empty, none32, none32, empty),
        other=other or {},
        counts={},
        num_bytes=0,
    )
    steps = []
    for index, kind in enumerate(kinds):
        own = [(i, row) for i, row in enumerate(rows) if row.step == index]
        steps.append(
            Step(
                index=index,
                kind=kind,
                label=f"{kind}[{index}]",
                fields=fields[index] if fields else {"bs": 1},
                found_by="label",
                cpu_start=NONE,
                cpu_end=NONE,
                gpu_start=min((r.start for _, r in own), default=NONE),
                gpu_end=max((r.end for _, r in own), default=NONE),
                busy_ns=len(covered([r for _, r in own])),
                sum_ns=sum(r.ns for _, r in own),
                rows=column([i for i, _ in own]),
                graph_launches=0,
            )
        )
    return RankModel(
        trace=trace,
        steps=steps,
        step=column([r.step for r in rows], np.int32),
        layer=column([r.layer for r in rows], np.int32),
        module=column([r.module for r in rows], np.int32),
        op=op,
        op_args=op_args,
        match=column([Match.NONE if r.module < 0 else Match.LAUNCH for r in rows], np.uint8),
        launch=column([r.launch for r in rows]),
        modules=list(modules),
        num_layers=max((r.layer for r in rows), default=NONE) + 1,
        layers_by="scope",
        report=MatchReport({Match.LAUNCH: len(rows)}, {Match.LAUNCH: 0}, {}),
    )

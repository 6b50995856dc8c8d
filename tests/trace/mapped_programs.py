"""Random programs of kernels for the mapping's tests: captured, replayed, damaged; with the truth.

A program is a list of (module, kernel, stream); kernels' names come from a small alphabet, so that
neighbours and layers share them, as norms and GEMMs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from synthetic import Graph, TraceBuilder

from atom.trace.labels import RECORD, WARM_UP
from atom.trace.mapping import Mapped, Replay, Template, capture_templates, map_replays
from atom.trace.reader import read_trace
from atom.trace.scopes import Scopes, find_scopes
from atom.trace.types import Match, RankTrace

Program = Sequence[tuple[str, str, int]]  # module, kernel, stream
LABEL = "capture_graph_bs_4"
PLUMBING = {LABEL, RECORD, WARM_UP}


def body(program: Program, us: Sequence[float] = ()):
    """What `TraceBuilder.capture` runs: each kernel within its module's scope."""

    def run(trace: TraceBuilder) -> None:
        for at, (module, kernel, stream) in enumerate(program):
            with trace.scope(module), trace.op(f"op::{kernel}", [[at]]):
                trace.kernel(kernel, us[at] if us else 2.0, stream=stream)

    return run


@dataclass
class Captured:
    """A capture trace, read, and the graphs in it."""

    trace: RankTrace
    scopes: Scopes
    graphs: list[Graph]
    templates: list[Template]


def capture(
    folder: Path, programs: dict[str, Program], *, vendor: str = "nvidia", **how: bool
) -> Captured:
    """All programs captured, each under its label."""
    made = TraceBuilder(vendor=vendor)
    graphs = [made.capture(label, body(program), **how) for label, program in programs.items()]
    trace = read_trace(made.write(folder / "capture_graph_m_ts_1.pt.trace.json"))
    scopes = find_scopes(trace)
    return Captured(trace, scopes, graphs, capture_templates(trace, scopes.runtime))


@dataclass
class Replayed:
    """What the mapping made of one run, beside the truth. [m] each, in the mapping's order."""

    mapped: Mapped
    module: list[str]  # as mapped; "" none
    truth: list[str]
    names: list[str]

    @property
    def wrong(self) -> list[int]:
        pairs = zip(self.module, self.truth, strict=True)
        return [at for at, (ours, true) in enumerate(pairs) if ours not in ("", true)]

    @property
    def count(self) -> dict[Match, int]:
        values, counts = np.unique(self.mapped.match, return_counts=True)
        return {Match(v): int(c) for v, c in zip(values, counts, strict=True)}


def replay(
    folder: Path,
    captured: Captured,
    steps: Sequence[Sequence[Graph]],
    *,
    vendor: str = "nvidia",
    graph_nodes: bool = False,
    kind: str = "decode",
    size: int = 4,
) -> Replayed:
    """Each step launches its graphs; all is written, read and mapped."""
    made = TraceBuilder(vendor=vendor, graph_nodes=graph_nodes)
    launched: list[list[int]] = []
    for number, graphs in enumerate(steps):
        with made.step(f"{kind}[bs={size} tok={size} n={number}]"):
            launched.append([made.graph_launch(graph) for graph in graphs])
        made.wait()
    trace = read_trace(made.write(folder / "m_ts_2.pt.trace.json"))
    replays = [
        Replay(number, kind, size, tuple(_rows(trace, c) for c in correlations))
        for number, correlations in enumerate(launched)
    ]
    mapped = map_replays(trace, replays, captured.templates)
    truth = made.truth
    return Replayed(
        mapped=mapped,
        module=[_module(captured, mapped, at) for at in range(len(mapped.row))],
        truth=[_innermost(truth[int(row)].scopes) for row in mapped.row],
        names=[truth[int(row)].name for row in mapped.row],
    )


def _rows(trace: RankTrace, correlation: int) -> np.ndarray:
    return np.flatnonzero(trace.gpu.correlation == correlation).astype(np.int64)


def _module(captured: Captured, mapped: Mapped, at: int) -> str:
    if mapped.node[at] < 0:
        return ""
    template = captured.templates[int(mapped.template[at])]
    scope = int(template.place[int(mapped.node[at])])
    return captured.scopes.names[scope] if scope >= 0 else ""


def _innermost(scopes: Sequence[str]) -> str:
    own = [scope for scope in scopes if scope not in PLUMBING]
    return own[-1] if own else ""

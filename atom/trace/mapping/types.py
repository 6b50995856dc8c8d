"""What the mapping takes and gives: templates of graphs, replays of steps, and who is whose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atom.trace.types import I8, I32, I64, RankTrace


@dataclass(frozen=True, slots=True)
class Template:
    """What one captured graph (or all pieces of one captured step) runs, in order of capture.

    [n] arrays, one entry for each kernel, copy and fill. `launch` leads to the rest: the row of
    `source.runtime` that recorded it, hence its scope, operator and shapes.
    """

    label: str  # "capture_graph_bs_32"; of an eager step: its label
    kind: str  # "decode", "piecewise" (also whole-prompt graphs), "" not known
    size: int  # of the label: sequences of a decode graph, tokens of the others; -1 not known
    eager: bool  # taken from a step of a run, not from a capture
    source: RankTrace
    launch: I64
    name: I32  # of source.strings; -1: a kernel whose name nothing tells
    gpu_kind: I8  # GpuKind
    place: I32  # the caller's number of the launch's module; -1 none
    stream: I32  # on which it ran when it ran eagerly; -1 not known
    piece: I32  # number of its graph among the graphs captured under this label
    note: str = ""  # "" or one line: what had to be assumed

    def __len__(self) -> int:
        return len(self.launch)


@dataclass(frozen=True, slots=True)
class EagerStep:
    """A step whose kernels were launched one by one: a template for replays of the same work."""

    label: str
    kind: str
    size: int
    rows: I64  # of trace.gpu, ascending in time
    launch: I64  # [len(rows)] row of trace.runtime that launched each; -1 none


@dataclass(frozen=True, slots=True)
class Replay:
    """The graph launches of one step, in order of launch."""

    step: int  # the caller's number, for warnings
    kind: str  # "decode"; "" not known; any other (prefill, mixed, ...) prefers "piecewise"
    size: int  # the label's graph=, else bs of decodes, tok of others; -1 not known
    launches: tuple[I64, ...]  # rows of trace.gpu of each; empty if the file has none of it


@dataclass(frozen=True, slots=True)
class Mapped:
    """[m] arrays: every row of every replay, by replay, then launch, then as given."""

    row: I64  # of trace.gpu
    template: I32  # index into the templates given; -1 none
    node: I32  # index into that template's arrays; -1 none
    match: I8  # Match: NONE, GRAPH_NODE, CAPTURE or ALIGNED
    warnings: Mapping[int, str]  # by step: "incomplete: 2 of 25 graph launches have no GPU work"
    notes: tuple[str, ...]  # for the report: what was used, what was assumed, what was missing

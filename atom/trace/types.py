"""What crosses the rooms of `atom.trace`: a rank's events in columns, and what was made of them.

Times are int64 nanoseconds since `RankTrace.origin_us`; Chrome's JSON has microseconds with three
decimals, so sums are exact. Names are indices into `RankTrace.strings`. A missing number is -1.
Rows of every table are sorted by start, stably.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

I8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

NONE = -1


class CpuKind(enum.IntEnum):
    """Of a `CpuEvents` row."""

    OP = 0  # cat cpu_op
    ANNOTATION = 1  # cat user_annotation: record_function, step labels, scopes
    MODULE = 2  # cat python_function named "nn.Module: ..."
    PYTHON = 3  # any other python_function; left out unless asked for


class GpuKind(enum.IntEnum):
    """Of a `GpuEvents` row."""

    KERNEL = 0
    MEMCPY = 1
    MEMSET = 2


@dataclass(frozen=True, slots=True)
class CpuEvents:
    """What the host did. [N] each."""

    name: I32
    ts: I64
    dur: I64
    track: I32  # index into `RankTrace.tracks`
    kind: I8  # CpuKind
    external: I64  # args "External id": GPU work names it where the profiler knows
    args: (
        I32  # string: JSON object of "Input Dims", "Input type", "Concrete Inputs", "Input Strides"
    )

    def __len__(self) -> int:
        return len(self.ts)


@dataclass(frozen=True, slots=True)
class RuntimeEvents:
    """Calls of the CUDA or HIP runtime and driver: launches, copies, graph launches. [N] each."""

    name: I32
    ts: I64
    dur: I64
    track: I32
    correlation: I64
    external: I64
    kernel: I32  # string of args "kernel" (ROCm), the name of what is launched

    def __len__(self) -> int:
        return len(self.ts)


@dataclass(frozen=True, slots=True)
class GpuEvents:
    """What the device did. [N] each. Rows may overlap: streams, and kernels launched early."""

    name: I32
    ts: I64
    dur: I64
    kind: I8  # GpuKind
    device: I32
    stream: I32
    correlation: I64
    external: I64
    graph_node: I64  # args "graph node id"
    nbytes: I64  # of copies
    # String: JSON object of "grid" and "block"; of collectives also "Collective name", "In msg
    # nelems", "Out msg nelems", "Group size" and "dtype".
    args: I32

    def __len__(self) -> int:
        return len(self.ts)

    @property
    def end(self) -> I64:
        return self.ts + self.dur


@dataclass(frozen=True, slots=True)
class GpuAnnotations:
    """cat gpu_user_annotation: the span on one stream of what an annotation launched. [N] each."""

    name: I32
    ts: I64
    dur: I64
    device: I32
    stream: I32
    external: I64

    def __len__(self) -> int:
        return len(self.ts)


@dataclass(frozen=True, slots=True)
class Track:
    """A thread of the host, or a stream, as the file names it."""

    pid: str
    tid: str
    name: str = ""  # from the file's metadata events


@dataclass(frozen=True, slots=True)
class RankTrace:
    """One file, read. `other` holds the file's keys beside traceEvents, decoded JSON, e.g.
    deviceProperties, distributedInfo, atom (see `ATOM_METADATA`)."""

    path: Path
    rank: int
    origin_us: float  # of the earliest event, in the file's own clock
    strings: list[str]
    tracks: list[Track]
    cpu: CpuEvents
    runtime: RuntimeEvents
    gpu: GpuEvents
    gpu_annotations: GpuAnnotations
    other: Mapping[str, Any]
    counts: Mapping[str, int]  # events read by category, also of those left out
    num_bytes: int  # decompressed
    warnings: tuple[str, ...] = ()  # one line each; a cut file, unknown times, ...

    @property
    def device_name(self) -> str:
        """E.g. "NVIDIA H200", "AMD Instinct MI300X"; "" if the file does not say."""
        properties = self.other.get("deviceProperties") or [{}]
        first = properties[0] if isinstance(properties, list) else {}
        return str(first.get("name", "")) if isinstance(first, dict) else ""

    @property
    def atom(self) -> Mapping[str, Any]:
        """What our engine wrote of itself; empty in foreign traces."""
        found = self.other.get("atom")
        return found if isinstance(found, dict) else {}


class Match(enum.IntEnum):
    """How a kernel came to its module, from certain to guessed."""

    NONE = 0  # it did not
    LAUNCH = 1  # its own launch lies within the module's scope
    GRAPH_NODE = 2  # replayed; the trace names the node, and the capture knows it
    CAPTURE = 3  # replayed; same place and same name in the capture's sequence
    ALIGNED = 4  # replayed; by aligning the sequences, which differ somewhere
    BLOCKS = (
        5  # no scope anywhere: layer by repeating blocks of kernels; module is the block's part
    )


# Kinds of `Step`. "mixed": prompts and decodes together. "capture" and "dummy" never count as work.
STEP_KINDS = ("prefill", "decode", "mixed", "draft", "step", "capture", "dummy")


@dataclass(frozen=True, slots=True)
class Step:
    """One forward of the model as the GPU did it. Draft steps are steps of their own."""

    index: int
    kind: str  # of STEP_KINDS; "step": found, but what it computed is not known
    label: str  # as in the file, or made up, e.g. "graph launch 17"
    fields: Mapping[str, int | str | list[int]]  # the label's: bs, tok, ctx, p, d, spec, i, k, ...
    found_by: str  # "label", "module", "graph", "blocks"
    cpu_start: int  # of the label or of the first launch; -1 unknown
    cpu_end: int
    gpu_start: int  # first start and last end of its GPU work; -1 without any
    gpu_end: int
    busy_ns: int  # union of its GPU work
    sum_ns: int  # sum of its GPU work; above busy_ns where it overlaps
    rows: I64  # of RankTrace.gpu, ascending in time
    graph_launches: int  # graph launches among its launches
    warning: str = ""  # e.g. "incomplete: 2 of 25 graph launches have no GPU work"

    @property
    def gpu_ns(self) -> int:
        """Span of its GPU work."""
        return self.gpu_end - self.gpu_start if self.gpu_start >= 0 else 0

    @property
    def cpu_ns(self) -> int:
        return self.cpu_end - self.cpu_start if self.cpu_start >= 0 else 0

    @property
    def counts(self) -> bool:
        """Whether it is work, rather than a capture or a warm-up."""
        return self.kind not in ("capture", "dummy")


@dataclass(frozen=True, slots=True)
class MatchReport:
    """How much of the steps' GPU work has a module, over steps that count."""

    rows: Mapping[Match, int]  # number of GPU rows
    ns: Mapping[Match, int]  # their sum of durations
    unmatched: Mapping[str, int]  # kernel name -> rows that have none
    notes: tuple[str, ...] = ()  # which capture was used, what was guessed, what was missing

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    @property
    def rate(self) -> float:
        """Share of rows with a module, 0 to 1; 0 if there are none."""
        return 1 - self.rows.get(Match.NONE, 0) / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class RankModel:
    """One rank's trace with every row of its GPU work explained as far as can be. [N] arrays are
    parallel to `trace.gpu`."""

    trace: RankTrace
    steps: list[Step]
    step: I32  # [N] index into steps
    layer: I32  # [N] 0-based depth; -1 outside the layers
    module: I32  # [N] index into modules
    op: I32  # [N] string: innermost operator (cpu_op) round the launch
    op_args: I32  # [N] string: that operator's CpuEvents.args
    match: I8  # [N] Match
    launch: I64  # [N] start of the host's call that launched it; a graph's kernels share one
    # Without the layer's number: "self_attn.qkv_proj"; outside of layers "embed_tokens", "lm_head".
    modules: list[str]
    num_layers: int  # 0: none found
    layers_by: str  # "scope", "capture", "blocks", ""
    report: MatchReport

    def module_name(self, row: int) -> str:
        """ "" if the row has none."""
        index = int(self.module[row])
        return self.modules[index] if index >= 0 else ""

    def kernel_name(self, row: int) -> str:
        """As in the file."""
        return self.trace.strings[int(self.trace.gpu.name[row])]


@dataclass(frozen=True, slots=True)
class Analysis:
    """All ranks of one profile, by rank."""

    ranks: list[RankModel]
    warnings: tuple[str, ...] = ()  # of all files and of the mapping, one line each
    capture: Path | None = None  # the capture trace that was used
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> RankModel:
        return self.ranks[0]


# What our engine writes into a trace under the key "atom" (a JSON object):
#   atom: version; model, rank, tp_size, device, dtype, kv_cache_dtype, level, cudagraph_mode,
#   mode, block_size; capture: true in a capture trace; marked: whether module scopes were recorded;
#   selects_rows: whether only sampled rows go on behind the last attention, where no graph ran it;
#   modules: {path: facts} of rank-local sizes, with facts one of
#     {"kind": "linear", "n", "k", "weight_bytes", "weight_format"}         y[T, n] = x[T, k]
#     {"kind": "attention", "num_heads", "num_kv_heads", "head_dim", "window", "kv_dtype"}
#     {"kind": "moe", "num_experts", "top_k", "hidden_size", "intermediate_size", "weight_bytes",
#      "weight_format"}
#     {"kind": "norm" | "embedding" | "activation", ...}
# Step labels of our engine (record_function; read by `atom.trace.labels`):
#   prefill[bs=1 tok=115 ctx=115 sk=115 sqsk=13225 sqsq=13225 graph=128]
#   prefill[bs=3 tok=130 p=2 d=1 ctx=[64,65,900] ...]         p and d: a mixed step
#   decode[bs=30 tok=30 d=30 sk=32785 graph=32]               graph: size of the graph that ran it
#   draft[1/3 bs=30], capture_graph_bs_32 (decode graphs), capture_graph_tok_64 (piecewise, full),
#   dummy_prefill[...], dummy_decode[...]: warm-up
# ctx: tokens computed before and in the step, of each prompt; an int for one, a list up to five,
# else the first three and "+N". sk, sqsk, sqsq: sums over requests of k, q*k, q*q, with q tokens
# computed in the step and k tokens seen at its end.
ATOM_METADATA = "atom"

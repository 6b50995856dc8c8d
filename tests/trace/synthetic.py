"""Writes traces as PyTorch's profiler does, and knows what is in them.

    run = TraceBuilder()
    with run.step("decode[bs=4 tok=4 d=4 sk=40]"):
        with run.scope("model.layers.0.self_attn.qkv_proj"), run.op("aten::mm", [[4, 8], [8, 24]]):
            run.kernel("nvjet_tst_64x8", us=5.0)
    path = run.write(tmp_path / "rank_0" / "m_ts_1.pt.trace.json.gz")
    run.truth  # one `TrueKernel` per row of RankTrace.gpu, in its order

A graph: `capture.capture("capture_graph_bs_4", body)` runs `body(capture)` twice as our engine
does (warm_up, record) and returns a `Graph`; `run.graph_launch(graph)` replays it.

Every thread has its own clock (`thread`); kernels start when their stream is free and their launch
is over. All times are int ns within, microseconds in the file. The default vendor is NVIDIA (no
kernel names on launches); `vendor="amd"` writes them, and hip's names.
"""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import zstandard

ORIGIN_NS = 4_412_285_000_000_001  # where Kineto's clocks are: exact in float64, barely


@dataclass(frozen=True)
class Node:
    """One kernel, copy or fill within a graph."""

    name: str
    ns: int
    scopes: tuple[str, ...] = ()  # enclosing annotations and modules, outermost first
    op: str = ""  # innermost operator
    op_args: str = ""  # as CpuEvents.args has it
    stream: int = 7
    kind: str = "kernel"  # "kernel", "memcpy", "memset"
    node_id: int = -1


@dataclass(frozen=True)
class Graph:
    """What a capture recorded, in order."""

    label: str
    nodes: tuple[Node, ...]

    def without(self, *places: int) -> Graph:
        """The same with some nodes missing."""
        kept = (node for place, node in enumerate(self.nodes) if place not in places)
        return replace(self, nodes=tuple(kept))

    def plus(self, place: int, node: Node) -> Graph:
        """The same with one more node before `place`."""
        return replace(self, nodes=(*self.nodes[:place], node, *self.nodes[place:]))


@dataclass(frozen=True)
class TrueKernel:
    """A GPU row as it was made."""

    name: str
    start: int  # ns since `TraceBuilder.origin`, as in RankTrace
    ns: int
    device: int
    stream: int
    correlation: int
    kind: str
    step: int  # index into `TraceBuilder.steps`; -1 outside of any
    scopes: tuple[str, ...]  # the annotations and modules round the launch, or round the capture's
    op: str
    op_args: str
    from_graph: bool
    order: int  # position in the file

    @property
    def end(self) -> int:
        return self.start + self.ns


@dataclass
class _Thread:
    tid: int
    now: int
    scopes: list[str] = field(default_factory=list)
    ops: list[tuple[str, str]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # External id of each enclosing event
    annotations: list[int] = field(default_factory=list)  # indices into `_spans`
    step: int = -1


def text_of(shapes: Mapping[str, Any]) -> str:
    """As `CpuEvents.args` and `GpuEvents.args` have it: compact JSON, keys in the file's order."""
    return json.dumps(dict(shapes), separators=(",", ":")) if shapes else ""


class TraceBuilder:
    """One rank's trace in the making."""

    def __init__(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        vendor: str = "nvidia",
        device: int = 0,
        device_name: str | None = None,
        origin_ns: int = ORIGIN_NS,
        atom: Mapping[str, Any] | None = None,  # RankTrace.atom
        other: Mapping[str, Any] | None = None,  # further keys of the document
        gpu_annotations: bool = True,  # gpu_user_annotation per annotation and stream
        graph_nodes: bool = False,  # "graph node id" on replayed rows
        flows: bool = False,  # ac2g arrows
        launch_us: float = 4.0,
        latency_us: float = 2.0,
        gap_us: float = 1.0,
    ) -> None:
        assert vendor in ("nvidia", "amd")
        self.rank, self.world_size, self.vendor, self.device = rank, world_size, vendor, device
        default = "NVIDIA H200" if vendor == "nvidia" else "AMD Instinct MI300X"
        self.device_name = default if device_name is None else device_name
        self.origin_ns = origin_ns
        self.atom, self.other = atom, dict(other or {})
        self.gpu_annotations, self.graph_nodes, self.flows = gpu_annotations, graph_nodes, flows
        self.launch_ns, self.latency_ns, self.gap_ns = map(_ns, (launch_us, latency_us, gap_us))
        self.steps: list[str] = []  # labels, in the order they began
        self._threads = {1723: _Thread(1723, origin_ns)}
        self._thread = self._threads[1723]
        self._free: dict[tuple[int, int], int] = {}  # (device, stream) -> end of its last kernel
        self._host: list[dict[str, Any]] = []
        self._runtime: list[dict[str, Any]] = []
        self._gpu: list[tuple[dict[str, Any], TrueKernel]] = []
        self._raw: list[Any] = []
        self._spans: list[tuple[str, int, dict[tuple[int, int], list[int]]]] = []
        self._external, self._correlation = 0, 0
        self._recording: list[Node] | None = None

    # The host.

    @property
    def now(self) -> int:
        """The current thread's clock, ns since `origin_ns`."""
        return self._thread.now - self.origin_ns

    def advance(self, us: float) -> None:
        """The current thread does something that leaves no event."""
        self._thread.now += _ns(us)

    def wait(self) -> None:
        """The current thread waits until every stream is idle, as a synchronize does."""
        name = "cudaDeviceSynchronize" if self.vendor == "nvidia" else "hipDeviceSynchronize"
        end = max([self._thread.now, *self._free.values()])
        self._call(name, end - self._thread.now + 1000, {})

    @contextlib.contextmanager
    def thread(self, tid: int) -> Iterator[None]:
        """Everything within is on this thread of the host, which starts at the current time."""
        outer = self._thread
        self._thread = self._threads.setdefault(tid, _Thread(tid, outer.now))
        self._thread.now = max(self._thread.now, outer.now)
        try:
            yield
        finally:
            self._thread = outer

    @contextlib.contextmanager
    def step(self, label: str, **keywords: Any) -> Iterator[None]:
        """An annotation that counts as a step in the truth."""
        outer = self._thread.step
        self._thread.step = len(self.steps)
        self.steps.append(label)
        try:
            with self.annotation(label, **keywords):
                yield
        finally:
            self._thread.step = outer

    @contextlib.contextmanager
    def annotation(self, name: str, *, end: str = "X", us: float = 1.0) -> Iterator[None]:
        """record_function. `end`: "X" complete, "BE" as a pair, "none": the end is missing (an X
        without dur). `us` passes before and after what is within."""
        external = self._next_external()
        thread = self._thread
        thread.ids.append(external)
        thread.scopes.append(name)
        self._spans.append((name, external, {}))
        thread.annotations.append(len(self._spans) - 1)
        event = self._event("X", "user_annotation", name, {"External id": external})
        place = len(self._host)
        self._host.append(event)
        thread.now += _ns(us)
        try:
            yield
        finally:
            thread.now += _ns(us)
            for stack in (thread.ids, thread.scopes, thread.annotations):
                stack.pop()
            if end == "X":
                event["dur"] = thread.now - event["ts"]
            elif end == "BE":
                event["ph"] = "B"
                last = {key: event[key] for key in ("cat", "name", "pid", "tid")}
                self._host.append({"ph": "E", **last, "ts": thread.now})
            assert self._host[place] is event

    scope = annotation  # a module's path, as our engine marks it

    @contextlib.contextmanager
    def nn_module(self, name: str, *, us: float = 1.0) -> Iterator[None]:
        """A python_function frame "nn.Module: <name>", e.g. "Qwen3DecoderLayer_3"."""
        thread = self._thread
        name = f"nn.Module: {name}"
        thread.scopes.append(name)
        event = self._event("X", "python_function", name, {"Python id": len(self._host)})
        self._host.append(event)
        thread.now += _ns(us)
        try:
            yield
        finally:
            thread.now += _ns(us)
            thread.scopes.pop()
            event["dur"] = thread.now - event["ts"]

    def python(self, name: str, us: float = 1.0) -> None:
        """A python_function frame that is no module: "file.py(12): f"."""
        event = self._event("X", "python_function", name, {"Python id": len(self._host)})
        self._host.append({**event, "dur": _ns(us)})
        self._thread.now += _ns(us)

    @contextlib.contextmanager
    def op(
        self,
        name: str,
        dims: Sequence[Any] | None = None,
        types: Sequence[str] | None = None,
        *,
        concrete: Sequence[str] | None = None,
        strides: Sequence[Any] | None = None,
        us: float = 1.0,
    ) -> Iterator[None]:
        """A cpu_op, with shapes as record_shapes writes them."""
        given = {
            "Input Dims": dims,
            "Input type": types,
            "Concrete Inputs": concrete,
            "Input Strides": strides,
        }
        shapes = {key: value for key, value in given.items() if value is not None}
        external = self._next_external()
        thread = self._thread
        thread.ids.append(external)
        thread.ops.append((name, text_of(shapes)))
        event = self._event("X", "cpu_op", name, {"External id": external, **shapes})
        self._host.append(event)
        thread.now += _ns(us)
        try:
            yield
        finally:
            thread.now += _ns(us)
            thread.ids.pop()
            thread.ops.pop()
            event["dur"] = thread.now - event["ts"]

    # The device.

    def kernel(
        self,
        name: str,
        us: float = 1.0,
        *,
        stream: int = 7,
        grid: Sequence[int] | None = None,
        block: Sequence[int] | None = None,
        start_us: float | None = None,  # absolute, since the origin; else when the stream is free
        early_us: float = 0.0,  # starts that much before its stream's last kernel ends
        executed: bool = True,  # False: a launch whose GPU row the file lacks
        launched: bool = True,  # False: a GPU row whose launch the file lacks
        driver: bool = False,  # cuLaunchKernelEx, as Triton does
    ) -> None:
        """A launch and its kernel. While a graph is being recorded: a launch and a node."""
        if self.vendor == "amd":
            call = "hipModuleLaunchKernel" if driver else "hipLaunchKernel"
        else:
            call = "cuLaunchKernelEx" if driver else "cudaLaunchKernel"
        kernel = {"kernel": name} if self.vendor == "amd" else {}
        extra: dict[str, Any] = {}
        if grid is not None:
            extra["grid"] = list(grid)
        if block is not None:
            extra["block"] = list(block)
        node = self._node(name, us, stream, "kernel")
        self._launch(call, kernel, node, extra, executed, launched, start_us, early_us, driver)

    def copy(
        self,
        kind: str = "DtoD",
        us: float = 1.0,
        *,
        nbytes: int = 4096,
        stream: int = 7,
        executed: bool = True,
    ) -> None:
        """A memcpy: kind "HtoD", "DtoH" or "DtoD"."""
        ends = {"H": "Pinned", "D": "Device"}
        name = f"Memcpy {kind} ({ends[kind[0]]} -> {ends[kind[3]]})"
        call = "cudaMemcpyAsync" if self.vendor == "nvidia" else "hipMemcpyAsync"
        node = self._node(name, us, stream, "memcpy")
        self._launch(call, {}, node, {"bytes": nbytes}, executed)

    def fill(self, us: float = 1.0, *, nbytes: int = 4096, stream: int = 7) -> None:
        """A memset."""
        call = "cudaMemsetAsync" if self.vendor == "nvidia" else "hipMemsetAsync"
        node = self._node("Memset (Device)", us, stream, "memset")
        self._launch(call, {}, node, {"bytes": nbytes}, True)

    def capture(
        self,
        label: str,
        body: Callable[[TraceBuilder], None],
        *,
        warm_up: bool = True,
        children: bool = True,  # annotations "warm_up" and "record" within
    ) -> Graph:
        """Run `body` eagerly and then recorded, under `label`; a launch that is recorded leaves no
        GPU row. Without `warm_up` only the recording, as SGLang's traces of captures."""
        nodes: list[Node] = []

        def record() -> None:
            self._recording = nodes
            try:
                body(self)
            finally:
                self._recording = None

        def child(name: str) -> contextlib.AbstractContextManager[None]:
            return self.annotation(name) if children else contextlib.nullcontext()

        hidden = 0
        with self.annotation(label):
            if warm_up:
                with child("warm_up"):
                    body(self)
            with child("record"):
                hidden = len(self._thread.scopes)  # a replay knows only the scopes of the body
                record()
        nodes = [
            replace(node, scopes=node.scopes[hidden:], node_id=place)
            for place, node in enumerate(nodes)
        ]
        return Graph(label, tuple(nodes))

    def graph_launch(self, graph: Graph, *, early_us: float = 0.0) -> int:
        """Replay: one graph launch whose rows share its correlation, which is returned."""
        self._correlation += 1
        correlation = self._correlation
        name = "cudaGraphLaunch" if self.vendor == "nvidia" else "hipGraphLaunch"
        launch_end = self._call(name, self.launch_ns, {}, correlation)
        # Streams of a graph start together; within one, nodes run in order.
        for stream in {node.stream for node in graph.nodes}:
            key = (self.device, stream)
            self._free[key] = max(self._free.get(key, 0), launch_end + self.latency_ns)
        for node in graph.nodes:
            extra = {"graph node id": node.node_id} if self.graph_nodes else {}
            self._execute(node, correlation, extra, early=_ns(early_us), from_graph=True)
        return correlation

    # The file.

    def raw(self, event: Any) -> None:
        """Write this too, as it is (times in microseconds)."""
        self._raw.append(event)

    @property
    def origin(self) -> int:
        """ns of the earliest event that RankTrace keeps."""
        frames = [event for event in self._host if event["cat"] != "python_function"]
        frames += [event for event in self._host if event["name"].startswith("nn.Module: ")]
        known = [*frames, *self._runtime, *(event for event, _ in self._gpu)]
        return min((event["ts"] for event in known if "ts" in event), default=0)

    @property
    def truth(self) -> list[TrueKernel]:
        """All GPU rows in RankTrace's order: by start, then by place in the file."""
        origin = self.origin
        rows = [replace(true, start=true.start - origin) for _, true in self._gpu]
        return sorted(rows, key=lambda row: (row.start, row.order))

    def events(self) -> list[Any]:
        """traceEvents, times in microseconds, in the profiler's order."""
        timed = [
            *self._host,
            *self._runtime,
            *(event for event, _ in self._gpu),
            *self._gpu_spans(),
        ]
        found: list[Any] = []
        for event in timed:
            event = dict(event)
            for key in ("ts", "dur"):
                if key in event:
                    event[key] = event[key] / 1000
            found.append(event)
            if self.flows and "correlation" in event.get("args", {}):
                place = {key: event[key] for key in ("pid", "tid", "ts")}
                start = event["cat"].startswith("cuda")
                arrow = {"ph": "s"} if start else {"ph": "f", "bp": "e"}
                found.append(
                    {**arrow, "id": event["args"]["correlation"], **place, "cat": "ac2g",
                     "name": "ac2g"}
                )  # fmt: skip
        for tid in self._threads:
            found.append(
                {"name": "thread_name", "ph": "M", "ts": ORIGIN_NS / 1000, "pid": 1723, "tid": tid,
                 "args": {"name": f"thread {tid} (python3)"}}
            )  # fmt: skip
        return found + self._raw

    def document(self) -> dict[str, Any]:
        """The whole file as JSON."""
        info = {"backend": "nccl", "rank": self.rank, "world_size": self.world_size}
        device = {"id": self.device, "name": self.device_name, "numSms": 132}
        document: dict[str, Any] = {"schemaVersion": 1}
        if self.device_name:
            document["deviceProperties"] = [device]
        if self.world_size > 1:
            document["distributedInfo"] = info
        if self.atom is not None:
            document["atom"] = {"rank": self.rank, **self.atom}
        document |= self.other
        document |= {"displayTimeUnit": "ms", "baseTimeNanoseconds": 1790857026000000000}
        return {**document, "traceEvents": self.events(), "traceName": "/tmp/made.json"}

    def write(self, path: Path) -> Path:
        """Into a file; ".gz" and ".zst" compress. Returns the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_bytes(path, json.dumps(self.document(), indent=1).encode())

    # Within.

    def _next_external(self) -> int:
        self._external += 1
        return self._external

    def _event(self, phase: str, category: str, name: str, args: dict[str, Any]) -> dict[str, Any]:
        thread = self._thread
        return {"ph": phase, "cat": category, "name": name, "pid": 1723, "tid": thread.tid,
                "ts": thread.now, "args": args}  # fmt: skip

    def _call(
        self,
        name: str,
        ns: int,
        args: Mapping[str, Any],
        correlation: int | None = None,
        category: str = "cuda_runtime",
    ) -> int:
        """A call of the runtime on this thread; its end."""
        if correlation is None:
            self._correlation += 1
            correlation = self._correlation
        given: dict[str, Any] = {"correlation": correlation, **args}
        if self._thread.ops:
            given = {"External id": self._thread.ids[-1], **given}
        event = self._event("X", category, name, given)
        self._runtime.append({**event, "dur": ns})
        self._thread.now += ns
        return self._thread.now

    def _node(self, name: str, us: float, stream: int, kind: str) -> Node:
        op, op_args = self._thread.ops[-1] if self._thread.ops else ("", "")
        return Node(name, _ns(us), tuple(self._thread.scopes), op, op_args, stream, kind)

    def _launch(
        self,
        call: str,
        args: Mapping[str, Any],
        node: Node,
        extra: Mapping[str, Any],
        executed: bool,
        launched: bool = True,
        start_us: float | None = None,
        early_us: float = 0.0,
        driver: bool = False,
    ) -> None:
        self._correlation += 1
        correlation = self._correlation
        end = self._thread.now
        if launched:
            category = "cuda_driver" if driver and self.vendor == "nvidia" else "cuda_runtime"
            end = self._call(call, self.launch_ns, args, correlation, category)
        if self._recording is not None:
            self._recording.append(node)
        elif executed:
            start = None if start_us is None else self.origin_ns + _ns(start_us)
            key = (self.device, node.stream)
            free = self._free.get(key, 0) + self.gap_ns
            after = max(
                end + self.latency_ns, free - _ns(early_us) - (self.gap_ns if early_us else 0)
            )
            self._execute(node, correlation, extra, start=after if start is None else start)

    def _execute(
        self,
        node: Node,
        correlation: int,
        extra: Mapping[str, Any],
        *,
        start: int | None = None,
        early: int = 0,
        from_graph: bool = False,
    ) -> None:
        key = (self.device, node.stream)
        if start is None:
            start = self._free[key] - early if early else self._free[key] + self.gap_ns
        external = self._thread.ids[-1] if self._thread.ops and not from_graph else -1
        args: dict[str, Any] = {"External id": external} if external >= 0 else {}
        args |= {"device": self.device, "stream": node.stream, "correlation": correlation, **extra}
        category = {"kernel": "kernel", "memcpy": "gpu_memcpy", "memset": "gpu_memset"}[node.kind]
        event = {"ph": "X", "cat": category, "name": node.name, "pid": self.device,
                 "tid": node.stream, "ts": start, "dur": node.ns, "args": args}  # fmt: skip
        true = TrueKernel(
            node.name, start, node.ns, self.device, node.stream, correlation, node.kind,
            self._thread.step, node.scopes, node.op, node.op_args, from_graph, len(self._gpu),
        )  # fmt: skip
        self._gpu.append((event, true))
        self._free[key] = max(self._free.get(key, 0), start + node.ns)
        for index in self._thread.annotations:
            span = self._spans[index][2].setdefault(key, [start, start + node.ns])
            span[:] = [min(span[0], start), max(span[1], start + node.ns)]

    def _gpu_spans(self) -> Iterator[dict[str, Any]]:
        if not self.gpu_annotations:
            return
        for name, external, streams in self._spans:
            for (device, stream), (start, end) in streams.items():
                yield {"ph": "X", "cat": "gpu_user_annotation", "name": name, "pid": device,
                       "tid": stream, "ts": start, "dur": end - start,
                       "args": {"External id": external}}  # fmt: skip


def write_bytes(path: Path, data: bytes) -> Path:
    """Compressed as the path's ending says."""
    if path.name.endswith(".gz"):
        data = gzip.compress(data, 1)
    elif path.name.endswith(".zst"):
        data = zstandard.ZstdCompressor(level=1).compress(data)
    path.write_bytes(data)
    return path


def _ns(us: float) -> int:
    return round(us * 1000)

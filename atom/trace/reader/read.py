"""One file into columns. Times become int64 ns here, once."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from atom.trace.errors import TraceError
from atom.trace.reader.files import rank_of
from atom.trace.types import (
    NONE,
    CpuEvents,
    CpuKind,
    GpuAnnotations,
    GpuEvents,
    GpuKind,
    RankTrace,
    RuntimeEvents,
    Track,
)

_CPU_ARGS = ("Input Dims", "Input type", "Concrete Inputs", "Input Strides")
_GPU = {"kernel": GpuKind.KERNEL, "gpu_memcpy": GpuKind.MEMCPY, "gpu_memset": GpuKind.MEMSET}


class _Strings(dict[str, int]):
    def __missing__(self, key: str) -> int:
        self[key] = len(self)
        return len(self) - 1


def _ns(microseconds: float) -> int:
    whole = int(microseconds // 1)  # x * 1000 may land between two ns above 2**42 us
    return whole * 1000 + round((microseconds - whole) * 1000)


def read_trace(path: Path, *, keep_python: bool = False) -> RankTrace:
    """Read one file."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    elif data[:4] == b"\x28\xb5\x2f\xfd":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    try:
        document = json.loads(data)
    except ValueError as error:
        raise TraceError(f"{path}: not a trace: {error}") from None
    if isinstance(document, list):
        document = {"traceEvents": document}
    events = document.pop("traceEvents")
    strings = _Strings()
    tracks: dict[tuple[str, str], int] = {}
    names: dict[tuple[str, str], str] = {}
    counts: Counter[str] = Counter()
    cpu: list[list[int]] = []
    runtime: list[list[int]] = []
    gpu: list[list[int]] = []
    spans: list[list[int]] = []

    def text(args: dict[str, Any], keys: tuple[str, ...]) -> int:
        found = {key: args[key] for key in keys if key in args}
        return strings[json.dumps(found, separators=(",", ":"))] if found else NONE

    for event in events:
        category = event.get("cat") or ("metadata" if event["ph"] == "M" else "other")
        counts[category] += 1
        key = (str(event.get("pid")), str(event.get("tid")))
        args = event.get("args") or {}
        if event["ph"] == "M" and event["name"] == "thread_name":
            names[key] = str(args.get("name", ""))
        if event["ph"] != "X" or "ts" not in event:
            continue
        name = event["name"]
        row = [_ns(float(event["ts"])), _ns(float(event.get("dur", 0)))]
        external = int(args.get("External id", NONE))
        track = tracks.setdefault(key, len(tracks))
        device, stream = int(args.get("device", NONE)), int(args.get("stream", NONE))
        correlation = int(args.get("correlation", NONE))
        if category in ("cpu_op", "user_annotation", "python_function"):
            kind = CpuKind.OP if category == "cpu_op" else CpuKind.ANNOTATION
            if category == "python_function":
                module = name.startswith("nn.Module: ")
                kind = CpuKind.MODULE if module else CpuKind.PYTHON
                if not module and not keep_python:
                    continue
            cpu.append([*row, strings[name], track, kind, external, text(args, _CPU_ARGS)])
        elif category in ("cuda_runtime", "cuda_driver"):
            kernel = strings[args["kernel"]] if "kernel" in args else NONE
            runtime.append([*row, strings[name], track, correlation, external, kernel])
        elif category in _GPU:
            gpu.append([*row, strings[name], _GPU[category], device, stream, correlation, external,
                        int(args.get("graph node id", NONE)), int(args.get("bytes", NONE)),
                        text(args, ("grid", "block"))])  # fmt: skip
        elif category == "gpu_user_annotation":
            device = device if device >= 0 else int(event["pid"])
            stream = stream if stream >= 0 else int(event["tid"])
            spans.append([*row, strings[name], device, stream, external])
    tables = [cpu, runtime, gpu, spans]
    origin = min((row[0] for table in tables for row in table), default=0)
    widths = (7, 7, 11, 6)
    columns = []
    for table, width in zip(tables, widths, strict=True):
        table.sort(key=lambda row: row[0])
        array = np.array(table, dtype=np.int64).reshape(len(table), width)
        array[:, 0] -= origin
        columns.append(list(array.T.copy()))
    c, r, g, s = columns
    i4, u1 = np.int32, np.uint8
    return RankTrace(
        path=path,
        rank=rank_of(path, document),
        origin_us=origin / 1000,
        strings=list(strings),
        tracks=[Track(*key, name=names.get(key, "")) for key in tracks],
        cpu=CpuEvents(
            name=c[2].astype(i4), ts=c[0], dur=c[1], track=c[3].astype(i4),
            kind=c[4].astype(u1), external=c[5], args=c[6].astype(i4),
        ),
        runtime=RuntimeEvents(
            name=r[2].astype(i4), ts=r[0], dur=r[1], track=r[3].astype(i4),
            correlation=r[4], external=r[5], kernel=r[6].astype(i4),
        ),
        gpu=GpuEvents(
            name=g[2].astype(i4), ts=g[0], dur=g[1], kind=g[3].astype(u1),
            device=g[4].astype(i4), stream=g[5].astype(i4), correlation=g[6], external=g[7],
            graph_node=g[8], nbytes=g[9], args=g[10].astype(i4),
        ),
        gpu_annotations=GpuAnnotations(
            name=s[2].astype(i4), ts=s[0], dur=s[1], device=s[3].astype(i4),
            stream=s[4].astype(i4), external=s[5],
        ),
        other=document,
        counts=dict(counts),
        num_bytes=len(data),
    )  # fmt: skip


def read_traces(paths: Sequence[Path]) -> list[RankTrace]:
    """All of them, by rank."""
    return sorted((read_trace(path) for path in paths), key=lambda trace: trace.rank)

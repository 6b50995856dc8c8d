"""The reader's plain twin: the whole file as one JSON document, a loop over its events, Python's
own integers. Complete events only: what has no end, or is damaged, has tests of its own."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import zstandard

from atom.trace.types import NONE, CpuKind, GpuKind, RankTrace

_SHAPES = ("Input Dims", "Input type", "Concrete Inputs", "Input Strides")
_LAUNCH = ("grid", "block")
_COLLECTIVE = ("Collective name", "In msg nelems", "Out msg nelems", "Group size", "dtype")
_CPU = {"cpu_op": CpuKind.OP, "user_annotation": CpuKind.ANNOTATION}
_GPU = {"kernel": GpuKind.KERNEL, "gpu_memcpy": GpuKind.MEMCPY, "gpu_memset": GpuKind.MEMSET}

Rows = list[dict[str, Any]]


def load(path: Path) -> dict[str, Any]:
    """The JSON document, its decimals exact."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    elif data[:4] == b"\x28\xb5\x2f\xfd":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    document = json.loads(data, parse_float=Decimal)
    return {"traceEvents": document} if isinstance(document, list) else document


def ns(microseconds: Decimal | int | str) -> int:
    return round(Decimal(microseconds) * 1000)


def read(path: Path, *, keep_python: bool = False) -> tuple[dict[str, Rows], Counter[str]]:
    """The rows of the four tables, with names for indices and times since the origin, and the
    counts."""
    tables: dict[str, Rows] = {"cpu": [], "runtime": [], "gpu": [], "gpu_annotations": []}
    counts: Counter[str] = Counter()
    for event in load(path)["traceEvents"]:
        phase, category = event["ph"], event.get("cat")
        counts[category or ("metadata" if phase == "M" else "other")] += 1
        if phase == "X":
            table, row = _row(event, event.get("args") or {}, keep_python)
            if table:
                tables[table].append(row)
    rows = [row for table in tables.values() for row in table]
    origin = min((row["ts"] for row in rows), default=0)
    for row in rows:
        row["ts"] -= origin
    for table in tables.values():
        table.sort(key=lambda row: row["ts"])
    return tables, counts


def _row(event: dict[str, Any], args: dict[str, Any], keep: bool) -> tuple[str, dict[str, Any]]:
    category, name = event.get("cat"), event["name"]
    row = {
        "name": name,
        "ts": ns(event["ts"]),
        "dur": ns(event["dur"]),
        "external": args.get("External id", NONE),
    }
    track = {"track": (str(event["pid"]), str(event["tid"]))}
    place = {
        "device": args.get("device", event["pid"]),
        "stream": args.get("stream", event["tid"]),
    }
    correlation = args.get("correlation", NONE)
    if category == "python_function":
        if not (keep or name.startswith("nn.Module: ")):
            return "", {}
        kind = CpuKind.MODULE if name.startswith("nn.Module: ") else CpuKind.PYTHON
        return "cpu", row | track | {"kind": kind, "args": _text(args, _SHAPES)}
    if category in _CPU:
        return "cpu", row | track | {"kind": _CPU[category], "args": _text(args, _SHAPES)}
    if category in ("cuda_runtime", "cuda_driver"):
        more = {"correlation": correlation, "kernel": args.get("kernel")}
        return "runtime", row | track | more
    if category in _GPU:
        more = {
            "kind": _GPU[category],
            "correlation": correlation,
            "graph_node": args.get("graph node id", NONE),
            "nbytes": args.get("bytes", NONE),
            "args": _text(args, _LAUNCH + (_COLLECTIVE if "Collective name" in args else ())),
        }
        return "gpu", row | place | more
    return ("gpu_annotations", row | place) if category == "gpu_user_annotation" else ("", {})


def _text(args: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any] | None:
    return {key: args[key] for key in keys if key in args} or None


def rows_of(trace: RankTrace, table: str) -> Rows:
    """A table of a `RankTrace` in the same shape."""
    columns = getattr(trace, table)
    found: Rows = []
    for index in range(len(columns)):
        row: dict[str, Any] = {}
        for key in columns.__slots__:
            value = int(getattr(columns, key)[index])
            if key in ("name", "kernel", "args"):
                row[key] = trace.strings[value] if value >= 0 else None
                if key == "args" and value >= 0:
                    row[key] = json.loads(trace.strings[value])
            elif key == "track":
                row[key] = (trace.tracks[value].pid, trace.tracks[value].tid)
            else:
                row[key] = value
        found.append(row)
    return found


def assert_equal(path: Path, trace: RankTrace, *, keep_python: bool = False) -> None:
    """All four tables and the counts, row by row."""
    tables, counts = read(path, keep_python=keep_python)
    assert trace.counts == counts
    for table, rows in tables.items():
        assert rows_of(trace, table) == rows, table

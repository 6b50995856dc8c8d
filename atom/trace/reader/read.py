"""One file into a `RankTrace`."""

from __future__ import annotations

from pathlib import Path

from atom.trace.errors import TraceError
from atom.trace.reader.collect import Collector
from atom.trace.reader.files import rank_of
from atom.trace.reader.stream import EventStream
from atom.trace.types import CpuEvents, GpuAnnotations, GpuEvents, RankTrace, RuntimeEvents


def read_trace(path: Path, *, keep_python: bool = False) -> RankTrace:
    """Read Chrome/Kineto JSON, plain, gzip or zstd, in bounded memory: the columns, and some
    chunks of the file. `keep_python`: also the Python frames that are no modules.

    Raises:
        TraceError: it cannot be read or is no trace; says what it looks like. A file that is
            damaged or cut is read as far as can be, and `RankTrace.warnings` says so.
    """
    stream = EventStream(path)
    collector: Collector | None = None
    try:
        for events in stream.events():
            if collector is None:
                collector = Collector(exact=stream.exact, keep_python=keep_python)
            collector.add(events)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    assert collector is not None
    tables, origin = collector.finish()
    return RankTrace(
        path=path,
        rank=rank_of(path, stream.other),
        origin_us=origin / 1000,
        strings=list(collector.strings),
        tracks=collector.tracks,
        cpu=CpuEvents(**tables["cpu"]),
        runtime=RuntimeEvents(**tables["runtime"]),
        gpu=GpuEvents(**tables["gpu"]),
        gpu_annotations=GpuAnnotations(**tables["spans"]),
        other=stream.other,
        counts=dict(collector.counts),
        num_bytes=stream.source.num_bytes,
        warnings=(*stream.warnings, *collector.warnings),
    )

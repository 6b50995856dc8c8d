"""Reads profiler traces: Chrome/Kineto JSON, plain, gzip or zstd, one file per rank."""

from __future__ import annotations

from atom.trace.reader.files import find_traces
from atom.trace.reader.parallel import read_traces
from atom.trace.reader.read import read_trace

__all__ = ["find_traces", "read_trace", "read_traces"]

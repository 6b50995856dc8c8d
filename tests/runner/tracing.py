"""A recorded trace as its tests see it: annotations and operators by time, and who is in whom."""

from __future__ import annotations

import dataclasses
import gzip
import json
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from atom.config.schema import Config, ProfileConfig


class Span(NamedTuple):
    start: int  # ns
    end: int
    name: str
    kind: str
    correlation: int


class Recorded:
    """One file. Only of the thread that steps."""

    def __init__(self, path: str | Path) -> None:
        with gzip.open(path) as file:
            raw = json.load(file)
        self.atom: dict[str, Any] = raw["atom"]
        spans = sorted(
            (_span(event) for event in raw["traceEvents"] if event.get("ph") == "X"),
            key=lambda span: (span.start, -span.end),
        )
        self.annotations = [s for s in spans if s.kind == "user_annotation"]
        self.ops = [s for s in spans if s.kind == "cpu_op"]
        self.launches = [s for s in spans if s.kind in ("cuda_runtime", "cuda_driver")]
        self.gpu = [s for s in spans if s.kind in ("kernel", "gpu_memcpy", "gpu_memset")]

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.annotations]

    def named(self, start: str) -> list[Span]:
        return [span for span in self.annotations if span.name.startswith(start)]

    def within(self, outer: Span, kind: str = "annotations") -> list[Span]:
        spans: list[Span] = getattr(self, kind)
        return [
            s for s in spans if s is not outer and outer.start <= s.start and s.end <= outer.end
        ]

    def scope_of(self, span: Span) -> str:
        """The innermost annotation round `span`."""
        return _innermost(self.annotations, span)

    def scopes(self, outer: Span, kind: str = "ops") -> list[str]:
        """Innermost scopes of what `outer` holds, each run of equal ones once."""
        near = [outer, *self.within(outer)]
        found = [_innermost(near, span) for span in self.within(outer, kind)]
        return [name for name, _ in groupby(found)]


def _innermost(annotations: list[Span], span: Span) -> str:
    around = (a for a in reversed(annotations) if a.start <= span.start and span.end <= a.end)
    return next((annotation.name for annotation in around), "")


def _span(event: dict[str, Any]) -> Span:
    start, duration = round(1000 * float(event["ts"])), round(1000 * float(event["dur"]))
    correlation = event.get("args", {}).get("correlation", -1)
    return Span(start, start + duration, event["name"], event.get("cat", ""), correlation)


def profiled(config: Config, folder: Path, *, mark: bool = True) -> Config:
    profile = ProfileConfig(torch_profiler_dir=str(folder), mark_trace=mark)
    return dataclasses.replace(config, profile=profile)

"""From files to an `Analysis`: reads them, finds the capture that goes with them, explains all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atom.trace.captures import captures_for
from atom.trace.device_cpu import as_device
from atom.trace.errors import NoGpuWork, TraceError
from atom.trace.explain import explain, graph_sizes
from atom.trace.labels import parse_label
from atom.trace.launches import Launches, correlate, several_processes
from atom.trace.merge import by_rank
from atom.trace.reader import find_traces, read_traces
from atom.trace.reader.files import is_capture
from atom.trace.scopes import Scopes, find_scopes
from atom.trace.steps import FoundSteps, assign_steps
from atom.trace.types import Analysis, CpuKind, RankModel, RankTrace

DEVICES = ("auto", "gpu", "cpu")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A rank before its graphs are explained."""

    trace: RankTrace
    launches: Launches
    scopes: Scopes
    found: FoundSteps

    def explain(self, captures: Sequence[RankTrace]) -> RankModel:
        return explain(self.trace, self.launches, self.scopes, self.found, captures)


def load(paths: Sequence[Path], capture: Path | None = None, device: str = "auto") -> Analysis:
    """Read files and folders, find the capture that goes with them, explain them.

    Several files of one rank are parts of one profile (`merge`). `capture` replaces what
    would be found beside the traces; one among `paths` does the same.

    Raises:
        TraceError: nothing there is a trace, it has no GPU events (and `device` is not "cpu"), or
            no steps are found; says what there is instead.
    """
    if device not in DEVICES:
        raise TraceError(f"--device {device}: one of {', '.join(DEVICES)}")
    files, given = _apart(find_traces(paths))
    if capture is not None:
        given = find_traces([capture])
    if not files:
        raise TraceError(
            f"{given[0]}: a capture of graphs, not a run of them; give the trace of a run"
        )
    read, warnings = _with_work(read_traces(files), device)
    traces, doubts = by_rank(read)
    prepared = [_prepare(trace, device) for trace in traces]
    for each in prepared:
        if not any(step.counts and len(step.rows) for step in each.found.steps):
            raise _no_steps(each)
    captures = _captures(prepared, given, capture is not None)
    ranks = [each.explain(captures) for each in prepared]
    warnings += doubts + [w for trace in (*traces, *captures) for w in trace.warnings]
    warnings += _doubts(prepared, ranks, captures)
    return Analysis(
        ranks=ranks,
        warnings=tuple(dict.fromkeys(warnings)),
        capture=captures[0].path if captures else None,
        extra={
            "files": [str(trace.path) for trace in read],
            "captures": [str(each.path) for each in captures],
            "device": "cpu" if device == "cpu" else "gpu",
        },
    )


def analyze(traces: Sequence[RankTrace], capture: RankTrace | None = None) -> Analysis:
    """Traces of one profile, one per rank, explained; `capture` names what graphs replay.

    Unlike `load` it takes what it gets: a rank may be without steps.
    """
    prepared = [_prepare(trace, "gpu") for trace in sorted(traces, key=lambda each: each.rank)]
    captures = [capture] if capture is not None else []
    return Analysis(
        ranks=[each.explain(captures) for each in prepared],
        warnings=tuple(w for trace in (*traces, *captures) for w in trace.warnings),
        capture=capture.path if capture is not None else None,
    )


def _apart(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Runs, and captures: `rank_0/*.json.gz` names both."""
    captures = [path for path in files if is_capture(path)]
    return [path for path in files if path not in captures], captures


def _with_work(traces: Sequence[RankTrace], device: str) -> tuple[list[RankTrace], list[str]]:
    """Those with work of the device, and a line for each that has none."""
    if device == "cpu":
        kept = [trace for trace in traces if (trace.cpu.kind == CpuKind.OP).any()]
        missing = "no operators of the host (category cpu_op)"
    else:
        kept = [trace for trace in traces if len(trace.gpu)]
        missing = "no GPU events (categories kernel, gpu_memcpy, gpu_memset)"
    lost = [trace for trace in traces if not any(trace is each for each in kept)]
    lines = [f"{trace.path}: {missing}; it has {_contents(trace)}" for trace in lost]
    if not kept:
        damage = "".join(f"; {warning}" for warning in lost[0].warnings[:1])
        if device != "cpu" and any((trace.cpu.kind == CpuKind.OP).any() for trace in traces):
            hint = "; --device cpu analyses the host's operators instead"
            raise NoGpuWork(lines[0] + damage + hint)
        raise TraceError(lines[0] + damage)
    return kept, [f"{line}; left out" for line in lines]


def _contents(trace: RankTrace) -> str:
    """The file's events by category: "4,055 cpu_op, 12 user_annotation"."""
    counts = [(name, count) for name, count in trace.counts.items() if count]
    found = ", ".join(f"{count:,} {name}" for name, count in Counter(dict(counts)).most_common(5))
    return found or "no events at all"


def _prepare(trace: RankTrace, device: str) -> _Prepared:
    scopes = find_scopes(trace)
    if device == "cpu":
        trace, launches = as_device(trace, scopes)
    else:
        launches = correlate(trace)
    return _Prepared(trace, launches, scopes, assign_steps(trace, launches, scopes))


def _no_steps(rank: _Prepared) -> TraceError:
    trace = rank.trace
    kinds = Counter(step.kind for step in rank.found.steps)
    names = Counter(
        trace.strings[name]
        for name in trace.cpu.name[trace.cpu.kind == CpuKind.ANNOTATION].tolist()
    )
    seen = [name for name, _ in names.most_common() if parse_label(name) is None][:3]
    parts = []
    if kinds:
        what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        parts.append(
            f"its labels are of {what} only"
            if set(kinds) <= {"capture", "dummy"}
            else f"the steps that its labels name ({what}) launched none of it"
        )
    else:
        parts.append("no step labels, modules, graph launches or repeating kernels")
    parts.append("annotations are " + (", ".join(map(repr, seen)) if seen else "none"))
    return TraceError(
        f"{trace.path}: no steps found in {len(trace.gpu):,} GPU events: {'; '.join(parts)}"
    )


def _captures(
    prepared: Sequence[_Prepared], given: Sequence[Path], chosen: bool
) -> list[RankTrace]:
    """Read only if a graph was launched, unless the user chose one."""
    with_graphs = [each for each in prepared if len(each.launches.graph_rows)]
    if not with_graphs and not chosen:
        return []
    if given:
        return read_traces(given)
    first = with_graphs[0]
    parts = first.trace.other.get("parts")
    path = Path(parts[-1]["path"]) if parts else first.trace.path
    found = captures_for(path, first.trace.rank, graph_sizes(first.found.steps))
    return read_traces(found) if found else []


def _doubts(
    prepared: Sequence[_Prepared], ranks: Sequence[RankModel], captures: Sequence[RankTrace]
) -> list[str]:
    """What a reader of the figures has to know, one line each."""
    lines = []
    for each, model in zip(prepared, ranks, strict=True):
        trace = each.trace
        lines.append(several_processes(trace, each.launches))
        devices = np.unique(trace.gpu.device)
        if len(devices) > 1:
            lines.append(
                f"{trace.path.name}: {len(devices)} devices in one file; busy and idle are of all "
                "of them together"
            )
        broken = [step for step in model.steps if step.counts and step.warning]
        if broken:
            lines.append(
                f"{trace.path.name}: {len(broken)} of {len(model.steps)} steps are not whole; "
                f"the first, {broken[0].label}: {broken[0].warning}"
            )
    for capture in captures:
        labels = (parse_label(capture.strings[n]) for n in np.unique(capture.cpu.name).tolist())
        if not any(label and label.kind == "capture" for label in labels) and not is_capture(
            capture.path
        ):
            lines.append(
                f"{capture.path.name}: no annotation capture_* in it; taken as one capture"
            )
    return [line for line in lines if line]

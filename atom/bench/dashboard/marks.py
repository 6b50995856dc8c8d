"""What stands out in the history: changes of level, and newest runs that the gate suspects.

The judging is `atom.bench.compare`'s; here its findings become marks on runs. A page cannot run
anything again, so the gate's alarms are marked "suspicious": what the next run confirms is a change
of level.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from atom.bench.compare import ChangePoint, GateReport, changepoints, gate, series
from atom.bench.compare.rules import throughput_name
from atom.bench.dashboard.payload import Mark
from atom.bench.names import unit
from atom.bench.types import RunResult

LATENCIES = ("mean_ttft_ms", "mean_tpot_ms")


def find_marks(runs: Sequence[RunResult]) -> list[Mark]:
    """Marks on the benchmark runs of every fingerprint, oldest first."""
    groups: defaultdict[str, list[RunResult]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: r.run_id):
        if run.kind == "bench":
            groups[run.fingerprint].append(run)
    return [mark for same in groups.values() if len(same) > 1 for mark in _marks(same)]


def _marks(same: Sequence[RunResult]) -> list[Mark]:
    """Throughput is marked once, by the name that all runs have."""
    points = [
        point
        for metric in (throughput_name(*same), *LATENCIES)
        for point in changepoints(series(same, metric))
    ]
    faster = {p.run_id for p in points if p.metric not in LATENCIES and p.verdict == "better"}
    marks = [_of_change(point, traded=point.run_id in faster) for point in points]
    marked = {(mark.run_id, mark.metric) for mark in marks}
    newest = same[-1]
    return marks + [
        mark
        for mark in _of_gate(gate(newest, same[:-1]))
        if (newest.run_id, mark.metric) not in marked
    ]


def _of_change(point: ChangePoint, *, traded: bool) -> Mark:
    """Latency that rose with throughput is a choice of the scheduler, not a loss."""
    choice = traded and point.verdict == "worse"
    kind = "change" if choice else "regression" if point.verdict == "worse" else "improvement"
    value, low, high = (_percent(r) for r in (point.ratio.value, point.ratio.low, point.ratio.high))
    text = (
        f"from {point.before:,.4g} to {point.after:,.4g} {unit(point.metric)}, "
        f"{value} % (95 %: {low} to {high})"
    )
    if choice:
        text += ", while throughput rose"
    commits = "..".join(part[:9] for part in point.commits.split("..") if part)
    return Mark(point.run_id, point.metric, kind, point.ratio.value, text, commits)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}".replace("-", "−")


def _of_gate(report: GateReport) -> list[Mark]:
    if report.status not in ("suspicious", "regression"):
        return []
    return [
        Mark(
            report.run_id,
            finding.metric,
            report.status,
            finding.value / finding.baseline,
            f"against the median of {len(report.baseline_runs)} earlier runs. {report.sentence}",
        )
        for finding in report.findings
        if finding.alarming
    ]

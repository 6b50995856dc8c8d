"""Which run of B belongs to which of A, and the verdict over all points of two sweeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from atom.bench.compare.comparison import Comparison, Overall, compare_all
from atom.bench.compare.facts import point
from atom.bench.errors import BenchError
from atom.bench.types import RunResult

# The first that fits wins; a loose key pairs only what no stricter one has paired.
_KEYS: tuple[Callable[[RunResult], str], ...] = (
    lambda run: run.fingerprint,
    lambda run: f"{run.kind} {run.model} {_work(run)} {point(run)}",
    lambda run: f"{run.kind} {_work(run)} {point(run)}",
    lambda run: f"{run.kind} {point(run)}",
)


class SweepComparison(msgspec.Struct, frozen=True, kw_only=True):
    """All points that two sets of runs have in common."""

    points: list[Comparison]
    verdict: Overall
    sentence: str
    primary_ratio: float | None  # geometric mean over the points of B's primary metric / A's
    only_a: list[str]  # points without a partner, for people
    only_b: list[str]


def pair(
    a: Sequence[RunResult], b: Sequence[RunResult]
) -> tuple[list[tuple[RunResult, RunResult]], list[RunResult], list[RunResult]]:
    """Pairs in A's order, and what is left of each side.

    Two single runs are a pair whatever they are. Raises `BenchError` where nothing pairs.
    """
    if len(a) == len(b) == 1:
        return [(a[0], b[0])], [], []
    partner: dict[str, RunResult] = {}
    left_a, left_b = list(a), list(b)
    for key in _KEYS:
        counts_a, counts_b = (Counter(map(key, side)) for side in (left_a, left_b))
        by_key = {key(run): run for run in left_b if counts_b[key(run)] == 1}
        for run in list(left_a):
            if counts_a[key(run)] == 1 and key(run) in by_key:
                partner[run.run_id] = by_key[key(run)]
                left_a.remove(run)
                left_b.remove(by_key[key(run)])
    if not partner:
        raise BenchError(
            f"no point in common: A has {_points(a)}, B has {_points(b)}; name single runs"
        )
    return [(run, partner[run.run_id]) for run in a if run.run_id in partner], left_a, left_b


def compare_sweeps(
    a: Sequence[RunResult],
    b: Sequence[RunResult],
    *,
    margin: float | None = None,
    histories: Mapping[str, Sequence[RunResult]] | None = None,
) -> SweepComparison:
    """B's points judged against A's; `histories`: runs by A's fingerprints."""
    pairs, left_a, left_b = pair(a, b)
    known = histories or {}
    points = compare_all(
        pairs, margin=margin, histories=[known.get(x.fingerprint, ()) for x, _ in pairs]
    )
    verdict = overall(points)
    return SweepComparison(
        points=points,
        verdict=verdict,
        sentence=points[0].sentence if len(points) == 1 else _sentence(points, verdict),
        primary_ratio=_mean_ratio(points),
        only_a=[point(run) for run in left_a],
        only_b=[point(run) for run in left_b],
    )


def overall(points: Sequence[Comparison]) -> Overall:
    """The worst of the points; the same only if no point is undecided."""
    found = {p.verdict for p in points}
    order: tuple[Overall, ...] = ("worse", "trade-off", "better", "undecided")
    return next((verdict for verdict in order if verdict in found), "same")


def _sentence(points: Sequence[Comparison], verdict: Overall) -> str:
    counts = Counter(p.verdict for p in points)
    if len(counts) == 1:
        return f"All {len(points)} points: {verdict}"
    order: tuple[Overall, ...] = ("worse", "trade-off", "undecided", "same", "better")
    told = ", ".join(f"{counts[v]} {v}" for v in order if counts[v])
    where = ", ".join(p.point or p.b.run_id for p in points if p.verdict == verdict)
    ending = f" ({where})" if verdict in ("worse", "trade-off") else ""
    return f"Of {len(points)} points: {told}{ending}"


def _mean_ratio(points: Sequence[Comparison]) -> float | None:
    """Only over points that are judged by the same metric."""
    logs = []
    for each in points:
        found = each.metric(each.primary)
        if each.primary != points[0].primary or found is None or found.change is None:
            return None
        if found.scale != "ratio":
            return None
        logs.append(math.log(found.change.value))
    return math.exp(sum(logs) / len(logs)) if logs else None


def _work(run: RunResult) -> str:
    return " ".join(str(run.workload.get(k, "")) for k in ("dataset", "input_len", "output_len"))


def _points(runs: Sequence[RunResult]) -> str:
    shown = [point(run) or run.run_id for run in runs[:4]]
    return ", ".join(shown) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")

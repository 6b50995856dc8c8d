"""Two runs, metric by metric: ratio with its interval, verdict, and one verdict on the whole.

A difference is "worse" or "better" when it is real (Student's t on the logarithms at 5 %, after
Benjamini-Hochberg) and at least 0.6 of the margin; "same" when the chance that it is beyond the
margin is at most 10 % on either side (two one-sided tests); else "undecided", with the number of
repeats that would do. What these rates are worth is measured by benchmarks/regression_rates.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from atom.bench import names
from atom.bench.compare import facts, rules
from atom.bench.compare.measure import Measured, measure
from atom.bench.compare.noise import MIN_RUNS
from atom.bench.compare.stats import adjusted
from atom.bench.types import Interval, RunResult

Verdict = Literal["better", "worse", "same", "undecided"]
Overall = Literal["better", "worse", "same", "undecided", "trade-off"]

LATENCIES = ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms")
GUARDS = (*LATENCIES, "error_rate")


class MetricComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of B beside A. All of it is about B as seen from A."""

    name: str
    a: float  # means over the repeats
    b: float
    scale: rules.Scale  # what `change` is
    change: Interval | None  # 95 %: B / A of a ratio, B - A of a difference; None: there is none
    certain: bool  # whether `change` has an interval; without one its ends are its value
    p_value: float | None  # that there is no difference, after Benjamini-Hochberg
    verdict: Verdict
    reason: str  # why it is undecided
    margin: float  # "same" within it
    headline: bool  # counts for the verdict on the whole
    paired: bool  # repeats with the same seed were set against each other
    repeats: tuple[int, int]
    repeats_needed: int | None  # of each run, that would decide; None: decided, or no such number

    @property
    def relative(self) -> float | None:
        """The change as a share of A, or in points where the scale is a difference."""
        if self.change is None:
            return None
        return self.change.value - (1.0 if self.scale == "ratio" else 0.0)


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Run B judged against run A."""

    a: facts.RunFacts
    b: facts.RunFacts
    point: str  # the load, for people; "" where it differs
    primary: str  # the metric that must be the same for the runs to be
    metrics: list[MetricComparison]  # the headline ones first
    verdict: Overall
    sentence: str
    differences: list[facts.Difference]  # in what was run, not in what was measured
    notes: list[str]  # what speaks against the verdict

    def metric(self, name: str) -> MetricComparison | None:
        return next((m for m in self.metrics if m.name == name), None)


class _Pair(NamedTuple):
    a: RunResult
    b: RunResult
    headline: list[str]
    measured: list[Measured]


def compare(
    a: RunResult,
    b: RunResult,
    *,
    margin: float | None = None,
    history: Sequence[RunResult] = (),
) -> Comparison:
    """B judged against A.

    `margin` (0.03 is 3 %) replaces the margins of throughput and latency. `history` are further
    runs with A's fingerprint, which tell what changes from start to start.
    """
    return compare_all([(a, b)], margin=margin, histories=[history])[0]


def compare_all(
    pairs: Sequence[tuple[RunResult, RunResult]],
    *,
    margin: float | None = None,
    histories: Sequence[Sequence[RunResult]] = (),
) -> list[Comparison]:
    """Several comparisons whose headline metrics are one family of tests.

    The other metrics are a second family: what is shown for interest must not make the headline
    harder to prove. `histories` has one entry for each pair, or none at all.
    """
    measured = [
        _measured(a, b, margin, histories[i] if histories else ()) for i, (a, b) in enumerate(pairs)
    ]
    families: dict[bool, list[float]] = {True: [], False: []}
    for pair in measured:
        for m in pair.measured:
            if m.p_value is not None:
                families[m.name in pair.headline].append(m.p_value)
    corrected = {family: iter(adjusted(values)) for family, values in families.items()}
    return [
        _comparison(
            pair,
            [
                _judged(m, h, None if m.p_value is None else next(corrected[h]))
                for m in pair.measured
                for h in (m.name in pair.headline,)
            ],
        )
        for pair in measured
    ]


def _measured(
    a: RunResult, b: RunResult, margin: float | None, history: Sequence[RunResult]
) -> _Pair:
    headline = _headline(a, b)
    others = [run for run in history if run.run_id not in (a.run_id, b.run_id)]
    found = []
    for name in _common(a, b, headline):
        rule = rules.judged(name, margin)
        assert rule is not None, name
        found.append(measure(a, b, name, rule, others))
    return _Pair(a, b, headline, found)


def _headline(a: RunResult, b: RunResult) -> list[str]:
    """The metrics that decide, the primary one first: what the load leaves to the server."""
    if a.kind != "bench":
        return sorted(n for n in a.metrics if n in b.metrics)
    guards = [n for n in GUARDS if rules.known(a, n) and rules.known(b, n)]
    if rules.is_open_loop(a):
        first = "mean_e2el_ms" if "mean_e2el_ms" in guards else "mean_ttft_ms"
        return sorted(guards, key=lambda n: n != first)
    return [rules.throughput_name(a, b), *guards]


def _common(a: RunResult, b: RunResult, headline: list[str]) -> list[str]:
    """Metrics that both have and that have a good side; the headline first."""
    repeated = [n for run in (a, b) for repeat in run.repeats[:1] for n in repeat.metrics]
    ordered = dict.fromkeys([*headline, *names.PLAIN, *a.metrics, *repeated])
    return [
        n
        for n in ordered
        if rules.judged(n) is not None and rules.known(a, n) and rules.known(b, n)
    ]


def _judged(m: Measured, headline: bool, p_value: float | None) -> MetricComparison:
    verdict = _verdict(m, p_value)
    undecided = verdict == "undecided"
    return MetricComparison(
        name=m.name,
        a=m.a,
        b=m.b,
        scale=m.rule.scale,
        change=m.change,
        certain=m.wide is not None,
        p_value=p_value,
        verdict=verdict,
        reason=(m.unknown or "the noise is wider than the margin") if undecided else "",
        margin=m.rule.margin,
        headline=headline,
        paired=m.paired,
        repeats=m.repeats,
        repeats_needed=m.repeats_needed if undecided else None,
    )


def _verdict(m: Measured, p_value: float | None) -> Verdict:
    if m.a == m.b == 0.0 or (m.rule.absolute and abs(m.b - m.a) < m.rule.absolute):
        return "same"
    if m.value is None or m.narrow is None or p_value is None:
        return "undecided"
    if p_value <= rules.ALPHA and abs(m.value) >= m.rule.floor:
        improved = (m.value > 0) == (names.better(m.name) == "higher")
        return "better" if improved else "worse"
    low, high = m.narrow
    return "same" if -m.rule.margin <= low and high <= m.rule.margin else "undecided"


def _comparison(pair: _Pair, metrics: list[MetricComparison]) -> Comparison:
    verdict = _overall(metrics)
    point_a, point_b = facts.point(pair.a), facts.point(pair.b)
    return Comparison(
        a=facts.run_facts(pair.a),
        b=facts.run_facts(pair.b),
        point=point_a if point_a == point_b else "",
        primary=pair.headline[0] if pair.headline else "",
        metrics=metrics,
        verdict=verdict,
        sentence=_sentence(verdict, metrics),
        differences=facts.differences(pair.a, pair.b),
        notes=[*facts.doubts(pair.a, pair.b), *_assumptions(pair, metrics)],
    )


def _assumptions(pair: _Pair, metrics: Sequence[MetricComparison]) -> list[str]:
    """What a proven difference rests on that was not measured."""
    proven = {m.name for m in metrics if m.headline and m.verdict in ("better", "worse")}
    if not any(m.assumed and m.name in proven for m in pair.measured):
        return []
    return [
        f"fewer than {MIN_RUNS} earlier runs like A: the spread from start to start is taken as "
        f"{rules.PRIOR_START_SIGMA:.1%}; on a machine whose speed drifts, run both again"
    ]


def _overall(metrics: Sequence[MetricComparison]) -> Overall:
    """Worse if anything of the headline is; same if the primary metric is and nothing differs."""
    headline = [m for m in metrics if m.headline]
    worse = [m for m in headline if m.verdict == "worse"]
    if worse:
        rates = [m.relative or 0.0 for m in headline if m.name.endswith("throughput")]
        paid_for = max(rates, default=0.0) >= rules.TRADE_OFF
        return "trade-off" if paid_for and all(m.name in LATENCIES for m in worse) else "worse"
    if any(m.verdict == "better" for m in headline):
        return "better"
    return "same" if headline and headline[0].verdict == "same" else "undecided"


def _sentence(verdict: Overall, metrics: Sequence[MetricComparison]) -> str:
    headline = [m for m in metrics if m.headline]
    if not headline:
        return "The runs have no metric in common that could be judged"
    if verdict in ("worse", "better"):
        told = "; ".join(_told(m) for m in headline if m.verdict == verdict)
        return f"B is {verdict} than A: {told}"
    if verdict == "trade-off":
        told = "; ".join(_told(m) for m in headline if m.verdict in ("worse", "better"))
        return f"A trade-off: {told}"
    first = headline[0]
    if verdict == "undecided":
        need = first.repeats_needed
        way = f"; about {need} repeats of each would decide" if need else ""
        return f"Undecided: {_told(first)}; {first.reason}{way}"
    open_ones = [names.label(m.name) for m in headline if m.verdict == "undecided"]
    rest = f"; still open: {', '.join(open_ones)}" if open_ones else ""
    return f"B is the same as A within {_amount(first.margin, first)}: {_told(first)}{rest}"


def _told(m: MetricComparison) -> str:
    return f"{names.label(m.name)} {change_text(m)}"


def _amount(value: float, m: MetricComparison) -> str:
    return f"{value * 100:.2g}%" if m.scale == "ratio" else f"{value * 100:.2g} points"


def change_text(m: MetricComparison) -> str:
    """The change of B from A in percent, or in points, with its interval."""
    if m.change is None:
        return "equal" if m.a == m.b else "not known"
    base = 1.0 if m.scale == "ratio" else 0.0
    value, low, high = (100 * (v - base) for v in (m.change.value, m.change.low, m.change.high))
    digits = 1 if max(abs(value), abs(low), abs(high)) < 100 else 0
    sign = "%" if m.scale == "ratio" else " pt"
    text = f"{value:+.{digits}f}{sign}"
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]" if m.certain else text

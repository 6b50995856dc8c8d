"""Two evaluations, question by question: who answers more right, and is that more than chance?

Samples of the two runs are paired by their documents. A metric that is right or wrong is judged by
McNemar's exact test on the questions answered differently, any other by Student's t on the paired
differences. "worse" and "better": p < 0.05, after Benjamini-Hochberg over the tasks' main metrics;
"same": the interval of 90 % lies within the margin (two one-sided tests at 5 %); else "undecided".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from atom.bench.compare.facts import Difference, RunFacts, run_facts
from atom.bench.compare.stats import adjusted
from atom.bench.history.runs import better
from atom.bench.types import Interval, RunResult
from atom.eval import mcnemar
from atom.eval.comparability import differences, notes_on, untested
from atom.eval.pairs import Pairs, pair
from atom.eval.types import Sample
from atom.eval.wording import question, said, target

Verdict = Literal["better", "worse", "same", "undecided", "trade-off"]
Scale = Literal["share", "mean", "ratio"]

MARGIN = 0.01  # "same" means within a point
CONFIDENCE = 0.95
TOST = 0.90  # the interval of two one-sided tests at 5 %
# The first of these that a task has stands for it, unless the run says which.
MAIN = ("exact_match,flexible-extract", "acc,none", "exact_match,strict-match", "top1,none")


class Rules(NamedTuple):
    """By what a metric is judged."""

    margin: float
    lower: frozenset[str]  # metrics ("task/metric,filter") of which less is better


Samples = Mapping[str, Sequence[Sample]]  # by task


class Change(msgspec.Struct, frozen=True):
    """A question that the two runs answered differently."""

    a_doc: int  # `Sample.doc_id` in A
    b_doc: int
    question: str
    target: str
    a_said: str
    b_said: str


class MetricComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One metric on the paired samples; all of it is about B as seen from A."""

    metric: str
    main: bool
    scale: Scale  # of `change`: a difference of shares or means, or a ratio of perplexities
    a: float
    b: float
    change: Interval | None  # 95 %; None: fewer than two pairs
    p_value: float | None
    mid_p: float | None  # of McNemar's test
    adjusted_p: float | None  # of a main metric, among those of all tasks
    lost: int | None  # right in A, wrong in B
    won: int | None
    smallest: float | None  # the least difference that so many samples show in 4 of 5 cases
    verdict: Verdict


class TaskComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One task, or a group whose members' samples are taken together."""

    task: str
    group: bool
    n: int  # pairs
    only_a: int
    only_b: int
    metrics: list[MetricComparison]  # the main one first
    lost: list[Change]  # by the main metric
    won: list[Change]
    notes: list[str]

    @property
    def main(self) -> MetricComparison:
        return self.metrics[0]


class EvalComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Run B judged against run A."""

    a: RunFacts
    b: RunFacts
    margin: float
    tasks: list[TaskComparison]
    untested: list[str]  # scores that no samples stand behind, in words
    differences: list[Difference]
    verdict: Verdict
    sentence: str
    notes: list[str]


def compare(
    a: RunResult,
    b: RunResult,
    a_samples: Samples,
    b_samples: Samples,
    *,
    margin: float = MARGIN,
    only: Sequence[str] = (),
    metric: str | None = None,
) -> EvalComparison:
    """B judged against A. `only` names the tasks to look at, `metric` the one to judge by."""
    tasks = [task for task in a_samples if task in b_samples and (not only or task in only)]
    parts = {task: pair(a_samples[task], b_samples[task]) for task in tasks}
    lower = {name for run in (a, b) for name in run.metrics if better(run, name) == "lower"}
    rules = Rules(margin, frozenset(lower))
    measured = [
        _task(task, parts[task], metric or main_metric(a, b, task), rules) for task in tasks
    ]
    judged = _judged([found for found in measured if found is not None])
    groups = [
        _group(name, members, judged, parts, rules)
        for name, members in _groups(a, b).items()
        if (not only or name in only) and len([m for m in members if m in parts]) > 1
    ]
    told = judged + [group for group in groups if group is not None]
    verdict = _overall([task.main.verdict for task in judged])
    return EvalComparison(
        a=run_facts(a),
        b=run_facts(b),
        margin=margin,
        tasks=told,
        untested=untested(a, b, {task.task for task in told}, only),
        differences=differences(a, b),
        verdict=verdict,
        sentence=_sentence(verdict, judged),
        notes=notes_on(a, b, parts),
    )


def main_metric(a: RunResult, b: RunResult, task: str) -> str | None:
    """What a run says stands for the task; a threshold's metric; None: by `MAIN`."""
    for run in (b, a):
        told = run.workload.get("tasks")
        known = told.get(task) if isinstance(told, Mapping) else None
        if isinstance(known, Mapping) and known.get("main_metric"):
            return str(known["main_metric"])
    limits = [name for run in (b, a) for name in run.slo if name.startswith(f"{task}/")]
    return limits[0].removeprefix(f"{task}/") if limits else None


def first_metric(metrics: Sequence[str], wanted: str | None) -> str:
    """`wanted` (acc_norm or acc_norm,none), else by `MAIN`, else the first."""
    if wanted is not None:
        for name in metrics:
            if wanted in (name, name.partition(",")[0], name.partition(",")[2]):
                return name
    return next((name for name in MAIN if name in metrics), metrics[0])


def _task(
    task: str, pairs: Pairs, wanted: str | None, rules: Rules, *, group: bool = False
) -> TaskComparison | None:
    """Without verdicts on the whole family yet; None where no metric is in both runs."""
    metrics = [
        name
        for name in dict.fromkeys(name for p in pairs.pairs for name in p.a.metrics)
        if any(name in p.b.metrics for p in pairs.pairs)
    ]
    if not metrics:
        return None
    main = first_metric(metrics, wanted)
    metrics = [main, *(name for name in metrics if name != main)]
    return TaskComparison(
        task=task,
        group=group,
        n=len(pairs.pairs),
        only_a=len(pairs.only_a),
        only_b=len(pairs.only_b),
        metrics=[_metric(task, name, pairs, name == main, rules) for name in metrics],
        lost=_changes(pairs, main, -1),
        won=_changes(pairs, main, 1),
        notes=pairs.notes,
    )


def _metric(task: str, name: str, pairs: Pairs, main: bool, rules: Rules) -> MetricComparison:
    values = [
        (p.a.metrics[name], p.b.metrics[name])
        for p in pairs.pairs
        if name in p.a.metrics and name in p.b.metrics
    ]
    if all(value in (0.0, 1.0) for both in values for value in both):
        return _binary(name, values, main, rules.margin, lower=f"{task}/{name}" in rules.lower)
    return _continuous(name, values, main, rules.margin, lower=f"{task}/{name}" in rules.lower)


def _binary(
    name: str, values: Sequence[tuple[float, float]], main: bool, margin: float, *, lower: bool
) -> MetricComparison:
    counts = mcnemar.Counts(
        both=values.count((1.0, 1.0)),
        lost=values.count((1.0, 0.0)),
        won=values.count((0.0, 1.0)),
        neither=values.count((0.0, 0.0)),
    )
    p = mcnemar.exact_p(counts.lost, counts.won)
    discordant = (counts.lost + counts.won) / counts.n
    return MetricComparison(
        metric=name,
        main=main,
        scale="share",
        a=(counts.both + counts.lost) / counts.n,
        b=(counts.both + counts.won) / counts.n,
        change=Interval(counts.difference, *mcnemar.difference_interval(counts, CONFIDENCE)),
        p_value=p,
        mid_p=mcnemar.mid_p(counts.lost, counts.won),
        adjusted_p=None,
        lost=counts.lost,
        won=counts.won,
        smallest=mcnemar.smallest_difference(counts.n, discordant),
        verdict=_verdict(
            p,
            -counts.difference if lower else counts.difference,
            mcnemar.difference_interval(counts, TOST),
            margin,
        ),
    )


def _continuous(
    name: str, values: Sequence[tuple[float, float]], main: bool, margin: float, *, lower: bool
) -> MetricComparison:
    """Means; of perplexities, whose samples are log-likelihoods, the ratio B / A."""
    a, b = (math.fsum(side) / len(values) for side in zip(*values, strict=True))
    ratio = name.startswith("perplexity")
    change = p = smallest = None
    verdict: Verdict = "undecided"
    finite = all(math.isfinite(value) for both in values for value in both)
    if len(values) > 1 and finite:
        found = mcnemar.paired_mean([right - left for left, right in values])
        low, high = found.interval(CONFIDENCE)
        change, p = Interval(found.value, low, high), found.p_value
        smallest = mcnemar.smallest_mean(found.error)
        if ratio:
            change = Interval(math.exp(-found.value), math.exp(-high), math.exp(-low))
            smallest = math.expm1(smallest)
        # Log-likelihoods are better when higher, whatever their perplexity is.
        gain = found.value if ratio or not lower else -found.value
        verdict = _verdict(p, gain, found.interval(TOST), margin)
    return MetricComparison(
        metric=name,
        main=main,
        scale="ratio" if ratio else "mean",
        a=_perplexity(a) if ratio else a,
        b=_perplexity(b) if ratio else b,
        change=change,
        p_value=p,
        mid_p=None,
        adjusted_p=None,
        lost=None,
        won=None,
        smallest=smallest,
        verdict=verdict,
    )


def _perplexity(mean: float) -> float:
    try:
        return math.exp(-mean)
    except OverflowError:
        return math.inf


def _verdict(p: float, gain: float, within: tuple[float, float], margin: float) -> Verdict:
    """`gain`: the change as an improvement; `within`: the interval of the two one-sided tests."""
    if p < mcnemar.ALPHA:
        return "better" if gain > 0 else "worse"
    return "same" if -margin <= within[0] and within[1] <= margin else "undecided"


def _judged(tasks: Sequence[TaskComparison]) -> list[TaskComparison]:
    """With the main metrics' p-values as a family: what is called worse by chance stays 1 in 20."""
    tested = [task for task in tasks if task.main.p_value is not None]
    family = dict(
        zip(
            (task.task for task in tested),
            adjusted([task.main.p_value or 0.0 for task in tested]),
            strict=True,
        )
    )
    found = []
    for task in tasks:
        p, main = family.get(task.task), task.main
        if p is not None:
            lapsed = main.verdict in ("better", "worse") and p >= mcnemar.ALPHA
            verdict = "undecided" if lapsed else main.verdict
            main = msgspec.structs.replace(main, adjusted_p=p, verdict=verdict)
        found.append(msgspec.structs.replace(task, metrics=[main, *task.metrics[1:]]))
    return found


def _groups(a: RunResult, b: RunResult) -> dict[str, list[str]]:
    """The groups that both runs have with the same members."""
    found = []
    for run in (a, b):
        told = run.workload.get("tasks")
        tasks = told if isinstance(told, Mapping) else {}
        found.append({k: v["members"] for k, v in tasks.items() if _members(v)})
    left, right = found
    return {name: list(left[name]) for name in left if right.get(name) == left[name]}


def _members(known: Any) -> bool:
    return isinstance(known, Mapping) and bool(known.get("members"))


def _group(
    name: str,
    members: Sequence[str],
    tasks: Sequence[TaskComparison],
    parts: Mapping[str, Pairs],
    rules: Rules,
) -> TaskComparison | None:
    """All samples of the members together, as a group's score weighs them; not in the family."""
    mains = {task.main.metric for task in tasks if task.task in members}
    if len(mains) != 1 or not set(members) <= parts.keys():
        return None
    whole = Pairs(
        pairs=[p for member in members for p in parts[member].pairs],
        only_a=[s for member in members for s in parts[member].only_a],
        only_b=[s for member in members for s in parts[member].only_b],
        notes=[],
    )
    return _task(name, whole, mains.pop(), rules, group=True)


def _changes(pairs: Pairs, metric: str, sign: int) -> list[Change]:
    return [
        Change(
            p.a.doc_id, p.b.doc_id, question(p.a), target(p.a), said(p.a, metric), said(p.b, metric)
        )
        for p in pairs.pairs
        if sign * (p.b.metrics.get(metric, 0.0) - p.a.metrics.get(metric, 0.0)) > 0
        and {p.a.metrics.get(metric), p.b.metrics.get(metric)} == {0.0, 1.0}
    ]


def _overall(verdicts: Sequence[Verdict]) -> Verdict:
    found = set(verdicts)
    if {"better", "worse"} <= found:
        return "trade-off"
    if "worse" in found:
        return "worse"
    if "better" in found:
        return "better"
    return "same" if found == {"same"} else "undecided"


def _sentence(verdict: Verdict, tasks: Sequence[TaskComparison]) -> str:
    if not tasks:
        return "there are no samples of a task in both runs, so nothing can be tested"

    def of(wanted: Verdict) -> str:
        return ", ".join(task.task for task in tasks if task.main.verdict == wanted)

    if verdict == "trade-off":
        return f"B is better on {of('better')} and worse on {of('worse')}"
    if verdict in ("better", "worse"):
        return f"B is {verdict} than A on {of(verdict)}"
    if verdict == "same":
        return "A and B are the same within the margin"
    return f"no difference is shown on {of('undecided')}; that is no proof that there is none"

"""Is this run a regression? Judged against the last runs of the same fingerprint.

An alarm needs all of: a loss beyond the threshold (throughput 5 %, TTFT and TPOT 10 %), beyond the
noise of the earlier runs, and the same again in one re-run. What fails the last is "suspicious". A
bare percentage between two single runs, as is usual, alarms at a run-to-run variation of 3 % every
eighth night without a cause.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from atom.bench import names
from atom.bench.compare import rules
from atom.bench.compare.comparison import LATENCIES
from atom.bench.compare.stats import adjusted, mad_sigma, t_tail
from atom.bench.types import RunResult

GateStatus = Literal["ok", "suspicious", "regression", "trade-off", "no baseline"]

BASELINE_RUNS = 8
MIN_BASELINE = 4  # with fewer there is no noise model
SIGMAS = 3.0
NOISE_P = 0.01
FALSE_SHARE = 0.05  # of the alarms of one sweep, by Benjamini-Hochberg
COUNTED = ("ok", "slo_missed")  # runs whose figures speak of the server
# Begins the note of a run that was made to confirm an alarm. Such runs are no baseline: a bad
# night would count twice and become the rule in half the time.
RERUN_NOTE = "re-run for the gate of "

THRESHOLD_RATE = 0.05
THRESHOLD_LATENCY = 0.10

Rerun = Callable[[], RunResult]


class GateFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of the run beside its baseline."""

    metric: str
    value: float  # the median over the repeats
    baseline: float  # the median over the earlier runs
    change: float  # value / baseline - 1
    threshold: float  # a loss of more than this is beyond it
    beyond_threshold: bool
    noise: float | None  # three standard deviations of the earlier runs, as a share; None: unknown
    p_value: float | None  # of so great a loss in one more run like the earlier; None: unknown
    beyond_noise: bool  # true without a noise model too: see `GateReport.noise_model`
    rerun_value: float | None = None
    rerun_change: float | None = None
    confirmed: bool = False  # the re-run was beyond both as well

    @property
    def alarming(self) -> bool:
        return self.beyond_threshold and self.beyond_noise


class GateReport(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one run."""

    run_id: str
    status: GateStatus
    sentence: str
    findings: list[GateFinding]
    baseline_runs: list[str]  # oldest first
    noise_model: bool  # false: fewer than four earlier runs, the threshold alone decided
    rerun_id: str = ""
    rerun: RunResult | None = None  # to be stored by who asked

    @property
    def regressed(self) -> bool:
        """Exit code 3."""
        return self.status == "regression"

    def as_json(self) -> dict[str, Any]:
        """For `--json`; the re-run is a run of its own, named by its id."""
        document: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(self, rerun=None))
        del document["rerun"]
        return document


def gate(
    current: RunResult, baseline: Sequence[RunResult], rerun: Rerun | None = None
) -> GateReport:
    """Judge `current` against `baseline`, runs in any order.

    Of these, the last eight before `current` with its fingerprint that went well count. `rerun`
    measures the same point once more (best on a fresh start of the server); it is called only when
    the run alarms, and without it an alarm stays "suspicious".
    """
    return gate_all([(current, baseline)], None if rerun is None else lambda _: rerun())[0]


def gate_all(
    points: Sequence[tuple[RunResult, Sequence[RunResult]]],
    rerun: Callable[[RunResult], RunResult] | None = None,
) -> list[GateReport]:
    """The points of a sweep; with several, alarms must survive Benjamini-Hochberg at 5 %."""
    judged = [(current, select_baseline(current, runs)) for current, runs in points]
    findings = [_findings(current, runs) for current, runs in judged]
    survive = _surviving(findings)
    reports = []
    for (current, runs), found, alive in zip(judged, findings, survive, strict=True):
        alarms = [f.metric for f, ok in zip(found, alive, strict=True) if ok and f.alarming]
        again = rerun(current) if alarms and rerun and not _paid_for(found) else None
        if again is not None:
            found = [_confirmed(f, again, runs) for f in found]
        reports.append(_report(current, runs, found, alarms, again))
    return reports


def select_baseline(current: RunResult, runs: Sequence[RunResult]) -> list[RunResult]:
    """The earlier runs that count, oldest first."""
    earlier = [
        run
        for run in runs
        if run.fingerprint == current.fingerprint
        and run.run_id < current.run_id
        and run.status in COUNTED
        and not any(note.startswith(RERUN_NOTE) for note in run.notes)
    ]
    return sorted(earlier, key=lambda run: run.run_id)[-BASELINE_RUNS:]


def gated_metrics(current: RunResult, baseline: Sequence[RunResult]) -> list[tuple[str, float]]:
    """The contract's metrics with their thresholds; throughput of the steady state where all have
    one."""
    chosen: list[tuple[str, float]] = []
    for name in ("output_throughput", "total_token_throughput"):
        steady = f"steady_{name}"
        both = all(rules.typical(run, steady) is not None for run in (current, *baseline))
        chosen.append((steady if both else name, THRESHOLD_RATE))
    chosen += [("mean_ttft_ms", THRESHOLD_LATENCY), ("mean_tpot_ms", THRESHOLD_LATENCY)]
    return [(name, limit) for name, limit in chosen if rules.typical(current, name)]


def _findings(current: RunResult, baseline: Sequence[RunResult]) -> list[GateFinding]:
    found = []
    for name, threshold in gated_metrics(current, baseline):
        if before := _before(baseline, name):
            found.append(_finding(current, name, threshold, before))
    return found


def _before(baseline: Sequence[RunResult], name: str) -> list[float]:
    return [v for run in baseline if (v := rules.typical(run, name))]


def _finding(
    current: RunResult, name: str, threshold: float, before: Sequence[float]
) -> GateFinding:
    value = rules.typical(current, name)
    assert value, name
    middle = statistics.median(before)
    change = value / middle - 1
    loss = -change if names.better(name) == "higher" else change
    noise = p_value = None
    if len(before) >= MIN_BASELINE:
        logs = [math.log(v) for v in before]
        noise = SIGMAS * mad_sigma(logs)
        p_value = _p_value(math.log(value), logs, names.better(name) == "higher")
    beyond = noise is None or abs(math.log(value / middle)) > noise
    return GateFinding(
        metric=name,
        value=value,
        baseline=middle,
        change=change,
        threshold=threshold,
        beyond_threshold=loss > threshold,
        noise=noise,
        p_value=p_value,
        beyond_noise=beyond or (p_value is not None and p_value < NOISE_P),
    )


def _p_value(value: float, before: Sequence[float], higher_is_better: bool) -> float:
    """Student's t of one more value from the same normal distribution; one-sided.

    Each earlier run is one value, and so is this one: the repeats of one start share what is
    particular to that start, so a test that took them for independent would alarm too often.
    """
    loss = (statistics.fmean(before) - value) * (1.0 if higher_is_better else -1.0)
    error = statistics.stdev(before) * math.sqrt(1 + 1 / len(before))
    if error == 0.0:
        return 0.0 if loss > 0 else 1.0
    return t_tail(loss / error, len(before) - 1.0)


def _surviving(findings: Sequence[Sequence[GateFinding]]) -> list[list[bool]]:
    """Which findings stand after correction for the number of points; a lone point needs none."""
    known = [f.p_value for found in findings for f in found if f.p_value is not None]
    if sum(1 for found in findings if found) < 2:
        return [[True] * len(found) for found in findings]
    corrected = iter(adjusted(known))
    return [
        [f.p_value is None or next(corrected) <= FALSE_SHARE for f in found] for found in findings
    ]


def _paid_for(findings: Sequence[GateFinding]) -> bool:
    """Latency was given for throughput: a choice of the scheduler, not a loss."""
    gains = [f.change for f in findings if f.metric.endswith("throughput")]
    alarms = [f for f in findings if f.alarming]
    return max(gains, default=0.0) >= rules.TRADE_OFF and all(f.metric in LATENCIES for f in alarms)


def _confirmed(
    finding: GateFinding, again: RunResult, baseline: Sequence[RunResult]
) -> GateFinding:
    value = rules.typical(again, finding.metric)
    if not value or again.status not in COUNTED:
        return finding
    second = _finding(again, finding.metric, finding.threshold, _before(baseline, finding.metric))
    return msgspec.structs.replace(
        finding,
        rerun_value=value,
        rerun_change=second.change,
        confirmed=finding.alarming and second.alarming,
    )


def _report(
    current: RunResult,
    baseline: Sequence[RunResult],
    findings: list[GateFinding],
    alarms: Sequence[str],
    again: RunResult | None,
) -> GateReport:
    model = len(baseline) >= MIN_BASELINE
    status, sentence = _status(findings, alarms, again)
    if baseline and not model:
        sentence += f" (no noise model: only {len(baseline)} earlier run{'s'[: len(baseline) > 1]})"
    return GateReport(
        run_id=current.run_id,
        status=status,
        sentence=sentence,
        findings=findings,
        baseline_runs=[run.run_id for run in baseline],
        noise_model=model,
        rerun_id=again.run_id if again else "",
        rerun=again,
    )


def _status(
    findings: Sequence[GateFinding], alarms: Sequence[str], again: RunResult | None
) -> tuple[GateStatus, str]:
    if not findings:
        return "no baseline", "No earlier run with this fingerprint to judge by"
    alarming = [f for f in findings if f.alarming]
    told = ", ".join(_told(f) for f in alarming)
    if alarming and _paid_for(findings):
        gain = max(f.change for f in findings if f.metric.endswith("throughput"))
        return "trade-off", f"{told}, while throughput rose by {gain:.1%}"
    confirmed = [f for f in alarming if f.confirmed and f.metric in alarms]
    if confirmed:
        again_told = ", ".join(f"{f.rerun_change:+.1%}" for f in confirmed)
        return "regression", (
            f"{', '.join(_told(f) for f in confirmed)} from the median of the earlier runs; "
            f"the re-run agrees ({again_told})"
        )
    if not alarming:
        noisy = [f for f in findings if f.beyond_threshold]
        if noisy:
            within = ", ".join(f"{_told(f)} (noise ±{f.noise or 0.0:.1%})" for f in noisy)
            return "ok", f"{within}: within the noise of the earlier runs"
        return "ok", "No loss beyond the thresholds"
    if not alarms:
        return "suspicious", f"{told}; among this many points, chance alone does that"
    why = "no re-run has confirmed it"
    if again is not None:
        whole = again.status in COUNTED
        why = "the re-run does not agree" if whole else f"the re-run came out as {again.status}"
    return "suspicious", f"{told}; {why}"


def _told(finding: GateFinding) -> str:
    return f"{names.label(finding.metric)} {finding.change:+.1%}"

"""The regression gate: what it alarms at, what it lets pass, how often it is wrong."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_runs import noisy_run

from atom.bench.compare import GateReport, gate, gate_all
from atom.bench.compare.gate import RERUN_NOTE, select_baseline
from atom.bench.types import RunResult

STEADY = "steady_output_throughput"


def nights(count: int, seed: int = 5, **more: float) -> list[RunResult]:
    return [noisy_run(seed, night=i, **more) for i in range(count)]  # type: ignore[arg-type]


def flat(value: float, night: int, *, repeats: int = 3, **metrics: float) -> RunResult:
    """A run whose repeats all have the same figures."""
    run = noisy_run(1, night=night, repeats=repeats)
    figures = {"output_throughput": value, "total_token_throughput": value, **metrics}
    again = [msgspec.structs.replace(r, metrics=dict(figures)) for r in run.repeats]
    return msgspec.structs.replace(run, repeats=again, metrics={})


class Rerun:
    """Answers with these runs, one after another, and counts."""

    def __init__(self, *runs: RunResult) -> None:
        self.runs = list(runs)
        self.calls = 0

    def __call__(self) -> RunResult:
        self.calls += 1
        return self.runs[self.calls - 1]


def found(report: GateReport, metric: str = "output_throughput") -> tuple[float, bool]:
    finding = next(f for f in report.findings if f.metric == metric)
    return finding.change, finding.alarming


# Its rule


def test_a_confirmed_loss_is_a_regression() -> None:
    rerun = Rerun(noisy_run(77, night=9, speed=0.9))
    report = gate(noisy_run(6, night=8, speed=0.9), nights(8), rerun)
    assert report.status == "regression"
    assert report.regressed
    assert rerun.calls == 1
    assert report.rerun is rerun.runs[0]
    assert report.rerun_id == rerun.runs[0].run_id
    assert "the re-run agrees" in report.sentence


def test_a_loss_that_does_not_come_back_is_suspicious() -> None:
    report = gate(
        noisy_run(6, night=8, speed=0.9), nights(8), Rerun(noisy_run(77, night=9, speed=1.0))
    )
    assert report.status == "suspicious"
    assert not report.regressed
    assert "does not agree" in report.sentence


def test_without_a_rerun_an_alarm_is_suspicious() -> None:
    report = gate(noisy_run(6, night=8, speed=0.9), nights(8))
    assert report.status == "suspicious"
    assert "no re-run" in report.sentence


def test_a_rerun_that_goes_wrong_confirms_nothing() -> None:
    bad = noisy_run(77, night=9, speed=0.9, status="client_bound")
    report = gate(noisy_run(6, night=8, speed=0.9), nights(8), Rerun(bad))
    assert report.status == "suspicious"
    assert "client_bound" in report.sentence


def test_nothing_is_measured_again_without_an_alarm() -> None:
    rerun = Rerun()
    assert gate(noisy_run(6, night=8), nights(8), rerun).status == "ok"
    assert rerun.calls == 0


@pytest.mark.parametrize(
    ("value", "alarm"), [(951.0, False), (949.0, True), (1100.0, False), (500.0, True)]
)
def test_the_threshold_of_throughput_is_five_per_cent(value: float, alarm: bool) -> None:
    report = gate(flat(value, 8), [flat(1000.0, i) for i in range(8)])
    assert found(report) == (pytest.approx(value / 1000 - 1), alarm)


@pytest.mark.parametrize("metric", ["mean_ttft_ms", "mean_tpot_ms"])
@pytest.mark.parametrize(("value", "alarm"), [(10.9, False), (11.1, True), (5.0, False)])
def test_the_threshold_of_latency_is_ten_per_cent(metric: str, value: float, alarm: bool) -> None:
    base = [flat(1000.0, i, **{metric: 10.0}) for i in range(8)]
    assert found(gate(flat(1000.0, 8, **{metric: value}), base), metric)[1] is alarm


def test_a_loss_within_the_noise_is_no_alarm() -> None:
    before = [1000.0, 920.0, 1080.0, 930.0, 1070.0, 950.0, 1050.0, 1000.0]
    report = gate(flat(935.0, 8), [flat(v, i) for i, v in enumerate(before)])
    assert report.status == "ok"
    assert "within the noise" in report.sentence
    quiet = [flat(v, i) for i, v in enumerate([1000.0, 995.0, 1005.0, 1001.0] * 2)]
    assert gate(flat(935.0, 8), quiet).status == "suspicious"


def test_one_bad_repeat_is_no_loss() -> None:
    run = flat(1000.0, 8, repeats=5)
    worst = dict.fromkeys(("output_throughput", "total_token_throughput"), 300.0)
    run.repeats[2] = msgspec.structs.replace(run.repeats[2], metrics=worst)
    assert gate(run, [flat(1000.0, i) for i in range(8)]).status == "ok"


def test_one_bad_night_in_the_baseline_changes_nothing() -> None:
    runs = [flat(1000.0, i) for i in range(8)]
    runs[3] = flat(100.0, 3)
    assert gate(flat(900.0, 8), runs, Rerun(flat(900.0, 9))).status == "regression"
    assert gate(flat(990.0, 8), runs).status == "ok"


def test_latency_given_for_throughput_is_no_regression() -> None:
    base = [flat(1000.0, i, mean_tpot_ms=10.0) for i in range(8)]
    rerun = Rerun()
    report = gate(flat(1060.0, 8, mean_tpot_ms=13.0), base, rerun)
    assert report.status == "trade-off"
    assert rerun.calls == 0
    little = gate(flat(1040.0, 8, mean_tpot_ms=13.0), base)
    assert little.status == "suspicious"


def test_a_rerun_must_lose_in_the_same_metric() -> None:
    base = [flat(1000.0, i, mean_ttft_ms=10.0) for i in range(8)]
    slow = flat(1000.0, 8, mean_ttft_ms=20.0)
    other = flat(800.0, 9, mean_ttft_ms=10.0)
    assert gate(slow, base, Rerun(other)).status == "suspicious"


def test_steady_state_is_judged_where_all_runs_have_one() -> None:
    runs = nights(8)
    assert {f.metric for f in gate(noisy_run(6, night=8), runs).findings} == {
        STEADY, "steady_total_token_throughput", "mean_ttft_ms", "mean_tpot_ms",
    }  # fmt: skip
    runs[0] = flat(700.0, 0)
    names = {f.metric for f in gate(noisy_run(6, night=8), runs).findings}
    assert names == {"output_throughput", "total_token_throughput", "mean_ttft_ms", "mean_tpot_ms"}


# The baseline


def test_the_first_run_has_no_baseline() -> None:
    report = gate(noisy_run(1, night=3), [])
    assert report.status == "no baseline"
    assert report.findings == []


@pytest.mark.parametrize(("count", "model"), [(1, False), (3, False), (4, True)])
def test_few_runs_make_no_noise_model_and_that_is_said(count: int, model: bool) -> None:
    base = [flat(1000.0 + i, i) for i in range(count)]
    report = gate(flat(900.0, 8), base, Rerun(flat(900.0, 9)))
    assert report.status == "regression"
    assert report.noise_model is model
    assert ("no noise model" in report.sentence) is not model
    assert all((f.noise is not None) is model for f in report.findings)


def test_the_baseline_is_the_last_eight_that_count() -> None:
    runs = nights(12)
    runs[11] = msgspec.structs.replace(runs[11], status="client_bound")
    runs[10] = msgspec.structs.replace(runs[10], status="interrupted")
    runs[9] = msgspec.structs.replace(runs[9], fingerprint="other")
    runs[8] = msgspec.structs.replace(runs[8], notes=[RERUN_NOTE + "x"])
    current = noisy_run(6, night=12)
    later = noisy_run(6, night=13)
    chosen = select_baseline(current, [later, current, *reversed(runs)])
    assert [r.run_id for r in chosen] == [r.run_id for r in runs[:8]]
    report = gate(current, [later, current, *reversed(runs)])
    assert report.baseline_runs == [r.run_id for r in runs[:8]]


def test_a_report_is_json_without_the_rerun_inside() -> None:
    report = gate(noisy_run(6, night=8, speed=0.9), nights(8), Rerun(noisy_run(7, speed=0.9)))
    document = report.as_json()
    assert "rerun" not in document
    assert document["rerun_id"] == report.rerun_id != ""
    assert msgspec.json.encode(document)


# Against a plain account of the rule


def alarms(values: Sequence[float], before: Sequence[float]) -> bool:
    """The rule for throughput, spelled out."""
    from scipy.stats import t

    middle, value = statistics.median(before), statistics.median(values)
    if not 1 - value / middle > 0.05:
        return False
    import numpy as np

    logs = np.log(before)
    beyond_mad = abs(np.log(value / middle)) > 3 * 1.4826 * np.median(abs(logs - np.median(logs)))
    spread = logs.std(ddof=1) * np.sqrt(1 + 1 / len(logs))
    unlikely = spread == 0 or t.sf((logs.mean() - np.log(value)) / spread, len(logs) - 1) < 0.01
    return bool(beyond_mad or unlikely)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.floats(800, 1200), min_size=4, max_size=8),
    st.lists(st.floats(800, 1100), min_size=1, max_size=5),
)
def test_alarms_are_those_of_the_rule(before: list[float], values: list[float]) -> None:
    run = flat(0.0, 30, repeats=len(values))
    figures = [dict.fromkeys(("output_throughput", "total_token_throughput"), v) for v in values]
    run.repeats[:] = [
        msgspec.structs.replace(r, metrics=f) for r, f in zip(run.repeats, figures, strict=True)
    ]
    report = gate(run, [flat(v, i) for i, v in enumerate(before)])
    assert found(report)[1] == alarms(values, before)


# Sweeps


def test_among_many_points_a_single_weak_alarm_is_put_down_to_chance() -> None:
    """One of forty points is off by a little more than its noise."""
    points = []
    for k in range(40):
        before = [flat(v, i) for i, v in enumerate([1000.0, 980.0, 1020.0, 990.0, 1010.0, 1000.0])]
        value = 941.0 if k == 17 else 1000.0
        points.append((flat(value, 8, mean_ttft_ms=5.0), before))
    lone = gate(*points[17])
    assert lone.status == "suspicious"
    assert "no re-run" in lone.sentence
    calls: list[RunResult] = []
    reports = gate_all(points, lambda run: calls.append(run) or run)  # type: ignore[func-returns-value]
    assert calls == []
    assert reports[17].status == "suspicious"
    assert "chance" in reports[17].sentence
    assert {r.status for i, r in enumerate(reports) if i != 17} == {"ok"}


def test_a_clear_loss_among_many_points_is_measured_again() -> None:
    points = [
        (noisy_run(60 + k, night=8, speed=0.85 if k == 3 else 1.0), nights(8, seed=k))
        for k in range(10)
    ]
    reports = gate_all(points, lambda _: noisy_run(99, night=9, speed=0.85))
    assert [r.status for r in reports].count("regression") == 1
    assert reports[3].regressed


# How often it is wrong


def test_false_alarms_in_sixty_nights_are_rare() -> None:
    alarms = 0
    for seed in range(8):
        runs = nights(68, seed=seed, cv=0.03, repeats=3)
        for i in range(8, 68):
            again = Rerun(noisy_run(seed + 500, night=i, cv=0.03, repeats=3))
            alarms += gate(runs[i], runs[max(0, i - 12) : i], again).regressed
    assert alarms <= 1


@pytest.mark.parametrize(("cv", "least"), [(0.02, 0.9), (0.03, 0.7)])
def test_a_loss_of_eight_per_cent_is_seen_within_three_nights(cv: float, least: float) -> None:
    seen = 0
    for seed in range(60):
        runs = nights(8, seed=seed, cv=cv, repeats=3)
        for night in (8, 9, 10):
            run, again = (
                noisy_run(s, night=night, cv=cv, repeats=3, speed=0.92) for s in (seed, seed + 999)
            )
            if gate(run, runs, Rerun(again)).regressed:
                seen += 1
                break
            runs.append(run)
    assert seen >= least * 60

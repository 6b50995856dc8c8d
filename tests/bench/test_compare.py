"""Verdicts on pairs of runs: how often they are right, and what they say of odd pairs."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import msgspec
import noisy_runs
import pytest
from noisy_runs import noisy_run
from synthetic_runs import bench_run, eval_run

from atom.bench.compare import Comparison, MetricComparison, compare
from atom.bench.types import Interval, RunResult

STEADY = "steady_output_throughput"


def changed(run: RunResult, **factors: float) -> RunResult:
    """The run with metrics multiplied in every repeat."""
    repeats = [
        msgspec.structs.replace(
            r, metrics={n: v and v * factors.get(n, 1.0) for n, v in r.metrics.items()}
        )
        for r in run.repeats
    ]
    return msgspec.structs.replace(run, repeats=repeats)


def having(run: RunResult, name: str, values: list[float | None]) -> RunResult:
    """The run with these values of a metric, one for each repeat."""
    repeats = [
        msgspec.structs.replace(r, metrics={**r.metrics, name: v})
        for r, v in zip(run.repeats, values, strict=True)
    ]
    return msgspec.structs.replace(run, repeats=repeats)


def metric(comparison: Comparison, name: str) -> MetricComparison:
    found = comparison.metric(name)
    assert found is not None, name
    return found


def verdicts(trials: int, speed: float, cv: Callable[[random.Random], float]) -> Counter[str]:
    rng = random.Random(11)
    found: Counter[str] = Counter()
    for trial in range(trials):
        noise = cv(rng)
        # Seeds differ, as they do where none is given: nothing is paired.
        a = noisy_run(2 * trial, cv=noise, night=1, workload_seed=10 * trial)
        b = noisy_run(
            2 * trial + 1, cv=noise, night=2, workload_seed=10 * trial + 10**6, speed=speed
        )
        found[compare(a, b).verdict] += 1
    return found


# What the issue asks for, at the noise of a quiet machine: one to two per cent from run to run.


def realistic(rng: random.Random) -> float:
    return rng.uniform(0.01, 0.02)


def test_identical_runs_are_the_same_nineteen_times_in_twenty() -> None:
    found = verdicts(200, 1.0, realistic)
    assert found["same"] >= 190, found


def test_a_loss_of_six_per_cent_is_found_nineteen_times_in_twenty() -> None:
    found = verdicts(200, 0.94, realistic)
    assert found["worse"] >= 190, found


def test_a_gain_is_found_as_a_loss_is() -> None:
    found = verdicts(60, 1.07, realistic)
    assert found["better"] >= 57, found


def test_noise_that_hides_the_margin_leaves_it_undecided() -> None:
    found = verdicts(60, 1.0, lambda _: 0.06)
    assert found["undecided"] >= 45, found
    assert found["worse"] <= 4, found


def test_a_loss_beyond_the_margin_is_called_the_same_no_oftener_than_promised() -> None:
    found = verdicts(150, 0.94, lambda _: 0.03)
    assert found["same"] <= 15, found  # 10 %: `rules.EQUAL_ALPHA`


# The interval


def test_the_interval_of_the_ratio_covers_the_truth() -> None:
    hits = 0
    for trial in range(200):
        a = noisy_run(2 * trial, start_share=0.0, night=1, workload_seed=10 * trial + 5)
        b = noisy_run(
            2 * trial + 1, start_share=0.0, night=2, speed=0.97, workload_seed=10 * trial + 10**6
        )
        change = metric(compare(a, b), STEADY).change
        assert change is not None
        hits += change.low <= 0.97 <= change.high
    assert hits >= 184  # 95 % of 200, less three standard deviations


def test_swapping_the_runs_inverts_the_ratio() -> None:
    a, b = noisy_run(1), noisy_run(2, speed=0.9, workload_seed=9)
    there, back = metric(compare(a, b), STEADY), metric(compare(b, a), STEADY)
    assert there.change is not None
    assert back.change is not None
    assert there.change.value == pytest.approx(1 / back.change.value)
    assert there.change.low == pytest.approx(1 / back.change.high)
    assert (there.verdict, back.verdict) == ("worse", "better")


def test_units_do_not_matter() -> None:
    a, b = noisy_run(1), noisy_run(2, speed=0.96, workload_seed=9)
    scale = {STEADY: 1e6}
    one, other = (metric(compare(x, y), STEADY) for x, y in
                  ((a, b), (changed(a, **scale), changed(b, **scale))))  # fmt: skip
    assert one.change == pytest.approx(other.change) or one.change is not None
    assert one.change is not None
    assert other.change is not None
    assert one.change.low == pytest.approx(other.change.low)
    assert one.verdict == other.verdict


def test_a_run_compared_with_itself_is_the_same() -> None:
    run = noisy_run(3)
    found = compare(run, msgspec.structs.replace(run, run_id="other"))
    assert found.verdict == "same"
    assert metric(found, STEADY).change == pytest.approx(metric(found, STEADY).change)
    assert metric(found, STEADY).relative == pytest.approx(0.0, abs=1e-12)


# Pairs


def test_equal_seeds_are_set_against_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noisy_runs, "WORKLOAD_SPREAD", 0.08)
    a = noisy_run(1, cv=0.005, workload_seed=40)
    same = noisy_run(2, cv=0.005, speed=0.94, workload_seed=40)
    other = noisy_run(2, cv=0.005, speed=0.94, workload_seed=90)
    paired, apart = metric(compare(a, same), STEADY), metric(compare(a, other), STEADY)
    assert paired.paired
    assert not apart.paired
    assert paired.verdict == "worse"
    assert paired.change is not None
    assert apart.change is not None
    narrow, wide = (c.high - c.low for c in (paired.change, apart.change))
    assert narrow < wide / 3


def test_repeats_that_do_not_move_together_are_not_paired() -> None:
    paired = sum(
        metric(compare(noisy_run(2 * i, night=1), noisy_run(2 * i + 1, night=2)), STEADY).paired
        for i in range(40)
    )
    assert paired <= 12  # one in ten by chance, and a little workload in common


# The history


def test_starts_that_differ_are_not_taken_for_a_change() -> None:
    """Repeats within 0.3 % of each other, but each start is off by 2 %."""
    wrong = {True: 0, False: 0}
    for trial in range(40):
        runs = [
            noisy_run(50 * trial + k, night=k, cv=0.02, start_share=0.98, workload_seed=k * 10)
            for k in range(20)
        ]
        for known in wrong:
            found = compare(runs[18], runs[19], history=runs[:18] if known else ())
            wrong[known] += metric(found, STEADY).verdict in ("better", "worse")
    assert wrong[True] <= 4
    assert wrong[False] >= 2 * wrong[True]


def test_the_history_does_not_need_to_be_without_changes() -> None:
    """A step of 10 % in the past is no noise."""
    past = [noisy_run(k, night=k, cv=0.008, speed=1.0 if k < 5 else 0.9) for k in range(10)]
    a, b = noisy_run(91, night=20, cv=0.008), noisy_run(92, night=21, cv=0.008, speed=0.94)
    assert metric(compare(a, b, history=past), STEADY).verdict == "worse"


def test_a_difference_says_that_the_spread_of_starts_was_not_measured() -> None:
    a, b = noisy_run(1, cv=0.008), noisy_run(2, cv=0.008, speed=0.9)
    (note,) = compare(a, b).notes
    assert note.startswith("fewer than 4 earlier runs like A")
    past = [noisy_run(k + 10, night=k, cv=0.008) for k in range(6)]
    assert compare(a, b, history=past).notes == []
    assert compare(a, noisy_run(3, cv=0.008)).notes == []  # nothing is claimed


def test_a_single_repeat_decides_nothing_without_a_history() -> None:
    a, b = noisy_run(1, repeats=1), noisy_run(2, repeats=1, speed=0.5)
    found = metric(compare(a, b), STEADY)
    assert found.verdict == "undecided"
    assert not found.certain
    assert "noise unknown" in found.reason
    past = [noisy_run(k + 10, repeats=1, night=k) for k in range(6)]
    assert metric(compare(a, b, history=past), STEADY).verdict == "worse"


def test_a_single_repeat_borrows_the_other_runs_noise() -> None:
    found = metric(compare(noisy_run(1), noisy_run(2, repeats=1, speed=0.8)), STEADY)
    assert found.certain
    assert found.verdict == "worse"


def test_a_single_repeat_is_said() -> None:
    notes = compare(noisy_run(1, repeats=1), noisy_run(2)).notes
    assert "A has 1 repeat; 5 tell more" in notes


# What is judged


def test_open_loops_are_judged_by_latency_not_by_the_rate_they_were_given() -> None:
    runs = [
        bench_run(concurrency=None, request_rate=4.0, repeats=5, speed=s, seed=i)
        for i, s in enumerate((1.0, 0.85))
    ]
    pinned = [changed(run, **{STEADY: 1.0}) for run in runs]
    found = compare(*pinned)
    assert found.primary == "mean_e2el_ms"
    assert found.verdict == "worse"
    assert not metric(found, STEADY).headline


def test_all_at_once_is_judged_by_throughput() -> None:
    run = noisy_run(1)
    run = msgspec.structs.replace(run, load={"mode": "open", "request_rate": "inf"})
    assert compare(run, noisy_run(2)).primary == STEADY


def test_whole_run_throughput_where_a_steady_state_is_missing() -> None:
    without = having(noisy_run(1), STEADY, [None, 1.0, 1.0, 1.0, 1.0])
    assert compare(without, noisy_run(2)).primary == "output_throughput"


def test_latency_given_for_throughput_is_a_trade_off() -> None:
    a = noisy_run(1, cv=0.005)
    b = changed(noisy_run(2, cv=0.005), mean_tpot_ms=1.3, **{STEADY: 1.2})
    found = compare(a, b)
    assert metric(found, "mean_tpot_ms").verdict == "worse"
    assert found.verdict == "trade-off"
    little = changed(noisy_run(2, cv=0.005), mean_tpot_ms=1.3, **{STEADY: 1.03})
    assert compare(a, little).verdict == "worse"


def test_work_that_differs_is_said() -> None:
    a = having(noisy_run(1), "mean_output_tokens", [128.0] * 5)
    b = having(noisy_run(2), "mean_output_tokens", [117.0] * 5)
    (note,) = compare(a, b).notes
    assert note == "not the same work: output tokens per request are 128.0 in A and 117.0 in B"
    assert compare(a, a).notes == []


def test_a_cached_prompt_is_said() -> None:
    a = having(noisy_run(1), "cached_token_share", [0.0] * 5)
    b = having(noisy_run(2), "cached_token_share", [0.5] * 5)
    assert compare(a, b).notes == ["the prefix cache gave 0% of A's prompt tokens and 50% of B's"]


def test_a_client_that_was_the_limit_is_said() -> None:
    notes = compare(noisy_run(1, status="client_bound"), noisy_run(2)).notes
    assert notes == ["A was limited by the client, not by the server"]


@pytest.mark.parametrize(
    ("failed", "verdict"),
    [(0, "same"), (3, "undecided"), (40, "worse")],
)
def test_failures_are_counted(failed: int, verdict: str) -> None:
    a = noisy_run(1)
    b = having(noisy_run(2), "failed", [float(failed)] + [0.0] * 4)
    b = having(b, "completed", [80.0 - failed] + [80.0] * 4)
    found = metric(compare(a, b), "error_rate")
    assert found.verdict == verdict
    assert found.b == pytest.approx(failed / 400)


def test_a_metric_that_is_zero_has_no_ratio() -> None:
    a = having(noisy_run(1), "request_goodput", [0.0] * 5)
    b = having(noisy_run(2), "request_goodput", [1.0, 1.1, 1.0, 1.2, 1.0])
    found = metric(compare(a, b), "request_goodput")
    assert (found.verdict, found.change, found.relative) == ("undecided", None, None)
    assert "no ratio" in found.reason
    assert metric(compare(a, a), "request_goodput").verdict == "same"


def test_a_queue_that_is_nearly_empty_is_no_news() -> None:
    a = having(noisy_run(1), "mean_server_queue_ms", [0.10, 0.11, 0.10, 0.11, 0.10])
    b = having(noisy_run(2), "mean_server_queue_ms", [0.30, 0.31, 0.30, 0.31, 0.30])
    assert metric(compare(a, b), "mean_server_queue_ms").verdict == "same"
    c = having(noisy_run(2), "mean_server_queue_ms", [30.0, 31.0, 30.0, 31.0, 30.0])
    assert metric(compare(a, c), "mean_server_queue_ms").verdict == "worse"


def test_metrics_without_a_good_side_are_not_judged() -> None:
    a = having(noisy_run(1), "mean_output_tokens", [128.0] * 5)
    assert compare(a, a).metric("mean_output_tokens") is None


def test_one_far_metric_among_many_that_are_for_interest_does_not_hide_the_headline() -> None:
    a, b = noisy_run(1, cv=0.01), noisy_run(2, cv=0.01, speed=0.94, workload_seed=7)
    lone = metric(compare(a, b), STEADY).p_value
    for i in range(30):
        name = f"p{i + 10}_itl_ms"
        a, b = (having(r, name, [5.0 + 0.1 * ((i * k) % 7) for k in range(5)]) for r in (a, b))
    assert metric(compare(a, b), STEADY).p_value == lone


def test_undecided_says_how_many_repeats_would_decide() -> None:
    a = having(noisy_run(1), STEADY, [100.0, 104.0, 96.0, 103.0, 97.0])
    b = having(noisy_run(2, workload_seed=9), STEADY, [104.0, 99.0, 107.0, 101.0, 108.0])
    found = metric(compare(a, b), STEADY)
    assert found.verdict == "undecided"
    need = found.repeats_needed
    assert need is not None
    assert 5 < need < 50
    assert f"about {need} repeats of each would decide" in compare(a, b).sentence


def test_a_wider_margin_makes_the_same_of_what_was_worse() -> None:
    a, b = noisy_run(1, cv=0.005), noisy_run(2, cv=0.005, speed=0.94)
    assert metric(compare(a, b), STEADY).verdict == "worse"
    assert metric(compare(a, b, margin=0.15), STEADY).verdict == "same"
    little = noisy_run(2, cv=0.003, start_share=0.0, speed=0.98)
    assert metric(compare(noisy_run(1, cv=0.003), little), STEADY).verdict == "same"
    assert metric(compare(noisy_run(1, cv=0.003), little, margin=0.01), STEADY).verdict == "worse"


# Other kinds


def test_accuracies_are_compared_in_points() -> None:
    found = compare(eval_run(), eval_run(score=0.90))
    first = found.metrics[0]
    assert first.scale == "difference"
    assert first.change is not None
    assert first.change.value == pytest.approx(-0.0545)
    assert found.verdict == "worse"
    assert compare(eval_run(), eval_run(score=0.951)).verdict == "same"


def test_an_accuracy_without_an_interval_decides_nothing() -> None:
    bare = [
        msgspec.structs.replace(eval_run(), metrics={"gsm8k/exact_match": Interval(v, v, v)})
        for v in (0.95, 0.5)
    ]
    assert compare(*bare).verdict == "undecided"


def test_runs_with_nothing_in_common_are_undecided() -> None:
    found = compare(eval_run(), noisy_run(1))
    assert found.verdict == "undecided"
    assert "no metric in common" in found.sentence


def test_what_differs_in_the_runs_is_listed() -> None:
    a = bench_run(gpu="AMD Instinct MI300X", seed=1)
    b = bench_run(gpu="NVIDIA H200", concurrency=32, seed=1)
    found = {d.what: (d.a, d.b) for d in compare(a, b).differences}
    assert found["hardware"] == ("8 x AMD Instinct MI300X", "8 x NVIDIA H200")
    assert found["load: concurrency"] == ("16", "32")
    assert "workload: dataset" not in found


def test_a_comparison_survives_json() -> None:
    found = compare(noisy_run(1), noisy_run(2, speed=0.9))
    text = msgspec.json.encode(found)
    assert b"NaN" not in text
    assert msgspec.json.decode(text, type=Comparison) == found


def test_missing_and_infinite_values_are_left_out() -> None:
    a = having(noisy_run(1), "p99_ttft_ms", [math.inf, 1.0, 1.0, 1.0, 1.0])
    b = having(noisy_run(2), "mean_ttft_ms", [None] * 5)
    found = compare(a, b)
    assert found.metric("p99_ttft_ms") is None
    assert found.metric("mean_ttft_ms") is None


def test_one_disturbed_run_in_the_history_does_not_blind() -> None:
    past = [noisy_run(k + 10, night=k, cv=0.01) for k in range(8)]
    past[3] = having(past[3], STEADY, [100.0, 900.0, 300.0, 800.0, 500.0])
    a, b = noisy_run(91, night=20, cv=0.01), noisy_run(92, night=21, cv=0.01, workload_seed=9)
    assert metric(compare(a, b, history=past), STEADY).verdict == "same"

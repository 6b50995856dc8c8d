"""What people read: the figures are the result's, the lines fit, nothing is markup."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from fake_load import closed_loop, outcome
from rich.console import Console

from atom.bench.metrics import MetricOptions, combine, summarize
from atom.bench.report import print_run, print_search, print_sweep
from atom.bench.search import SearchReport, find_max
from atom.bench.types import Interval, RequestRecord, RunResult
from atom.bench.words import describe_load, describe_workload, number, width

WIDTHS = [80, 100, 140]


def lengths(index: int, rng: random.Random) -> int:
    return rng.randint(10, 20)


def a_run(concurrency: int = 4, repeats: int = 3, failed: int = 0, **more: Any) -> RunResult:
    options = MetricOptions(closed=True, objectives=more.get("slo", {}), num_gpus=2)
    runs = [
        closed_loop(concurrency, 5 * concurrency, lengths, seed, speed=1 + seed / 100)
        for seed in range(repeats)
    ]
    for records in runs:
        for i in range(failed):
            records[i] = RequestRecord(
                index=i, error="http", status=503, message="[bold]full[/bold]", ended_s=0.1
            )
    summaries = [summarize(outcome(records), options) for records in runs]
    return RunResult(
        run_id="20261121T101112-00ff00",
        kind="bench",
        name="[red]recipe",
        model="org/[model]",
        load={"mode": "closed", "concurrency": concurrency, "num_requests": 5 * concurrency},
        workload={"dataset": "random", "input_len": 1024, "output_len": 128},
        provenance={},
        fingerprint="0",
        repeats=summaries,
        metrics=combine(summaries, runs, options),
        legacy={},
        **more,
    )


def printed(print_it: Any, *args: Any, columns: int = 80, **more: Any) -> str:
    to = io.StringIO()
    print_it(Console(file=to, width=columns, highlight=False), *args, **more)
    text = to.getvalue()
    assert all(len(line) <= columns for line in text.splitlines())
    return text


def row(text: str, label: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(label)).split()


@pytest.mark.parametrize("columns", WIDTHS)
def test_run_fits_and_tells_the_figures(columns: int) -> None:
    run = a_run()
    text = printed(print_run, run, columns=columns)
    assert "[red]recipe · closed loop, 4 in flight · random, 1024 in, 128 out" in text
    assert "org/[model]" in text
    value = run.metrics["mean_ttft_ms"]
    assert row(text, "Time to first token")[4:6] == [number(value.value), width(value)]
    assert number(run.metrics["p99_e2el_ms"].value) in row(text, "End-to-end latency")
    steady, whole = run.metrics["steady_output_throughput"], run.metrics["output_throughput"]
    assert row(text, "Output tokens ")[2:6] == [
        number(steady.value),
        width(steady),
        number(whole.value),
        width(whole),
    ]
    assert number(run.metrics["output_throughput_per_gpu"].value) in row(
        text, "Output tokens per G"
    )
    assert "60 completed, 0 failed" in text
    assert "Client: not the bottleneck" in text
    assert ("std" in text) == (columns > 80)


def test_percentiles_that_do_not_fit_go_below() -> None:
    run = a_run()
    for percent in range(1, 20):
        run.metrics[f"p{percent}_ttft_ms"] = Interval(1000 + percent, 1000, 1100)
    text = printed(print_run, run)
    for percent in range(1, 20):
        assert f"1,0{percent:02}" in text
    assert text.count("Latency, ms") > 2


def test_errors_objectives_and_status_stand_out() -> None:
    slo = {"p99_ttft_ms": 1.0, "mean_e2el_ms": 1e6, "error_rate": 0.01, "p99_server_queue_ms": 5.0}
    text = printed(print_run, a_run(failed=2, slo=slo, status="slo_missed"))
    assert "an objective was missed" in text
    assert row(text, "TTFT p99 ≤ 1 ms")[-1] == "missed"
    assert row(text, "E2E mean ≤ 1,000,000 ms")[-1] == "met"
    assert row(text, "Failed requests ≤ 1%")[-1] == "missed"
    assert row(text, "Wait in the server p99")[-2:] == ["not", "known"]
    assert row(text, "     6  http 503")[:3] == ["6", "http", "503:"]
    assert "[bold]full[/bold]" in text


def test_objective_within_the_noise_says_so() -> None:
    run = a_run(slo={"mean_ttft_ms": 50.0})
    run.metrics["mean_ttft_ms"] = Interval(49.0, 45.0, 53.0)
    assert "met, within the noise" in printed(print_run, run)


def test_client_bound_is_never_missed() -> None:
    run = a_run(status="client_bound")
    run.repeats[1].health.bound = True
    run.repeats[1].health.reason = "its event loop was 12 ms late"
    text = printed(print_run, run)
    assert "the client was the bottleneck" in text
    assert "its event loop was 12 ms late" in text
    assert "not the bottleneck" not in text


def test_alike_notes_once_and_one_repeat_named() -> None:
    run = a_run(notes=["a server of odd make"])
    for place, repeat in enumerate(run.repeats):
        repeat.notes = [f"prompts were {100 + place}.5 tokens"]
    text = printed(print_run, run)
    assert text.count("prompts were") == 1
    assert "prompts were 100.5 tokens (3 of 3 repeats)" in text
    assert "note: a server of odd make" in text
    single = " ".join(printed(print_run, a_run(repeats=1)).split())
    assert "with one repeat it holds the noise within the run only" in single


def test_thin_percentiles_say_so() -> None:
    assert "note: p95 rests on few of 60 requests; 100 make it steadier" in printed(
        print_run, a_run()
    )


def test_unknown_figures_are_left_out_or_dashes() -> None:
    run = a_run()
    for name in [n for n in run.metrics if "throughput" in n or "tpot" in n or "itl" in n]:
        del run.metrics[name]
    del run.metrics["p99_ttft_ms"]
    text = printed(print_run, run)
    assert "Time per output token" not in text
    assert "–" in printed(print_sweep, [run])


@pytest.mark.parametrize("columns", WIDTHS)
def test_sweep_has_a_row_per_point(columns: int) -> None:
    runs = [a_run(1), a_run(2, failed=1, status="errors"), a_run(16, failed=1, status="errors")]
    text = printed(print_sweep, runs, columns=columns)
    for run in runs:
        cells = row(text, f"{run.load['concurrency']:>6}")
        assert cells[1] == number(run.metrics["steady_request_throughput"].value)
        assert cells[2] == number(run.metrics["steady_output_throughput"].value)
        assert cells[-1] == f"{run.metrics['error_rate'].value:.1%}"
    assert "2, 16: too many requests failed" in text
    assert ("total" in text) == (columns >= 95)


def a_search(limit: float) -> SearchReport:
    def server(jobs: float) -> dict[str, Interval]:
        value = 10 + jobs
        return {"p99_tpot_ms": Interval(value, value * 0.98, value * 1.02)}

    return find_max(server, {"p99_tpot_ms": limit}, low=1, high=256, integer=True)


def test_search_tells_its_answer_and_every_point() -> None:
    report = a_search(50)
    text = printed(print_search, report, integer=True)
    assert "40 in flight is the highest load found that meets TPOT p99 ≤ 50 ms" in text
    assert "41 misses TPOT p99" in " ".join(text.split())
    for point in report.points:
        line = " ".join(row(text, f"{point.load:4.0f}  "))
        assert point.verdict in line
        assert ("within the noise" in line) == (abs(point.margin) < 1.96 * point.noise)
    assert f"{len(report.points)} runs" in text


def test_search_without_an_answer() -> None:
    text = printed(print_search, a_search(5), integer=True)
    assert "No load was found that meets TPOT p99 ≤ 5 ms" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (1e-13, "0"), (0.0123, "0.012"), (9.8765, "9.877"),
     (12.345, "12.35"), (123.45, "123.5"), (12345.6, "12,346"), (0.001, "0.001")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (None, ""),
        (Interval(0, 0, 1), ""),
        (Interval(100, 98, 102), "±2.0%"),
        (Interval(100, 50, 150), "±50%"),
        (Interval(1, 0, 100), ">±999%"),
    ],
)
def test_widths(interval: Interval | None, text: str) -> None:
    assert width(interval) == text


@pytest.mark.parametrize(
    ("load", "text"),
    [
        ({"mode": "closed", "concurrency": 8}, "closed loop, 8 in flight"),
        ({"mode": "open", "request_rate": 2.5, "arrivals": "poisson"},
         "open loop, 2.5 req/s (Poisson)"),
        ({"mode": "open", "request_rate": "2:20", "arrivals": "poisson"},
         "open loop, 2:20 req/s (Poisson)"),
        ({"mode": "open", "request_rate": "inf"}, "open loop, all at once"),
        ({"mode": "trace", "time_scale": 0.5}, "trace replay at 2 times its speed"),
    ],
)  # fmt: skip
def test_loads_in_words(load: dict[str, Any], text: str) -> None:
    assert describe_load(load) == text


def test_workloads_in_words() -> None:
    assert describe_workload({"dataset": "random", "input_len": 8, "prefix_len": 4}) == (
        "random, 8 in, 4 shared"
    )
    assert describe_workload({"dataset": "prompts", "prompts": "mt_bench"}) == "mt_bench"
    assert describe_workload({"dataset": "trace", "file": "a.csv"}) == "trace a.csv"

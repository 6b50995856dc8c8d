"""The result file: the original's fields by its own definitions, and everything back again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_load import outcome, request

from atom.bench.errors import BenchError
from atom.bench.metrics import (
    LegacyFields,
    MetricOptions,
    combine,
    from_result_json,
    legacy,
    result_json,
    summarize,
)
from atom.bench.types import RequestRecord, RunResult

FIELDS = LegacyFields(max_concurrency=8)
# What the original's benchmark_serving writes whatever its flags.
ALWAYS = (
    "date backend model_id tokenizer_id best_of num_prompts request_rate burstiness "
    "max_concurrency duration completed total_input_tokens total_output_tokens "
    "request_throughput request_goodput: output_throughput total_token_throughput"
)
DETAILED = ["input_lens", "output_lens", "ttfts", "itls", "generated_texts", "errors"]


def repeats() -> list[list[RequestRecord]]:
    first = [request(i, at=i * 0.1, tokens=5 + i, text=f"answer {i}") for i in range(6)]
    first[2].token_counts, first[2].output_tokens = [2] * 7, 14
    first.append(RequestRecord(index=6, error="http", status=503, message="full", ended_s=0.2))
    return [first, [request(i, at=i * 0.2, intended_s=0.0, tokens=8) for i in range(4)]]


def a_run(fields: LegacyFields = FIELDS, closed: bool = True) -> RunResult:
    records = repeats()
    options = MetricOptions(closed=closed, objectives={"p99_ttft_ms": 105.0})
    summaries = [summarize(outcome(of), options) for of in records]
    run = RunResult(
        run_id="20261121T101112-00ff00",
        kind="bench",
        name="recipe",
        model="org/model",
        load={"mode": "closed", "concurrency": 8, "num_requests": 7},
        workload={"dataset": "random"},
        provenance={"commit": "abc"},
        fingerprint="0123",
        repeats=summaries,
        metrics=combine(summaries, records, options),
        legacy={},
        slo={"p99_ttft_ms": 105.0},
        notes=["a note"],
        artefacts=[{"kind": "trace", "path": "x.json.gz"}],
    )
    run.legacy = legacy(run, records, fields)
    return run


def test_every_field_of_the_original() -> None:
    made = a_run(LegacyFields(detailed=True, metadata={"gpu": "MI300X"})).legacy
    expected = {*ALWAYS.split(), *DETAILED, "gpu"}
    for metric in ("ttft", "tpot", "itl", "e2el"):
        expected |= {f"{word}_{metric}_ms" for word in ("mean", "median", "std", "p99")}
    assert expected <= set(made)
    assert made["request_rate"] == "inf"
    assert made["date"] == "20231114-221320"
    assert made["num_prompts"] == 11
    assert made["completed"] == 10
    assert made["failed"] == 1
    assert made["request_goodput:"] == made["request_goodput"] > 0


def test_values_by_the_originals_definitions() -> None:
    made = a_run(closed=False).legacy
    records = [r for of in repeats() for r in of]
    done = [r for r in records if r.error is None]
    duration = sum(max(r.ended_s for r in of) for of in repeats())
    tokens = sum(r.output_tokens or 0 for r in done)
    assert made["duration"] == pytest.approx(duration)
    assert made["output_throughput"] == pytest.approx(tokens / duration)
    assert made["total_token_throughput"] == pytest.approx((tokens + 1000) / duration)
    # From the moment of sending, in open loop too.
    ttfts = [(r.token_times_s[0] - r.sent_s) * 1000 for r in done]
    assert made["mean_ttft_ms"] == pytest.approx(float(np.mean(ttfts)))
    assert made["p99_ttft_ms"] == pytest.approx(float(np.percentile(ttfts, 99)))
    # Gaps between chunks, whatever number of tokens they carry.
    gaps = [gap * 1000 for r in done for gap in np.diff(r.token_times_s)]
    assert made["mean_itl_ms"] == pytest.approx(float(np.mean(gaps)))
    tpots = [
        (r.token_times_s[-1] - r.token_times_s[0]) / ((r.output_tokens or 0) - 1) * 1000
        for r in done
    ]
    assert made["median_tpot_ms"] == pytest.approx(float(np.median(tpots)))
    stays = sum(r.token_times_s[-1] - r.sent_s for r in done)
    assert made["concurrency"] == pytest.approx(stays / duration)


def test_detailed_has_an_entry_per_request() -> None:
    made = a_run(LegacyFields(detailed=True)).legacy
    for name in DETAILED:
        assert len(made[name]) == 11, name
    assert made["output_lens"][:7] == [5, 6, 14, 8, 9, 10, 0]
    assert made["errors"][6] == "http 503: full"
    assert made["errors"][0] == ""
    assert made["generated_texts"][1] == "answer 1"
    assert made["ttfts"][6] == 0.0
    assert len(made["itls"][0]) == 4
    assert "ttfts" not in a_run().legacy


def test_selection_of_metrics_and_percentiles() -> None:
    made = a_run(LegacyFields(selected=("ttft",), percentiles=(50.0, 99.9))).legacy
    assert {"p50_ttft_ms", "p99.9_ttft_ms"} <= set(made)
    assert not [name for name in made if "tpot" in name or "p99_" in name]
    with pytest.raises(BenchError, match="tfft"):
        LegacyFields(selected=("tfft",))


def test_unknown_tokens_are_null() -> None:
    records = [[request(0, counted_by="chunks", output_tokens=None)]]
    options = MetricOptions(closed=True)
    run = a_run()
    run.repeats = [summarize(outcome(records[0]), options)]
    made = legacy(run, records, FIELDS)
    assert made["output_throughput"] is None
    assert made["total_output_tokens"] is None
    assert made["mean_tpot_ms"] is None
    assert made["mean_ttft_ms"] == pytest.approx(100)


@pytest.mark.parametrize("key", ["atom", "completed", "errors", "mean_ttft_ms"])
def test_metadata_may_not_hide_a_field(key: str) -> None:
    with pytest.raises(BenchError, match=f"--metadata {key}="):
        a_run(LegacyFields(metadata={key: "x"}))


def test_round_trip_through_text() -> None:
    run = a_run(LegacyFields(detailed=True, metadata={"k": "v"}, request_rate=2.5))
    text = json.dumps(result_json(run), allow_nan=False)
    document = json.loads(text)
    assert document["completed"] == 10
    assert document["request_rate"] == 2.5
    assert document["atom"]["run_id"] == run.run_id
    assert from_result_json(document) == run
    assert json.dumps(result_json(from_result_json(document))) == json.dumps(document)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("atom"), 'no "atom" part'),
        (lambda d: d["atom"].update(format=99), "format 99"),
        (lambda d: d["atom"].pop("run_id"), "run_id"),
        (lambda d: d["atom"].update(metrics=3), "damaged"),
    ],
)
def test_foreign_and_damaged_documents(change: object, said: str) -> None:
    document = json.loads(json.dumps(result_json(a_run())))
    change(document)  # type: ignore[operator]
    with pytest.raises(BenchError, match=said) as caught:
        from_result_json(document)
    assert "\n" not in str(caught.value)

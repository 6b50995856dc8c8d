"""Files of others as runs: every number in its place, nothing made up, twice is once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from history_helpers import (
    DETAILED,
    LM_EVAL,
    SERVING,
    SGLANG,
    data_js,
    make_records,
    make_run,
    make_samples,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.bench import names
from atom.bench.errors import BenchError
from atom.bench.history import History, commit_of, started_at
from atom.bench.history.documents import to_document
from atom.bench.history.importers import read_results
from atom.bench.history.runs import lengths_text, load_text
from atom.bench.types import Interval, RunResult


def only(path: Path) -> RunResult:
    (loaded,) = read_results(path)
    return loaded.run


def values(run: RunResult) -> dict[str, float]:
    assert all(i.low <= i.value <= i.high for i in run.metrics.values())
    return {name: interval.value for name, interval in run.metrics.items()}


def test_benchmark_serving(tmp_path: Path) -> None:
    run = only(write(tmp_path / "result.json", SERVING))
    assert (run.kind, run.model, run.name) == ("bench", SERVING["model_id"], "DeepSeek-R1")
    assert run.load == {"mode": "closed", "concurrency": 4, "num_requests": 40}
    assert run.workload == {
        **{"dataset": "random", "input_len": 1024, "output_len": 512, "range_ratio": 0.8}
    }
    assert started_at(run) == "2026-08-07T10:11:12.000000Z"
    assert run.run_id.startswith("20260807-101112-")
    assert run.repeats[0].duration_s == 20.0
    assert run.legacy == SERVING
    hardware = run.provenance["hardware"]
    assert hardware["num_gpus"] == 8
    assert hardware["gpus"][0] == {"name": "AMD Instinct MI355X", "memory_gb": 288}
    assert run.provenance["driver"] == "ROCm 7.2.4"
    assert run.provenance["metadata"]["docker_image"] == "image:1"
    assert values(run) == {
        **{k: v for k, v in SERVING.items() if names.is_name(k)},
        "request_goodput": 1.5,
        "acceptance_rate": 0.75,
        "failed": 2.0,
        "error_rate": 0.05,
        "mean_input_tokens": 1000.0,
        "mean_output_tokens": 500.0,
        "output_throughput_per_user": 50.0,
        "output_throughput_per_gpu": 950.0 / 8,
        "total_token_throughput_per_gpu": 2850.0 / 8,
    }
    assert run.status == "errors", "two requests failed"
    assert run.repeats[0].metrics == values(run)
    assert run.repeats[0].health.workers == 0
    assert "not known" in run.repeats[0].health.reason


@pytest.mark.parametrize(
    ("fields", "load"),
    [
        ({"request_rate": 4.0}, {"mode": "open", "request_rate": 4.0, "max_in_flight": 4}),
        ({"max_concurrency": None}, {"mode": "open", "request_rate": "inf"}),
        ({"request_rate": "4", "max_concurrency": None}, {"mode": "open", "request_rate": 4.0}),
        ({"request_rate": float("inf")}, {"mode": "closed", "concurrency": 4}),
    ],
)
def test_the_load_of_benchmark_serving(
    tmp_path: Path, fields: dict[str, Any], load: dict[str, Any]
) -> None:
    text = json.dumps({**SERVING, **fields})  # infinity as Python's json writes it
    found = only(write(tmp_path / "r.json", text)).load
    assert {k: v for k, v in found.items() if k not in ("num_requests", "burstiness")} == load


def test_goodput_without_the_colon(tmp_path: Path) -> None:
    tree = {k: v for k, v in SERVING.items() if k != "request_goodput:"}
    assert values(only(write(tmp_path / "a.json", {**tree, "request_goodput": 1.25})))[
        "request_goodput"
    ] == 1.25  # fmt: skip
    assert "request_goodput" not in values(
        only(write(tmp_path / "b.json", {**tree, "request_goodput": None}))
    )


def test_nothing_completed_is_no_latency_of_zero(tmp_path: Path) -> None:
    tree = {key: 0 if names.is_name(key) else v for key, v in SERVING.items()}
    run = only(write(tmp_path / "r.json", {**tree, "completed": 0, "duration": 3.0}))
    assert run.status == "errors"
    assert values(run)["error_rate"] == 1.0
    assert not any(name.endswith("_ms") or "throughput" in name for name in run.metrics)


def test_detailed_results_of_vllm_have_samples(tmp_path: Path) -> None:
    ((run, records, _),) = read_results(write(tmp_path / "r.json", DETAILED))
    (samples,) = records
    assert [record.sent_s for record in samples] == [0.0, 0.5, 1.0]
    assert samples[0].token_times_s == pytest.approx([0.1, 0.11, 0.13])
    assert samples[1].ended_s == pytest.approx(0.73)
    assert [record.output_tokens for record in samples] == [3, 2, None]
    assert (samples[2].error, samples[2].message) == ("stream", "ValueError: boom")
    assert samples[2].token_times_s == []
    assert values(run)["acceptance_rate"] == pytest.approx(0.009), "vLLM gives percent, always"
    # Without the data set's name, mean lengths tell experiments apart.
    assert run.workload == {"dataset": "unknown", "mean_input_len": 19000, "mean_output_len": 9500}
    assert lengths_text(run.workload) == "~19000/9500"


def test_appended_runs_of_vllm(tmp_path: Path) -> None:
    second = {**SERVING, "date": "20260807-111112", "duration": 21.0}
    text = f"{json.dumps(SERVING)}\n{json.dumps(second)}"
    found = read_results(write(tmp_path / "r.json", text))
    assert [loaded.run.repeats[0].duration_s for loaded in found] == [20.0, 21.0]
    assert found[0].run.fingerprint == found[1].run.fingerprint
    pretty = f"{json.dumps(SERVING, indent=2)}{json.dumps(second, indent=2)}\n\n"
    again = read_results(write(tmp_path / "r.json", pretty))
    assert [loaded.run for loaded in again] == [loaded.run for loaded in found]


def test_sglang(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", json.dumps(SGLANG) + "\n")
    run = only(path)
    assert run.model == "unknown"
    assert read_results(path, model="org/m")[0].run.model == "org/m"
    assert values(run)["mean_e2el_ms"] == 2409.5
    assert values(run)["mean_concurrency"] == 11.78
    assert load_text(run.load) == "5/s"


def test_a_file_without_a_date_is_one_run_whatever_its_age(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", SGLANG)
    with History(tmp_path / "h.db") as history:
        assert history.add(only(path)) is True
        os.utime(path, (1.7e9, 1.7e9))
        assert history.has(only(path))
        assert history.add(only(path)) is False
        assert history.count() == 1


def test_lm_eval(tmp_path: Path) -> None:
    run = only(write(tmp_path / "results_2026.json", LM_EVAL))
    assert (run.kind, run.name, run.model) == ("eval", "Big-R1", "/models/org/Big-R1")
    assert set(run.metrics) == {
        "gsm8k/exact_match,strict-match",
        "gsm8k/exact_match,flexible-extract",
        "mmlu/acc,none",
    }
    strict = run.metrics["gsm8k/exact_match,strict-match"]
    assert strict.low == pytest.approx(0.94 - 1.959964 * 0.0065)
    assert run.metrics["gsm8k/exact_match,flexible-extract"].high == 1.0
    assert run.metrics["mmlu/acc,none"] == Interval(0.7, 0.7, 0.7)
    assert run.load == {"concurrency": 65}
    assert run.workload["tasks"] == {"gsm8k": {"version": 3.0, "num_fewshot": 3, "samples": 1319}}
    assert run.repeats[0].duration_s == 612.5
    assert started_at(run) == "2026-08-07T10:13:47.500000Z"
    assert "pw" not in json.dumps(run.provenance)


def test_lm_eval_with_arguments_as_a_mapping(tmp_path: Path) -> None:
    config = {"model": "local-completions", "model_args": {"model": "m", "num_concurrent": 4}}
    run = only(write(tmp_path / "r.json", {**LM_EVAL, "config": config}))
    assert (run.model, run.load) == ("m", {"concurrency": 4})
    few = {"results": LM_EVAL["results"], "config": {"model": "hf"}}
    assert only(write(tmp_path / "s.json", few)).model == "hf"


def test_github_action_benchmark(tmp_path: Path) -> None:
    found = [loaded.run for loaded in read_results(write(tmp_path / "data.js", data_js()))]
    assert len(found) == 12
    assert [commit_of(run)[0] for run in found] == ["a"] * 6 + ["b"] * 6
    v4, one, two, failed, accuracy, point = found[:6]
    assert values(v4) == {
        "output_throughput": 2839.36,
        "total_token_throughput": 5684.96,
        "mean_ttft_ms": 449.04,
        "mean_tpot_ms": 40.0,
        "output_throughput_per_user": 25.0,
        "output_throughput_per_gpu": 2839.36 / 8,
        "total_token_throughput_per_gpu": 5684.96 / 8,
    }
    assert v4.load == {"mode": "closed", "concurrency": 128}
    assert v4.provenance["hardware"]["gpus"][0]["name"] == "AMD Instinct MI355X"
    assert v4.provenance["driver"] == "ROCm 7.2.4"
    assert v4.provenance["metadata"]["Run"] == "https://ci/1"
    assert v4.provenance["metadata"]["commit_message"] == "perf: one"
    assert started_at(v4) == "2026-08-07T10:13:47.794000Z"
    assert values(one)["output_throughput"] == 4348.28, "two variants under one name stay two"
    assert values(two)["mean_tpot_ms"] == 22.46
    assert lengths_text(one.workload) == "", "0/0 is not known"
    assert (failed.status, failed.metrics) == ("errors", {})
    assert accuracy.kind == "eval"
    assert values(accuracy) == {
        "gsm8k/exact_match,flexible-extract": 0.9492,
        "gsm8k/exact_match,strict-match": 0.9439,
        "acceptance_rate": pytest.approx(0.6714),
        "accept_length": 3.01,
    }
    assert accuracy.workload == {"dataset": "gsm8k", "num_fewshot": 3}
    assert values(point)["p99_ttft_ms"] == 900.0
    assert values(point)["output_throughput_per_gpu"] == 50.0
    assert point.repeats[0].duration_s == 99.5
    assert v4.fingerprint == found[6].fingerprint, "the next night's run of the same"
    assert v4.run_id != found[6].run_id


@pytest.mark.parametrize("samples", [(), (3, 2)])
def test_ours_comes_back_equal(tmp_path: Path, samples: tuple[int, ...]) -> None:
    run = make_run(metrics={"p99_ttft_ms": Interval(1.0, float("-inf"), float("inf"))})
    records = [make_records(count) for count in samples]
    evaluated = {f"task {count}": make_samples(count) for count in samples}
    path = write(tmp_path / "ours.json", to_document(run, records, evaluated))
    ((found, read, asked),) = read_results(path)
    assert found == run
    assert list(read) == records
    assert asked == evaluated


def test_several_documents_in_a_list(tmp_path: Path) -> None:
    runs = [make_run(number) for number in range(3)]
    path = write(tmp_path / "ours.json", [*map(to_document, runs), SERVING])
    found = [loaded.run for loaded in read_results(path)]
    assert found[:3] == runs
    assert found[3].model == SERVING["model_id"]


@pytest.mark.parametrize("maker", [lambda: SERVING, lambda: DETAILED, lambda: LM_EVAL, data_js])
def test_importing_twice_is_importing_once(tmp_path: Path, maker: Any) -> None:
    content = maker()
    with History(tmp_path / "h.db") as history:
        first = [history.add(*it) for it in read_results(write(tmp_path / "a.json", content))]
        count = history.count()
        again = [history.add(*it) for it in read_results(write(tmp_path / "b.json", content))]
        assert all(first)
        assert not any(again)
        assert history.count() == count == len(first)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no result"),
        ("[]", "holds no result"),
        ("{", "bad.json:1: not JSON"),
        ('{"a": 1,\n "b": }', "bad.json:2: not JSON: Expecting value"),
        ("hello", "bad.json:1: not JSON"),
        ('{"a": 1, "b": 2}', r"not a benchmark result \(it has a, b\); known are"),
        ("[5]", r"a int\); known are"),
        ('[{"benchmark": {}, "metric": {}}]', "PyTorch's benchmark format"),
        ('{"atom": {"run_id": "x", "format": 1}}', "a damaged result of atom bench"),
        ('{"atom": {"run_id": "x", "format": 99}}', "format 99; this atom reads"),
        ('{"entries": {"B": []}}', "holds no result"),
        ("[" * 100_000, "nested too deeply|not JSON"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(BenchError, match=said) as caught:
        read_results(write(tmp_path / "bad.json", content))
    assert "\n" not in str(caught.value)
    assert "bad.json" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="No such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(BenchError, match="is a folder"):
        read_results(tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00\x01" * 10)
    with pytest.raises(BenchError, match="not a text file"):
        read_results(tmp_path / "b.json")


def places(tree: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree."""
    found = [way] if way else []
    if not isinstance(tree, dict | list):
        return found
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found += places(value, (*way, key))
    return found


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.sampled_from(["", "x", "inf", "nan", "1e400", "2026-01-01", "k=v", "%7B", "é\u0000"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
SOUND = [
    SERVING,
    DETAILED,
    LM_EVAL,
    json.loads(data_js().partition("=")[2]),
    to_document(make_run(), [make_records(2)], {"gsm8k": make_samples(2)}),
]


@settings(max_examples=80, deadline=None)
@given(data=st.data(), which=st.sampled_from(range(len(SOUND))))
def test_no_file_however_odd_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, which: int
) -> None:
    """One or two values replaced by anything: it is read, or refused in one line, or not added."""
    tree = json.loads(json.dumps(SOUND[which]))
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(places(tree)))
        at = tree
        for key in way:
            at = at[key]
        at[last] = data.draw(junk)
    folder = tmp_path_factory.mktemp("odd")
    path = write(folder / "odd.json", json.dumps(tree))
    with History(folder / "h.db") as history:
        refused = ""
        try:
            for run, records, evaluated in read_results(path):
                history.add(run, records, evaluated)
                assert history.get(run.run_id).run_id == run.run_id
        except BenchError as error:
            refused = str(error)
        assert "\n" not in refused

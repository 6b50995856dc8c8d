"""What was typed becomes values and points, or one line that names the mistake."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.bench import points
from atom.bench.errors import BenchError
from atom.bench.points import Point, levels
from atom.bench.settings import Settings, read
from atom.config import resolve_tool
from atom.errors import AtomError


def settings_of(
    recipe: Path | None = None, env: dict[str, str] | None = None, **flags: Any
) -> Settings:
    return read(resolve_tool("bench", recipe, env or {}, flags))


class Finite:
    """A workload of so many jobs."""

    name = "jsonl"
    endpoint = "completions"

    def __init__(self, length: int | None) -> None:
        self.length = length

    def jobs(self, start: int = 0) -> Any:
        return iter(())

    def describe(self) -> dict[str, Any]:
        return {}

    def arrivals(self) -> list[float]:
        return [0.0, 1.0, 4.0]


def test_nothing_given() -> None:
    settings = settings_of()
    assert settings.base_url is None
    assert settings.points == (Point(concurrency=16, num_requests=80),)
    assert (settings.dataset, settings.path) == ("random", None)
    assert settings.endpoint() == "completions"
    assert settings.ignore_eos()
    assert settings.repeats == 5
    assert settings.search is None
    assert settings.points[0].describe() == {
        "mode": "closed",
        "concurrency": 16,
        "num_requests": 80,
        "duration_s": None,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8", [8]),
        ("1-4", [1, 2, 3, 4]),
        ("1-16*2", [1, 2, 4, 8, 16]),
        ("1-20*2", [1, 2, 4, 8, 16]),
        ("8-64+8", [8, 16, 24, 32, 40, 48, 56, 64]),
        ("0.5-2+0.5", [0.5, 1, 1.5, 2]),
        ("3-3", [3]),
        ("0.1-0.3+0.1", [0.1, 0.2, 0.1 + 2 * 0.1]),
    ],
)
def test_levels(text: str, expected: list[float]) -> None:
    assert levels(text, "-c") == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "4-1", "1-8*1", "1-8+0", "0-8*2", "1-8/2"])
def test_levels_that_are_none(text: str) -> None:
    with pytest.raises(BenchError, match=r"^--concurrency "):
        levels(text, "--concurrency")


@given(st.integers(1, 500), st.integers(0, 500), st.integers(1, 50))
def test_a_range_by_steps_is_python_s(low: int, more: int, step: int) -> None:
    expected = list(range(low, low + more + 1, step))
    found = levels(f"{low}-{low + more}+{step}", "-c")
    assert found == expected[: points.MOST_POINTS + 1]


def test_a_sweep_and_its_counts() -> None:
    settings = settings_of(concurrency=["1,2", "4-8*2", "2"])
    assert [p.concurrency for p in settings.points] == [1, 2, 4, 8]
    assert [p.num_requests for p in settings.points] == [16, 16, 20, 40]
    asked = settings_of(concurrency="1,2", num_prompts="7")
    assert [p.num_requests for p in asked.points] == [7, 7]
    timed = settings_of(concurrency="2", duration="3")
    assert (timed.points[0].num_requests, timed.points[0].duration_s) == (None, 3.0)
    both = settings_of(concurrency="2", duration="3", num_prompts="9")
    assert (both.points[0].num_requests, both.points[0].duration_s) == (9, 3.0)


def test_open_loops() -> None:
    settings = settings_of(request_rate="2,4-8*2,inf,2:20,1:9:exponential", max_concurrency="3")
    described = [p.describe() for p in settings.points]
    assert [d["request_rate"] for d in described] == [2, 4, 8, "inf", "2:20", "1:9:exponential"]
    assert {d["mode"] for d in described} == {"open"}
    assert {d["max_in_flight"] for d in described} == {3}
    assert [p.num_requests for p in settings.points] == [40, 80, 160, 100, 220, 100]
    assert [p.stationary for p in settings.points] == [True, True, True, True, False, False]
    assert [p.title() for p in settings.points][3:] == [
        "all at once",
        "2 to 20 req/s",
        "1 to 9 req/s",
    ]
    load = settings.points[0].load(Finite(None), seed=5)
    assert load.arrivals_s is not None
    assert len(load.arrivals_s) == 40
    assert load.arrivals_s[-1] == pytest.approx(39 / 2)
    assert load == settings.points[0].load(Finite(None), seed=5)
    assert load != settings.points[0].load(Finite(None), seed=6)


def test_constant_arrivals() -> None:
    (point,) = settings_of(request_rate="4", arrival="constant", num_prompts="5").points
    load = point.load(Finite(None), seed=1)
    assert load.arrivals_s == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


def test_max_concurrency_alone_is_a_closed_loop() -> None:
    (point,) = settings_of(max_concurrency="3").points
    assert (point.concurrency, point.max_in_flight) == (3, None)


def test_a_trace_is_replayed_unless_a_load_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 4, "output_length": 2, "hash_ids": [0]}\n')
    (point,) = settings_of(dataset=f"trace:{path}", time_scale="0.5").points
    assert point.describe()["mode"] == "trace"
    load = point.load(Finite(3), seed=0)
    assert load.arrivals_s == [0.0, 0.5, 2.0]
    (closed,) = settings_of(dataset="trace", dataset_path=str(path), concurrency="2").points
    assert closed.closed


@pytest.mark.parametrize("length", [3, 16, None])
def test_a_point_fits_its_workload(length: int | None) -> None:
    point = points.closed_point(2)
    fitted = point.fit(Finite(length), asked=False)
    assert fitted.num_requests == min(16, length or 16)
    if length == 3:
        with pytest.raises(BenchError, match="--num-prompts 16: the data set jsonl has 3"):
            point.fit(Finite(length), asked=True)
    timed = Point(concurrency=2, duration_s=1.0).fit(Finite(length), asked=False)
    assert timed.num_requests is None
    rate = Point(arrivals=points.open_point("10", 1.0, None).arrivals, duration_s=2.0)
    assert len(rate.load(Finite(length), seed=1).arrivals_s or ()) == min(length or 20, 20)
    trace = Point().fit(Finite(3), asked=False)
    assert trace.num_requests == 3


def test_the_stronger_source_decides_between_open_and_closed(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[bench]\nrequest_rate = 3\nburstiness = 0.5\n")
    assert settings_of(recipe).points[0].rate_text == "3"
    assert settings_of(recipe, concurrency="2").points[0].concurrency == 2
    env = {"ATOM_BENCH_CONCURRENCY": "4"}
    assert settings_of(recipe, env).points[0].concurrency == 4
    assert settings_of(recipe, env, request_rate="9").points[0].rate_text == "9"


def test_a_stronger_data_set_takes_a_weaker_one_s_parameters_away(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[bench]\ninput_len = 64\noutput_len = 8\nprefix_len = 4\nnum_prefixes = 2\n")
    spec = settings_of(recipe).workload_spec(max_len=None, limit=None)
    assert (spec.input_len, spec.output_len, spec.num_prefixes) == (64, 8, 2)
    other = settings_of(recipe, dataset="mt_bench").workload_spec(max_len=None, limit=None)
    assert (other.input_len, other.output_len, other.prefix_len) == (None, 8, 0)
    with pytest.raises(AtomError, match="input_len means nothing for mt_bench"):
        settings_of(dataset="mt_bench", input_len="5")


def test_addresses() -> None:
    assert settings_of(base_url="http://h:1/v1/").base_url == "http://h:1"
    assert settings_of(port="9000").base_url == "http://127.0.0.1:9000"
    assert settings_of(host="h").base_url == "http://h:8000"
    env = {"ATOM_BENCH_BASE_URL": "http://e:1"}
    assert settings_of(env=env).base_url == "http://e:1"
    assert settings_of(env=env, port="2").base_url == "http://127.0.0.1:2"


def test_pairs_keep_the_commas_of_their_values() -> None:
    settings = settings_of(metadata=["a=1,2", "b=x"], header=["X-A: 1, 2", "X-B=y"])
    assert settings.metadata == {"a": "1,2", "b": "x"}
    assert settings.headers == {"X-A": "1,2", "X-B": "y"}


def test_the_endpoint_and_the_end_of_answers_follow_the_data_set() -> None:
    chat = settings_of(dataset="mt_bench")
    assert (chat.dataset, chat.path) == ("prompts", "mt_bench")
    assert chat.endpoint() == "chat"
    assert not chat.ignore_eos()
    assert settings_of(dataset="mt_bench", output_len="9").ignore_eos()
    assert settings_of(dataset="mt_bench", endpoint="completions").endpoint() == "completions"
    assert not settings_of(ignore_eos=False).ignore_eos()
    assert settings_of(dataset="prompts", dataset_path="self-instruct").path == "self_instruct"


def test_searches() -> None:
    slo = {"find_max": True, "slo": "ttft_p99=500ms"}
    found = settings_of(**slo).search
    assert found is not None
    assert (found.what, found.low, found.high) == ("concurrency", 1, 256)
    found = settings_of(request_rate="0.5-20", **slo).search
    assert found is not None
    assert (found.what, found.low, found.high) == ("request_rate", 0.5, 20)
    assert settings_of(**slo).repeats == 1
    assert settings_of(repeats="3", **slo).repeats == 3


def test_precision() -> None:
    for text in ("2%", "0.02"):
        settings = settings_of(precision=text)
        assert settings.precision == pytest.approx(0.02)
        assert settings.repeats == 3
    assert settings_of(precision="2%", max_repeats="2").repeats == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"concurrency": "0"}, "--concurrency 0: it must be a whole number"),
        ({"concurrency": "1.5"}, "--concurrency 1.5"),
        ({"concurrency": "1-500"}, "more than 64 points"),
        ({"concurrency": "2", "request_rate": "3"}, "either open loop or closed"),
        ({"concurrency": "2", "max_concurrency": "3"}, "--max-concurrency caps an open loop"),
        ({"concurrency": "8", "num_prompts": "3"}, "--num-prompts 3 cannot keep 8"),
        ({"request_rate": "0"}, "--request-rate is 0"),
        ({"request_rate": "x"}, "--request-rate x"),
        ({"request_rate": "2:inf"}, "--request-rate 2:inf"),
        ({"burstiness": "2"}, "--burstiness needs --request-rate"),
        ({"request_rate": "2", "burstiness": "2", "arrival": "constant"}, "no burstiness"),
        ({"base_url": "ftp://x"}, "only http and https"),
        ({"base_url": "http://x", "port": "1"}, "--base-url and --host or --port"),
        ({"base_url": "http://u:p@x"}, "--api-key"),
        ({"extra_body": "{"}, "--extra-body is not JSON"),
        ({"extra_body": "[]"}, "--extra-body must be a JSON object"),
        ({"header": ["secret"]}, "--header: write NAME=VALUE"),
        ({"metadata": ["x"]}, "--metadata x: write KEY=VALUE"),
        ({"goodput": ["ttft"]}, "--goodput ttft"),
        ({"slo": "ttft_p99"}, "--slo ttft_p99"),
        ({"precision": "0"}, "--precision 0"),
        ({"precision": "200%"}, "--precision 200%"),
        ({"precision": "2%", "repeats": "30"}, "more than --max-repeats 20"),
        ({"max_repeats": "4"}, "--max-repeats needs --precision"),
        ({"find_max": True}, "--find-max needs objectives"),
        ({"find_max": True, "slo": "ttft=1", "concurrency": "4"}, "one range, e.g. 1-256"),
        ({"find_max": True, "slo": "ttft=1", "request_rate": "0-4"}, "begin above 0"),
        ({"max_runs": "4"}, "--max-runs needs --find-max"),
        ({"auto_profile": True, "gate": False}, "drop --no-gate"),
        ({"dataset": "rndom"}, r"did you mean random\?"),
        ({"dataset": "jsonl:/nowhere"}, "does not exist"),
        ({"dataset": "jsonl:a", "dataset_path": "b"}, "the data set is a already"),
        ({"range_ratio": "0.5"}, "--length-convention"),
        ({"length_convention": "vllm"}, "--length-convention needs --range-ratio"),
        ({"metric_percentiles": "100"}, "percentile 100"),
        ({"turns_max": "3"}, "--turns-max needs --dataset multi-turn"),
        ({"num_prefixes": "3"}, "num_prefixes needs a prefix_len"),
        ({"percentile_metrics": "x"}, "must be one of ttft"),
    ],
)
def test_mistakes_are_one_line(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(AtomError, match=says) as caught:
        settings_of(**flags)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_warm_up_is_one_request_a_place() -> None:
    assert points.closed_point(4).warmups() == 4
    assert points.closed_point(400).warmups() == points.MOST_WARMUPS
    assert points.open_point("4", math.inf, None).warmups() == points.LEAST_REQUESTS

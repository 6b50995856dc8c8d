"""The search, against servers whose answer is known: right within 5 % in 19 of 20, in few runs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import mean, stdev

import pytest

from atom.bench.errors import BenchError
from atom.bench.search import BUDGET, Metrics, SearchReport, find_max, pooled_margins
from atom.bench.types import Interval

Server = Callable[[float], Metrics]
TRIALS = 200


def measured(value: float, noise: float, rng: random.Random) -> Interval:
    """Five repeats of relative deviation `noise`, and their 95 % interval."""
    values = [value * rng.lognormvariate(0, noise) for _ in range(5)]
    half = 2.776 * stdev(values) / math.sqrt(5)
    return Interval(mean(values), max(mean(values) - half, 0.0), mean(values) + half)


def queue(rng: random.Random) -> tuple[Server, dict[str, float], float]:
    """An M/M/1 queue under an open load of 400 requests; rates far beyond it are not kept up."""
    capacity = math.exp(rng.uniform(math.log(0.3), math.log(200)))
    service_ms = 1000 / capacity * rng.uniform(0.5, 3)
    ratio = rng.uniform(1.5, 15)

    def server(rate: float) -> Metrics:
        use = rate / capacity
        latency = service_ms / (1 - use) if use < 1 else math.inf
        backlog = service_ms * (400 * max(0.0, 1 - 1 / max(use, 1.0)) + 20)
        return {
            "p99_ttft_ms": measured(min(latency, backlog), 0.08, rng),
            "request_throughput": measured(min(rate, capacity) * 0.97, 0.01, rng),
        }

    return server, {"p99_ttft_ms": service_ms * ratio}, capacity * (1 - 1 / ratio)


def batching(rng: random.Random) -> tuple[Server, dict[str, float], float]:
    """Steps of a + b n for n jobs: flat at first, then in proportion, with or without a corner."""
    flat_ms, knee = rng.uniform(5, 20), math.exp(rng.uniform(0, math.log(100)))
    sharp = rng.choice([1.0, 3.0, 20.0])
    answer = min(knee * math.exp(rng.uniform(math.log(1.2), math.log(30))), 900.0)

    def tpot(jobs: float) -> float:
        return float((flat_ms**sharp + (flat_ms * jobs / knee) ** sharp) ** (1 / sharp))

    def server(jobs: float) -> Metrics:
        return {"mean_tpot_ms": measured(tpot(jobs), 0.015, rng)}

    return server, {"mean_tpot_ms": tpot(answer)}, answer


def full(rng: random.Random) -> tuple[Server, dict[str, float], float]:
    """First tokens wait steeply once more jobs are there than the server takes at a time."""
    base_ms, slope = rng.uniform(50, 200), rng.uniform(0.03, 0.1)
    answer = math.exp(rng.uniform(math.log(2), math.log(900)))

    def ttft(jobs: float) -> float:
        return base_ms * (1 + slope * jobs + 15 * max(0.0, jobs / answer - 1.02))

    def server(jobs: float) -> Metrics:
        return {
            "p99_ttft_ms": measured(ttft(jobs), 0.05, rng),
            "mean_tpot_ms": measured(10 + jobs / 100, 0.01, rng),
        }

    return server, {"p99_ttft_ms": ttft(answer), "mean_tpot_ms": 1000.0}, answer


@pytest.mark.parametrize(
    ("family", "low", "high", "integer"),
    [(queue, 0.1, 500, False), (batching, 1, 1024, True), (full, 1, 1024, True)],
    ids=["queue", "batching", "full"],
)
def test_right_in_19_of_20(
    family: Callable[[random.Random], tuple[Server, dict[str, float], float]],
    low: float,
    high: float,
    integer: bool,
) -> None:
    right = runs = 0
    for trial in range(TRIALS):
        server, objectives, answer = family(random.Random(f"{family.__name__} {trial}"))
        report = find_max(server, objectives, low=low, high=high, integer=integer)
        found = report.best or 0.0
        near = abs(found / answer - 1) <= 0.05
        right += near or (integer and abs(found - math.floor(answer)) <= 1)
        runs += len(report.points)
        assert len(report.points) <= BUDGET
        loads = [point.load for point in report.points]
        assert len(set(loads)) == len(loads)
        assert all(low <= load <= high for load in loads)
        assert not integer or all(load == int(load) for load in loads)
    assert right >= TRIALS * 19 / 20
    assert runs / TRIALS < 6.5


def exact(value: float) -> Interval:
    return Interval(value, value, value)


def search(server: Callable[[float], float], limit: float, **more: object) -> SearchReport:
    asked: dict[str, object] = {"low": 1, "high": 512, "integer": True, **more}
    return find_max(
        lambda load: {"p99_ttft_ms": exact(server(load))},
        {"p99_ttft_ms": limit},
        **asked,  # type: ignore[arg-type]
    )


def test_neighbours_end_a_search_in_whole_numbers() -> None:
    report = search(lambda jobs: 10 * jobs, 75)
    assert (report.best, report.above) == (7, 8)
    assert report.limiting == "p99_ttft_ms"
    assert report.reason == "the next load up misses the objectives"


@pytest.mark.parametrize("integer", [True, False])
def test_even_the_lowest_load_misses(integer: bool) -> None:
    report = search(lambda load: 500 + load, 100, integer=integer)
    assert report.best is None
    assert report.above == 1
    assert "even the lowest load, 1," in report.reason


@pytest.mark.parametrize("integer", [True, False])
def test_even_the_highest_load_meets(integer: bool) -> None:
    report = search(lambda load: 50 + load / 1000, 100, integer=integer)
    assert (report.best, report.above) == (512, None)
    assert "highest load allowed, 512," in report.reason


def test_the_budget_ends_it_with_what_is_known() -> None:
    report = search(lambda load: 1 + load**3 / 1e4, 30.0, integer=False, budget=2, tolerance=0.001)
    assert len(report.points) == 2
    assert report.reason == "the budget of 2 runs is spent"
    true = (29e4) ** (1 / 3)
    assert report.best is None or report.best <= true
    assert report.above is None or report.above > true


def test_tolerance_holds_where_the_budget_allows() -> None:
    report = search(lambda load: 10 / (1 - min(load / 300, 0.999)), 80, integer=False, budget=20)
    assert report.best is not None
    assert report.above is not None
    assert report.best <= 262.5 < report.above <= report.best * 1.031


def test_a_floor_is_kept_by_going_up() -> None:
    """Throughput rises with the load: missing its floor at 3 jobs says nothing against 30."""

    def server(jobs: float) -> Metrics:
        return {"p99_tpot_ms": exact(10 + jobs), "output_throughput": exact(20 * jobs)}

    report = find_max(
        server, {"p99_tpot_ms": 50, "output_throughput": 500}, low=1, high=512, integer=True
    )
    assert report.best == 40
    both = {"p99_tpot_ms": 50.0, "output_throughput": 5000.0}
    assert find_max(server, both, low=1, high=512, integer=True).best is None


def test_errors_are_a_miss_however_fast_the_rest() -> None:
    def server(jobs: float) -> Metrics:
        rate = 0.0 if jobs <= 20 else 0.5
        return {"p99_ttft_ms": exact(10.0), "error_rate": exact(rate)}

    report = find_max(server, {"p99_ttft_ms": 50}, low=1, high=64, integer=True, budget=12)
    assert (report.best, report.above) == (20, 21)
    assert report.limiting == "error_rate"


def test_a_run_without_a_single_success_is_a_miss() -> None:
    def server(jobs: float) -> Metrics:
        if jobs > 10:
            return {"error_rate": exact(1.0)}
        return {"p99_ttft_ms": exact(10.0), "error_rate": exact(0.0)}

    assert find_max(server, {"p99_ttft_ms": 50}, low=1, high=64, integer=True).best == 10


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ({"request_goodput": 5.0}, "goodput_share"),
        ({"completed": 5.0}, "neither"),
        ({"output_throughput": 5.0}, "no objective limits"),
        ({"p99_server_queue_ms": 5.0}, "does not tell"),
    ],
)
def test_objectives_that_cannot_be_searched_by(objectives: dict[str, float], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        find_max(
            lambda load: {"output_throughput": exact(load), "error_rate": exact(0)},
            objectives,
            low=1,
            high=9,
            integer=True,
        )


@pytest.mark.parametrize("change", [{"low": 5, "high": 5}, {"budget": 0}])
def test_ranges_and_budgets_that_cannot_be(change: dict[str, float]) -> None:
    with pytest.raises(BenchError, match="--find-max"):
        search(lambda load: load, 3, **change)


def test_contradicting_points_share_their_mean() -> None:
    report = search(lambda jobs: 10 * jobs, 75)
    points = [
        point.__class__(**{**{f: getattr(point, f) for f in point.__slots__}, **new})
        for point, new in zip(
            report.points[:1] * 3,
            [
                {"load": 1.0, "margin": -0.5, "noise": 0.1},
                {"load": 2.0, "margin": 0.3, "noise": 0.1},
                {"load": 3.0, "margin": -0.1, "noise": 0.1},
            ],
            strict=True,
        )
    ]
    pooled = pooled_margins(points)
    assert [load for load, _ in pooled] == [1.0, 2.0, 3.0]
    assert [margin for _, margin in pooled] == pytest.approx([-0.5, 0.1, 0.1])

"""Points are measured as asked: warm-up, seeds, repeats, precision, status, what is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from atom.bench import client, session, verdicts
from atom.bench.errors import ServerUnreachable, TooManyErrors
from atom.bench.live import QuietDisplay
from atom.bench.points import Point
from atom.bench.session import SEEDS_PER_POINT, WARMUP_SEED, WARMUP_TOKENS, Session
from atom.bench.settings import read
from atom.bench.types import (
    ClientHealth,
    Job,
    Load,
    LoadOutcome,
    RepeatResult,
    RequestRecord,
    RunResult,
    Target,
    Turn,
)
from atom.cli.common import console
from atom.config import resolve_tool


class Words:
    """A workload whose prompts tell their seed and number."""

    name = "random"
    endpoint = "completions"
    length = None

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def jobs(self, start: int = 0) -> Iterator[Job]:
        number = start
        while True:
            yield Job(number, [Turn(prompt=f"{self.seed}:{number}", max_tokens=100)])
            number += 1

    def describe(self) -> dict[str, Any]:
        return {"dataset": "random", "input_len": 4, "seed": self.seed}


class Sent:
    """What the fake client was asked to send, and how it answers."""

    def __init__(self) -> None:
        self.prompts: list[list[str]] = []
        self.loads: list[Load] = []
        self.max_tokens: list[set[int]] = []
        self.gap_s = [0.01]  # of each pass in turn; the last one stays
        self.errors: list[str | None] = [None]
        self.bound = False
        self.cached = 0
        self.stop_after: int | None = None  # passes
        self.stop = threading.Event()
        self.calls: list[str] = []

    def run_load(self, target: Target, jobs: Iterator[Job], load: Load, **_: Any) -> LoadOutcome:
        taken = list(jobs)
        number = len(self.prompts)
        self.prompts.append([str(job.turns[0].prompt) for job in taken])
        self.max_tokens.append({turn.max_tokens for job in taken for turn in job.turns})
        self.loads.append(load)
        self.calls.append("load")
        gap = self.gap_s[min(number, len(self.gap_s) - 1)]
        error = self.errors[min(number, len(self.errors) - 1)]
        if self.stop_after is not None and number + 1 >= self.stop_after:
            self.stop.set()
        records = [self.record(i, gap, error) for i in range(len(taken))]
        length = max((r.ended_s for r in records), default=0.0)
        health = ClientHealth(1, [0.1], 0.1, 0.2, 0.3, 0.1, 9.0, 0.2, self.bound, "so busy")
        return LoadOutcome(records, 0.0, 1.8e9, length, self.stop.is_set(), health)

    def record(self, index: int, gap: float, error: str | None) -> RequestRecord:
        begin = index * 0.5
        times = [begin + 0.1 + gap * i for i in range(10)]
        record = RequestRecord(
            index,
            intended_s=begin,
            dispatched_s=begin,
            sent_s=begin,
            ended_s=times[-1],
            token_times_s=times,
            token_counts=[1] * 10,
            counted_by="continuous_usage",
            input_tokens=4,
            output_tokens=10,
            cached_tokens=self.cached,
            asked_output=100,
        )
        if error is not None:
            record.error, record.status, record.message = "http", 503, error  # type: ignore[assignment]
        return record


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    made = Sent()
    monkeypatch.setattr(client, "run_load", made.run_load)
    monkeypatch.setattr(client, "server_metrics", lambda *_, **__: {})
    monkeypatch.setattr(session, "make_workload", lambda spec, tokens, seed: Words(seed))

    def profile(target: Target, action: str) -> dict[str, Any]:
        made.calls.append(action)
        return {"traces": ["/t/a.json.gz"]} if action == "stop" else {}

    monkeypatch.setattr(client, "profile", profile)
    return made


def make(sent: Sent, gone: str | None = None, **flags: Any) -> Session:
    return Session(
        read(resolve_tool("bench", None, {}, flags)),
        Target(base_url="http://127.0.0.1:1", model="m"),
        None,
        max_len=None,
        display=QuietDisplay(console(stderr=True)),
        stop=sent.stop,
        seed=100,
        name="n",
        provenance=lambda: {"hardware": {"num_gpus": 2}, "server": {"kind": "atom"}},
        gone=lambda: gone,
        sweep_id="s",
    )


def first(session_: Session) -> Point:
    return session_.settings.points[0]


def test_every_pass_has_prompts_of_its_own(sent: Sent) -> None:
    one = make(sent, concurrency="2", repeats="3", num_prompts="4")
    one.measure(first(one))
    one.measure(first(one))
    prompts = [p for passed in sent.prompts for p in passed]
    assert len(prompts) == len(set(prompts)) == 2 * (2 + 3 * 4)
    seeds = [passed[0].partition(":")[0] for passed in sent.prompts]
    block = SEEDS_PER_POINT
    expected = [100 + WARMUP_SEED, 100, 101, 102]
    assert seeds == [str(s) for s in (*expected, *(e + block for e in expected))]


def test_the_warm_up(sent: Sent) -> None:
    one = make(sent, concurrency="3", repeats="1", num_prompts="4", warmup="5")
    one.measure(first(one))
    assert [len(p) for p in sent.prompts] == [5, 4]
    assert sent.loads[0].concurrency == 3
    assert sent.max_tokens == [{WARMUP_TOKENS}, {100}]
    none = make(sent, concurrency="3", repeats="1", num_prompts="4", warmup="0")
    none.measure(first(none))
    assert [len(p) for p in sent.prompts] == [5, 4, 4]


def test_an_open_loop_is_warmed_up_by_a_closed_one(sent: Sent) -> None:
    one = make(sent, request_rate="10", repeats="1", num_prompts="4")
    one.measure(first(one))
    assert sent.loads[0].concurrency == 16
    assert sent.loads[0].arrivals_s is None
    assert sent.loads[1].arrivals_s is not None
    assert len(sent.loads[1].arrivals_s) == 4


def test_the_run(sent: Sent) -> None:
    one = make(sent, concurrency="1", repeats="2", num_prompts="4", metadata=["k=v"])
    run = one.measure(first(one)).run
    assert (run.kind, run.name, run.model, run.status, run.sweep_id) == (
        "bench", "n", "m", "ok", "s",
    )  # fmt: skip
    assert run.load["concurrency"] == 1
    assert run.metrics["mean_ttft_ms"].value == pytest.approx(100)
    assert run.metrics["output_throughput_per_gpu"].value == pytest.approx(
        run.metrics["steady_output_throughput"].value / 2
    )
    assert [r.seed for r in run.repeats] == [100, 101]
    assert run.provenance["seed"] == 100
    assert one.measure(first(one)).run.provenance["seed"] == 100 + SEEDS_PER_POINT
    assert run.legacy["k"] == "v"
    assert run.legacy["completed"] == 8
    assert run.fingerprint
    again = make(sent, concurrency="1", repeats="3", num_prompts="4")
    assert again.measure(first(again)).run.fingerprint == run.fingerprint
    other = make(sent, concurrency="2", repeats="2", num_prompts="4")
    assert other.measure(first(other)).run.fingerprint != run.fingerprint


def test_precision_ends_the_repeats_or_their_limit_does(sent: Sent) -> None:
    one = make(sent, concurrency="1", num_prompts="4", precision="5%")
    assert len(one.measure(first(one)).run.repeats) == 3
    sent.gap_s = [0.01, 0.01, 0.02, 0.01, 0.02, 0.01, 0.02, 0.01, 0.02]
    sent.prompts.clear()
    noisy = make(sent, concurrency="1", num_prompts="4", precision="5%", max_repeats="6")
    assert len(noisy.measure(first(noisy)).run.repeats) == 6


@pytest.mark.parametrize(
    ("flags", "answers", "status"),
    [
        ({}, {}, "ok"),
        ({"slo": "ttft_p99=50ms"}, {}, "slo_missed"),
        ({"slo": "ttft_p99=500ms"}, {}, "ok"),
        ({"slo": "acceptance_rate=0.5"}, {}, "slo_missed"),
        ({"slo": "ttft_p99=50ms"}, {"bound": True}, "client_bound"),
        ({"warmup": "0"}, {"errors": ["queue is full"], "bound": True}, "errors"),
        ({"warmup": "0", "max_error_rate": "1"}, {"errors": ["queue is full"]}, "ok"),
    ],
)
def test_the_status_is_the_worst(
    sent: Sent, flags: dict[str, str], answers: dict[str, Any], status: str
) -> None:
    for name, value in answers.items():
        setattr(sent, name, value)
    one = make(sent, concurrency="1", num_prompts="4", repeats="2", **flags)
    assert one.measure(first(one)).run.status == status


def test_a_pass_that_failed_whole_is_the_last(sent: Sent) -> None:
    sent.errors = [None, None, "dead", "dead", "dead"]
    one = make(sent, concurrency="1", num_prompts="4", repeats="5")
    run = one.measure(first(one)).run
    assert len(run.repeats) == 2
    assert run.repeats[1].errors == {"http 503: dead": 4}


def test_a_warm_up_that_failed_whole_is_an_error(sent: Sent) -> None:
    sent.errors = ["no such thing"]
    one = make(sent, concurrency="2", num_prompts="4")
    with pytest.raises(
        TooManyErrors, match="every warm-up request failed: http 503: no such thing"
    ):
        one.measure(first(one))
    dead = make(sent, gone="the server of r.toml ended by SIGKILL", concurrency="2")
    with pytest.raises(ServerUnreachable, match="ended by SIGKILL"):
        dead.measure(first(dead))


def test_what_was_measured_before_an_interruption_is_kept(sent: Sent) -> None:
    sent.stop_after = 3  # the warm-up, a whole repeat, a broken one
    sent.gap_s = [0.01, 0.01, 0.05]
    one = make(sent, concurrency="1", num_prompts="4", repeats="5")
    measured = one.measure(first(one))
    assert measured.run.status == "interrupted"
    assert len(measured.run.repeats) == len(measured.records) == 2
    # The broken repeat is kept but is in no figure.
    assert measured.run.metrics["mean_tpot_ms"].value == pytest.approx(10)


def test_an_only_repeat_counts_even_if_it_was_broken_off(sent: Sent) -> None:
    sent.stop_after = 2
    sent.gap_s = [0.05]
    one = make(sent, concurrency="1", num_prompts="4", repeats="5")
    run = one.measure(first(one)).run
    assert run.status == "interrupted"
    assert run.metrics["mean_tpot_ms"].value == pytest.approx(50)


def test_an_interruption_before_anything_was_measured(sent: Sent) -> None:
    sent.stop_after = 1
    one = make(sent, concurrency="1", num_prompts="4")
    with pytest.raises(KeyboardInterrupt):
        one.measure(first(one))


def test_an_error_in_a_later_repeat_loses_no_earlier_one(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_load(*args: Any, **more: Any) -> LoadOutcome:
        if len(sent.prompts) == 3:
            raise ServerUnreachable("no server answers")
        return sent.run_load(*args, **more)

    monkeypatch.setattr(client, "run_load", run_load)
    one = make(sent, concurrency="1", num_prompts="4", repeats="5")
    measured = one.measure(first(one))
    assert len(measured.run.repeats) == 2
    assert measured.run.status == "interrupted"
    assert measured.run.notes == ["broken off after 2 repeats: no server answers"]
    assert isinstance(measured.broken, ServerUnreachable)


def test_cached_prompts_are_told_where_none_should_be(sent: Sent) -> None:
    sent.cached = 3
    one = make(sent, concurrency="1", num_prompts="4", repeats="1")
    (note,) = one.measure(first(one)).run.notes
    assert note.startswith("75% of the prompt tokens were in the server's prefix cache")
    shared = make(sent, concurrency="1", num_prompts="4", repeats="1")
    shared._tokens = None
    sent.cached = 0
    assert shared.measure(first(shared)).run.notes == []


def test_the_profiled_pass_is_short_and_between_start_and_stop(sent: Sent) -> None:
    one = make(sent, concurrency="3", num_prompts="40", repeats="1")
    assert one.profile(first(one)) == ["/t/a.json.gz"]
    assert sent.calls == ["start", "load", "stop"]
    assert len(sent.prompts[0]) == 3


def test_the_profiler_is_stopped_when_the_load_fails(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> LoadOutcome:
        raise ServerUnreachable("gone")

    monkeypatch.setattr(client, "run_load", fails)
    one = make(sent, concurrency="3")
    with pytest.raises(ServerUnreachable):
        one.profile(first(one))
    assert sent.calls == ["start", "stop"]


def test_missed_objectives_in_words() -> None:
    idle = ClientHealth(0, [], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    repeat = RepeatResult(0, "2026-01-01T00:00:00", 0.0, {}, {}, idle, None)
    run = RunResult("", "bench", "", "", {}, {}, {}, "", [repeat], {}, {}, slo={"p99_ttft_ms": 5.0})
    assert verdicts.missed_objectives(run) == ["Time to first token, p99 is unknown (limit 5 ms)"]


def test_a_key_the_result_has_already_is_refused_before_anything_is_sent(sent: Sent) -> None:
    with pytest.raises(Exception, match="--metadata duration="):
        make(sent, metadata=["duration=1"])
    assert sent.prompts == []


def test_drawn_seeds_can_be_typed() -> None:
    assert 0 <= session.draw_seed() < 1_000_000

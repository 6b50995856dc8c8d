"""Clients that leave, deadlines, full queues, failing and dying engines, draining, metrics."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import uvloop
from fake_client import FakeClient
from serverkit import Served, error_of, make_config, serving

from atom.engine.messages import SchedulerStats
from atom.server.errors import unavailable
from atom.server.logs import Activity, startup_report
from atom.server.metrics import PREFIX, SPECS
from atom.server.run import acceptors, bind
from atom.server.state import Phase

BODY = {"prompt": "abc", "max_tokens": 10}


def events(text: str) -> list[Any]:
    """The data of a stream's events; [DONE] as it is."""
    found = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def hold(served: Served, after: int) -> None:
    def change() -> None:
        served.client.hold_after = after
        served.client.go.clear()

    served.call(change)


def release(served: Served) -> None:
    served.call(served.client.go.set)


# -- clients that leave -----------------------------------------------------------------------


def test_a_stream_whose_client_leaves_is_aborted(served: Served) -> None:
    hold(served, after=2)
    gone = served.state.metrics.client_disconnects
    with (
        served.http() as http,
        http.stream("POST", "/v1/completions", json={**BODY, "n": 3, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        served.inside(served.client.wait_running(3))
    served.inside(served.client.wait_running(0))
    assert sorted(served.client.aborted) == sorted(r.request_id for r in served.client.requests)
    assert len(served.client.aborted) == 3
    served.inside(served.state.wait_idle())
    assert served.state.admission.in_flight == 0
    assert served.state.metrics.client_disconnects == gone + 1


def test_a_waiting_request_whose_client_leaves_is_aborted(served: Served) -> None:
    hold(served, after=0)
    with served.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/completions", json=BODY, timeout=0.3)
    served.inside(served.client.wait_running(0))
    assert served.client.aborted == [served.client.requests[0].request_id]


def test_sixty_four_clients_that_leave_leave_nothing(served: Served) -> None:
    hold(served, after=1)

    async def leave_all() -> None:
        async with httpx.AsyncClient(
            base_url=served.url, limits=httpx.Limits(max_connections=None), timeout=30
        ) as http:
            responses = []
            for _ in range(64):
                request = http.build_request(
                    "POST", "/v1/completions", json={**BODY, "stream": True}
                )
                responses.append(await http.send(request, stream=True))
            await asyncio.to_thread(served.inside, served.client.wait_running(64))
            for response in responses:
                await response.aclose()

    asyncio.run(leave_all())
    served.inside(served.client.wait_running(0))
    served.inside(served.state.wait_idle())
    assert len(set(served.client.aborted)) == 64
    assert served.state.admission.in_flight == 0


# -- deadline and queue -----------------------------------------------------------------------


def test_a_deadline_ends_a_request() -> None:
    with serving(make_config(max_request_seconds=0.2)) as served:
        hold(served, after=1)
        response = served.post("/v1/completions", BODY)
        assert response.status_code == 504
        assert error_of(response)["code"] == "deadline_exceeded"
        assert response.headers["x-should-retry"] == "false"
        found = events(served.post("/v1/completions", {**BODY, "stream": True}).text)
        assert found[-1] == "[DONE]"
        assert found[-2]["error"]["code"] == "deadline_exceeded"
        assert found[0]["choices"][0]["text"]
        assert len(served.client.aborted) == 2


def test_a_full_queue_answers_429() -> None:
    config = make_config(scheduler={"max_num_seqs": 2, "max_queued_requests": 1})
    with serving(config) as served:
        hold(served, after=0)
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(served.post, "/v1/completions", BODY) for _ in range(3)]
            served.inside(served.client.wait_running(3))
            response = served.post("/v1/completions", BODY)
            assert response.status_code == 429
            assert error_of(response)["code"] == "queue_full"
            assert 1 <= int(response.headers["retry-after"]) <= 60
            with pytest.raises(openai.RateLimitError):
                served.openai().completions.create(model="fake-model", prompt="abc")
            release(served)
            assert [future.result().status_code for future in waiting] == [200] * 3
        # A refused request holds no place, nor does one that is wrong.
        assert served.post("/v1/completions", {**BODY, "max_tokens": 9999}).status_code == 400
        assert served.state.admission.in_flight == 0
        # Larger than the limit: it can run when nothing else does.
        answer = served.post("/v1/completions", {**BODY, "n": 8})
        assert answer.status_code == 200


def test_places_are_counted_by_sequence() -> None:
    config = make_config(scheduler={"max_num_seqs": 4, "max_queued_requests": 0})
    with serving(config) as served:
        hold(served, after=0)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(served.post, "/v1/completions", {**BODY, "n": 3})
            served.inside(served.client.wait_running(3))
            assert served.post("/v1/completions", {**BODY, "n": 2}).status_code == 429
            release(served)
            assert waiting.result().status_code == 200


# -- failures ---------------------------------------------------------------------------------


def test_a_failing_sequence_is_an_error_event_and_hides_internals(served: Served) -> None:
    served.client.fail_after = 3
    headers = {"x-request-id": "find-me"}
    response = served.post("/v1/completions", BODY, headers=headers)
    assert response.status_code == 500
    error = error_of(response)
    assert "find-me" in error["message"]
    assert "0xdead" not in response.text
    found = events(served.post("/v1/chat/completions", CHAT, headers=headers).text)
    assert found[-1] == "[DONE]"
    assert "find-me" in found[-2]["error"]["message"]
    assert served.post("/health", {}).status_code == 405


CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 10, "stream": True}


def test_an_error_event_is_an_exception_for_openais_client(served: Served) -> None:
    served.client.fail_after = 3
    stream = served.openai().completions.create(
        model="fake-model", prompt="abc", max_tokens=10, stream=True
    )
    with pytest.raises(openai.APIError, match="internal error"):
        list(stream)


def test_one_failing_choice_ends_the_others(served: Served) -> None:
    served.client.fail_after = 3
    found = events(served.post("/v1/completions", {**BODY, "n": 4, "stream": True}).text)
    assert found[-1] == "[DONE]"
    assert "error" in found[-2]
    served.inside(served.client.wait_running(0))


def test_a_bug_of_ours_is_a_clean_500(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bytes:
        raise ValueError("secret")

    monkeypatch.setattr(served.state.metrics, "render", broken)
    with served.http() as http:
        response = http.get("/metrics", headers={"x-request-id": "bug-1"})
    assert response.status_code == 500
    assert "bug-1" in error_of(response)["message"]
    assert "secret" not in response.text


def test_a_dead_engine() -> None:
    with serving() as served:
        hold(served, after=3)
        with ThreadPoolExecutor(2) as pool:
            streaming = pool.submit(served.post, "/v1/completions", {**BODY, "stream": True})
            waiting = pool.submit(served.post, "/v1/completions", BODY)
            served.inside(served.client.wait_running(2))
            with served.http() as http:
                assert http.get("/health").status_code == 200
            served.call(served.client.die)
            found = events(streaming.result().text)
            assert found[-1] == "[DONE]"
            assert found[-2]["error"]["code"] == "engine_dead"
            assert len(found) == 5  # three tokens came before
            assert waiting.result().status_code == 503
        with served.http() as http:
            for path in ("/health", "/ready"):
                response = http.get(path)
                assert response.status_code == 503
                assert error_of(response)["code"] == "engine_dead"
            assert http.post("/v1/completions", json=BODY).status_code == 503
            assert http.get("/v1/models").status_code == 200
        assert served.metric("atom:engine_up") == 0


# -- phases -----------------------------------------------------------------------------------


def test_while_starting_only_liveness_answers() -> None:
    with serving(ready=False) as served, served.http() as http:
        assert http.get("/health").status_code == 200
        assert http.get("/version").status_code == 200
        assert http.get("/metrics").status_code == 200
        for method, path in (
            ("GET", "/ready"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/fake-model"),
            ("POST", "/v1/completions"),
            ("POST", "/tokenize"),
        ):
            response = http.request(method, path, json=BODY if method == "POST" else None)
            assert response.status_code == 503, path
            assert error_of(response)["code"] == "starting"
        served.call(served.state.set_ready)
        assert http.get("/ready").status_code == 200
        assert http.post("/v1/completions", json=BODY).status_code == 200


def test_draining_refuses_new_requests_and_finishes_old_ones() -> None:
    with serving() as served:
        hold(served, after=3)
        with ThreadPoolExecutor(1) as pool, served.http() as http:
            streaming = pool.submit(served.post, "/v1/completions", {**BODY, "stream": True})
            served.inside(served.client.wait_running(1))
            served.call(served.state.set_draining)
            assert served.state.phase is Phase.DRAINING
            assert http.get("/health").status_code == 200
            for path in ("/ready",):
                assert error_of(http.get(path))["code"] == "draining"
            response = http.post("/v1/completions", json=BODY)
            assert response.status_code == 503
            assert error_of(response)["code"] == "draining"
            release(served)
            found = events(streaming.result().text)
            assert found[-2]["choices"][0]["finish_reason"] == "length"
        served.inside(served.state.wait_idle())


def test_what_is_cut_off_gets_an_error_event() -> None:
    with serving() as served:
        hold(served, after=3)
        with ThreadPoolExecutor(2) as pool:
            streaming = pool.submit(served.post, "/v1/completions", {**BODY, "stream": True})
            waiting = pool.submit(served.post, "/v1/completions", {**BODY, "n": 2})
            served.inside(served.client.wait_running(3))
            served.call(lambda: served.state.cancel_all(unavailable("Bye.", "shutdown")))
            found = events(streaming.result().text)
            assert found[-2:] == [
                {
                    "error": {
                        "message": "Bye.",
                        "type": "service_unavailable",
                        "param": None,
                        "code": "shutdown",
                    }
                },
                "[DONE]",
            ]
            assert waiting.result().status_code == 503
        served.inside(served.state.wait_idle())  # the answers are out before the books are closed
        assert served.client.num_inflight == 0
        assert served.state.admission.in_flight == 0


# -- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7])
def test_tokens_that_come_together_are_one_event(served: Served, chunk: int) -> None:
    served.client.chunk = chunk
    found = events(served.post("/v1/completions", {**BODY, "max_tokens": 21, "stream": True}).text)
    assert len(found) == 21 // chunk + 1
    whole = served.post("/v1/completions", {**BODY, "max_tokens": 21}).json()
    assert "".join(e["choices"][0]["text"] for e in found[:-1]) == whole["choices"][0]["text"]


def test_events_leave_as_they_come(served: Served) -> None:
    """The first token is with the client while the engine still holds the others."""
    hold(served, after=1)
    with (
        served.http() as http,
        http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        lines = (line for line in response.iter_lines() if line)
        assert len(json.loads(next(lines).removeprefix("data: "))["choices"][0]["text"]) == 1
        release(served)
        assert list(lines)[-1] == "data: [DONE]"


def test_a_slow_reader_does_not_hold_up_the_others(served: Served) -> None:
    """Its bytes wait in its own connection."""
    served.client.chunk = 50
    big = {"prompt": "abc", "max_tokens": 2000, "logprobs": 5, "stream": True}
    with served.http() as http, http.stream("POST", "/v1/completions", json=big):
        answer = served.post("/v1/completions", BODY)
        assert answer.status_code == 200


# -- metrics and logs -------------------------------------------------------------------------


def test_metrics_are_documented_and_count() -> None:
    with serving() as served:
        served.call(
            lambda: setattr(
                served.client,
                "stats",
                SchedulerStats(
                    num_running=3,
                    num_waiting=2,
                    num_blocks=100,
                    num_used_blocks=25,
                    prefix_cache_queries=40,
                    prefix_cache_hits=10,
                    preemptions=1,
                    prompt_tokens=30,
                ),
            )
        )
        served.post("/v1/completions", {"prompt": ["abc", "abcd"], "max_tokens": 6})
        served.post("/v1/completions", {"prompt": "abc", "n": 0})
        with served.http() as http:
            response = http.get("/metrics")
            http.get("/some/thing")
        text = response.text
        assert response.headers["content-type"].startswith("text/plain")
        described = set(re.findall(r"^# HELP (\S+)", text, re.MULTILINE))
        expected = {
            PREFIX + name + ("_total" if spec.kind == "counter" else "")
            for name, spec in SPECS.items()
        }
        assert described == expected
        for line, value in (
            ("num_requests_running", 3),
            ("num_requests_waiting", 2),
            ("kv_cache_usage_perc", 0.25),
            ("prefix_cache_queries_total", 40),
            ("prefix_cache_hits_total", 10),
            ("num_preemptions_total", 1),
            ("prompt_tokens_total", 9),
            ("prompt_tokens_computed_total", 30),
            ("generation_tokens_total", 12),
            ("engine_up", 1),
            ('request_success_total{finished_reason="length"}', 2),
            ("time_to_first_token_seconds_count", 2),
            ("inter_token_latency_seconds_count", 10),
            ("e2e_request_latency_seconds_count", 2),
            ("request_queue_time_seconds_sum", 0.02),
            ("request_prefill_time_seconds_sum", 0.04),
            ("request_decode_time_seconds_sum", 0.06),
            ("request_generation_tokens_sum", 12),
            ("request_params_n_count", 2),
            (
                'http_requests_total{handler="/v1/completions",method="POST",status="200"}',
                1,
            ),
            (
                'http_requests_total{handler="/v1/completions",method="POST",status="400"}',
                1,
            ),
            # Unknown paths share a label, or a client could fill the memory with them.
            ('http_requests_total{handler="other",method="GET",status="404"}', 1),
        ):
            assert served.metric(PREFIX + line) == value, line
        info = next(x for x in text.splitlines() if x.startswith("atom:cache_config_info{"))
        for label in ('block_size="16"', 'num_gpu_blocks="1024"', 'enable_prefix_caching="true"'):
            assert label in info


def test_the_activity_line_is_silent_when_idle() -> None:
    with serving() as served:
        activity = served.call(lambda: Activity(served.state))
        assert activity.line() is None
        served.client.stats = SchedulerStats(
            num_running=2,
            num_blocks=10,
            num_used_blocks=5,
            steps=7,
            prompt_tokens=5,
            generation_tokens=9,
            prefix_cache_queries=8,
            prefix_cache_hits=2,
        )
        line = activity.line()
        assert line is not None
        assert "running 2, waiting 0" in line
        assert "KV 50.0%, prefix hits 25.0%" in line
        served.client.stats = SchedulerStats(num_blocks=10, steps=7)
        assert activity.line() is None


def test_the_startup_report_says_what_matters() -> None:
    text = "\n".join(startup_report(FakeClient().info, {"find the model": 0.25}, "OpenAI's"))
    for part in (
        "fake-model (Fake), float32 on cpu, context 2048",
        "1024 blocks of 16 = 16384 tokens; prefix caching on",
        "start-up: find the model 0.25 s",
        "  load the weights     0.10 s\n  total                0.10 s",
        "  weights      0.00 GiB  computing in float32",
        "linear reference",
        "sampling defaults: OpenAI's",
    ):
        assert part in text


def test_access_log_names_the_user(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level("INFO", logger="atom.access"),
        serving(make_config(access_log=True)) as served,
    ):
        served.post("/v1/completions", {**BODY, "user": "ann\nx"})
    line = next(r.getMessage() for r in caplog.records if r.name == "atom.access")
    assert "POST /v1/completions 200" in line
    assert r"user='ann\nx'" in line


def test_a_burst_of_connections_is_accepted_in_a_few_rounds() -> None:
    made = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(transport)

    async def rounds() -> int:
        loop = asyncio.get_running_loop()
        listener = bind(make_config().server)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(128)]
        servers = [await loop.create_server(Protocol, sock=s) for s in acceptors(listener)]
        count = 0
        while len(made) < len(clients) and count < 1000:
            await asyncio.sleep(0)
            count += 1
        for end in (*servers, *clients, *made):
            end.close()
        return count

    assert uvloop.run(rounds()) < 16  # one listener takes one of them in each round

"""The core in its own process: streams, aborts, deaths, drains. The fake runner serves."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.config.schema import Config, EngineConfig
from atom.engine import child
from atom.engine.client import EngineClient, merge
from atom.engine.messages import GenerateRequest, SchedulerStats, Shutdown, Timings, TokenChunk
from atom.engine.runner.fake import FakeOptions, reference_tokens
from atom.engine.sampling_params import SamplingParams
from atom.errors import EngineDeadError, RequestError

# Room for requests that run until they are stopped.
OPTIONS = FakeOptions(max_model_len=1_000_000, num_blocks=100_000, verify=True)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=1_000_000 - 100, ignore_eos=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=20)


@asynccontextmanager
async def running(
    options: FakeOptions = OPTIONS, *, overlap: bool = False
) -> AsyncIterator[EngineClient]:
    config = Config(engine=EngineConfig(overlap=overlap, check_invariants=True))
    client = EngineClient(config, runner=options)
    await client.start()
    try:
        yield client
    finally:
        await client.shutdown()


async def collect(client: EngineClient, request: GenerateRequest) -> list[int]:
    tokens: list[int] = []
    async for chunk in client.generate(request):
        tokens += chunk.token_ids
    return tokens


async def stats_when(client: EngineClient, ready: Callable[[SchedulerStats], bool]) -> Any:
    """Ask for statistics until they are `ready`; each question is a round trip."""
    for _ in range(10_000):
        stats = msgspec.convert(await client.call("stats"), SchedulerStats)
        if ready(stats):
            return stats
    raise AssertionError(f"never ready: {stats}")


def idle(stats: SchedulerStats) -> bool:
    return not (stats.num_running or stats.num_waiting or stats.num_used_blocks)


@pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])
async def test_concurrent_streams_get_their_own_tokens(overlap: bool) -> None:
    async with running(overlap=overlap) as client:
        prompts = [[i % 7, i, 3] for i in range(200)]
        requests = [GenerateRequest(f"r{i}", p, SHORT) for i, p in enumerate(prompts)]
        results = await asyncio.gather(*(collect(client, request) for request in requests))
        assert list(results) == [reference_tokens(p, SHORT, OPTIONS) for p in prompts]
        assert client.num_inflight == 0
        await stats_when(client, idle)
        assert await client.call("check_invariants") is True


@pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])
async def test_64_disconnects_leave_nothing_running(overlap: bool) -> None:
    async with running(FakeOptions(**{**as_dict(OPTIONS), "verify": False}), overlap=overlap) as c:

        async def disconnect(i: int) -> None:
            async with aclosing(c.generate(GenerateRequest(f"r{i}", [i, 1, 2], ENDLESS))) as stream:
                async for _ in stream:
                    return

        await asyncio.gather(*(disconnect(i) for i in range(64)))
        assert c.num_inflight == 0
        stats = await stats_when(c, idle)
        assert stats.finished == {"abort": 64}
        assert await c.call("check_invariants") is True


def as_dict(options: FakeOptions) -> dict[str, Any]:
    return msgspec.structs.asdict(options)


async def test_a_dropped_or_cancelled_stream_is_aborted() -> None:
    async with running() as client:
        stream = client.generate(GenerateRequest("dropped", [1], ENDLESS))
        await anext(stream)
        del stream
        task = asyncio.create_task(collect(client, GenerateRequest("cancelled", [2], ENDLESS)))
        await stats_when(client, lambda stats: stats.num_running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stats_when(client, idle)


async def test_an_abort_from_elsewhere_ends_the_stream() -> None:
    async with running() as client:
        stream = client.generate(GenerateRequest("a", [1], ENDLESS))
        await anext(stream)
        await client.abort(["a", "unknown"])
        reasons = [chunk.finish_reason async for chunk in stream]
        assert reasons[-1] == "abort"
        await client.abort(["a"])


async def test_a_lagging_consumer_gets_one_merged_chunk() -> None:
    async with running() as client:
        stream = client.generate(GenerateRequest("a", [1, 2], SHORT))
        await stats_when(client, lambda _: client.num_inflight == 0)
        chunks = [chunk async for chunk in stream]
        assert len(chunks) == 1
        assert chunks[0].token_ids == reference_tokens([1, 2], SHORT, OPTIONS)
        assert chunks[0].finish_reason == "length"
        assert chunks[0].timings is not None


async def test_a_bad_request_fails_alone() -> None:
    async with running() as client:
        good = asyncio.create_task(collect(client, GenerateRequest("good", [1, 2], SHORT)))
        bad = client.generate(GenerateRequest("bad", [1, 5000], SHORT))
        (chunk,) = [chunk async for chunk in bad]
        assert chunk.finish_reason == "error"
        assert "token 5000, outside the vocabulary" in (chunk.error or "")
        assert await good == reference_tokens([1, 2], SHORT, OPTIONS)


async def test_an_id_in_use_is_refused_here() -> None:
    async with running() as client:
        stream = client.generate(GenerateRequest("a", [1], ENDLESS))
        with pytest.raises(RequestError, match="request id a is in use"):
            client.generate(GenerateRequest("a", [1], ENDLESS))
        await stream.aclose()
        assert await collect(client, GenerateRequest("b", [1], SHORT))


async def test_utilities_and_unknown_ones() -> None:
    async with running() as client:
        await collect(client, GenerateRequest("a", list(range(64)), SHORT))
        assert await client.call("reset_prefix_cache") > 0
        assert await client.call("reset_prefix_cache") == 0
        with pytest.raises(RequestError, match="unknown call shutdown"):
            await client.call("shutdown")
        with pytest.raises(RequestError, match="argument"):
            await client.call("stats", 1)


async def test_a_call_may_end_while_the_steps_go_on() -> None:
    async with running() as client:
        stream = client.generate(GenerateRequest("a", [1], ENDLESS))
        await anext(stream)
        assert await client.call("start_profile", "stamp") is True
        with pytest.raises(RequestError, match="a profile is running"):
            await client.call("start_profile", "again")
        assert await client.call("stop_profile") == ["rank_0/fake_ts_stamp"]
        with pytest.raises(RequestError, match="no profile is running"):
            await client.call("stop_profile")
        assert (await anext(stream)).finish_reason is None
        await stream.aclose()


async def test_signals_are_the_parents_affair() -> None:
    async with running() as client:
        assert client.pid is not None
        os.kill(client.pid, signal.SIGTERM)
        os.kill(client.pid, signal.SIGINT)
        assert await collect(client, GenerateRequest("a", [1], SHORT))


# -- deaths ---------------------------------------------------------------------------------------


async def test_a_killed_core_is_seen_and_everybody_told() -> None:
    async with running() as client:
        tasks = [
            asyncio.create_task(collect(client, GenerateRequest(f"r{i}", [i], ENDLESS)))
            for i in range(5)
        ]
        await stats_when(client, lambda stats: stats.num_running == 5)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        error = await client.wait_dead()
        assert "SIGKILL" in str(error)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, EngineDeadError)
        assert client.num_inflight == 0
        with pytest.raises(EngineDeadError):
            client.generate(GenerateRequest("late", [1], SHORT))
        with pytest.raises(EngineDeadError):
            await client.call("stats")


async def test_a_failing_engine_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(FakeOptions(fail_at_step=3)) as client:
        with pytest.raises(EngineDeadError, match="simulated device fault in step 3"):
            await collect(client, GenerateRequest("a", [1], SHORT))
        assert client.dead is not None
    assert "simulated device fault" in capfd.readouterr().err  # and the log has the traceback


async def test_a_model_that_cannot_be_loaded_keeps_its_message_and_status(tmp_path: Path) -> None:
    source = SimpleNamespace(path=tmp_path / "nothing", name="nothing")
    client = EngineClient(Config(), source)  # type: ignore[arg-type]
    with pytest.raises(EngineDeadError, match=r"could not start: model .*nothing") as failed:
        await client.start()
    assert failed.value.exit_code == 2


def replace_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(child.sys, "executable", str(program))


async def test_a_start_that_fails_shows_the_last_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace_interpreter(monkeypatch, tmp_path, "echo first >&2; echo the reason >&2; exit 3")
    with pytest.raises(EngineDeadError, match="status 3; its last line: the reason") as failed:
        await EngineClient(Config(), runner="fake").start()
    assert failed.value.exit_code == 3


async def test_a_start_that_hangs_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace_interpreter(monkeypatch, tmp_path, "echo loading >&2; exec tail -f /dev/null")
    client = EngineClient(Config(), runner="fake", startup_timeout_s=0.5)
    with pytest.raises(EngineDeadError, match=r"did not start within 0.5 s: loading"):
        await client.start()
    assert client.pid is None


PARENT = """
import asyncio, os, signal, sys
from atom.config.schema import Config
from atom.engine.client import EngineClient

async def main():
    client = EngineClient(Config(), runner="fake")
    await client.start()
    print(client.pid, client._directory, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_the_core_ends_with_its_parent() -> None:
    # The core inherits no stdout of ours, but it is started by a process that we kill.
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    first, directory = parent.stdout.readline().split()
    pid = int(first)
    parent.stdout.close()
    assert parent.wait() == -signal.SIGKILL
    wait_for_end(pid)
    assert not Path(directory).exists()


def wait_for_end(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # ended already
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    try:
        assert poll.poll(20_000), "the core outlived its parent"
    finally:
        os.close(handle)


# -- shutdown -------------------------------------------------------------------------------------


async def test_a_shutdown_drains_what_runs() -> None:
    async with running() as client:
        directory = client._directory
        assert directory is not None
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        tasks = [
            asyncio.create_task(collect(client, GenerateRequest(f"r{i}", [i, 4], SHORT)))
            for i in range(8)
        ]
        await asyncio.sleep(0)  # the requests are sent
        await client.shutdown(60.0)
        for i, task in enumerate(tasks):
            assert await task == reference_tokens([i, 4], SHORT, OPTIONS)
        assert not directory.exists()
        await client.shutdown()  # again: nothing to do


async def test_a_drain_that_takes_too_long_aborts() -> None:
    async with running() as client:
        stream = client.generate(GenerateRequest("a", [1], ENDLESS))
        await anext(stream)
        reasons: list[str | None] = []

        async def read() -> None:
            reasons.extend([chunk.finish_reason async for chunk in stream])

        task = asyncio.create_task(read())
        await client.shutdown(0.05)
        await task
        assert reasons[-1] == "abort"


async def test_nothing_new_is_taken_while_draining() -> None:
    async with running() as client:
        stream = client.generate(GenerateRequest("old", [1], ENDLESS))
        await anext(stream)
        client._send(Shutdown(1000.0))
        (chunk,) = [c async for c in client.generate(GenerateRequest("new", [1], SHORT))]
        assert chunk.finish_reason == "error"
        assert "shutting down" in (chunk.error or "")
        await client.abort(["old"])
        await client.wait_dead()  # it has ended by itself, with status 0


# -- merging --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.data())
def test_merging_loses_nothing(tokens: list[int], data: st.DataObject) -> None:
    chunks = [TokenChunk("a", [token]) for token in tokens]
    chunks[0].num_cached_tokens = 5
    chunks[0].prompt_logprobs, chunks[0].queued_s = [None], 0.5
    chunks[-1].finish_reason, chunks[-1].stop_token_id = "stop", tokens[-1]
    chunks[-1].timings = Timings(0.0, 1.0, 2.0)
    merged: list[TokenChunk] = []
    for chunk in chunks:
        if merged and data.draw(st.booleans()):
            merge(merged[-1], chunk)
        else:
            merged.append(chunk)
    assert [token for chunk in merged for token in chunk.token_ids] == tokens
    assert merged[0].num_cached_tokens == 5
    assert (merged[0].prompt_logprobs, merged[0].queued_s) == ([None], 0.5)
    assert [chunk.finish_reason for chunk in merged] == [None] * (len(merged) - 1) + ["stop"]
    assert merged[-1].timings is not None
    assert merged[-1].stop_token_id == tokens[-1]

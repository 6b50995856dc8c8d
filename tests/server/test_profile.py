"""POST /start_profile and /stop_profile: one profile at a time, whatever clients do."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from fake_client import FakeClient

from atom.config.schema import ProfileConfig
from atom.errors import EngineDeadError, RequestError
from atom.server.errors import ApiError
from atom.server.profile import Profiler


class Recorder(FakeClient):
    """An engine client whose calls are held back until `go`, and fail when told to."""

    def __init__(self, fail: Exception | None = None) -> None:
        super().__init__()
        self.calls: list[tuple[str, ...]] = []
        self.fail = fail
        self.go.set()

    async def call(self, method: str, *args: Any) -> Any:
        self.calls.append((method, *args))
        await self.go.wait()
        if self.fail is not None:
            raise self.fail
        return ["a.json.gz"] if method == "stop_profile" else True


def profiler(client: FakeClient, limit_s: float = 60.0, directory: str | None = "d") -> Profiler:
    return Profiler(
        ProfileConfig(torch_profiler_dir=directory, profiler_max_seconds=limit_s),
        client,  # type: ignore[arg-type]
    )


async def refused(awaitable: Any) -> tuple[int, str | None]:
    with pytest.raises(ApiError) as error:
        await awaitable
    return error.value.status, error.value.code


async def test_start_and_stop() -> None:
    client = Recorder()
    profile = profiler(client)
    assert (await profile.start()).endswith("/d")
    assert await profile.stop() == ["a.json.gz"]
    (start, stop) = client.calls
    assert re.fullmatch(r"\d{8}_\d{6}_\d{3}", start[1])
    assert (start[0], stop) == ("start_profile", ("stop_profile",))
    await profile.start()  # and again
    assert await profile.stop() == ["a.json.gz"]


async def test_what_is_out_of_turn_never_reaches_the_engine() -> None:
    client = Recorder()
    profile = profiler(client)
    assert await refused(profile.stop()) == (409, "profile_idle")
    client.go.clear()
    starting = asyncio.create_task(profile.start())
    await asyncio.sleep(0)
    assert await refused(profile.start()) == (409, "profile_starting")
    assert await refused(profile.stop()) == (409, "profile_starting")
    client.go.set()
    await starting
    assert await refused(profile.start()) == (409, "profile_running")
    client.go.clear()
    stopping = asyncio.create_task(profile.stop())
    await asyncio.sleep(0)
    assert await refused(profile.start()) == (409, "profile_writing")
    assert await refused(profile.stop()) == (409, "profile_writing")
    client.go.set()
    await stopping
    assert len(client.calls) == 2


async def test_the_limit_ends_it_and_its_traces_wait_for_the_stop() -> None:
    client = Recorder()
    profile = profiler(client, limit_s=1e-6)
    await profile.start()
    while len(client.calls) < 2:
        await asyncio.sleep(0)
    assert await profile.stop() == ["a.json.gz"]
    assert await refused(profile.stop()) == (409, "profile_idle")
    assert [call[0] for call in client.calls] == ["start_profile", "stop_profile"]


async def test_after_the_limit_a_new_one_can_start() -> None:
    client = Recorder()
    profile = profiler(client, limit_s=1e-6)
    await profile.start()
    while len(client.calls) < 2:
        await asyncio.sleep(0)
    for _ in range(5):  # until it is written
        await asyncio.sleep(0)
    profile._limit_s = 60.0
    await profile.start()
    assert await profile.stop() == ["a.json.gz"]
    assert len(client.calls) == 4


async def test_a_client_that_leaves_does_not_lose_the_traces() -> None:
    client = Recorder()
    profile = profiler(client)
    await profile.start()
    client.go.clear()
    leaving = asyncio.create_task(profile.stop())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await refused(profile.start()) == (409, "profile_writing")
    client.go.set()
    for _ in range(5):
        await asyncio.sleep(0)
    await profile.start()  # the writing has ended, and the next one may begin


async def test_what_fails_is_said_and_the_next_one_may_start() -> None:
    client = Recorder(RequestError("the trace could not be written: disk full"))
    profile = profiler(client)
    assert await refused(profile.start()) == (500, "profiler")
    client.fail = None
    await profile.start()
    client.fail = RequestError("the trace could not be written: disk full")
    with pytest.raises(ApiError, match="disk full") as error:
        await profile.stop()
    assert error.value.status == 500
    client.fail = None
    await profile.start()
    client.fail = EngineDeadError("gone")
    with pytest.raises(EngineDeadError):
        await profile.stop()


def test_without_a_directory_the_answer_says_how_to_get_one(served: Any) -> None:
    for route in ("/start_profile", "/stop_profile"):
        answer = served.http().post(route)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "profiler_off"
        assert "--torch-profiler-dir DIR" in answer.json()["error"]["message"]
        assert served.http().get(route).status_code == 405

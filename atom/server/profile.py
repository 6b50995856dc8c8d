"""The profiler as HTTP sees it: one profile at a time, started, stopped, or ended by its limit.

The engine records; this keeps the state, so that a second start or stop is refused and never
reaches it. Requests are served throughout; they wait while the engine takes the record in.
"""

from __future__ import annotations

import asyncio
import datetime
import enum
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from atom.config.schema import ProfileConfig
from atom.errors import RequestError
from atom.server.errors import ApiError

if TYPE_CHECKING:
    from atom.engine.client import EngineClient

log = logging.getLogger("atom.server")


class _State(enum.Enum):
    IDLE = "No profile is running; POST /start_profile starts one."
    STARTING = "A profile is being started."
    RUNNING = "A profile is running; POST /stop_profile ends it."
    WRITING = "The last profile is still being written; try again when that is done."


class Profiler:
    """`traces` of the last profile are kept until they are asked for or a new one starts."""

    def __init__(self, config: ProfileConfig, client: EngineClient) -> None:
        self._client = client
        self._directory = config.torch_profiler_dir
        self._limit_s = config.profiler_max_seconds
        self._state = _State.IDLE
        self._limit: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[list[str]] | None = None
        self._ended_by_limit = False

    async def start(self) -> str:
        """Record from now on; the directory of the traces. `ApiError` 409 if one is running."""
        directory = self._require_on()
        if self._ended_by_limit and self._writing is not None and self._writing.done():
            self._forget()  # nobody asked for that one
        self._require(_State.IDLE)
        self._state = _State.STARTING
        try:
            await self._client.call("start_profile", _stamp())
        except BaseException as error:
            self._state = _State.IDLE
            raise _explained(error) from error
        self._state = _State.RUNNING
        loop = asyncio.get_running_loop()
        self._limit = loop.call_later(self._limit_s, self._end, True)
        log.info("profiling, into %s", directory)
        return directory

    async def stop(self) -> list[str]:
        """Stop recording; the paths of the traces, which are complete then.

        `ApiError` 409 if nothing runs, 500 if they could not be written.
        """
        self._require_on()
        if not self._ended_by_limit:
            self._require(_State.RUNNING)
            self._end(False)
        assert self._writing is not None
        try:
            # Shielded: a client that leaves ends its wait, not the writing.
            return await asyncio.shield(self._writing)
        except RequestError as error:
            raise _explained(error) from error
        finally:
            if self._writing is not None and self._writing.done():
                self._forget()

    def _end(self, by_limit: bool) -> None:
        assert self._state is _State.RUNNING
        if self._limit is not None:
            self._limit.cancel()
        if by_limit:
            log.warning("the profile ended after %g s (--profiler-max-seconds)", self._limit_s)
        self._state, self._ended_by_limit = _State.WRITING, by_limit
        self._writing = asyncio.create_task(self._client.call("stop_profile"), name="profile")
        self._writing.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[list[str]]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("the profile is lost: %s", error)
        elif not task.cancelled():
            log.info("traces: %s", ", ".join(task.result()))
        if not self._ended_by_limit:
            self._state = _State.IDLE

    def _forget(self) -> None:
        self._writing, self._ended_by_limit, self._state = None, False, _State.IDLE

    def _require_on(self) -> str:
        if self._directory is None:
            raise ApiError(
                404,
                "The profiler is off; start the server with --torch-profiler-dir DIR.",
                code="profiler_off",
            )
        return str(Path(self._directory).absolute())

    def _require(self, state: _State) -> None:
        if self._state is not state:
            raise ApiError(409, self._state.value, code=f"profile_{self._state.name.lower()}")


def _explained(error: BaseException) -> BaseException:
    """A refusal of the engine is no mistake of the client's."""
    if isinstance(error, RequestError):
        return ApiError(500, f"The profiler failed: {error}", type_="server_error", code="profiler")
    return error


def _stamp() -> str:
    """YYYYMMDD_HHMMSS_mmm, UTC."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{now:%Y%m%d_%H%M%S}_{now.microsecond // 1000:03d}"

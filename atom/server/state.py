"""What the whole server shares: phase, admission, running requests, engine and tokenizer."""

from __future__ import annotations

import asyncio
import enum
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from atom.config.schema import Config
from atom.server.errors import ApiError, too_busy, unavailable
from atom.server.metrics import Metrics
from atom.server.profile import Profiler
from atom.server.sampling import SamplingDefaults

if TYPE_CHECKING:
    from atom.engine.client import EngineClient
    from atom.engine.messages import EngineInfo
    from atom.engine.text.tokenizer import Tokenizer


class Phase(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Admission:
    """Counts sequences in flight and refuses those above the limit, before any work is done.

    A request larger than the whole limit is let in when nothing else runs, so that it can run at
    all; the caps on n and prompts bound it.
    """

    def __init__(self, max_num_seqs: int, max_queued: int) -> None:
        self.limit = max_num_seqs + (4 * max_num_seqs if max_queued < 0 else max_queued)
        self.in_flight = 0
        self._mean_latency_s = 1.0

    def admit(self, sequences: int) -> Ticket:
        """Reserve places; raises `ApiError` 429 with Retry-After when they are not there."""
        if self.in_flight and self.in_flight + sequences > self.limit:
            raise too_busy(self.in_flight, self.limit, self._retry_after_s(sequences))
        self.in_flight += sequences
        return Ticket(self, sequences)

    def release(self, sequences: int, latency_s: float) -> None:
        self.in_flight -= sequences
        assert self.in_flight >= 0
        self._mean_latency_s += 0.1 * (latency_s - self._mean_latency_s)

    def _retry_after_s(self, sequences: int) -> int:
        """Little's law: with N in flight, a place frees every latency / N seconds."""
        wait_s = self._mean_latency_s * sequences / self.in_flight
        return min(60, max(1, math.ceil(wait_s)))


class Ticket:
    """Places held by one HTTP request; `release` is idempotent."""

    __slots__ = ("_admission", "_sequences", "_since")

    def __init__(self, admission: Admission, sequences: int) -> None:
        self._admission = admission
        self._sequences = sequences
        self._since = time.perf_counter()

    def release(self) -> None:
        if self._sequences:
            self._admission.release(self._sequences, time.perf_counter() - self._since)
            self._sequences = 0


class RunningRequest:
    """One HTTP request that is generating. Others end it with `cancel`."""

    __slots__ = ("_task", "error", "gone")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self.error: ApiError | None = None  # why it was ended, for the client
        self.gone = False  # ended because the client went away

    def cancel(self, error: ApiError | None) -> None:
        """End it with `error`; None: the client is gone. Only the first call counts."""
        if self.error is None and not self.gone and self._task is not None:
            self.error = error
            self.gone = error is None
            self._task.cancel()

    def absorb(self) -> bool:
        """After CancelledError: whether `cancel` caused it, which is then undone."""
        if self.error is None and not self.gone:
            return False
        uncancel = getattr(self._task, "uncancel", None)  # Python 3.11 and later
        if uncancel is not None:
            uncancel()
        return True

    def close(self) -> None:
        self._task = None


class ServerState:
    def __init__(
        self,
        config: Config,
        client: EngineClient,
        tokenizer: Tokenizer,
        names: tuple[str, ...],
        defaults: SamplingDefaults,
    ) -> None:
        assert names
        self.config = config
        self.client = client
        self.tokenizer = tokenizer
        self.names = names
        self.defaults = defaults
        self.created = int(time.time())
        self.admission = Admission(
            config.scheduler.max_num_seqs, config.scheduler.max_queued_requests
        )
        self.metrics = Metrics(self)
        self.profiler = Profiler(config.profile, client)
        self.running: set[RunningRequest] = set()
        self.engine_info: EngineInfo | None = None
        self._phase = Phase.STARTING
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def phase(self) -> Phase:
        return Phase.DEAD if self.client.dead is not None else self._phase

    @property
    def serving(self) -> bool:
        return self.phase is Phase.READY

    @property
    def info(self) -> EngineInfo:
        assert self.engine_info is not None, "asked before the engine was ready"
        return self.engine_info

    def set_ready(self) -> None:
        """The engine has started: its `info` is there."""
        assert self._phase is Phase.STARTING
        self.engine_info = self.client.info
        self._phase = Phase.READY

    def set_draining(self) -> None:
        self._phase = Phase.DRAINING

    def require_ready(self) -> None:
        """Raises `ApiError` 503 unless new work is taken."""
        match self.phase:
            case Phase.READY:
                return
            case Phase.STARTING:
                raise unavailable("The model is still being loaded.", "starting")
            case Phase.DRAINING:
                raise unavailable("The server is shutting down.", "draining")
            case Phase.DEAD:
                raise unavailable("The engine has died.", "engine_dead")

    def require_started(self) -> None:
        """Raises `ApiError` 503 while nothing is known of the model."""
        if self.engine_info is None:
            self.require_ready()

    def resolve_model(self, name: str | None) -> str:
        """The name to answer with; raises `ApiError` 404 for a model that is not served."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise ApiError(
                404,
                f"The model {name[:200]} is not served here; served: {', '.join(self.names)}.",
                param="model",
                code="model_not_found",
            )
        return name

    @contextmanager
    def track(self) -> Iterator[RunningRequest]:
        """Register the current task as a generating request until the block ends."""
        request = RunningRequest()
        self.running.add(request)
        self._idle.clear()
        try:
            yield request
        finally:
            request.close()
            self.running.discard(request)
            if not self.running:
                self._idle.set()

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def cancel_all(self, error: ApiError) -> None:
        for request in list(self.running):
            request.cancel(error)

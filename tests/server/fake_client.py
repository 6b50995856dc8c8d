"""An engine client without an engine: scripted tokens, held back or failed at will."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from atom.engine.messages import (
    EngineInfo,
    GenerateRequest,
    SchedulerStats,
    Timings,
    TokenChunk,
    TokenLogprobs,
)
from atom.errors import EngineDeadError

EOS = 256
END_OF_TURN = 257
BOS = 258
VOCAB_SIZE = 300  # 256 bytes, the three above, and padding

REPLY = "The quick brown fox jumps over the lazy dog. "


def reply(request: GenerateRequest) -> list[int]:
    """A text that depends on prompt and seed, as bytes; long enough for any test."""
    seed = request.sampling.seed or 0
    start = (sum(request.prompt_token_ids) + 7 * seed) % len(REPLY)
    text = (REPLY[start:] + REPLY * 200).encode()
    return list(text)


def info(**changes: object) -> EngineInfo:
    values: dict[str, object] = {
        "model": "fake-model",
        "architecture": "Fake",
        "vocab_size": VOCAB_SIZE,
        "max_model_len": 2048,
        "block_size": 16,
        "num_blocks": 1024,
        "max_num_seqs": 512,
        "max_num_batched_tokens": 16384,
        "eos_token_ids": [EOS],
        "dtype": "float32",
        "device": "cpu",
        "kv_cache_dtype": "fp32",
        "prefix_caching": True,
        "prefix_caching_reason": "",
        "policy": "prefill_first",
        "overlap": False,
        "startup_s": {"load": 0.1},
        "memory_bytes": {"weights": 2**20},
        "backends": {"linear": "reference"},
    }
    return EngineInfo(**{**values, **changes})  # type: ignore[arg-type]


class FakeClient:
    """Follows `EngineClient`. `script` gives a request's tokens; `chunk` many come at once."""

    def __init__(
        self, script: Callable[[GenerateRequest], list[int]] = reply, chunk: int = 1
    ) -> None:
        self.script = script
        self.chunk = chunk
        self.info = info()
        self.stats = SchedulerStats(num_blocks=1024)
        self.dead: EngineDeadError | None = None
        self.requests: list[GenerateRequest] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.hold_after: int | None = None  # tokens after which every request waits for `go`
        self.fail_after: int | None = None  # tokens after which it gets an error chunk
        self.go = asyncio.Event()
        self.changed = asyncio.Condition()
        self._death = asyncio.Event()

    @property
    def num_inflight(self) -> int:
        return len(self.running)

    def generate(self, request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        if self.dead is not None:
            raise self.dead
        return self._generate(request)

    async def _generate(self, request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        self.requests.append(request)
        self.running.add(request.request_id)
        await self._tell()
        ended = False
        try:
            for chunk in self._chunks(request):
                if self.hold_after is not None and chunk[0] >= self.hold_after:
                    await self._wait_go()
                if self.dead is not None:
                    raise self.dead
                if self.fail_after is not None and chunk[0] >= self.fail_after:
                    ended = True
                    yield TokenChunk(request.request_id, [], finish_reason="error", error="0xdead")
                    return
                await asyncio.sleep(0)
                ended = chunk[1].finish_reason is not None
                yield chunk[1]
        finally:
            self.running.discard(request.request_id)
            if not ended:
                self.aborted.append(request.request_id)
            await self._tell()

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _wait_go(self) -> None:
        waits = {asyncio.ensure_future(self.go.wait()), asyncio.ensure_future(self._death.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _chunks(self, request: GenerateRequest) -> list[tuple[int, TokenChunk]]:
        """(tokens before it, chunk)"""
        sampling = request.sampling
        assert sampling.max_tokens is not None
        tokens = self.script(request)[: sampling.max_tokens]
        ends = sampling.stop_token_ids + (() if sampling.ignore_eos else (EOS,))
        stop = next((t for t in tokens[sampling.min_tokens :] if t in ends), None)
        if stop is not None:
            tokens = tokens[: tokens.index(stop, sampling.min_tokens) + 1]
        starts = range(0, max(len(tokens), 1), self.chunk)
        chunks = [
            (
                start,
                TokenChunk(
                    request.request_id,
                    tokens[start : start + self.chunk],
                    logprobs=self._logprobs(tokens[start : start + self.chunk], sampling.logprobs),
                ),
            )
            for start in starts
        ]
        first, last = chunks[0][1], chunks[-1][1]
        first.queued_s = 0.01
        first.num_cached_tokens = len(request.prompt_token_ids) // 16 * 16
        if sampling.prompt_logprobs is not None:
            values = self._logprobs(request.prompt_token_ids, sampling.prompt_logprobs) or []
            start = max(1, sampling.logprobs_start)
            first.prompt_logprobs = [*[None] * start, *values[start:]]
        last.finish_reason = "length" if stop is None else "stop"
        last.stop_token_id = stop
        last.timings = Timings(0.01, 0.02, 0.03)
        return chunks

    @staticmethod
    def _logprobs(tokens: list[int], count: int | None) -> list[TokenLogprobs] | None:
        """The chosen token is the likeliest if it is even, else the second."""
        if count is None:
            return None
        rows = []
        for token in tokens:
            own, other = (-0.5, -1.0) if token % 2 == 0 else (-1.0, -0.5)
            best = sorted([(own, token), (other, (token + 1) % 256), (-float("inf"), 299)])
            best = best[::-1][:count]
            rows.append(
                TokenLogprobs(
                    [token, *(t for _, t in best)], [own, *(p for p, _ in best)], 1 + token % 2
                )
            )
        return rows

    async def start(self) -> EngineInfo:
        return self.info

    async def abort(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    def die(self, why: str = "was killed by SIGKILL") -> None:
        self.dead = EngineDeadError(f"the engine process {why}")
        self._death.set()

    async def wait_dead(self) -> EngineDeadError:
        await self._death.wait()
        assert self.dead is not None
        return self.dead

    async def wait_running(self, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.running) == count)

    async def shutdown(self, drain_timeout_s: float = 0.0) -> None:
        self.running.clear()

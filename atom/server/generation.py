"""One HTTP request's choices: tokens from the engine -> text, log-probabilities, usage.

A choice is one sequence of the engine. Closing its stream before the end aborts the sequence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from atom.engine.messages import GenerateRequest, TokenChunk, TokenLogprobs
from atom.engine.text.detokenizer import Detokenizer
from atom.server.errors import unavailable
from atom.server.logprobs import LogprobStream, Position, TokenText
from atom.server.metrics import Metrics

if TYPE_CHECKING:
    from atom.engine.client import EngineClient
    from atom.engine.text.tokenizer import Tokenizer

T = TypeVar("T")


class SequenceFailed(Exception):
    """The engine could not go on with one sequence; the message is for the log only."""


class Delta(NamedTuple):
    """What became visible of a choice. The last one has `finish_reason`: "stop" or "length"."""

    text: str
    positions: list[Position]
    finish_reason: str | None


class Presentation(NamedTuple):
    """How a choice is shown, beyond what its `GenerateRequest` says."""

    choice: int  # choices[].index
    stop: tuple[str, ...] = ()
    echo: str | None = None  # the prompt's text, put before the output
    logprobs: bool = False
    prompt_logprobs: int | None = None  # alternatives to show at each position of the prompt


class Choice:
    """A sequence being generated; its public fields are final once `deltas` has ended."""

    def __init__(
        self,
        shown: Presentation,
        request: GenerateRequest,
        tokenizer: Tokenizer,
        metrics: Metrics,
        arrival: float,
        first: Choice | None = None,
    ) -> None:
        """`first` is the first choice of the same prompt; None: it is this one."""
        sampling = request.sampling
        self.index = shown.choice
        self.first = first or self
        self.request = request
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.queued_s: float | None = None  # in the engine, before its first step
        self.finish_reason: str | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.arrival = arrival
        self.first_at: float | None = None  # when the first and the last token came
        self.last_at = arrival
        self.token_text = TokenText(tokenizer)
        self.num_prompt_logprobs = shown.prompt_logprobs
        self._shown = shown
        self._metrics = metrics
        self._echo_due = shown.echo is not None
        self._logprobs: LogprobStream | None = None
        if shown.logprobs:
            before = request.prompt_token_ids if shown.echo is None else []
            self._logprobs = LogprobStream(tokenizer, before, sampling.skip_special_tokens)
        self._visible = 0  # characters given out, on the scale of the log-probabilities' offsets
        self._detokenizer = Detokenizer(
            tokenizer,
            request.prompt_token_ids,
            shown.stop,
            sampling.skip_special_tokens,
            sampling.include_stop_str_in_output,
            sampling.min_tokens,
        )

    async def deltas(self, client: EngineClient) -> AsyncGenerator[Delta, None]:
        """Deltas until the end; raises `SequenceFailed`, `ApiError` or `EngineDeadError`."""
        ended = "abort"  # unless it ends otherwise, it was closed or cancelled from outside
        try:
            async with aclosing(client.generate(self.request)) as chunks:
                async for chunk in chunks:
                    delta = self._advance(chunk)
                    if delta is not None:
                        yield delta
                    if self.finish_reason is not None:
                        break
            if self.finish_reason is None:
                raise SequenceFailed("the engine's stream ended without a finish reason")
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException:
            ended = "error"
            raise
        finally:
            self._record(self.finish_reason or ended)

    def _advance(self, chunk: TokenChunk) -> Delta | None:
        if chunk.finish_reason == "error":
            raise SequenceFailed(chunk.error or "no reason given")
        if chunk.finish_reason == "abort":
            raise unavailable("The engine aborted the request.", "aborted")
        self._clock(chunk)
        text, positions = self._echo() if self._echo_due else ("", [])
        text += self._decode(chunk, positions)
        if text or positions or self.finish_reason is not None:
            return Delta(text, positions, self.finish_reason)
        return None

    def _clock(self, chunk: TokenChunk) -> None:
        now = time.perf_counter()
        count = len(chunk.token_ids)
        if self.first_at is None:
            self.first_at = now
            self.num_cached_tokens = chunk.num_cached_tokens
            self.queued_s = chunk.queued_s
            self.prompt_logprobs = chunk.prompt_logprobs
            prompt_tokens = len(self.request.prompt_token_ids)
            self._metrics.on_first_token(now - self.arrival, prompt_tokens, count)
        elif count:
            self._metrics.on_tokens(now - self.last_at, count)
        if chunk.timings is not None:
            self._metrics.on_timings(chunk.timings)
        self.last_at = now

    def _echo(self) -> tuple[str, list[Position]]:
        """The prompt as the beginning of the text."""
        self._echo_due = False
        positions: list[Position] = []
        if self._logprobs is not None and self.prompt_logprobs is not None:
            positions = self._logprobs.prompt(self.request.prompt_token_ids, self.prompt_logprobs)
            self._visible = self._logprobs.offset
        return self._shown.echo or "", positions

    def _decode(self, chunk: TokenChunk, positions: list[Position]) -> str:
        """The chunk's visible text; appends its visible log-probabilities to `positions`."""
        token_ids = chunk.token_ids
        ended_by_token = chunk.finish_reason == "stop"
        if ended_by_token and not self.request.sampling.include_stop_str_in_output:
            delta = self._detokenizer.push(token_ids[:-1])  # the end token is no text
        else:
            delta = self._detokenizer.push(token_ids)
        text, used = delta.text, len(token_ids)
        if delta.stop_str is not None:
            used = delta.num_tokens_used
            self.finish_reason = "stop"
        elif chunk.finish_reason is not None:
            text += self._detokenizer.finish()
            self.finish_reason = chunk.finish_reason
        self.num_tokens += used
        if self._logprobs is not None:
            self._logprobs.push(token_ids[:used], (chunk.logprobs or [])[:used])
            self._visible += len(text)
            cut = delta.stop_str is not None
            done = self.finish_reason is not None and not cut
            positions += self._logprobs.rest() if done else self._logprobs.upto(self._visible)
        return text

    def _record(self, ended: str) -> None:
        first_at = self.last_at if self.first_at is None else self.first_at
        self._metrics.on_finished(
            ended,
            self.last_at - self.arrival,
            first_at - self.arrival,
            len(self.request.prompt_token_ids),
            self.num_tokens,
        )


def usage(choices: Sequence[Choice], per_prompt: int) -> dict[str, Any]:
    """OpenAI's usage of all choices, `per_prompt` for each prompt; extras: seconds from arrival.

    `queue_s` is the longest that a choice waited in the engine's queue, `ttft_s` is to the first
    token of any choice, `tpot_s` the mean time per token after a choice's first, `latency_s` to the
    last token. They are null while there is nothing to measure.
    """
    prompts = choices[::per_prompt]
    prompt_tokens = sum(len(c.request.prompt_token_ids) for c in prompts)
    completion_tokens = sum(c.num_tokens for c in choices)
    started = [c for c in choices if c.first_at is not None]
    queued = [c.queued_s for c in choices if c.queued_s is not None]
    firsts = [c.first_at - c.arrival for c in started if c.first_at is not None]
    gaps = sum(c.num_tokens - 1 for c in started if c.num_tokens > 1)
    spent = sum(c.last_at - (c.first_at or c.last_at) for c in started if c.num_tokens > 1)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(c.num_cached_tokens for c in prompts)},
        "queue_s": round(max(queued), 6) if queued else None,
        "ttft_s": round(min(firsts), 6) if firsts else None,
        "tpot_s": round(spent / gaps, 6) if gaps else None,
        "latency_s": round(max(c.last_at - c.arrival for c in choices), 6) if firsts else None,
    }


async def merge(
    streams: Sequence[AsyncGenerator[T, None]],
) -> AsyncGenerator[list[tuple[int, T]], None]:
    """Items of all streams with their stream's number, in batches of what is there.

    The first stream that raises ends the merge; all streams are closed when it ends. A single
    stream is passed through, without a task or a queue.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield [(0, item)]
        return
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue(4 * len(streams))
    tasks = [asyncio.create_task(_pump(n, s, queue)) for n, s in enumerate(streams)]
    try:
        open_streams = len(streams)
        while open_streams:
            batch: list[tuple[int, T]] = []
            received = await queue.get()
            while True:
                if isinstance(received, BaseException):
                    raise received
                if received is None:
                    open_streams -= 1
                else:
                    batch.append(received)
                if queue.empty():
                    break
                received = queue.get_nowait()
            if batch:
                yield batch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    number: int,
    stream: AsyncGenerator[T, None],
    queue: asyncio.Queue[tuple[int, T] | BaseException | None],
) -> None:
    try:
        async with aclosing(stream):
            async for item in stream:
                await queue.put((number, item))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)

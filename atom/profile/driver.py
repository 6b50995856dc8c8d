"""Makes an engine run steps of one chosen shape, and records exactly those.

The requests go through `EngineCore` like any others; what is chosen here is how many prompt tokens
the planner gives to the next step. With that set to what the prompts hold, its throughput policy
makes a step of them alone, and decodes begin together, with equal contexts. The device is idle when
a recording begins and when it ends, so that no other step's work is in it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from atom.engine.core import EngineCore
from atom.engine.messages import GenerateRequest, TokenChunk
from atom.engine.sampling_params import SamplingParams
from atom.errors import RequestError
from atom.profile.shapes import Counts, Shape, blocks_needed, prompt_tokens, runs_here

PLAIN_S = 2.0  # longest that steps are timed without the profiler


@dataclass(slots=True)
class Recording:
    """What was recorded of one shape. Times are the host's, from the first launch to the last
    token; `plain`: as many steps again, or fewer, with the profiler off."""

    shape: Shape
    stamp: str
    asked: int
    steps: int = 0  # below `asked`: it was interrupted
    files: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    plain_s: float = 0.0
    plain_steps: int = 0


class Driver:
    """One engine, which has no other work. `stopped` is asked between two steps."""

    def __init__(
        self, core: EngineCore, seed: int = 0, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._core = core
        self._stopped = stopped
        self._random = np.random.default_rng(seed)
        self._numbers = itertools.count()
        self._open: list[str] = []

    def record(self, shape: Shape, counts: Counts, stamp: str) -> Recording | None:
        """Run the shape's warm-up and recorded steps; the traces are complete then.

        None if it was stopped before there was anything to record. The shape must have been
        checked against `core.info`. Raises `RequestError` if a trace cannot be written.
        """
        state = self._core.scheduler.state
        limits = state.limits
        assert not self._core.has_work, "the engine has other work"
        try:
            made = self._all_of(shape, counts, stamp)
            self._end()
            return made
        except (KeyboardInterrupt, RequestError):  # the engine itself is whole
            self._end()
            raise
        finally:
            state.limits = limits

    def _all_of(self, shape: Shape, counts: Counts, stamp: str) -> Recording | None:
        if not self._begin(shape, counts) or self._run(shape, counts.warmup) < counts.warmup:
            return None
        made = self._recorded(shape, counts, stamp)
        if made is not None and not self._stopped():
            self._time(made, counts)
        return made

    # -- to the first step ----------------------------------------------------------------------

    def _begin(self, shape: Shape, counts: Counts) -> bool:
        """Requests are there for all steps, and the next step is one of the shape; False if it was
        stopped before."""
        again = Counts(2 * counts.steps, counts.warmup)
        steps = counts.warmup + counts.steps
        if runs_here(shape, self._core.info, again):  # room to time them without the profiler
            steps += counts.steps
        if shape.kind == "prefill":
            # A queue of all prompts, of which each step takes the next `batch`.
            self._add(shape.batch * (2 * counts.steps + counts.warmup), shape.tokens, 1)
            self._give(shape.step_tokens)
            return True
        prompt = prompt_tokens(shape, counts)
        self._add(shape.batch, prompt, 1 + steps)
        return self._compute_prompts(shape.batch * prompt)

    def _add(self, count: int, tokens: int, max_tokens: int) -> None:
        """Requests of random tokens; salted, so that none finds its prefix in the cache."""
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        vocab_size = self._core.info.vocab_size
        for _ in range(count):
            request_id = f"profile-{next(self._numbers)}"
            prompt = self._random.integers(vocab_size, size=tokens).tolist()
            self._core.add(GenerateRequest(request_id, prompt, sampling, request_id))
            self._open.append(request_id)

    def _give(self, tokens: int) -> None:
        """The next steps compute exactly so many prompt tokens, as long as there are any."""
        state = self._core.scheduler.state
        state.limits = state.limits._replace(
            policy="throughput",
            max_prefill_chunk=tokens,
            max_prompt_step=tokens,
            delay_factor=0.0,
        )

    def _compute_prompts(self, tokens: int) -> bool:
        """All prompts, in steps of their own: none decodes before the last one is there."""
        while tokens:
            if self._stopped():
                return False
            size = min(self._core.info.max_num_batched_tokens, tokens)
            self._give(size)
            self._step(size)
            self._core.settle()
            tokens -= size
        return True

    # -- steps ----------------------------------------------------------------------------------

    def _run(self, shape: Shape, count: int, until: float = float("inf")) -> int:
        """Steps of the shape, from an idle device to an idle device; how many there were.

        `until`: a moment of `time.perf_counter` from which none is begun.
        """
        prompt = shape.step_tokens if shape.kind == "prefill" else 0
        together = self._two_fit(shape)
        done = sampled = 0
        while done < count and not self._stopped() and time.perf_counter() < until:
            sampled += self._step(prompt)
            done += 1
            if not together:
                sampled += _tokens(self._core.settle())
        sampled += _tokens(self._core.settle())
        assert sampled == done * shape.batch, (shape, done, sampled)
        return done

    def _two_fit(self, shape: Shape) -> bool:
        """Whether the prompts of a step are admitted while those of the step before still run."""
        if shape.kind == "decode":
            return True
        info, two = self._core.info, Shape("prefill", 2 * shape.batch, shape.tokens)
        enough = blocks_needed(two, info.block_size, Counts()) <= info.num_blocks
        return enough and two.batch <= info.max_num_seqs

    def _step(self, prompt_tokens: int) -> int:
        """One step of the engine, which must compute so many prompt tokens; tokens that came."""
        stats = self._core.scheduler.stats
        steps, tokens = stats.steps + 1, stats.prompt_tokens + prompt_tokens
        came = _tokens(self._core.step())
        assert (stats.steps, stats.prompt_tokens) == (steps, tokens), "another step than asked for"
        return came

    def _recorded(self, shape: Shape, counts: Counts, stamp: str) -> Recording | None:
        core = self._core
        if self._stopped():
            return None
        made = Recording(shape, stamp, counts.steps)
        core.start_profile(stamp)
        try:
            began = time.perf_counter()
            made.steps = self._run(shape, counts.steps)
            made.wall_s = time.perf_counter() - began
        except BaseException:
            with contextlib.suppress(Exception):
                core.stop_profile()  # and nothing is written: it may hold half a step
            raise
        made.files = core.stop_profile()()
        return made if made.steps else None

    def _time(self, made: Recording, counts: Counts) -> None:
        """The same steps without the profiler: what recording costs."""
        shape = made.shape
        again = Counts(2 * counts.steps, counts.warmup)
        if not runs_here(shape, self._core.info, again):
            return
        began = time.perf_counter()
        made.plain_steps = self._run(shape, counts.steps, began + PLAIN_S)
        made.plain_s = time.perf_counter() - began

    def _end(self) -> None:
        """Nothing of the requests may be left behind."""
        core = self._core
        core.abort(self._open)
        self._open.clear()
        core.settle()
        while core.has_work:
            core.step()


def _tokens(chunks: Sequence[TokenChunk]) -> int:
    assert all(chunk.error is None for chunk in chunks), chunks
    return sum(len(chunk.token_ids) for chunk in chunks)

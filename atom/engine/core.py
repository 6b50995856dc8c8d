"""`EngineCore`: requests in, token chunks out, one step at a time.

The loop is plan, apply, launch, collect. `step_sync` does them in a row; `step_overlap` launches
the next step before it collects the one before, so that the device never waits for the host. Both
give equal tokens. Synchronous and single-threaded: `core_process` and `LLM` drive it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from atom.config.schema import Config
from atom.engine.admission import check_fits
from atom.engine.block_manager import BlockManager
from atom.engine.cache_layout import CacheLayout, least_window_blocks
from atom.engine.messages import EngineInfo, GenerateRequest, SchedulerStats, TokenChunk
from atom.engine.plan import Runner, StepHandle, StepPlan
from atom.engine.planner import Limits
from atom.engine.scheduler import Scheduler
from atom.engine.sequence import Sequence
from atom.errors import RequestError

# A step stalls running streams for about as long as this many prompt tokens take.
DEFAULT_PREFILL_CHUNK = {"cpu": 256, "cuda": 2048}
# With no stream running: a CPU is saturated by a few hundred tokens, and a longer step would only
# make every prompt in it wait for the last one, and new requests and aborts for the step.
MAX_PROMPT_STEP = {"cpu": 512, "cuda": 1 << 30}
# Below this a wait for another's prefix costs more than it saves: a step's fixed cost is worth a
# few tokens on CPU, hundreds on a GPU.
DEFAULT_MIN_SHARED_TOKENS = {"cpu": 8, "cuda": 128}
# A checkpoint of recurrent state costs the prompt a step of its own, and not every prompt's prefix
# comes again: four times as many tokens, which pays where one in four does
# (benchmarks/checkpoint_minimum.py).
DEFAULT_MIN_CHECKPOINT_TOKENS = {"cpu": 32, "cuda": 512}


class EngineRunner(Runner, Protocol):
    """A runner, and what the engine must know about it. All of it is known once it is made."""

    @property
    def cache_layout(self) -> CacheLayout: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def kv_cache_dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def backends(self) -> Mapping[str, str]: ...
    @property
    def graphs(self) -> str: ...
    @property
    def graph_steps(self) -> int: ...
    @property
    def startup_s(self) -> Mapping[str, float]: ...
    @property
    def memory_bytes(self) -> Mapping[str, int]: ...
    @property
    def memory_notes(self) -> Mapping[str, str]: ...
    def start_profile(self, stamp: str) -> None: ...
    def stop_profile(self) -> Callable[[], list[str]]: ...


class _Launched(NamedTuple):
    plan: StepPlan
    handle: StepHandle
    has_prompts: bool
    launched_t: float


def resolve_limits(config: Config, device: str) -> Limits:
    """The scheduler's limits, with the defaults that depend on the device filled in."""
    scheduler = config.scheduler
    budget = scheduler.max_num_batched_tokens
    policy = "prefill_first" if scheduler.policy == "auto" else scheduler.policy
    defaults = MAX_PROMPT_STEP if policy == "throughput" else DEFAULT_PREFILL_CHUNK
    chunk = scheduler.max_prefill_chunk or defaults[device]
    return Limits(
        policy=policy,
        max_num_batched_tokens=budget,
        # A decode step holds a token of each running sequence, so more could never run at once.
        max_num_seqs=min(scheduler.max_num_seqs, budget),
        max_prefill_chunk=min(chunk, budget),
        max_prompt_step=min(max(chunk, MAX_PROMPT_STEP[device]), budget),
        delay_factor=scheduler.scheduler_delay_factor,
        min_shared_tokens=DEFAULT_MIN_SHARED_TOKENS[device],
        min_checkpoint_tokens=DEFAULT_MIN_CHECKPOINT_TOKENS[device],
        num_state_slots=scheduler.max_num_seqs,
    )


def check_layout(layout: CacheLayout, limits: Limits) -> None:
    """Assert what scheduling relies on: nobody waits for a window block. No row holds more of
    them than full blocks, so as many as these suffice too."""
    if layout.window:
        rows, tokens = limits.max_num_seqs, limits.max_num_batched_tokens
        least = least_window_blocks(layout.window, layout.block_size, rows, tokens)
        assert layout.num_window_blocks >= min(least, layout.num_blocks), (layout, least)
    assert layout.checkpoint_interval % layout.block_size == 0, layout


def caching_off(config: Config, layout: CacheLayout) -> str:
    """Why no prefix is reused, or ""."""
    if not config.engine.enable_prefix_caching:
        return "switched off (enable_prefix_caching = false)"
    if layout.has_state and not layout.num_checkpoints:
        return (
            "the model has recurrent state and no memory is left for checkpoints of it: lower "
            "max_num_seqs, or give the KV cache more memory"
        )
    return ""


class EngineCore:
    """One scheduler and one runner. `before_s`: phases of the start before the runner's own.
    `clock` gives monotonic seconds; tests may own it."""

    UTILITIES = (
        "reset_prefix_cache",
        "stats",
        "check_invariants",
        "start_profile",
        "stop_profile",
    )

    def __init__(
        self,
        config: Config,
        runner: EngineRunner,
        *,
        model: str = "",
        architecture: str = "",
        before_s: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        device = runner.device.partition(":")[0]
        limits = resolve_limits(config, device)
        layout = runner.cache_layout
        check_layout(layout, limits)
        no_caching = caching_off(config, layout)
        self._runner = runner
        self._clock = clock
        self._seeds = random.Random(config.model.seed)
        self.scheduler = Scheduler(
            limits,
            BlockManager(layout, not no_caching),
            tuple(runner.eos_token_ids),
        )
        overlap = config.engine.overlap
        self.overlap = device != "cpu" if overlap is None else overlap
        self.step = self.step_overlap if self.overlap else self.step_sync
        self._in_flight: _Launched | None = None
        self._ready: list[TokenChunk] = []  # chunks made between steps
        self.info = EngineInfo(
            model=model,
            architecture=architecture,
            vocab_size=runner.vocab_size,
            max_model_len=runner.max_model_len,
            block_size=layout.block_size,
            num_blocks=layout.num_blocks,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            eos_token_ids=list(runner.eos_token_ids),
            dtype=runner.dtype,
            device=runner.device,
            kv_cache_dtype=runner.kv_cache_dtype,
            prefix_caching=not no_caching,
            prefix_caching_reason=no_caching,
            policy=limits.policy,
            overlap=self.overlap,
            startup_s={**(before_s or {}), **runner.startup_s},
            memory_bytes=dict(runner.memory_bytes),
            backends=dict(runner.backends),
            graphs=runner.graphs,
            memory_notes=dict(runner.memory_notes),
        )

    # -- requests -------------------------------------------------------------------------------

    def add(self, request: GenerateRequest) -> None:
        """Queue a request; raises `RequestError` if it is wrong, and then holds nothing of it."""
        if request.request_id in self.scheduler:
            raise RequestError(f"request id {request.request_id} is in use", param="request_id")
        request.sampling.validate(self.info.vocab_size)
        self.check_prompt(request.prompt_token_ids)
        max_tokens = check_fits(len(request.prompt_token_ids), request.sampling, self.info)
        sampling = msgspec.structs.replace(request.sampling, max_tokens=max_tokens)
        drawn = self._seeds.getrandbits(63)
        seed = drawn if sampling.seed is None else sampling.seed
        self.scheduler.add(Sequence(request, sampling, seed, self._clock()))

    def check_prompt(self, token_ids: list[int]) -> None:
        """Raise `RequestError` for a token id outside the vocabulary."""
        vocab_size = self.info.vocab_size
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            bad = next(t for t in token_ids if not 0 <= t < vocab_size)
            raise RequestError(
                f"the prompt holds token {bad}, outside the vocabulary of {vocab_size}",
                param="prompt",
            )

    def abort(self, request_ids: list[str], reason: str = "abort") -> None:
        """End requests; each one's last chunk comes with the next step. Unknown ids are ignored."""
        self._ready += self.scheduler.abort(request_ids, reason)

    def abort_all(self) -> None:
        self.abort(self.scheduler.request_ids())

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._in_flight is not None or bool(self._ready)

    # -- stepping -------------------------------------------------------------------------------

    step: Callable[[], list[TokenChunk]]  # one of the twins below

    def step_sync(self) -> list[TokenChunk]:
        """Plan, launch and collect one step."""
        chunks, self._ready = self._ready, []
        launched = self._launch(in_flight=False)
        if launched is not None:
            chunks += self._collect(launched)
        return chunks

    def step_overlap(self) -> list[TokenChunk]:
        """Launch the next step, then collect the one before it while the new one runs."""
        chunks, self._ready = self._ready, []
        previous = self._in_flight
        if previous is None:
            self._in_flight = self._launch(in_flight=False)
            return chunks
        started = self._clock()
        schedule = self.scheduler.plan(started, in_flight=True)
        if schedule.collect_first:
            self._in_flight = None
            chunks += self._collect(previous)
            self._in_flight = self._launch(in_flight=False)
            return chunks
        plan = self.scheduler.apply(schedule, started)
        self._in_flight = self._run(plan, schedule.num_prefill_tokens > 0, started)
        return chunks + self._collect(previous)

    def settle(self) -> list[TokenChunk]:
        """Collect the step in flight, if there is one, and launch none: the device is idle then."""
        chunks, self._ready = self._ready, []
        launched, self._in_flight = self._in_flight, None
        return chunks if launched is None else chunks + self._collect(launched)

    def _launch(self, in_flight: bool) -> _Launched | None:
        started = self._clock()
        scheduler = self.scheduler
        schedule = scheduler.plan(started, in_flight)
        plan = scheduler.apply(schedule, started)
        if plan is None and (scheduler.num_running or scheduler.num_waiting):
            # Preempting emptied the step; what is left of the queue can run now.
            schedule = scheduler.plan(started, in_flight)
            plan = scheduler.apply(schedule, started)
            assert plan is not None, "nothing can run: the scheduler is stuck"
        return self._run(plan, schedule.num_prefill_tokens > 0, started)

    def _run(self, plan: StepPlan | None, has_prompts: bool, started: float) -> _Launched | None:
        if plan is None:
            return None
        launched_t = self._clock()
        handle = self._runner.launch(plan)
        self.scheduler.stats.step_host_s += launched_t - started
        return _Launched(plan, handle, has_prompts, launched_t)

    def _collect(self, launched: _Launched) -> list[TokenChunk]:
        clock, scheduler = self._clock, self.scheduler
        waiting_t = clock()
        output = launched.handle.wait()
        done_t = clock()
        if launched.has_prompts:
            scheduler.record_prompt_step(done_t - launched.launched_t)
        chunks = scheduler.collect(launched.plan, output, done_t)
        scheduler.stats.step_device_s += done_t - waiting_t
        scheduler.stats.step_host_s += clock() - done_t
        return chunks

    # -- rare calls -----------------------------------------------------------------------------

    def call(self, method: str, args: list[Any]) -> Any:
        """A utility by name; raises `RequestError` for one that does not exist.

        What can be called in its turn is the rest of the work, for another thread.
        """
        if method not in self.UTILITIES:
            raise RequestError(f"unknown call {method}: one of {', '.join(self.UTILITIES)}")
        return getattr(self, method)(*args)

    def reset_prefix_cache(self) -> int:
        """Forget every cached prefix; returns how many blocks that were."""
        return self.scheduler.blocks.reset()

    def stats(self) -> SchedulerStats:
        stats = self.scheduler.snapshot()
        stats.graph_steps = self._runner.graph_steps
        return stats

    def check_invariants(self) -> bool:
        """Assert the scheduler's and block manager's invariants."""
        self.scheduler.check_invariants()
        return True

    def start_profile(self, stamp: str) -> bool:
        """Record the steps from now on; `stamp` becomes part of the files' names."""
        self._runner.start_profile(stamp)
        return True

    def stop_profile(self) -> Callable[[], list[str]]:
        """Stop recording. What it returns writes the traces and gives their paths; steps may go on
        meanwhile, on this thread."""
        return self._runner.stop_profile()

    def shutdown(self) -> None:
        self._runner.shutdown()

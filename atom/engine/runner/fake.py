"""`FakeRunner`: a runner without a model, and the judge of everything that schedules one.

It keeps a shadow KV cache. Each slot holds a value that depends on the token written there and on
all before it, read through the block table as attention would; each sampled token is a hash over
the whole context read back from the slots. So a wrong prefix hit, a block reused too early or
written by two sequences changes tokens; with `verify` it is also caught on the spot, as is any
position that is computed twice, out of order, or not at all. Window blocks and recurrent states, if
`FakeOptions` asks for them, hold the same values and are read as such a model would. numpy only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from atom.config.schema import Config
from atom.engine.cache_layout import CacheLayout, least_window_blocks
from atom.engine.messages import TokenLogprobs
from atom.engine.plan import NewRow, RowBlocks, StepOutput, StepPlan
from atom.engine.runner.fake_caches import ShadowCaches
from atom.engine.sampling_params import SamplingParams
from atom.errors import RequestError

U64 = NDArray[np.uint64]


class FakeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the fake model behaves. Sampled tokens lie in `first_token .. first_token + span - 1`."""

    vocab_size: int = 1000
    first_token: int = 0
    span: int = 0  # 0: the rest of the vocabulary
    eos_token_ids: tuple[int, ...] = (2,)
    eos_after: int | None = None  # the first eos is sampled as this output token, counted from 1
    max_model_len: int = 4096
    num_blocks: int = 1024  # unless the configuration gives num_kvcache_blocks
    window: int = 0  # tokens that window caches show; 0: there are none
    spare_window_blocks: int = 64  # beyond those that rows may need
    has_state: bool = False
    num_checkpoints: int = 0
    checkpoint_interval: int = 0
    verify: bool = True  # False: tokens depend on seed and position alone, for timing the host
    step_s: float = 0.0  # simulated device time of a step
    fail_at_step: int | None = None  # launching this step raises, as a device fault would


def _mix(x: U64) -> U64:
    """splitmix64's finaliser: a bijection that scatters bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def kv_values(token_ids: NDArray[np.int64], start: int, before: int) -> U64:
    """What the slots of positions `start ..` hold; `before` is the value at `start - 1`, or 0."""
    positions = np.arange(start, start + len(token_ids), dtype=np.uint64)
    scattered = _mix(token_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + positions)
    values: U64 = np.cumsum(scattered, dtype=np.uint64)
    values += np.uint64(before)
    return values


def sample(values: U64, sampling: SamplingParams, seed: int) -> int:
    """A 64-bit draw from the whole context and, unless greedy, the seed."""
    odd = np.arange(len(values), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    state = np.bitwise_xor.reduce(values * odd)
    if not sampling.greedy:
        state = state ^ np.uint64(seed % 2**64)
    return int(_mix(np.array([state], np.uint64))[0])


def choose_token(
    draw: int, num_outputs: int, sampling: SamplingParams, options: FakeOptions
) -> int:
    """The token of a draw, given how many output tokens came before it."""
    span = options.span or options.vocab_size - options.first_token
    eos = options.eos_token_ids
    if num_outputs + 1 == options.eos_after and eos and not sampling.ignore_eos:
        return eos[0]
    avoid = eos if options.eos_after is not None or sampling.ignore_eos else ()
    if num_outputs < sampling.min_tokens:
        avoid = eos + sampling.stop_token_ids
    token_id = options.first_token + draw % span
    for _ in range(span):
        if token_id not in avoid:
            break
        token_id = options.first_token + (token_id + 1 - options.first_token) % span
    return token_id


def reference_tokens(
    prompt: list[int], sampling: SamplingParams, options: FakeOptions, seed: int = 0
) -> list[int]:
    """What any correct schedule must produce: a model of one sequence, alone and without blocks."""
    assert sampling.max_tokens is not None
    tokens = list(prompt)
    values = kv_values(np.array(tokens, np.int64), 0, 0)
    for count in range(sampling.max_tokens):
        token_id = choose_token(sample(values, sampling, seed), count, sampling, options)
        tokens.append(token_id)
        is_eos = token_id in options.eos_token_ids and not sampling.ignore_eos
        if (is_eos or token_id in sampling.stop_token_ids) and count + 1 >= sampling.min_tokens:
            break
        new = kv_values(np.array([token_id], np.int64), len(tokens) - 1, int(values[-1]))
        values = np.concatenate((values, new))
    return tokens[len(prompt) :]


def _layout(options: FakeOptions, config: Config, num_blocks: int, size: int) -> CacheLayout:
    windows = 0
    if options.window:
        scheduler = config.scheduler
        rows, tokens = scheduler.max_num_seqs, scheduler.max_num_batched_tokens
        least = least_window_blocks(options.window, size, rows, tokens)
        windows = min(least, num_blocks) + options.spare_window_blocks
    return CacheLayout(
        num_blocks=num_blocks,
        block_size=size,
        window=options.window,
        num_window_blocks=windows,
        has_state=options.has_state,
        num_checkpoints=options.num_checkpoints,
        checkpoint_interval=options.checkpoint_interval,
    )


class _Row:
    """A row of the persistent batch, with its token pool."""

    __slots__ = ("blocks", "computed", "known", "new", "pool", "values")

    def __init__(self, new: NewRow) -> None:
        assert new.sampling.max_tokens is not None
        size = max(new.num_prompt_tokens + new.sampling.max_tokens, len(new.token_ids)) + 1
        self.new = new
        self.blocks: list[int] = []
        self.pool: NDArray[np.int64] = np.zeros(size, np.int64)
        self.pool[: len(new.token_ids)] = new.token_ids
        self.known = len(new.token_ids)
        self.computed = -1  # unknown until its first step says what the prefix cache gave
        self.values: U64 = np.zeros(size, np.uint64)  # what its slots must hold


class _Done:
    """A launched step; its tokens are ready after the simulated device time."""

    def __init__(self, output: StepOutput, ready_t: float) -> None:
        self._output = output
        self._ready_t = ready_t

    def wait(self) -> StepOutput:
        left = self._ready_t - time.monotonic() if self._ready_t else 0.0
        if left > 0:
            time.sleep(left)
        return self._output


class FakeRunner:
    """Implements `core.EngineRunner`. Steps run, in launch order, at launch."""

    def __init__(self, config: Config, options: FakeOptions | None = None) -> None:
        self.options = options or FakeOptions()
        wanted = config.engine.num_kvcache_blocks
        self.block_size = config.engine.kv_cache_block_size or 16
        self.num_blocks = wanted if wanted > 0 else self.options.num_blocks
        self.max_model_len = config.model.max_model_len or self.options.max_model_len
        self.vocab_size = self.options.vocab_size
        self.eos_token_ids = self.options.eos_token_ids
        self.dtype = "float32"
        self.kv_cache_dtype = "fp32"
        self.device = "cpu"
        self.backends: dict[str, str] = {"model": "fake"}
        self.graphs, self.graph_steps = "none (fake)", 0
        self.profiles: list[str] = []  # stamps of what was started and stopped; nothing is recorded
        self._profiling = ""
        self.startup_s: dict[str, float] = {"load": 0.0}
        self.memory_bytes: dict[str, int] = {"kv_cache": 8 * self.num_blocks * self.block_size}
        self.memory_notes: dict[str, str] = {}
        self.steps = 0
        self.computed_tokens = 0
        self._slots: U64 = np.zeros(self.num_blocks * self.block_size, np.uint64)
        self._users = [0] * self.num_blocks  # rows whose table holds the block
        rows = config.scheduler.max_num_seqs
        self.cache_layout = _layout(self.options, config, self.num_blocks, self.block_size)
        places = -(-self.max_model_len // self.block_size)
        self._shadow: ShadowCaches | None = None
        if self.options.window or self.options.has_state:
            self._shadow = ShadowCaches(self.cache_layout, rows, places)
        self._rows: list[_Row | None] = [None] * rows
        self._seeds: U64 = np.zeros(rows, np.uint64)
        self._free_at = 0.0  # when the simulated device is done with what was launched

    def launch(self, plan: StepPlan) -> _Done:
        self.steps += 1
        assert plan.step == self.steps, f"step {plan.step} launched as number {self.steps}"
        if plan.step == self.options.fail_at_step:
            raise RuntimeError(f"simulated device fault in step {plan.step}")
        self.computed_tokens += plan.num_tokens
        output = self._verified(plan) if self.options.verify else self._quick(plan)
        if not self.options.step_s:
            return _Done(output, 0.0)
        self._free_at = max(self._free_at, time.monotonic()) + self.options.step_s
        return _Done(output, self._free_at)

    def start_profile(self, stamp: str) -> None:
        if self._profiling:
            raise RequestError("a profile is running", code="profile_running")
        self._profiling = stamp

    def stop_profile(self) -> Callable[[], list[str]]:
        stamp, self._profiling = self._profiling, ""
        if not stamp:
            raise RequestError("no profile is running", code="no_profile")
        self.profiles.append(stamp)
        return lambda: [f"rank_0/fake_ts_{stamp}"]

    def shutdown(self) -> None:
        self._rows = []

    def _quick(self, plan: StepPlan) -> StepOutput:
        for new in plan.new_rows:
            self._seeds[new.row] = new.seed % 2**64
        rows = plan.rows[plan.samples]
        ends = (plan.num_computed + plan.num_scheduled)[plan.samples].astype(np.uint64)
        span = self.options.span or self.vocab_size - self.options.first_token
        draws = _mix(self._seeds[rows] + ends) % np.uint64(span)
        return StepOutput(
            (draws + np.uint64(self.options.first_token)).astype(np.int32), None, None
        )

    # -- the verifying runner -------------------------------------------------------------------

    def _verified(self, plan: StepPlan) -> StepOutput:
        self._apply(plan)
        rows = plan.rows.tolist()
        assert len(set(rows)) == len(rows), "a row is scheduled twice"
        computed, counts = plan.num_computed.tolist(), plan.num_scheduled.tolist()
        for row, start in zip(rows, computed, strict=True):
            if self._row(row).computed < 0:
                self._enter(self._row(row), start)
        if self._shadow is not None:
            self._shadow.begin(plan)
            for row, start in zip(rows, computed, strict=True):
                self._shadow.read(row, self._row(row).values, start, start)
        tokens: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        for index, row_id in enumerate(rows):
            row = self._row(row_id)
            self._compute(row, computed[index], counts[index])
            if row.new.sampling.prompt_logprobs is not None:
                entries = self._prompt_logprobs(row, computed[index], counts[index])
                if entries:
                    prompt_logprobs[index] = entries
            if plan.samples[index]:
                tokens.append(self._sample(row))
                logprobs.append(self._logprobs(row, tokens[-1], row.new.sampling.logprobs))
        if self._shadow is not None:
            self._run_shadow(self._shadow, plan)
        asked = any(entry is not None for entry in logprobs)
        return StepOutput(
            np.array(tokens, np.int32), logprobs if asked else None, prompt_logprobs or None
        )

    def _run_shadow(self, shadow: ShadowCaches, plan: StepPlan) -> None:
        """All rows write, then all read, as a layer does; then states are saved."""
        ends = (plan.num_computed + plan.num_scheduled).tolist()
        spans = list(zip(plan.rows.tolist(), plan.num_computed.tolist(), ends, strict=True))
        for row, start, end in spans:
            shadow.write(row, self._row(row).values, start, end)
        for row, start, end in spans:
            shadow.read(row, self._row(row).values, start, end)
        shadow.end(plan)

    def _row(self, row: int) -> _Row:
        found = self._rows[row]
        assert found is not None, f"row {row} is empty"
        return found

    def _apply(self, plan: StepPlan) -> None:
        for row in plan.free_rows:
            for block_id in self._row(row).blocks:
                self._users[block_id] -= 1
            self._rows[row] = None
        for new in plan.new_rows:
            assert self._rows[new.row] is None, f"row {new.row} is taken twice"
            self._rows[new.row] = _Row(new)
        for blocks in plan.new_blocks:
            self._add_blocks(blocks)

    def _add_blocks(self, blocks: RowBlocks) -> None:
        row = self._row(blocks.row)
        assert len(row.blocks) == blocks.start, f"{blocks} appended at {len(row.blocks)}"
        for block_id in blocks.block_ids:
            assert 0 <= block_id < self.num_blocks, block_id
            assert block_id not in row.blocks, f"block {block_id} twice in row {blocks.row}"
            self._users[block_id] += 1
        row.blocks += blocks.block_ids

    def _slots_of(self, row: _Row, start: int, end: int) -> NDArray[np.int64]:
        positions = np.arange(start, end)
        table = np.array(row.blocks, np.int64)
        return table[positions // self.block_size] * self.block_size + positions % self.block_size

    def _enter(self, row: _Row, num_cached: int) -> None:
        """A row's first step: what the prefix cache gave must be this very prefix."""
        assert num_cached < row.known, "a prefix hit left nothing to compute"
        row.computed = num_cached
        row.values[:num_cached] = kv_values(row.pool[:num_cached], 0, 0)
        held = self._slots[self._slots_of(row, 0, num_cached)]
        assert np.array_equal(held, row.values[:num_cached]), f"wrong prefix: {row.new.request_id}"

    def _compute(self, row: _Row, start: int, count: int) -> None:
        name, end = row.new.request_id, start + count
        assert count > 0, name
        assert row.computed == start, f"{name}: at {row.computed}, scheduled from {start}"
        assert end <= row.known, f"{name}: token {end - 1} is not known"
        assert end <= len(row.blocks) * self.block_size, f"{name}: no block for {end - 1}"
        for block_id in row.blocks[start // self.block_size : (end - 1) // self.block_size + 1]:
            assert self._users[block_id] == 1, f"{name} writes block {block_id}, which is shared"
        before = int(self._slots[self._slots_of(row, start - 1, start)[0]]) if start else 0
        values = kv_values(row.pool[start:end], start, before)
        self._slots[self._slots_of(row, start, end)] = row.values[start:end] = values
        row.computed = end

    def _sample(self, row: _Row) -> int:
        assert row.computed == row.known, f"{row.new.request_id} samples in mid-prompt"
        context = self._slots[self._slots_of(row, 0, row.computed)]
        expected = row.values[: row.computed]
        assert np.array_equal(context, expected), f"KV of {row.new.request_id} was overwritten"
        num_outputs = row.known - row.new.num_prompt_tokens
        draw = sample(context, row.new.sampling, row.new.seed)
        token_id = choose_token(draw, num_outputs, row.new.sampling, self.options)
        row.pool[row.known] = token_id
        row.known += 1
        return token_id

    def _logprobs(self, row: _Row, token_id: int, count: int | None) -> TokenLogprobs | None:
        """Plausible values that fall with the rank; the chosen token is the best one."""
        if count is None:
            return None
        others = [(token_id + 1 + i) % self.vocab_size for i in range(max(0, count))]
        ranks = range(1, len(others) + 2)
        return TokenLogprobs([token_id, *others], [-0.5 * rank for rank in ranks], 1)

    def _prompt_logprobs(self, row: _Row, start: int, count: int) -> list[TokenLogprobs]:
        last = min(start + count, row.new.num_prompt_tokens - 1)
        entries = []
        for position in range(max(start + 1, row.new.sampling.logprobs_start), last + 1):
            entry = self._logprobs(row, int(row.pool[position]), row.new.sampling.prompt_logprobs)
            assert entry is not None
            entries.append(entry)
        return entries

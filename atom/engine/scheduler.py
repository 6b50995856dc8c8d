"""Applies what the planner decides and takes in what a step returns.

`plan` changes nothing; `apply` is the only place where rows and blocks change hands in favour of a
sequence; `collect` appends tokens, publishes blocks, stops and frees. Rows and blocks of a sequence
that ended are given back once, when the last launched step that uses them has been collected.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from atom.engine import planner
from atom.engine.block_manager import BlockManager
from atom.engine.messages import SchedulerStats, TokenChunk, TokenLogprobs
from atom.engine.plan import NewRow, RowBlocks, StepOutput, StepPlan
from atom.engine.planner import Admission, Limits, Schedule, SchedulerState
from atom.engine.row_caches import Extras, RowCaches
from atom.engine.sequence import NEVER, RowTable, Sequence


class Scheduler:
    """Sequences, rows and blocks. Every method takes the time (`now`, monotonic seconds) that it
    needs, so that tests own the clock."""

    def __init__(
        self, limits: Limits, blocks: BlockManager, eos_token_ids: tuple[int, ...]
    ) -> None:
        self.blocks = blocks
        self.table = RowTable(limits.max_num_seqs)
        self.state = SchedulerState(limits, blocks, self.table)
        self.stats = SchedulerStats(num_blocks=blocks.num_blocks, finished={})
        self._caches: RowCaches | None = None
        if not blocks.is_plain:
            self._caches = RowCaches(blocks, self.table, self.stats, limits.num_state_slots)
        self._eos = eos_token_ids
        self._by_id: dict[str, Sequence] = {}
        self._leaving: list[Sequence] = []  # finished, but a launched step still uses their blocks
        self._step = 0
        self._collected_step = 0

    @property
    def has_work(self) -> bool:
        return bool(self._by_id or self._leaving)

    @property
    def num_running(self) -> int:
        return len(self.state.running)

    @property
    def num_waiting(self) -> int:
        return len(self.state.waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    # -- requests in and out --------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        assert seq.request_id not in self._by_id, seq
        self.blocks.hash_tokens(seq)
        self._by_id[seq.request_id] = seq
        self.state.waiting.append(seq)

    def abort(self, request_ids: Iterable[str], reason: str = "abort") -> list[TokenChunk]:
        """End these requests, wherever they are; unknown ids are ignored (they have ended)."""
        chunks = []
        for request_id in request_ids:
            seq = self._by_id.get(request_id)
            if seq is None:
                continue
            if seq.row < 0:
                self.state.waiting.remove(seq)
            chunk = TokenChunk(request_id, [], num_cached_tokens=seq.num_cached_tokens)
            self._finish(seq, chunk, reason)
            chunks.append(chunk)
        self._settle()
        return chunks

    def request_ids(self) -> list[str]:
        return list(self._by_id)

    # -- plan and apply -------------------------------------------------------------------------

    def plan(self, now: float, in_flight: bool = False) -> Schedule:
        return planner.plan(self.state, now, in_flight)

    def apply(self, schedule: Schedule, now: float) -> StepPlan | None:
        """Make the decision real. None: nothing to launch (sequences were only preempted)."""
        for seq in schedule.preempted:
            self._preempt(seq)
        for seq, hash_ in schedule.held:
            seq.held_on = hash_
        if schedule.empty:
            return None
        table = self.table
        self._step += 1
        for admission in schedule.admissions:  # pin every hit before anything is evicted
            self.blocks.acquire(admission.hits, admission.seq)
        new_blocks = self._grow(schedule.rows)
        rows, counts, new_rows = schedule.rows, schedule.num_scheduled, []
        if schedule.admissions:
            new_rows = [self._admit(a, new_blocks, now) for a in schedule.admissions]
            rows, counts = self._admitted(schedule)
        computed = table.num_computed[rows]
        known = table.num_tokens[rows]
        ends = computed + counts
        extras = Extras()
        if self._caches is not None:
            extras = self._caches.apply(schedule.admissions, rows, ends, self._step)
        samples = (ends == known) & (known < table.limit[rows])
        table.num_computed[rows] = ends
        table.num_tokens[rows] = known + samples
        table.last_step[rows] = self._step
        self.state.last_was_prefill = schedule.num_prefill_tokens > 0
        self.stats.prompt_tokens += schedule.num_prefill_tokens
        self.stats.steps += 1
        free_rows, table.given_up = table.given_up, []
        return StepPlan(
            self._step, new_rows, new_blocks, free_rows, rows, computed, counts, samples, *extras
        )

    def _grow(self, rows: NDArray[np.int32]) -> list[RowBlocks]:
        """A block for each decoding row that has filled its last one."""
        table = self.table
        new_blocks: list[RowBlocks] = []
        for row in rows[table.num_tokens[rows] > table.capacity[rows]].tolist():
            seq = table.seqs[row]
            assert seq is not None, row
            start = len(seq.block_table)
            new_blocks.append(RowBlocks(row, start, self.blocks.allocate(seq, 1)))
            table.capacity[row] += self.blocks.block_size
        return new_blocks

    def _admit(self, admission: Admission, new_blocks: list[RowBlocks], now: float) -> NewRow:
        seq, hits = admission.seq, admission.hits
        blocks, table, size = self.blocks, self.table, self.blocks.block_size
        num_cached = len(hits) * size
        next_publish = num_cached + size if blocks.enable_prefix_caching else NEVER
        row = table.take(seq, num_cached, next_publish)
        blocks.allocate(seq, blocks.blocks_for(len(seq.tokens)) - len(hits))
        if self._caches is not None:
            self._caches.enter(admission)
        blocks.announce(seq)
        new_blocks.append(RowBlocks(row, 0, list(seq.block_table)))
        table.capacity[row] = len(seq.block_table) * size
        seq.held_on = None
        if not seq.preemptions:
            seq.first_scheduled_t = now
            seq.num_cached_tokens = num_cached
            if blocks.enable_prefix_caching:
                self._count_lookup(seq)
        sampling = seq.sampling
        if sampling.prompt_logprobs is not None:
            if seq.num_output_tokens:  # preempted after they were delivered
                sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
            else:
                seq.prompt_logprobs = [None] * max(1, sampling.logprobs_start)
        return NewRow(
            row,
            seq.request_id,
            seq.tokens.tolist(),
            seq.num_prompt_tokens,
            sampling,
            () if sampling.ignore_eos else self._eos,
            seq.seed,
        )

    def _count_lookup(self, seq: Sequence) -> None:
        """Tokens that were looked up: all, unless log-probabilities of the prompt are wanted."""
        cacheable = seq.num_cacheable_tokens
        all_but_one = cacheable == len(seq.tokens) - 1
        self.stats.prefix_cache_queries += len(seq.tokens) if all_but_one else cacheable
        self.stats.prefix_cache_hits += seq.num_cached_tokens

    def _admitted(self, schedule: Schedule) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Move the admissions from waiting to running. They are near the head: only held ones
        precede. Returns all rows of the step, and their tokens."""
        state, admissions = self.state, schedule.admissions
        for admission in admissions:
            state.waiting.remove(admission.seq)
            state.running.append(admission.seq)
        self._set_running_rows()
        rows = np.array([a.seq.row for a in admissions], np.int32)
        counts = np.array([a.num_scheduled for a in admissions], np.int32)
        return (
            np.concatenate((schedule.rows, rows)),
            np.concatenate((schedule.num_scheduled, counts)),
        )

    def _set_running_rows(self) -> None:
        self.state.running_rows = np.array([seq.row for seq in self.state.running], np.int32)

    def _preempt(self, seq: Sequence) -> None:
        """Back to the head of the queue, to be computed again; only with nothing in flight."""
        assert self.table.last_step[seq.row] <= self._collected_step, seq
        self.state.running.remove(seq)
        self.blocks.withdraw(seq)
        self.blocks.release(seq)
        self.table.give_back(seq)
        self.blocks.hash_tokens(seq)  # the tokens it generated are part of its prompt now
        seq.preemptions += 1
        self.stats.preemptions += 1
        self.state.waiting.appendleft(seq)
        self._set_running_rows()

    # -- collect --------------------------------------------------------------------------------

    def collect(self, plan: StepPlan, output: StepOutput, now: float) -> list[TokenChunk]:
        """Take in the step's tokens; the step must be the oldest that is in flight."""
        assert plan.step > self._collected_step, plan.step
        self._collected_step = plan.step
        table = self.table
        done = plan.num_computed + plan.num_scheduled  # tokens whose KV exists now
        self._publish(plan.rows, done)
        if self._caches is not None:
            self._caches.collect(plan, done)
        if output.prompt_logprobs:
            self._take_prompt_logprobs(plan.rows, output.prompt_logprobs)
        rows, totals = plan.rows, done
        if not plan.samples.all():
            rows, totals = rows[plan.samples], done[plan.samples]
        chunks = self._append(rows.tolist(), output, now)
        self._stop(rows, totals + 1, output.token_ids, chunks)
        ended = ~plan.samples & (done >= table.limit[plan.rows])
        if ended.any():  # max_tokens = 0: only the prompt was asked for
            self._end_prompts_only(plan.rows[ended], chunks)
        self._settle()
        return [chunk for chunk in chunks if chunk is not None]

    def _publish(self, rows: NDArray[np.int32], done: NDArray[np.int32]) -> None:
        table, size = self.table, self.blocks.block_size
        for i in np.flatnonzero(done >= table.next_publish[rows]).tolist():
            row = int(rows[i])
            seq = table.seqs[row]
            assert seq is not None, row
            if seq.finish_reason is None:
                num_full = int(done[i]) // size
                self.blocks.publish(seq, num_full)
                table.next_publish[row] = (num_full + 1) * size

    def _take_prompt_logprobs(
        self, rows: NDArray[np.int32], by_index: dict[int, list[TokenLogprobs]]
    ) -> None:
        for index, entries in by_index.items():
            seq = self.table.seqs[int(rows[index])]
            assert seq is not None, index
            assert seq.prompt_logprobs is not None, seq
            seq.prompt_logprobs += entries

    def _append(self, rows: list[int], output: StepOutput, now: float) -> list[TokenChunk | None]:
        """One chunk per sampled token, in order; None for a surplus token of an ended sequence."""
        chunks: list[TokenChunk | None] = []
        add, seqs = chunks.append, self.table.seqs
        for row, token_id in zip(rows, output.token_ids.tolist(), strict=True):
            seq = seqs[row]
            assert seq is not None, row
            if seq.finish_reason is not None:
                add(None)
                continue
            seq.tokens.append(token_id)
            chunk = TokenChunk(seq.request_id, [token_id])
            if not seq.first_token_t:
                self._first(seq, chunk, now)
            seq.last_token_t = now
            add(chunk)
        if output.logprobs is not None:
            for chunk_or_none, entry in zip(chunks, output.logprobs, strict=True):
                if chunk_or_none is not None and entry is not None:
                    chunk_or_none.logprobs = [entry]
        self.stats.generation_tokens += len(chunks) - chunks.count(None)
        return chunks

    @staticmethod
    def _first(seq: Sequence, chunk: TokenChunk, now: float) -> None:
        seq.first_token_t = now
        chunk.num_cached_tokens = seq.num_cached_tokens
        chunk.queued_s = seq.timings().queued_s
        chunk.prompt_logprobs, seq.prompt_logprobs = seq.prompt_logprobs, None

    def _stop(
        self,
        rows: NDArray[np.int32],
        totals: NDArray[np.int32],
        token_ids: NDArray[np.int32],
        chunks: list[TokenChunk | None],
    ) -> None:
        """Finish the sequences whose new token is the last. `totals`: tokens they have now."""
        table = self.table
        is_eos = np.zeros(len(rows), np.bool_)
        for eos in self._eos:
            is_eos |= token_ids == eos
        suspects = (
            (totals >= table.limit[rows])
            | (is_eos & table.stops_at_eos[rows])
            | table.has_stop_ids[rows]
        )
        for i in np.flatnonzero(suspects).tolist():
            chunk, seq = chunks[i], table.seqs[int(rows[i])]
            if chunk is None:
                continue
            assert seq is not None, i
            token_id = chunk.token_ids[0]
            may_stop = seq.num_output_tokens >= seq.sampling.min_tokens
            eos_stops = bool(is_eos[i]) and not seq.sampling.ignore_eos
            if may_stop and (eos_stops or token_id in seq.stop_token_ids):
                chunk.stop_token_id = token_id
                self._finish(seq, chunk, "stop")
            elif len(seq.tokens) >= seq.limit:
                self._finish(seq, chunk, "length")

    def _end_prompts_only(self, rows: NDArray[np.int32], chunks: list[TokenChunk | None]) -> None:
        for row in rows.tolist():
            seq = self.table.seqs[row]
            if seq is not None and seq.finish_reason is None:
                chunk = TokenChunk(seq.request_id, [], num_cached_tokens=seq.num_cached_tokens)
                chunk.prompt_logprobs = seq.prompt_logprobs
                chunk.queued_s = seq.timings().queued_s
                chunks.append(chunk)
                self._finish(seq, chunk, "length")

    # -- the end of a sequence ------------------------------------------------------------------

    def _finish(self, seq: Sequence, chunk: TokenChunk, reason: str) -> None:
        seq.finish_reason = chunk.finish_reason = reason
        chunk.timings = seq.timings()
        self.stats.finished[reason] = self.stats.finished.get(reason, 0) + 1
        del self._by_id[seq.request_id]
        if seq.row >= 0:
            self.state.running.remove(seq)
            self.blocks.withdraw(seq)
            self._leaving.append(seq)

    def _settle(self) -> None:
        """After sequences may have ended: free what no launched step uses any more."""
        if not self._leaving:
            return
        self._set_running_rows()
        still: list[Sequence] = []
        for seq in self._leaving:
            if self.table.last_step[seq.row] <= self._collected_step:
                self.blocks.release(seq)
                self.table.give_back(seq)
            else:
                still.append(seq)
        self._leaving = still

    # -- rare calls -----------------------------------------------------------------------------

    def record_prompt_step(self, seconds: float) -> None:
        """How long the last step with prompts took; the delay factor counts in it."""
        self.state.last_prompt_s = seconds

    def snapshot(self) -> SchedulerStats:
        stats = self.stats
        stats.num_running, stats.num_waiting = self.num_running, self.num_waiting
        stats.num_used_blocks, stats.num_cached_blocks = (
            self.blocks.num_used,
            self.blocks.num_cached,
        )
        if self._caches is not None:
            self._caches.count(stats)
        return msgspec.structs.replace(stats, finished=dict(stats.finished))

    def check_invariants(self) -> None:
        """Assert that queues, rows and blocks agree. Cheap enough to run whenever idle."""
        state, table = self.state, self.table
        holders = [*state.running, *self._leaving]
        self.blocks.check_invariants(holders)
        if self._caches is not None:
            self._caches.check_invariants(holders)
        assert len(state.running) <= state.limits.max_num_seqs
        assert len(state.running) + len(state.waiting) == len(self._by_id)
        assert [s.row for s in state.running] == state.running_rows.tolist()
        assert len(holders) + table.num_free == state.limits.max_num_seqs, "a row is lost"
        for seq in holders:
            assert table.seqs[seq.row] is seq, seq
            assert len(seq.block_table) * self.blocks.block_size == table.capacity[seq.row], seq
            assert table.num_computed[seq.row] <= table.capacity[seq.row], seq
        for seq in state.waiting:
            assert not seq.block_table, seq
            assert seq.row < 0, seq
            assert seq.finish_reason is None, seq
        assert all(seq.finish_reason is None for seq in state.running)
        assert all(seq.finish_reason is not None for seq in self._leaving)

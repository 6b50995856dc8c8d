"""Who runs how many tokens in the next step: a pure decision over the scheduler's state.

Policies
- `prefill_first`: prompts go first, in steps of their own. While streams are running, such a step
  holds at most `max_prefill_chunk` prompt tokens and is always followed by a decode step, so no
  stream waits for more than one chunk between two tokens. With no stream running a prompt step may
  fill the whole token budget (on CPU, `max_prompt_step`).
- `mixed`: every running stream decodes in every step and prompt chunks fill what is left, again at
  most `max_prefill_chunk` tokens while streams are running.
- `throughput`: nobody watches a stream. As long as prompts fill a step by themselves they get it:
  a prompt's tokens keep the arithmetic units busy, a decode's ride along for nothing in a step that
  waits for memory anyway. What does not fill a step joins the decodes of a mixed one, in chunks as
  large as the step.

Common to all: first come, first served (a head that does not fit is waited for, never overtaken);
all blocks of a prompt are taken at admission; a prompt whose next blocks another sequence is
computing right now is held back until they are published, so a shared prefix is computed once.
Holding back cannot deadlock: only running sequences hold others back, and when one leaves, what it
announced is withdrawn. With recurrent state a prefix can be reused only where its state is saved,
so a prompt's chunks end there too, and only for such a place is a prompt held back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atom.engine.block_manager import BlockManager, CachedBlock
from atom.engine.checkpoints import save_points
from atom.engine.sequence import RowTable, Sequence

_NO_ROWS = np.zeros(0, np.int32)


class Limits(NamedTuple):
    policy: str
    max_num_batched_tokens: int
    max_num_seqs: int  # running at once, prefilling ones included
    max_prefill_chunk: int  # prompt tokens of a step while streams are running
    max_prompt_step: int  # and while none is
    delay_factor: float
    min_shared_tokens: int  # hold a prompt back only if it saves at least this many tokens
    min_checkpoint_tokens: int = 1  # end a chunk for a checkpoint only if it may save as many
    num_state_slots: int = 0  # of the runner's rows; those of checkpoints come after them


@dataclass(slots=True)
class SchedulerState:
    """Everything a plan is made from. `scheduler.Scheduler` owns and edits it."""

    limits: Limits
    blocks: BlockManager
    table: RowTable
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)  # in the order of admission
    running_rows: NDArray[np.int32] = field(default_factory=lambda: _NO_ROWS)  # their rows
    last_was_prefill: bool = False  # the last launched step was for prompts alone
    last_prompt_s: float = 0.0  # how long the last step with prompts took


class Admission(NamedTuple):
    seq: Sequence
    hits: list[CachedBlock]
    num_scheduled: int
    branch: int = 0  # leading blocks that others have or compute, whether or not they are hits
    save_points: tuple[int, ...] = ()  # tokens after which the state is to be saved


class Schedule(NamedTuple):
    """One step, decided. Running rows come first (decodes, then prefills), then admissions."""

    rows: NDArray[np.int32]
    num_scheduled: NDArray[np.int32]
    admissions: list[Admission]
    preempted: list[Sequence]  # last in first
    held: list[tuple[Sequence, int]]  # sequence, hash of the block it waits for
    num_prefill_tokens: int
    collect_first: bool = False  # blocks ran out: the steps in flight must be collected before

    @property
    def empty(self) -> bool:
        return not (len(self.rows) or self.admissions)


_COLLECT_FIRST = Schedule(_NO_ROWS, _NO_ROWS, [], [], [], 0, collect_first=True)


class _Prompts(NamedTuple):
    """The prompt part of a step."""

    rows: NDArray[np.int32]
    num_scheduled: NDArray[np.int32]
    admissions: list[Admission]
    held: list[tuple[Sequence, int]]
    num_tokens: int


class _Decodes(NamedTuple):
    """The decode part of a step. `num_new_blocks` are those its rows are short of."""

    rows: NDArray[np.int32]
    preempted: list[Sequence]
    num_new_blocks: int


def plan(state: SchedulerState, now: float, in_flight: bool) -> Schedule:
    """Decide the next step. `in_flight`: a launched step has not been collected yet.

    Preemption needs the victim's last token on the host, so it is only planned with nothing in
    flight; otherwise the answer is to collect first and plan again.
    """
    table, rows = state.table, state.running_rows
    prefilling = table.num_computed[rows] < table.prefill_end[rows]
    decoding = ~prefilling & (table.num_tokens[rows] < table.limit[rows])
    decode_rows, prefill_rows = rows[decoding], rows[prefilling]
    if state.limits.policy == "mixed":
        return _plan_mixed(state, decode_rows, prefill_rows, now, in_flight)
    if state.limits.policy == "throughput":
        return _plan_throughput(state, decode_rows, prefill_rows, now, in_flight)
    if not len(decode_rows) or not state.last_was_prefill:
        prompts = _plan_prompts(state, prefill_rows, len(decode_rows), 0, now)
        if prompts.num_tokens:
            return _join(None, prompts)
        held = prompts.held
    else:
        held = []
    decodes = _plan_decodes(state, decode_rows, in_flight)
    if decodes is None:
        return _COLLECT_FIRST
    return _join(decodes, None)._replace(held=held)


def _plan_mixed(
    state: SchedulerState,
    decode_rows: NDArray[np.int32],
    prefill_rows: NDArray[np.int32],
    now: float,
    in_flight: bool,
) -> Schedule:
    decodes = _plan_decodes(state, decode_rows, in_flight)
    if decodes is None:
        return _COLLECT_FIRST
    if decodes.preempted:  # a victim may have been prefilling, and there is no room for new ones
        return _join(decodes, None)
    if not len(prefill_rows) and not state.waiting:
        return _join(decodes, None)
    prompts = _plan_prompts(
        state, prefill_rows, len(decodes.rows), decodes.num_new_blocks, now, len(decodes.rows)
    )
    return _join(decodes, prompts)


def _plan_throughput(
    state: SchedulerState,
    decode_rows: NDArray[np.int32],
    prefill_rows: NDArray[np.int32],
    now: float,
    in_flight: bool,
) -> Schedule:
    if len(prefill_rows) or state.waiting:
        prompts = _plan_prompts(state, prefill_rows, len(decode_rows), 0, now)
        if prompts.num_tokens == _most_prompt_tokens(state, len(decode_rows)):
            return _join(None, prompts)
    return _plan_mixed(state, decode_rows, prefill_rows, now, in_flight)


def _join(decodes: _Decodes | None, prompts: _Prompts | None) -> Schedule:
    decode_rows = decodes.rows if decodes else _NO_ROWS
    preempted = decodes.preempted if decodes else []
    counts = np.ones(len(decode_rows), np.int32)
    if prompts is None:
        return Schedule(decode_rows, counts, [], preempted, [], 0)
    return Schedule(
        np.concatenate((decode_rows, prompts.rows)),
        np.concatenate((counts, prompts.num_scheduled)),
        prompts.admissions,
        preempted,
        prompts.held,
        prompts.num_tokens,
    )


# -- decodes ------------------------------------------------------------------------------------


def _plan_decodes(
    state: SchedulerState, rows: NDArray[np.int32], in_flight: bool
) -> _Decodes | None:
    """Every decoding row, less the victims if blocks run out; None: collect first."""
    short = rows[state.table.num_tokens[rows] > state.table.capacity[rows]]
    needed = len(short)
    if needed <= state.blocks.num_available:
        return _Decodes(rows, [], needed)
    if in_flight:
        return None
    return _preempt(state, rows, set(short.tolist()))


def _preempt(state: SchedulerState, rows: NDArray[np.int32], short: set[int]) -> _Decodes:
    """Last in, first out, until what remains can have its blocks. The first always remains: a
    request that does not fit alone was refused at the door."""
    available = state.blocks.num_available
    victims: list[Sequence] = []
    dropped: dict[int, int] = {}
    for seq in reversed(state.running[1:]):
        if len(short) <= available:
            break
        available += state.blocks.num_freed_by(seq, dropped)
        short.discard(seq.row)
        victims.append(seq)
    assert len(short) <= available, "one sequence alone does not fit"
    gone = np.array([seq.row for seq in victims], np.int32)
    return _Decodes(rows[~np.isin(rows, gone)], victims, len(short))


# -- prompts ------------------------------------------------------------------------------------


def _plan_prompts(
    state: SchedulerState,
    prefill_rows: NDArray[np.int32],
    num_streams: int,
    blocks_spoken_for: int,
    now: float,
    tokens_spoken_for: int = 0,
) -> _Prompts:
    """Chunks of prompts already admitted, in order, then admissions, within the budget."""
    limits, table = state.limits, state.table
    most = _most_prompt_tokens(state, num_streams)
    budget = min(most, limits.max_num_batched_tokens - tokens_spoken_for)
    total = budget
    rows: list[int] = []
    counts: list[int] = []
    for row in prefill_rows.tolist():
        if budget <= 0:
            break
        end = min(table.prefill_end[row], table.next_save[row])
        count = min(budget, int(end - table.num_computed[row]))
        rows.append(row)
        counts.append(count)
        budget -= count
    admissions: list[Admission] = []
    held: list[tuple[Sequence, int]] = []
    if budget > 0 and state.waiting and _may_admit(state, now):
        budget = _admit(state, budget, blocks_spoken_for, admissions, held)
    return _Prompts(
        np.array(rows, np.int32), np.array(counts, np.int32), admissions, held, total - budget
    )


def _most_prompt_tokens(state: SchedulerState, num_streams: int) -> int:
    return state.limits.max_prefill_chunk if num_streams else state.limits.max_prompt_step


def _may_admit(state: SchedulerState, now: float) -> bool:
    """`scheduler_delay_factor`: let prompts gather for a while, unless nothing else runs."""
    factor = state.limits.delay_factor
    if factor <= 0 or not state.running:
        return True
    return now - state.waiting[0].arrival_t > factor * state.last_prompt_s


def _admit(
    state: SchedulerState,
    budget: int,
    blocks_spoken_for: int,
    admissions: list[Admission],
    held: list[tuple[Sequence, int]],
) -> int:
    """Admit waiting sequences in order while rows, blocks and tokens last. Returns tokens left."""
    blocks = state.blocks
    slots = min(state.table.num_free, state.limits.max_num_seqs - len(state.running))
    available = blocks.num_available - blocks_spoken_for
    # Each running stream may need a block soon: admitting into the last blocks only to preempt
    # in the next step would waste the prompt. With nothing running the head always fits.
    num_running = len(state.running)
    taken: set[int] = set()  # idle blocks that an earlier admission of this plan revives
    computing: set[int] = set()  # hashes that the admissions of this plan will compute
    saving: set[int] = set()  # and at whose end they will save the state
    for seq in state.waiting:
        if budget <= 0 or len(admissions) >= slots:
            break
        if seq.held_on is not None and blocks.is_pending(seq.held_on):
            continue
        hits, run, last, branch = blocks.look_up(seq, computing, saving)
        if last is not None and run * blocks.block_size >= state.limits.min_shared_tokens:
            held.append((seq, last))
            continue
        revived = [e.block_id for e in hits if blocks.is_idle(e.block_id)]
        revived = [block_id for block_id in revived if block_id not in taken]
        cost = blocks.blocks_for(len(seq.tokens)) - len(hits) + len(revived)
        if cost + num_running + len(admissions) > available:
            break
        cached = len(hits) * blocks.block_size
        points: tuple[int, ...] = ()
        if blocks.saves_states:
            points = _save_points(state, seq, cached, branch, saving)
        end = points[0] if points else len(seq.tokens)
        count = min(budget, end - cached)
        admissions.append(Admission(seq, hits, count, branch, points))
        computing.update(seq.block_hashes[len(hits) :])
        taken.update(revived)
        available -= cost
        budget -= count
    return budget


def _save_points(
    state: SchedulerState, seq: Sequence, cached: int, branch: int, saving: set[int]
) -> tuple[int, ...]:
    """Where the prompt's chunks must end for checkpoints; enters what they will hold."""
    size, least = state.blocks.block_size, state.limits.min_checkpoint_tokens
    points = save_points(seq, cached, branch * size, state.blocks.layout, least)
    saving.update(seq.block_hashes[point // size - 1] for point in points)
    return points

"""`Sequence`: one request inside the core; `RowTable`: the running ones as persistent arrays.

What the scheduler asks of every running sequence in every step lives in `RowTable`, one entry
per row, so that a step is a few numpy operations however many sequences run. What is asked
rarely lives on the `Sequence`. Neither knows blocks' ownership or policies.
"""

from __future__ import annotations

import heapq
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atom.engine.messages import GenerateRequest, Timings, TokenLogprobs
from atom.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from atom.engine.block_manager import CachedBlock

NO_ROW = -1
NEVER = 2**31 - 1  # a token count that no sequence reaches


class Sequence:
    """The state of one request, from arrival to its last step. Stamps are monotonic seconds."""

    __slots__ = (
        "announced_saves",
        "arrival_t",
        "block_hashes",
        "block_table",
        "branch",
        "cache_parent",
        "cache_salt",
        "finish_reason",
        "first_scheduled_t",
        "first_token_t",
        "hasher",
        "held_on",
        "last_saved",
        "last_token_t",
        "limit",
        "num_cached_tokens",
        "num_pending",
        "num_prompt_tokens",
        "num_published",
        "preemptions",
        "prompt_logprobs",
        "request_id",
        "row",
        "sampling",
        "save_points",
        "seed",
        "stop_token_ids",
        "tokens",
        "window_blocks",
        "window_head",
    )

    def __init__(
        self, request: GenerateRequest, sampling: SamplingParams, seed: int, arrival_t: float
    ) -> None:
        """`sampling.max_tokens` must be resolved: `admission.check_fits` gives it."""
        assert sampling.max_tokens is not None
        self.request_id = request.request_id
        self.cache_salt = request.cache_salt
        self.sampling = sampling
        self.seed = seed
        self.tokens = array("i", request.prompt_token_ids)  # prompt, then what was collected
        self.num_prompt_tokens = len(self.tokens)
        self.limit = self.num_prompt_tokens + sampling.max_tokens  # never more tokens than this
        self.stop_token_ids = frozenset(sampling.stop_token_ids)

        self.row = NO_ROW  # of the persistent batch, from admission until the blocks are freed
        self.block_table: list[int] = []
        self.finish_reason: str | None = None

        # Prefix cache, edited by the block manager alone.
        self.hasher: Any = None  # running xxhash64 of salt and tokens
        self.block_hashes: list[int] = []  # its digest after each full block
        self.num_published = 0  # leading blocks that are published, or equal to a published one
        self.num_pending = 0  # leading blocks announced as being computed
        self.cache_parent: CachedBlock | str = self.cache_salt  # of the next block to publish
        self.held_on: int | None = None  # hash of the block that another sequence is computing
        self.num_cached_tokens = 0
        # Of models with windows or states only.
        self.window_blocks: list[int] = []  # of the places from `window_head` on
        self.window_head = 0
        self.branch = 0  # leading blocks that others had or computed when it was admitted
        self.save_points: list[int] = []  # tokens after which the state is saved; next one last
        self.announced_saves: list[int] = []  # hashes of blocks at whose end a checkpoint comes
        self.last_saved: CachedBlock | None = None

        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.arrival_t = arrival_t
        self.first_scheduled_t = 0.0
        self.first_token_t = 0.0
        self.last_token_t = 0.0
        self.preemptions = 0

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_cacheable_tokens(self) -> int:
        """Tokens at the head that the prefix cache may serve. One is always left to compute; and
        the first log-probability wanted of the prompt comes from the logits of the token before it,
        which the cache does not hold."""
        most = len(self.tokens) - 1
        if self.sampling.prompt_logprobs is None or self.num_output_tokens > 0:
            return most
        return max(0, min(most, self.sampling.logprobs_start - 1))

    def timings(self) -> Timings:
        """Durations so far; phases that were never reached are zero."""
        scheduled = self.first_scheduled_t or self.arrival_t
        first = self.first_token_t or scheduled
        return Timings(
            queued_s=scheduled - self.arrival_t,
            prefill_s=first - scheduled,
            decode_s=max(0.0, self.last_token_t - first),
            preemptions=self.preemptions,
        )

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request_id}, row={self.row}, tokens={len(self.tokens)}"
            f"/{self.limit}, blocks={len(self.block_table)}, {self.finish_reason})"
        )


class RowTable:
    """The persistent batch on the host: parallel arrays indexed by row, edited in place.

    `num_computed` and `num_tokens` run ahead of the device: they include the steps in flight and
    the tokens that those will sample.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self.num_computed: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)
        self.num_tokens: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)
        self.prefill_end: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)
        self.limit: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)
        self.capacity: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)  # tokens of its blocks
        self.next_publish: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)  # token count
        # Of models with windows or states only: tokens that the window blocks have room for, tokens
        # computed at which the first of them is seen no more, and after which the state is saved.
        self.window_end: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)
        self.window_drop: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)
        self.next_save: NDArray[np.int32] = np.full(max_num_seqs, NEVER, np.int32)
        self.last_step: NDArray[np.int64] = np.zeros(max_num_seqs, np.int64)
        self.stops_at_eos: NDArray[np.bool_] = np.zeros(max_num_seqs, np.bool_)
        self.has_stop_ids: NDArray[np.bool_] = np.zeros(max_num_seqs, np.bool_)
        self.seqs: list[Sequence | None] = [None] * max_num_seqs
        self.given_up: list[int] = []  # rows freed since the last plan
        self._free = list(range(max_num_seqs))  # a heap: low rows first keeps the batch dense

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, seq: Sequence, num_computed: int, next_publish: int) -> int:
        """Give `seq` a row. Its blocks are entered by `grow`."""
        row = heapq.heappop(self._free)
        assert self.seqs[row] is None, row
        assert seq.row == NO_ROW, seq
        seq.row = row
        self.seqs[row] = seq
        self.num_computed[row] = num_computed
        self.num_tokens[row] = self.prefill_end[row] = len(seq.tokens)
        self.limit[row] = seq.limit
        self.capacity[row] = 0
        self.next_publish[row] = next_publish
        self.stops_at_eos[row] = not seq.sampling.ignore_eos
        self.has_stop_ids[row] = bool(seq.stop_token_ids)
        return row

    def give_back(self, seq: Sequence) -> None:
        row, seq.row = seq.row, NO_ROW
        assert self.seqs[row] is seq, seq
        self.seqs[row] = None
        self.given_up.append(row)
        heapq.heappush(self._free, row)

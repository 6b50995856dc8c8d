"""Sampling parameters of the batch rows, as arrays; and what one step needs of them.

Filled when a row enters, gathered by row in each step. Each row has flags; their union over a
step says at once which parts of the sampler are needed, so that an all-greedy step needs none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from atom.engine.plan import NewRow
from atom.engine.runner import randomness
from atom.engine.runner.penalties import LogitEdits, PenaltyInputs
from atom.engine.runner.upload import Upload
from atom.engine.sampling_params import SamplingParams
from atom.ops.sampling_row import FLOORED, GREEDY, PLAIN, ROW, SEARCHED, WORDS, Kinds, kinds_of

Ints = NDArray[np.int64]

RANDOM, TOP_K, TOP_P, MIN_P, PENALTY, BIAS, MIN_TOKENS, LOGPROBS, PROMPT_LOGPROBS = (
    1 << i for i in range(9)
)
_FILTERED = TOP_K | TOP_P | MIN_P
_MIN_TEMPERATURE = 1e-5  # below, float32 logits over the temperature would overflow


class RandomRows(NamedTuple):
    """All L rows of a step in which some are drawn; the others are greedy."""

    host: NDArray[Any]  # [L] of `sampling_row.ROW`
    params: Tensor  # [L, WORDS] int32: the same, on the device
    kinds: Kinds


@dataclass(slots=True)
class SamplingStep:
    """What the sampler does in one step beside argmax; everything `None` when all is greedy."""

    edits: LogitEdits | None = None
    penalties: PenaltyInputs | None = None
    random: RandomRows | None = None
    logprob_indices: Tensor | None = None  # [n] int64 rows of the logits
    logprob_rows: list[int] = field(default_factory=list)  # the same, on the host
    logprob_counts: list[int] = field(default_factory=list)  # alternatives of each


class SamplingRows:
    """Arrays of `max_num_seqs` rows."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        n = max_num_seqs
        self.vocab_size = vocab_size
        self.flags = np.zeros(n, np.int32)
        self.num_prompt = np.zeros(n, np.int64)
        self.min_tokens = np.zeros(n, np.int64)
        self.num_logprobs = np.zeros(n, np.int64)
        self.num_prompt_logprobs = np.zeros(n, np.int64)
        self.logprobs_start = np.zeros(n, np.int64)  # first token of the prompt that is scored
        self._draws = np.zeros(n, ROW)
        self._repetition = np.zeros(n, np.float32)
        self._frequency = np.zeros(n, np.float32)
        self._presence = np.zeros(n, np.float32)
        self._bias: dict[int, tuple[Ints, NDArray[np.float32]]] = {}
        self._banned: dict[int, Ints] = {}  # ids that min_tokens holds back

    def enter(self, new: NewRow) -> None:
        row, s = new.row, new.sampling
        self.num_prompt[row] = new.num_prompt_tokens
        self.min_tokens[row] = s.min_tokens
        self.num_logprobs[row] = s.logprobs or 0
        self.num_prompt_logprobs[row] = s.prompt_logprobs or 0
        self.logprobs_start[row] = max(1, s.logprobs_start)  # nothing foretells token 0
        top_k = s.top_k if 0 < s.top_k < self.vocab_size else 0
        self._draws[row] = (
            max(s.temperature, _MIN_TEMPERATURE),
            s.top_p,
            s.min_p,
            top_k,
            randomness.keys(np.array([new.seed], np.int64))[0],
            0,
            _kind(s, top_k),
        )
        self._repetition[row] = s.repetition_penalty
        self._frequency[row] = s.frequency_penalty
        self._presence[row] = s.presence_penalty
        banned = sorted({*new.eos_token_ids, *s.stop_token_ids}) if s.min_tokens else []
        self._banned[row] = np.array(banned, np.int64)
        bias = s.logit_bias or {}
        self._bias[row] = (
            np.array(list(bias), np.int64),
            np.array(list(bias.values()), np.float32),
        )
        wanted = (
            (RANDOM, not s.greedy),
            (TOP_K, top_k > 0 and not s.greedy),
            (TOP_P, s.top_p < 1.0 and not s.greedy),
            (MIN_P, s.min_p > 0.0 and not s.greedy),
            (PENALTY, s.has_penalties),
            (BIAS, bool(bias)),
            (MIN_TOKENS, bool(banned)),
            (LOGPROBS, s.logprobs is not None),
            (PROMPT_LOGPROBS, s.prompt_logprobs is not None),
        )
        self.flags[row] = sum(bit for bit, on in wanted if on)

    def stage(self, rows: Ints, positions: Ints, upload: Upload) -> SamplingStep:
        """`rows` [L] sample in this step, the new token of each at `positions` [L]."""
        flags = self.flags[rows]
        union = int(np.bitwise_or.reduce(flags)) if len(rows) else 0
        step = SamplingStep()
        if union & (BIAS | MIN_TOKENS):
            step.edits = self._stage_edits(rows, positions, flags, upload)
        if union & PENALTY:
            step.penalties = self._stage_penalties(rows, positions, flags, upload)
        if union & RANDOM:
            step.random = self._stage_random(rows, positions, upload)
        if union & LOGPROBS:
            index = np.flatnonzero(flags & LOGPROBS)
            step.logprob_rows = index.tolist()
            step.logprob_indices = upload.add(index)
            step.logprob_counts = self.num_logprobs[rows[index]].tolist()
        return step

    def _stage_edits(
        self, rows: Ints, positions: Ints, flags: NDArray[np.int32], upload: Upload
    ) -> LogitEdits | None:
        vocab = self.vocab_size
        held_back = positions - self.num_prompt[rows] < self.min_tokens[rows]
        biased = np.flatnonzero(flags & BIAS)
        banned = np.flatnonzero(((flags & MIN_TOKENS) != 0) & held_back)
        bias_places = bias_values = banned_places = None
        if len(biased):
            entries = [self._bias[int(rows[i])] for i in biased]
            places = [i * vocab + ids for i, (ids, _) in zip(biased, entries, strict=True)]
            bias_places = upload.add(np.concatenate(places))
            bias_values = upload.add(np.concatenate([values for _, values in entries]))
        if len(banned):
            places = [i * vocab + self._banned[int(rows[i])] for i in banned]
            banned_places = upload.add(np.concatenate(places))
        if bias_places is None and banned_places is None:
            return None
        return LogitEdits(bias_places, bias_values, banned_places)

    def _stage_penalties(
        self, rows: Ints, positions: Ints, flags: NDArray[np.int32], upload: Upload
    ) -> PenaltyInputs:
        index = np.flatnonzero(flags & PENALTY)
        who, lengths = rows[index], positions[index]
        return PenaltyInputs(
            indices=upload.add(index),
            pool_rows=upload.add(who),
            lengths=upload.add(lengths),
            num_prompt=upload.add(self.num_prompt[who]),
            repetition=upload.add(self._repetition[who]),
            frequency=upload.add(self._frequency[who]),
            presence=upload.add(self._presence[who]),
            max_length=int(lengths.max()),
        )

    def _stage_random(self, rows: Ints, positions: Ints, upload: Upload) -> RandomRows:
        draws = self._draws[rows]
        draws["position"] = positions
        return RandomRows(
            host=draws,
            params=upload.add(draws.view(np.int32).reshape(-1, WORDS)),
            kinds=kinds_of(draws),
        )


def _kind(sampling: SamplingParams, top_k: int) -> int:
    if sampling.greedy:
        return GREEDY
    if top_k > 0 or sampling.top_p < 1.0:
        return SEARCHED
    return FLOORED if sampling.min_p > 0.0 else PLAIN

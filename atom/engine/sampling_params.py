"""How one request is sampled. Crosses the wire to the core, so it is a msgspec struct.

Names and defaults are vLLM's where they exist. `validate()` is called at every door (HTTP edge and
`LLM.generate`); the core trusts what passed it.
"""

from __future__ import annotations

import math

import msgspec

from atom.errors import RequestError

MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    temperature: float = 1.0  # 0 is greedy
    top_k: int = -1  # -1 or 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    min_tokens: int = 0
    max_tokens: int | None = 64  # None: as many as the context holds
    stop: tuple[str, ...] = ()  # matched on text, in the process that detokenises
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    n: int = 1
    logprobs: int | None = None  # number of alternatives beside the sampled token; 0: only it
    prompt_logprobs: int | None = None
    logprobs_start: int = 0  # of prompt_logprobs: those before this token of the prompt are None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )

    def validate(self, vocab_size: int | None = None) -> None:
        """Raise `RequestError` naming the first field that is out of range."""
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("min_p", 0.0, 1.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                raise RequestError(
                    f"{name} must be in [{low:g}, {high:g}], got {value}", param=name
                )
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"top_p must be in (0, 1], got {self.top_p}", param="top_p")
        if self.top_k < -1:
            raise RequestError(
                f"top_k must be -1 (all) or at least 0, got {self.top_k}", param="top_k"
            )
        if not math.isfinite(self.repetition_penalty) or self.repetition_penalty <= 0.0:
            raise RequestError(
                f"repetition_penalty must be positive, got {self.repetition_penalty}",
                param="repetition_penalty",
            )
        self._validate_counts()
        self._validate_ids(vocab_size)

    def _validate_counts(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 0:
            raise RequestError(
                f"max_tokens must be at least 0, got {self.max_tokens}", param="max_tokens"
            )
        if self.min_tokens < 0 or (
            self.max_tokens is not None and self.min_tokens > self.max_tokens
        ):
            raise RequestError(
                f"min_tokens must be in [0, max_tokens={self.max_tokens}], got {self.min_tokens}",
                param="min_tokens",
            )
        if self.n < 1:
            raise RequestError(f"n must be at least 1, got {self.n}", param="n")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_LOGPROBS:
                raise RequestError(
                    f"{name} must be in [0, {MAX_LOGPROBS}], got {value}", param=name
                )
        if self.logprobs_start < 0:
            raise RequestError(
                f"logprobs_start must be at least 0, got {self.logprobs_start}",
                param="logprobs_start",
            )
        if self.seed is not None and not -MAX_SEED - 1 <= self.seed <= MAX_SEED:
            raise RequestError(f"seed must fit in 64 bits, got {self.seed}", param="seed")
        if any(not s for s in self.stop):
            raise RequestError("stop must not hold an empty string", param="stop")

    def _validate_ids(self, vocab_size: int | None) -> None:
        if vocab_size is None:
            return
        for token_id in self.stop_token_ids:
            if not 0 <= token_id < vocab_size:
                raise RequestError(
                    f"stop_token_ids holds {token_id}, outside the vocabulary of {vocab_size}",
                    param="stop_token_ids",
                )
        for token_id, bias in (self.logit_bias or {}).items():
            if not 0 <= token_id < vocab_size:
                raise RequestError(
                    f"logit_bias names token {token_id}, outside the vocabulary of {vocab_size}",
                    param="logit_bias",
                )
            if not math.isfinite(bias) or not -100.0 <= bias <= 100.0:
                raise RequestError(
                    f"logit_bias of token {token_id} must be in [-100, 100], got {bias}",
                    param="logit_bias",
                )

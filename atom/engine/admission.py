"""The door: what can never run here is refused, with its numbers, before it is queued.

Used by the HTTP server, `LLM` and the core alike, so that all three say the same. Needs no torch.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from atom.engine.messages import GenerateRequest
from atom.engine.sampling_params import MAX_SEED, SamplingParams
from atom.errors import NeverFitError, RequestError


class Capacity(Protocol):
    """What `EngineInfo` says of the engine's size."""

    @property
    def max_model_len(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...


def check_fits(num_prompt_tokens: int, sampling: SamplingParams, info: Capacity) -> int:
    """The resolved `max_tokens` of a request, or `NeverFitError` with the numbers.

    The last token sampled is never computed, so its KV needs no room. With `max_tokens` None the
    answer is as many as context and KV cache hold.
    """
    if num_prompt_tokens < 1:
        raise RequestError("the prompt is empty: give at least one token", param="prompt")
    if sampling.logprobs_start > num_prompt_tokens:
        raise RequestError(
            f"logprobs_start is {sampling.logprobs_start}, beyond the prompt's"
            f" {num_prompt_tokens} tokens: it must be in [0, {num_prompt_tokens}]",
            param="logprobs_start",
        )
    context, kv_tokens = info.max_model_len, info.num_blocks * info.block_size
    if num_prompt_tokens > context:
        raise NeverFitError(
            f"the prompt has {num_prompt_tokens} tokens, more than the context of {context} tokens:"
            " shorten it, or raise max_model_len"
        )
    if num_prompt_tokens > kv_tokens:
        raise NeverFitError(
            f"the prompt has {num_prompt_tokens} tokens, more than the KV cache's {kv_tokens}:"
            " shorten it, or raise num_kvcache_blocks"
        )
    room = min(context - num_prompt_tokens, kv_tokens - num_prompt_tokens + 1)
    if sampling.max_tokens is None:
        if room < max(1, sampling.min_tokens):
            raise NeverFitError(
                f"the prompt has {num_prompt_tokens} tokens and leaves room for {room} of the"
                f" {max(1, sampling.min_tokens)} wanted: context {context}, KV cache {kv_tokens}"
            )
        return room
    if sampling.max_tokens > room:
        where = (
            f"context of {context}"
            if room == context - num_prompt_tokens
            else (f"KV cache of {kv_tokens}")
        )
        raise NeverFitError(
            f"{num_prompt_tokens} prompt tokens + max_tokens {sampling.max_tokens} ="
            f" {num_prompt_tokens + sampling.max_tokens} tokens do not fit the {where} tokens:"
            f" max_tokens can be at most {room} here",
            param="max_tokens",
        )
    return sampling.max_tokens


def fan_out(
    request_id: str, prompt_token_ids: list[int], sampling: SamplingParams, cache_salt: str = ""
) -> list[GenerateRequest]:
    """One request per choice: the id itself for n = 1, else `{id}-{index}`.

    A seeded request gives choice i the seed + i, so that choices differ and stay reproducible.
    Only the first choice computes the log-probabilities of the prompt, which they share.
    """
    if sampling.n == 1:
        return [GenerateRequest(request_id, prompt_token_ids, sampling, cache_salt)]
    requests = []
    for index in range(sampling.n):
        seed = sampling.seed
        if seed is not None:
            seed = (seed + index + MAX_SEED + 1) % (2 * (MAX_SEED + 1)) - MAX_SEED - 1
        choice = msgspec.structs.replace(
            sampling,
            n=1,
            seed=seed,
            prompt_logprobs=sampling.prompt_logprobs if index == 0 else None,
            logprobs_start=sampling.logprobs_start if index == 0 else 0,
        )
        requests.append(
            GenerateRequest(f"{request_id}-{index}", prompt_token_ids, choice, cache_salt)
        )
    return requests

"""What crosses between the process that owns text and the core that owns tokens.

Tagged msgspec structs over `ipc://`; nothing is ever pickled. Times are seconds; a stamp is only
compared with stamps of the process that made it (monotonic clocks differ between processes).
"""

from __future__ import annotations

from typing import Any

import msgspec

from atom.engine.sampling_params import SamplingParams


class GenerateRequest(msgspec.Struct, tag="generate", array_like=True):
    """One sequence to generate. `n > 1` is fanned out before this, one request per choice."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    cache_salt: str = ""


class AbortRequests(msgspec.Struct, tag="abort", array_like=True):
    request_ids: list[str]


class UtilityCall(msgspec.Struct, tag="utility", array_like=True):
    """A rare call by name, one of `EngineCore.UTILITIES`; answered by `UtilityReply`."""

    call_id: int
    method: str
    args: list[Any]


class Shutdown(msgspec.Struct, tag="shutdown", array_like=True):
    """Ends the core after what runs has finished, at the latest after `drain_timeout_s`."""

    drain_timeout_s: float = 0.0


ToCore = GenerateRequest | AbortRequests | UtilityCall | Shutdown


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Log-probabilities at one position: the chosen token first, then the vocabulary's best.

    Entry 0 is the chosen token; entries 1 .. k are the k best of the vocabulary in descending
    order, where the chosen one comes again if it is among them (so they are OpenAI's
    `top_logprobs`). `rank` is the chosen token's rank, from 1. They are taken from the raw
    logits (float32 log-softmax before penalties, temperature and filters), as vLLM does by default.
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


class Timings(msgspec.Struct, array_like=True):
    """Durations of one request on the core's clock, in seconds."""

    queued_s: float  # arrival at the core -> first scheduled
    prefill_s: float  # first scheduled -> first token
    decode_s: float  # first token -> last token
    preemptions: int = 0


class TokenChunk(msgspec.Struct, array_like=True):
    """New tokens of one request; the last one carries `finish_reason`.

    `finish_reason`: "stop" (eos or a stop token id; `stop_token_id` tells which), "length", "abort"
    or "error" (then `error` says why).
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # with the first chunk; [0] is None
    finish_reason: str | None = None
    stop_token_id: int | None = None
    error: str | None = None
    num_cached_tokens: int = 0  # prompt tokens whose KV came from the prefix cache
    timings: Timings | None = None  # with the last chunk
    queued_s: float | None = None  # with the first chunk; as in `Timings`


class SchedulerStats(msgspec.Struct, array_like=True):
    """Gauges and running totals of the core; sent at most a few times a second and when idle."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_used_blocks: int = 0  # referenced by a sequence
    num_cached_blocks: int = 0  # hold a published prefix, referenced or idle
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0  # prompt tokens found
    preemptions: int = 0
    prompt_tokens: int = 0  # prompt tokens really computed
    generation_tokens: int = 0
    steps: int = 0
    step_host_s: float = 0.0  # total time spent in plan + apply + collect
    step_device_s: float = 0.0  # total time spent waiting for the device
    finished: dict[str, int] = {}  # by finish_reason
    graph_steps: int = 0  # steps whose forward was a replay of captured graphs
    # Of models with window caches or recurrent state.
    num_window_blocks: int = 0
    num_used_window_blocks: int = 0
    num_checkpoints: int = 0
    num_cached_checkpoints: int = 0  # states of published prefixes
    checkpoint_saves: int = 0
    checkpoint_skips: int = 0  # for want of a checkpoint that is not being written
    checkpoint_restores: int = 0


class CoreOutputs(msgspec.Struct, tag="outputs", array_like=True):
    chunks: list[TokenChunk]
    stats: SchedulerStats | None = None


class UtilityReply(msgspec.Struct, tag="utility_reply", array_like=True):
    call_id: int
    result: Any = None
    error: str | None = None


class EngineInfo(msgspec.Struct, tag="ready", array_like=True):
    """Sent once, when the core can serve. Everything the server must know about the engine."""

    model: str
    architecture: str
    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    eos_token_ids: list[int]
    dtype: str
    device: str
    kv_cache_dtype: str
    prefix_caching: bool
    prefix_caching_reason: str  # why it is off, or ""
    policy: str
    overlap: bool
    startup_s: dict[str, float]  # phase -> seconds, in order
    memory_bytes: dict[str, int]  # weights, kv_cache, ...; "total" is the device's
    backends: dict[str, str]  # operation -> backend chosen
    graphs: str = ""  # what is captured, or why nothing is
    memory_notes: dict[str, str] = {}  # what decided a part of `memory_bytes`


class CoreFailed(msgspec.Struct, tag="failed", array_like=True):
    """The core's last words: it ends after sending this, with `status` as its exit status."""

    message: str
    status: int


FromCore = CoreOutputs | UtilityReply | EngineInfo | CoreFailed

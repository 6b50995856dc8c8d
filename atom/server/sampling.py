"""A request's sampling fields, the model's defaults and the server's caps -> `SamplingParams`."""

from __future__ import annotations

from typing import Any

from atom.config.schema import ServerConfig
from atom.engine.sampling_defaults import SamplingDefaults as SamplingDefaults
from atom.engine.sampling_params import SamplingParams
from atom.server.errors import bad_request
from atom.server.protocol import ChatBody, CompletionBody, GenerationBody

# Below this, exp(logit / temperature) is one-hot in float32: the limit is taken, argmax.
MIN_TEMPERATURE = 1e-5


def _limit(name: str, value: int, limit: int, flag: str) -> None:
    if value > limit:
        raise bad_request(f"{name} must be at most {limit} ({flag}), got {value}.", name)


def check_caps(body: GenerationBody, limits: ServerConfig) -> None:
    """Raises `ApiError` naming the field and the flag of the first cap that is exceeded."""
    _limit("n", body.n or 1, limits.max_n, "--max-n")
    stop = body.stop or []
    if len(stop) > limits.max_stop:
        raise bad_request(
            f"stop may hold {limits.max_stop} strings (--max-stop), got {len(stop)}.", "stop"
        )
    for text in stop:
        if not text:
            raise bad_request("stop must not hold an empty string.", "stop")
        if len(text) > limits.max_stop_bytes or len(text.encode()) > limits.max_stop_bytes:
            raise bad_request(
                f"A stop string may have {limits.max_stop_bytes} bytes (--max-stop-bytes).",
                "stop",
            )
    if len(body.stop_token_ids or ()) > limits.max_logit_bias:
        raise bad_request(
            f"stop_token_ids may hold {limits.max_logit_bias} ids (--max-logit-bias).",
            "stop_token_ids",
        )
    if len(body.logit_bias or ()) > limits.max_logit_bias:
        raise bad_request(
            f"logit_bias may hold {limits.max_logit_bias} entries (--max-logit-bias).",
            "logit_bias",
        )
    _limit("prompt_logprobs", body.prompt_logprobs or 0, limits.max_logprobs, "--max-logprobs")
    if isinstance(body, CompletionBody):
        _limit("logprobs", body.logprobs or 0, limits.max_logprobs, "--max-logprobs")
    elif isinstance(body, ChatBody):
        _limit("top_logprobs", body.top_logprobs or 0, limits.max_logprobs, "--max-logprobs")


def _logit_bias(entries: dict[str, float] | None) -> dict[int, float] | None:
    if not entries:
        return None
    bias: dict[int, float] = {}
    for key, value in entries.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise bad_request(
                f"logit_bias must map token ids to numbers, got the key {key[:32]!r}.",
                "logit_bias",
            )
        bias[int(key)] = value
    return bias


def build(
    body: GenerationBody,
    defaults: SamplingDefaults,
    vocab_size: int,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    """Checked parameters of every choice; `seed` and `n` are spread over choices later."""
    temperature = _or(body.temperature, defaults.temperature)
    top_k = _or(body.top_k, defaults.top_k)
    sampling = SamplingParams(
        temperature=0.0 if temperature < MIN_TEMPERATURE else temperature,
        top_k=min(top_k, vocab_size),
        top_p=_or(body.top_p, defaults.top_p),
        min_p=_or(body.min_p, defaults.min_p),
        seed=body.seed,
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        repetition_penalty=_or(body.repetition_penalty, defaults.repetition_penalty),
        logit_bias=_logit_bias(body.logit_bias),
        min_tokens=_or(body.min_tokens, 0),
        max_tokens=max_tokens,
        stop=tuple(body.stop or ()),
        stop_token_ids=tuple(dict.fromkeys(body.stop_token_ids or ())),
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=_or(body.skip_special_tokens, True),
        n=_or(body.n, 1),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )
    sampling.validate(vocab_size)
    return sampling


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value

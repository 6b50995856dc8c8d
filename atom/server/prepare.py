"""From a checked body to a `Job`: token ids, parameters of each sequence, how it is shown.

Whatever can be refused is refused here, before the answer begins.
"""

from __future__ import annotations

import uuid
from typing import NamedTuple

from msgspec.structs import replace

from atom.engine.admission import check_fits, fan_out
from atom.engine.messages import GenerateRequest
from atom.engine.sampling_params import SamplingParams
from atom.server.encode import ChatEncoder, CompletionEncoder, Encoder
from atom.server.errors import bad_request
from atom.server.generation import Choice, Presentation
from atom.server.prompts import Prompt, TextOrIds, render_chat, tokenize
from atom.server.protocol import ChatBody, CompletionBody, GenerationBody
from atom.server.respond import Job
from atom.server.sampling import build
from atom.server.state import ServerState

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's


class _Shown(NamedTuple):
    """What a protocol wants to see of every choice."""

    echo: bool
    logprobs: int | None
    prompt_logprobs: int | None

    @property
    def of_prompt(self) -> int | None:
        """Alternatives to compute at each position of the prompt."""
        echoed = self.logprobs if self.echo else None
        asked = [k for k in (self.prompt_logprobs, echoed) if k is not None]
        return max(asked, default=None)


class _MaxTokens(NamedTuple):
    given: int | None
    default: int  # 0: what the context holds


async def completion_job(
    state: ServerState, body: CompletionBody, prompts: list[TextOrIds], arrival: float
) -> Job:
    n = body.n or 1
    _check_stream_fields(body)
    if body.best_of is not None and body.best_of != n:
        raise bad_request(
            f"best_of must equal n, here {n}: there is no reranking, got {body.best_of}.",
            "best_of",
        )
    add_special = True if body.add_special_tokens is None else body.add_special_tokens
    ready = [await tokenize(state.tokenizer, prompt, add_special) for prompt in prompts]
    shown = _Shown(bool(body.echo), body.logprobs, body.prompt_logprobs)
    starts = _starts(body.logprobs_start, ready, shown)
    model = state.resolve_model(body.model)
    encoder = CompletionEncoder(model, body.logprobs, _wants_usage(body))
    tokens = _MaxTokens(body.max_tokens, DEFAULT_COMPLETION_TOKENS)
    return _job(state, body, ready, starts, tokens, shown, encoder, arrival)


def _starts(given: int | list[int] | None, prompts: list[Prompt], shown: _Shown) -> list[int]:
    """The first token of each prompt whose log-probability is wanted."""
    if given is None:
        return [0] * len(prompts)
    name = "logprobs_start"
    if shown.of_prompt is None:
        raise bad_request(f"{name} needs echo with logprobs, or prompt_logprobs.", name)
    starts = [given] * len(prompts) if isinstance(given, int) else given
    if len(starts) != len(prompts):
        raise bad_request(
            f"{name} holds {len(starts)} numbers for {len(prompts)} prompts: give one, or as many.",
            name,
        )
    for number, (start, prompt) in enumerate(zip(starts, prompts, strict=True)):
        if start > len(prompt.token_ids):
            place = f"{name}[{number}]" if isinstance(given, list) else name
            raise bad_request(
                f"{place} must be at most {len(prompt.token_ids)}, the tokens of prompt {number},"
                f" got {start}.",
                name,
            )
    return starts


async def chat_job(state: ServerState, body: ChatBody, arrival: float) -> Job:
    _check_stream_fields(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true.", "top_logprobs")
    wanted = body.max_completion_tokens
    if wanted is None:
        wanted = body.max_tokens
    elif body.max_tokens not in (None, wanted):
        raise bad_request(
            "max_tokens is the older name of max_completion_tokens: give one of them.",
            "max_tokens",
        )
    text = await render_chat(state.tokenizer, body)
    # The template writes BOS itself, where the model wants one.
    prompt = await tokenize(state.tokenizer, text, bool(body.add_special_tokens), "messages")
    num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    shown = _Shown(False, num_logprobs, body.prompt_logprobs)
    encoder = ChatEncoder(state.resolve_model(body.model), num_logprobs, _wants_usage(body))
    tokens = _MaxTokens(wanted, state.config.server.default_max_tokens)
    return _job(state, body, [prompt], [0], tokens, shown, encoder, arrival)


def _check_stream_fields(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream: true.", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise bad_request("prompt_logprobs cannot be streamed.", "prompt_logprobs")


def _wants_usage(body: GenerationBody) -> bool:
    options = body.stream_options
    return bool(options and (options.include_usage or options.continuous_usage_stats))


def _job(
    state: ServerState,
    body: GenerationBody,
    prompts: list[Prompt],
    starts: list[int],
    tokens: _MaxTokens,
    shown: _Shown,
    encoder: Encoder,
    arrival: float,
) -> Job:
    sampling = build(
        body,
        state.defaults,
        state.info.vocab_size,
        max_tokens=tokens.given,
        logprobs=shown.logprobs,
        prompt_logprobs=shown.of_prompt,
    )
    choices: list[Choice] = []
    for prompt, start in zip(prompts, starts, strict=True):
        limited = _limit_tokens(state, prompt, sampling, tokens.default)
        limited = replace(limited, logprobs_start=start) if start else limited
        requests = fan_out(uuid.uuid4().hex, prompt.token_ids, limited, body.cache_salt or "")
        choices += _choices(state, prompt, requests, shown, len(choices), arrival)
    options = body.stream_options
    return Job(
        choices,
        sampling.n,
        encoder,
        bool(body.stream),
        bool(options and options.include_usage),
        bool(options and options.continuous_usage_stats),
    )


def _choices(
    state: ServerState,
    prompt: Prompt,
    requests: list[GenerateRequest],
    shown: _Shown,
    index: int,
    arrival: float,
) -> list[Choice]:
    """The choices of one prompt, numbered from `index`."""
    sampling = requests[0].sampling
    state.metrics.on_request(len(requests), sampling.max_tokens or 0)
    echo = None
    if shown.echo:
        echo = prompt.text
        if echo is None:
            echo = state.tokenizer.decode(prompt.token_ids, sampling.skip_special_tokens)
    choices: list[Choice] = []
    for number, request in enumerate(requests):
        if shown.echo and shown.logprobs is not None:  # each choice shows them in its own time
            request.sampling = replace(
                request.sampling,
                prompt_logprobs=sampling.prompt_logprobs,
                logprobs_start=sampling.logprobs_start,
            )
        look = Presentation(
            choice=index + number,
            stop=sampling.stop,
            echo=echo,
            logprobs=shown.logprobs is not None,
            prompt_logprobs=shown.prompt_logprobs,
        )
        first = choices[0] if choices else None
        choices.append(Choice(look, request, state.tokenizer, state.metrics, arrival, first))
    return choices


def _limit_tokens(
    state: ServerState, prompt: Prompt, sampling: SamplingParams, default: int
) -> SamplingParams:
    """`sampling` with max_tokens resolved; raises `NeverFitError` with the numbers."""
    room = check_fits(len(prompt.token_ids), sampling, state.info)
    if sampling.max_tokens is None and default:
        room = min(room, default)
        if sampling.min_tokens > room:
            raise bad_request(
                f"min_tokens must be in [0, max_tokens={room}], got {sampling.min_tokens}.",
                "min_tokens",
            )
    return replace(sampling, max_tokens=room)

"""The scoring request and its answer: /v1/completions with `echo` and `logprobs` on token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from atom.eval.client.batches import Fitted
from atom.eval.errors import EvalError
from atom.eval.types import Scored

PATH = "/v1/completions"
INSTEAD = "tasks that generate text, such as gsm8k, work with it"


class Form(NamedTuple):
    """How a server is asked."""

    max_tokens: int  # 0 where the server takes it: nothing needs to be generated
    starts: bool  # our server's `logprobs_start`: only the continuation's tokens are scored


PLAIN = Form(1, starts=False)  # lm-eval's, which every server knows that can score
FORMS = {"atom": (Form(0, starts=True), Form(1, starts=True), PLAIN)}


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    logprobs: _Logprobs | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


_decoder = msgspec.json.Decoder(_Answer)


def request(form: Form, model: str, prompts: Sequence[Fitted]) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "prompt": [prompt.tokens for prompt in prompts],
        "max_tokens": form.max_tokens,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
    }
    if form.starts:
        body["logprobs_start"] = [prompt.start for prompt in prompts]
    return msgspec.json.encode(body)


def read(data: bytes, prompts: Sequence[Fitted], form: Form, server: str) -> list[Scored]:
    """The scores, in the prompts' order. Raises `EvalError` unless each answer has an entry for
    each token of its prompt: sums over others would be wrong, and look right."""
    try:
        answer = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EvalError(f"{server} gave an answer that is not understood: {error}") from None
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(len(prompts))):
        raise EvalError(
            f"{server} answered {len(choices)} of {len(prompts)} prompts of one request: "
            "ask with one prompt a request (--batch-size 1)"
        )
    return [
        _score(choice.logprobs or _Logprobs(), prompt, form, server)
        for choice, prompt in zip(choices, prompts, strict=True)
    ]


def _score(logprobs: _Logprobs, prompt: Fitted, form: Form, server: str) -> Scored:
    own, top = logprobs.token_logprobs, logprobs.top_logprobs
    _check(own, top, len(prompt.tokens), form, server)
    assert own is not None
    assert top is not None
    end = len(prompt.tokens)
    total, greedy = 0.0, True
    for logprob, best in zip(own[prompt.start : end], top[prompt.start : end], strict=True):
        if logprob is None or not best or not math.isfinite(logprob):
            raise EvalError(
                f"{server} gave no log-probability for a token that was asked for: it cannot score "
                f"prompts; {INSTEAD}"
            )
        total += logprob
        # As lm-eval decides it: exactly equal to the largest.
        greedy = greedy and logprob == max(best.values())
    return Scored(total, greedy)


def _check(
    own: list[float | None] | None,
    top: list[dict[str, float] | None] | None,
    tokens: int,
    form: Form,
    server: str,
) -> None:
    """That there are entries for the prompt's tokens and those generated, and no others."""
    if own is None:
        raise EvalError(f"{server} gave no log-probabilities: it cannot score; {INSTEAD}")
    if top is None:
        raise EvalError(f"{server} gave no top_logprobs: it cannot score; {INSTEAD}")
    if len(own) != len(top):
        raise EvalError(
            f"{server} gave {len(own)} log-probabilities and {len(top)} lists of likeliest tokens: "
            f"it cannot score; {INSTEAD}"
        )
    if tokens <= len(own) <= tokens + form.max_tokens:
        return
    if len(own) <= form.max_tokens:
        raise EvalError(
            f"{server} gives log-probabilities of generated tokens only ({len(own)}, for a prompt "
            f"of {tokens}): it cannot score prompts; {INSTEAD}"
        )
    raise EvalError(
        f"{server} gave {len(own)} log-probabilities for a prompt of {tokens} tokens: it does not "
        f"score the tokens that it is sent; {INSTEAD}"
    )

"""A side behind an OpenAI-compatible server: what it says of given tokens, how it goes on.

Two forms of scoring are known. `prompt_logprobs` (atom, vLLM) tells token ids; `echo` with
`logprobs` tells the tokens' texts, which are compared as they are. Servers that do neither, or that
answer `echo` with the generated tokens alone, are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atom.eval.agree.ask import Asker, Reply
from atom.eval.agree.types import FLOOR, Continuation, OnCount, Position, Prompt, Side, Token
from atom.eval.errors import EvalError

PATH = "/v1/completions"
# Numbers of alternatives that servers allow: atom's, vLLM's default, then OpenAI's.
FEWER = (20, 5, 1)
# Leaves the model's distribution as it is, whatever its generation config says.
_PLAIN = {"temperature": 0.0, "top_p": 1.0, "seed": 1}
_PLAIN_HERE = {"repetition_penalty": 1.0}  # atom, vLLM, SGLang know it


class ServerSide:
    """See `atom.eval.agree.types.Model`. `side.top_k` falls to what the server allows."""

    def __init__(self, asker: Asker, side: Side, on_count: OnCount) -> None:
        self.side = side
        self.texts: dict[int, str] = {}
        self.notes: list[str] = []
        self._ask = asker
        self._count = on_count
        self._form = ""  # of scoring: "prompt_logprobs", "echo"; "" not known yet

    def tokenize(self, texts: Sequence[str], special: bool = True) -> list[list[int]] | None:
        text_key, special_key = "prompt", "add_special_tokens"
        if self.side.kind == "llama.cpp":
            text_key, special_key = "content", "add_special"
        bodies = [
            {"model": self.side.model, text_key: text, special_key: special} for text in texts
        ]
        first = self._ask.post("/tokenize", bodies[0])
        if _tokens(first) is None:
            return None
        found = [_tokens(reply) for reply in self._ask.post_all("/tokenize", bodies)]
        missing = next((i for i, tokens in enumerate(found) if tokens is None), None)
        if missing is not None:
            raise EvalError(f"{self.side.name} cannot tokenize the text {texts[missing][:40]!r}")
        return [tokens for tokens in found if tokens is not None]

    def continue_(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Continuation]:
        def body(ids: Sequence[int]) -> dict[str, Any]:
            return self._body(ids, max_tokens=max_tokens, logprobs=self.side.top_k)

        replies = self._all("continued", prompts, body)
        return [self._continuation(reply) for reply in replies]

    def output_ids(
        self, prompts: Sequence[Prompt], continued: Sequence[Continuation]
    ) -> tuple[list[list[int]], int]:
        """By tokenizing prompt and answer as one text, as no server tells ids of what it made."""
        wholes = [p.text + c.text for p, c in zip(prompts, continued, strict=True)]
        found = self.tokenize(wholes)
        if found is None:
            raise EvalError(
                f"the reference {self.side.name} has no /tokenize: its continuations cannot be "
                "scored; a recipe, a vLLM or atom server or hf:PATH can be a reference"
            )
        outputs, other = [], 0
        for prompt, answer, ids in zip(prompts, continued, found, strict=True):
            start = len(prompt.ids)
            output = ids[start:]
            if ids[:start] != prompt.ids:  # the border falls into a token of the whole
                output = (self.tokenize([answer.text], special=False) or [[]])[0]
            outputs.append(output)
            other += len(output) != len(answer.positions)
        return outputs, other

    def score(self, texts: Sequence[Sequence[int]]) -> list[list[Position]]:
        if not self._form:
            self._form = self._find_form(texts[0])

        def body(ids: Sequence[int]) -> dict[str, Any]:
            return self._body(ids, max_tokens=1, **self._scoring(self._form))

        replies = self._all("scored", texts, body)
        read = self._read_ids if self._form == "prompt_logprobs" else self._read_echo
        return [read(ids, reply) for ids, reply in zip(texts, replies, strict=True)]

    # Requests

    def _body(self, ids: Sequence[int], **more: Any) -> dict[str, Any]:
        known = self.side.kind in ("atom", "vllm", "sglang")
        plain = {**_PLAIN, **(_PLAIN_HERE if known else {})}
        return {"model": self.side.model, "prompt": list(ids), **plain, **more}

    def _all(self, what: str, texts: Sequence[Sequence[int]], body: Any) -> list[dict[str, Any]]:
        """The one choice of each request; the first is sent alone, to learn what is refused."""
        first = self._first(texts[0], body)
        self._count(what, 1, len(texts))
        rest = self._ask.post_all(
            PATH,
            [body(ids) for ids in texts[1:]],
            lambda done: self._count(what, done + 1, len(texts)),
        )
        return [self._choice(reply) for reply in [first, *rest]]

    def _first(self, ids: Sequence[int], body: Any) -> Reply:
        asked = self.side.top_k
        while True:
            reply = self._ask.post(PATH, body(ids))
            if reply.status not in (400, 422) or "logprobs" not in reply.error:
                return reply
            fewer = next((k for k in FEWER if k < self.side.top_k), None)
            if fewer is None:
                return reply
            self.side.top_k = fewer
            self.notes[:] = [n for n in self.notes if not n.startswith("top ")]
            self.notes.append(
                f"top {fewer} instead of {asked} tokens: {self.side.name} allows no more "
                "(vLLM: --max-logprobs)"
            )

    def _choice(self, reply: Reply) -> dict[str, Any]:
        choices = reply.body.get("choices") if isinstance(reply.body, dict) else None
        if reply.status != 200 or not choices:
            raise EvalError(f"{self.side.name} refuses a request: {reply.error}")
        found: dict[str, Any] = choices[0]
        return found

    def _scoring(self, form: str) -> dict[str, Any]:
        if form == "prompt_logprobs":
            return {"prompt_logprobs": self.side.top_k}
        return {"echo": True, "logprobs": self.side.top_k}

    def _find_form(self, ids: Sequence[int]) -> str:
        """Ask for a few tokens in each form."""
        few, said = list(ids[:8]), ""
        for form in ("prompt_logprobs", "echo"):
            reply = self._ask.post(PATH, self._body(few, max_tokens=1, **self._few(form)))
            if reply.status != 200:
                said = reply.error
                continue
            choice = self._choice(reply)
            if form == "prompt_logprobs":
                rows = choice.get("prompt_logprobs")
                if isinstance(rows, list) and len(rows) == len(few):
                    return form
                continue
            told = len((choice.get("logprobs") or {}).get("token_logprobs") or [])
            if told == len(few) + 1:
                return form
            said = f"its answer holds {told} log-probabilities, {len(few) + 1} are due"
        raise EvalError(
            f"{self.side.name} does not tell log-probabilities of a prompt's tokens ({said}); "
            "atom, vLLM and SGLang do; llama.cpp's server and TGI tell generated tokens only"
        )

    def _few(self, form: str) -> dict[str, Any]:
        return (
            {"prompt_logprobs": 1} if form == "prompt_logprobs" else {"echo": True, "logprobs": 1}
        )

    # Answers

    def _read_ids(self, ids: Sequence[int], choice: Mapping[str, Any]) -> list[Position]:
        rows = choice.get("prompt_logprobs") or []
        if len(rows) != len(ids):
            raise EvalError(
                f"{self.side.name} tells {len(rows)} prompt_logprobs for {len(ids)} tokens"
            )
        out = []
        for token, row in zip(ids[1:], rows[1:], strict=True):
            told = {int(key): value for key, value in (row or {}).items()}
            if token not in told:
                raise EvalError(f"{self.side.name} does not tell the prompt's token {token}")
            for key, value in told.items():
                self.texts.setdefault(key, value.get("decoded_token") or "")
            pairs = {key: _number(value["logprob"]) for key, value in told.items()}
            out.append(_position(token, pairs))
        return out

    def _read_echo(self, ids: Sequence[int], choice: Mapping[str, Any]) -> list[Position]:
        told = choice.get("logprobs") or {}
        if len(told.get("token_logprobs") or []) != len(ids) + 1:
            raise EvalError(
                f"{self.side.name} tells {len(told.get('token_logprobs') or [])} log-probabilities "
                f"for {len(ids)} tokens and one more"
            )
        return _echoed(told)[1 : len(ids)]

    def _continuation(self, choice: Mapping[str, Any]) -> Continuation:
        told = choice.get("logprobs")
        if not isinstance(told, dict) or not isinstance(told.get("top_logprobs"), list):
            raise EvalError(f"{self.side.name} tells no logprobs of the tokens that it generates")
        return Continuation(choice.get("text") or "", _echoed(told), choice.get("finish_reason"))


def _tokens(reply: Reply) -> list[int] | None:
    told = reply.body.get("tokens") if isinstance(reply.body, dict) else None
    return told if reply.status == 200 and isinstance(told, list) else None


def _echoed(told: Mapping[str, Any]) -> list[Position]:
    """OpenAI's `logprobs` of completions. The first prompt token has none: it stands as certain."""
    rows = zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
    return [
        _position(token, {**(top or {}), token: 0.0 if own is None else own})
        for token, own, top in rows
    ]


def _position(own: Token, told: Mapping[Any, float | None]) -> Position:
    rest = sorted(
        ((token, _number(value)) for token, value in told.items() if token != own),
        key=lambda pair: -pair[1],
    )
    return Position([own, *(t for t, _ in rest)], [_number(told[own]), *(p for _, p in rest)])


def _number(value: float | None) -> float:
    return FLOOR if value is None else max(float(value), FLOOR)

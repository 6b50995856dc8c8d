"""Log-probabilities of token ids -> what OpenAI's completions and chat answers hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from atom.engine.messages import TokenLogprobs
from atom.engine.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from atom.engine.text.tokenizer import Tokenizer

FLOOR = -9999.0  # OpenAI's value for "very unlikely"; JSON has no infinity


class Position(NamedTuple):
    """One token of the text. `logprob` is None for a prompt's first token."""

    token_id: int
    offset: int  # characters of the text before it
    logprob: float | None
    rank: int
    top: list[tuple[int, float]]  # the chosen token and the alternatives asked for, best first


def _position(token_id: int, offset: int, values: TokenLogprobs | None) -> Position:
    if values is None:
        return Position(token_id, offset, None, 0, [])
    best: dict[int, float] = {}  # the chosen token may also be among the alternatives
    for candidate, logprob in zip(values.token_ids, values.logprobs, strict=True):
        best.setdefault(candidate, max(logprob, FLOOR))
    top = sorted(best.items(), key=lambda entry: -entry[1])
    return Position(token_id, offset, best[token_id], values.rank, top)


class TokenText:
    """Token ids as strings and bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.encoded = tokenizer.token_bytes

    def string(self, token_id: int) -> str:
        """The token's text; a token that is only a part of a character is `bytes:\\xe2\\x80`."""
        encoded = self.encoded(token_id)
        try:
            return encoded.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in encoded)


class LogprobStream:
    """Positions of one choice in order, held back as long as their text is.

    A token whose text is withheld because it may begin a stop string is withheld too: otherwise
    the stop string could be read off the log-probabilities. `prompt_ids` as for `Detokenizer`;
    empty with `echo`, where the prompt's tokens come first.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._text = Detokenizer(tokenizer, prompt_ids, (), skip_special_tokens)
        self.offset = 0  # characters up to the next token
        self._waiting: deque[Position] = deque()

    def prompt(
        self, token_ids: Sequence[int], values: Sequence[TokenLogprobs | None]
    ) -> list[Position]:
        """The prompt's tokens, for `echo`. values[0] is None: nothing precedes the first."""
        return [self._next(t, v) for t, v in zip(token_ids, values, strict=True)]

    def push(self, token_ids: Sequence[int], values: Sequence[TokenLogprobs]) -> None:
        self._waiting.extend(self._next(t, v) for t, v in zip(token_ids, values, strict=True))

    def upto(self, visible: int) -> list[Position]:
        """Those whose text has begun within the first `visible` characters."""
        out: list[Position] = []
        while self._waiting and self._waiting[0].offset < visible:
            out.append(self._waiting.popleft())
        return out

    def rest(self) -> list[Position]:
        out = list(self._waiting)
        self._waiting.clear()
        return out

    def _next(self, token_id: int, values: TokenLogprobs | None) -> Position:
        position = _position(token_id, self.offset, values)
        self.offset += len(self._text.push((token_id,)).text)
        return position


def completion_logprobs(positions: list[Position], num: int, text: TokenText) -> dict[str, Any]:
    """The `logprobs` object of /v1/completions with `num` alternatives."""
    return {
        "tokens": [text.string(p.token_id) for p in positions],
        "token_logprobs": [p.logprob for p in positions],
        "top_logprobs": [_top_dict(p, num, text) for p in positions],
        "text_offset": [p.offset for p in positions],
    }


def _top_dict(position: Position, num: int, text: TokenText) -> dict[str, float] | None:
    """The best `num` tokens, and always the chosen one. Equal strings: the likelier counts."""
    if position.logprob is None:
        return None
    best: dict[str, float] = {}
    for token_id, logprob in position.top[:num]:
        best.setdefault(text.string(token_id), logprob)
    best.setdefault(text.string(position.token_id), position.logprob)
    return best


def chat_logprobs(positions: list[Position], num: int, text: TokenText) -> dict[str, Any]:
    """The `logprobs` object of a chat choice with `num` likeliest tokens at each position."""
    return {
        "content": [
            {
                **_chat_token(p.token_id, p.logprob, text),
                "top_logprobs": [_chat_token(t, value, text) for t, value in p.top[:num]],
            }
            for p in positions
        ],
        "refusal": None,
    }


def _chat_token(token_id: int, logprob: float | None, text: TokenText) -> dict[str, Any]:
    return {
        "token": text.string(token_id),
        "logprob": logprob,
        "bytes": list(text.encoded(token_id)),
    }


def prompt_logprobs(
    values: list[TokenLogprobs | None], num: int, text: TokenText
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: per position, token id -> logprob, rank and string.

    Ranks are the places among the alternatives; only the prompt's own token may be beyond them.
    """
    return [None if value is None else _prompt_row(value, num, text) for value in values]


def _prompt_row(value: TokenLogprobs, num: int, text: TokenText) -> dict[str, Any]:
    position = _position(value.token_ids[0], 0, value)
    ranked = [(t, p, rank) for rank, (t, p) in enumerate(position.top[:num], 1)]
    own = (position.token_id, position.logprob, position.rank)
    kept = [own, *(entry for entry in ranked if entry[0] != position.token_id)]
    return {
        str(token_id): {"logprob": p, "rank": rank, "decoded_token": text.string(token_id)}
        for token_id, p, rank in kept
    }

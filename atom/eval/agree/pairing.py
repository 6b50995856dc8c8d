"""Two sides' tokens are told apart in the same way: by id where both tell ids, else by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atom.eval.agree.kl import UNREADABLE
from atom.eval.agree.types import Answers, Position, Token
from atom.eval.errors import EvalError

OURS = ("atom", "transformers")  # these write parts of characters alike and apart: bytes:\\xe2
PART = "bytes:"
SAME_TEXT = 0.99  # of the tokens must be written alike, where only texts can be paired

Scored = Sequence[Sequence[Position]]


def paired(reference: Answers, tested: Answers) -> tuple[Scored, Scored, str]:
    """What each scored, with tokens that can be compared, and "ids" or "texts".

    Raises `EvalError` where the two write tokens differently and one of them tells no ids.
    """
    p, q = reference.scored, tested.scored
    if tells_ids(p) and tells_ids(q):
        return p, q, "ids"
    p, q = readable(p, reference, tested), readable(q, tested, reference)
    own = [
        a.tokens[0] == b.tokens[0]
        for ours, theirs in zip(p, q, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    if sum(own) < SAME_TEXT * len(own):
        raise EvalError(
            f"{reference.side.name} and {tested.side.name} write tokens differently "
            f"({1 - sum(own) / len(own):.0%} of the same ids), and one of them tells no ids: "
            "their answers cannot be paired"
        )
    return p, q, "texts"


def readable(scored: Scored, side: Answers, other: Answers) -> list[list[Position]]:
    """In texts; parts of characters stay apart only where both sides write them as atom does."""
    rows = in_texts(scored, side.texts)
    if side.side.kind in OURS and other.side.kind in OURS:
        return rows
    return [[_without_parts(position) for position in row] for row in rows]


def _without_parts(position: Position) -> Position:
    told: dict[Token, float] = {}
    for token, logprob in zip(position.tokens, position.logprobs, strict=True):
        part = isinstance(token, str) and token.startswith(PART)
        told.setdefault(UNREADABLE if part else token, logprob)
    return Position(list(told), list(told.values()))


def tells_ids(scored: Scored) -> bool:
    return all(isinstance(position.tokens[0], int) for row in scored for position in row[:1])


def in_texts(scored: Scored, texts: Mapping[int, str]) -> list[list[Position]]:
    return [[_in_text(position, texts) for position in row] for row in scored]


def _in_text(position: Position, texts: Mapping[int, str]) -> Position:
    """Of several tokens of one text the own one counts, then the likeliest."""
    told: dict[Token, float] = {}
    for token, logprob in zip(position.tokens, position.logprobs, strict=True):
        told.setdefault(written(token, texts), logprob)
    return Position(list(told), list(told.values()))


def written(token: Token, texts: Mapping[int, str]) -> str:
    return texts.get(token, f"token_id:{token}") if isinstance(token, int) else token

"""Which items go into which request, and what is cut where the context is too short. Pure.

Items of one context go into one request, contexts with a common beginning into neighbouring ones,
so that a server with a prefix cache computes what they share once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from atom.eval.errors import EvalError
from atom.eval.types import GenerateItem, ScoreItem


class Fitted(NamedTuple):
    """A prompt that fits; tokens from `start` on are the continuation."""

    tokens: list[int]
    start: int
    cut: bool  # tokens of the context were left out


def fit(item: ScoreItem, limit: int | None) -> Fitted:
    """The last `limit` tokens of context and continuation, as lm-eval cuts them.

    Raises `EvalError` where not a single token of context would be left.
    """
    tokens = [*item.context, *item.continuation]
    size = len(item.continuation)
    assert item.context, "lm-eval gives a prefix token where there is no context"
    assert size, "nothing to score"
    if limit is None or len(tokens) <= limit:
        return Fitted(tokens, len(tokens) - size, cut=False)
    if size >= limit:
        raise EvalError(
            f"an answer of {size} tokens cannot be scored in a context of {limit}: start the "
            "server with a longer context, or leave the task out"
        )
    return Fitted(tokens[-limit:], limit - size, cut=True)


def fit_prompt(item: GenerateItem, limit: int | None) -> tuple[list[int], bool]:
    """The last tokens of the prompt that leave room for the answer; whether any were cut."""
    tokens = item.prompt_ids or []
    if limit is None or len(tokens) + item.max_tokens <= limit:
        return tokens, False
    room = limit - item.max_tokens
    if room <= 0:
        raise EvalError(
            f"answers of up to {item.max_tokens} tokens leave no room for a prompt in a context of "
            f"{limit}: ask for fewer (--max-gen-toks)"
        )
    return tokens[-room:], True


def batches(items: Sequence[ScoreItem], size: int) -> list[list[int]]:
    """Numbers of items, at most `size` a batch. Items of one context are not torn apart, unless
    they are more than `size`."""
    assert size >= 1
    order = sorted(range(len(items)), key=lambda i: (list(items[i].context), i))
    out: list[list[int]] = []
    for _, group in groupby(order, key=lambda i: list(items[i].context)):
        for part in _parts(list(group), size):
            if out and len(out[-1]) + len(part) <= size:
                out[-1] += part
            else:
                out.append(part)
    return out


def _parts(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def prompt_order(items: Sequence[GenerateItem]) -> list[int]:
    """Numbers of items, those with a common beginning side by side; chats stay as they come."""
    return sorted(
        range(len(items)),
        key=lambda i: (items[i].prompt or "", items[i].prompt_ids or [], i),
    )


def rolling_windows(tokens: Sequence[int], prefix: int, size: int) -> list[ScoreItem]:
    """lm-eval's windows over a text: each token is scored once, with as much context as fits.

    `size`: most tokens of one window that are scored. The first window has `prefix` for a context,
    later full ones the token before them; the last one is moved to the left, so that it has the
    longest context. No window has more than `size` + 1 tokens.
    """
    assert size >= 1
    out: list[ScoreItem] = []
    done = 0
    while done < len(tokens):
        end = min(done + size, len(tokens))
        first = max(0, end - size - 1) if done else 0
        context = list(tokens[first:done]) if done else [prefix]
        out.append(ScoreItem(context, list(tokens[done:end])))
        done = end
    return out

"""Words of which synthetic prompts are made: each is one token wherever it stands.

A prompt of n words has then exactly n tokens, as text and as ids, with no question to a server at
the time of sending. Random ids have not this property: most do not survive a round trip as text,
and among them are special tokens. The words are common ones of the bundled prompts; what a
tokenizer makes of them is asked in advance and proven on long shuffled texts.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from atom.bench.errors import BenchError
from atom.bench.workloads import draw

# What a synthetic text begins with. How a template and a first word meet differs between
# tokenizers; with a fixed begin it is a constant that is measured once.
STARTER = "Text:"
_CORPUS = ("mt_bench.jsonl", "vicuna.jsonl", "self_instruct.jsonl", "sonnet.txt")
_WORD = re.compile(r"(?<![A-Za-z'\\])[a-z]{2,12}(?![A-Za-z'])")
_CHUNK = 512  # words asked at once: short enough for a small context
_SEPARATORS = ("\n", " |", ",", " ;")
_FEWEST = 32  # words; with fewer, prompts would soon repeat each other
# Of a tokenizer that only counts:
_COUNTED = 256  # words that are tried, the most frequent
_GROUP = 32  # at once
_ENOUGH = 64

Encode = Callable[[str], list[int]]


class Pool(NamedTuple):
    """`ids[i]` is the token of " " + words[i]; ids None: the tokenizer cannot be asked."""

    words: tuple[str, ...]
    ids: tuple[int, ...] | None

    @property
    def digest(self) -> str:
        """Equal for equal tokenizers, however they were asked."""
        text = repr((self.words, self.ids))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def text_of(words: Sequence[str]) -> str:
    """A text whose tokens are those of STARTER and one per word."""
    return " ".join((STARTER, *words))


@lru_cache(maxsize=1)
def candidates() -> tuple[str, ...]:
    """Lower-case words of the bundled prompts, the most frequent first."""
    folder = files("atom.bench.workloads") / "data"
    found: Counter[str] = Counter()
    for name in _CORPUS:
        found.update(_WORD.findall((folder / name).read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda word: (-found[word], word)))


def pool_of_ids(encode: Encode) -> Pool:
    """The pool of a tokenizer. `encode`: a text's ids, without special tokens.

    Raises `BenchError` where words do not keep their tokens, as with tokens that span words.
    """
    words = candidates()
    known: dict[str, int] = {}
    for start in range(0, len(words), _CHUNK):
        known |= _single_tokens(words[start : start + _CHUNK], encode)

    head = encode(STARTER)

    def exact(chosen: Sequence[str]) -> bool:
        return encode(text_of(chosen)) == head + [known[word] for word in chosen]

    kept = _proven([word for word in words if word in known], exact)
    return Pool(kept, tuple(known[word] for word in kept))


def pool_of_counts(count: Callable[[str], int]) -> Pool:
    """The pool of a tokenizer that only tells how many tokens a text has.

    Asked sparingly, since each question is a request: whole groups of words are kept or left, and
    searched for their good ones only while there are fewer than `_ENOUGH`.
    """
    words = [word for word in candidates() if len(word) > 2][:_COUNTED]

    def exact(chosen: Sequence[str]) -> bool:
        # A word has at least one token, so a sum as small as this has no other reason. What
        # stands around the words falls out of the difference.
        twice = [*chosen, *chosen]
        return count(text_of(twice)) - count(text_of(chosen)) == len(chosen)

    groups = [words[start : start + _GROUP] for start in range(0, len(words), _GROUP)]
    passed = [exact(group) for group in groups]
    kept = {word for group, good in zip(groups, passed, strict=True) if good for word in group}
    for group, good in zip(groups, passed, strict=True):
        if not good and len(kept) < _ENOUGH:
            kept.update(_exact_part(group, exact))
    return Pool(_checked([word for word in words if word in kept], exact, len(words)), None)


def _single_tokens(words: Sequence[str], encode: Encode) -> dict[str, int]:
    """Those words that are one token behind a space, and which."""
    for separator in _SEPARATORS:
        unit = encode(" the" + f"{separator} the" * 2)
        if len(unit) < 5 or unit[-1] != unit[-3] or unit[-2] != unit[-4]:
            continue
        ids = encode(" the" + "".join(f"{separator} {word}" for word in words))
        segments: list[list[int]] = [[]]
        for token_id in ids:
            if token_id == unit[-2]:
                segments.append([])
            else:
                segments[-1].append(token_id)
        if len(segments) == len(words) + 1:
            pairs = zip(words, segments[1:], strict=True)
            return {word: segment[0] for word, segment in pairs if len(segment) == 1}
    return {}


def _proven(words: Sequence[str], exact: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """The words that keep their one token among each other, in the order given."""
    order = [words[i] for i in draw.permutation(len(words), "pool", "proof")]
    kept: set[str] = set()
    for start in range(0, len(order), _CHUNK):
        kept.update(_exact_part(order[start : start + _CHUNK], exact))
    return _checked([word for word in words if word in kept], exact, len(candidates()))


def _checked(
    pool: Sequence[str], exact: Callable[[Sequence[str]], bool], asked: int
) -> tuple[str, ...]:
    """`pool`, proven once more in another order, so with other neighbours."""
    again = [pool[i] for i in draw.permutation(len(pool), "pool", "again")]
    chunks = [again[start : start + _CHUNK] for start in range(0, len(again), _CHUNK)]
    if len(pool) < _FEWEST or not all(exact(chunk) for chunk in chunks):
        raise BenchError(
            f"no exact prompt lengths with this tokenizer: of {asked} common words only "
            f"{len(pool)} keep one token each in a text; use a data set from a file"
        )
    return tuple(pool)


def _exact_part(words: Sequence[str], exact: Callable[[Sequence[str]], bool]) -> list[str]:
    if not words or exact(words):
        return list(words)
    if len(words) == 1:
        return []
    half = len(words) // 2
    return _exact_part(words[:half], exact) + _exact_part(words[half:], exact)

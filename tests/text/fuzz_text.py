"""Random strings that tokenizers trip over, and random cuts."""

from __future__ import annotations

import random

PIECES = [
    *"aZqß",
    *("hello", "World", "don't", "I'LL", "'s", "def f():\n    return", "x=1;", "https"),
    *(" ", "  ", "    ", "\t", "\n", "\r\n", "\n\n\n", "\u00a0", "\u3000", "\u200b", "\u2028"),
    *("1", "23", "4567", "3.14", "½", "²", "٣", "१२", "Ⅷ", "0x1F", " 7", "  42"),
    *("é", "e\u0301", "日本語", "한국어", "Ω", "İ", "ﬁ", "😀", "👩‍👩‍👧", "🇩🇪", "\ufffd", "\ufeff"),
    *(".", "!?", "--", "_", "/", "\\", "#", "(a)", "<", ">", "|", "$", "\x00", "\x7f", "▁", "Ġ"),
    *("<|im_end|>", "<|im_start|>", "<|im_end", "<|eot_id|>", "<s>", "</s>", "<0x41>"),
]


def random_text(rng: random.Random, longest: int = 25) -> str:
    if rng.random() < 0.1:  # any code point but surrogates
        codes = (
            rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))) for _ in "123"
        )
        return "".join(map(chr, codes))
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(0, longest)))


def random_chunks(rng: random.Random, items: list[int]) -> list[list[int]]:
    """`items` cut at random places; some chunks are empty."""
    chunks, start = [], 0
    while start < len(items):
        size = rng.choice((0, 1, 1, 1, 2, 3, 10))
        chunks.append(items[start : start + size])
        start += size
    return chunks

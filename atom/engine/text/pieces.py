"""From token ids to bytes: the one table on which decoding, streaming and log-probabilities rest.

Both kinds of vocabulary in use spell bytes: byte-level BPE in GPT-2's printable alphabet,
SentencePiece as text with "▁" for a space and `<0xAB>` for bytes without a token of their own.
Because every token is bytes, text is the UTF-8 decoding of their concatenation, however the tokens
are cut into chunks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum

SPACE = "▁"
_TAIL_TOKENS = 64  # tokens that may be hidden, hence without bytes, are looked past
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling(Enum):
    """How a vocabulary writes bytes."""

    BYTE_LEVEL = "byte-level"
    SENTENCEPIECE = "sentencepiece"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters are themselves, the other bytes are numbered
    upwards from U+0100."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(kept)]
    return {chr(b): b for b in kept} | {chr(0x100 + i): b for i, b in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


def piece_bytes(token: str, spelling: Spelling) -> bytes:
    """The bytes of one vocabulary entry."""
    if spelling is Spelling.BYTE_LEVEL:
        try:
            return bytes(BYTE_ALPHABET[c] for c in token)
        except KeyError:  # not spelled in the alphabet, so it is plain text
            return token.encode()
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(SPACE, " ").encode()


class PieceTable(dict[int, bytes]):
    """id -> bytes, filled as ids are met. Ids without a token, and those `hidden`, are empty."""

    def __init__(
        self,
        token_of: Callable[[int], str | None],
        spelling: Spelling,
        literal: Mapping[int, str],
        hidden: Iterable[int] = (),
    ) -> None:
        """`literal`: added tokens, whose spelling is their text."""
        super().__init__((i, text.encode()) for i, text in literal.items())
        self.update((i, b"") for i in hidden)
        self._token_of = token_of
        self._spelling = spelling

    def __missing__(self, token_id: int) -> bytes:
        token = self._token_of(token_id) if 0 <= token_id < 1 << 32 else None
        piece = b"" if token is None else piece_bytes(token, self._spelling)
        self[token_id] = piece
        return piece


def tail_bytes(pieces: Mapping[int, bytes], token_ids: Sequence[int]) -> bytes:
    """The last bytes of `token_ids`: at least three if there are so many, as many as an unfinished
    UTF-8 character can have."""
    tail = b""
    for token_id in reversed(token_ids[-_TAIL_TOKENS:]):
        tail = pieces[token_id] + tail
        if len(tail) >= 3:
            break
    return tail

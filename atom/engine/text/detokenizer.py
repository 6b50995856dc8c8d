"""From a stream of token ids to a stream of text that a client may see.

What is sent is final: a character is sent once all its bytes are there, and text that may turn out
to be the beginning of a stop string is held back until that is decided.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import NamedTuple

from atom.engine.text.pieces import tail_bytes
from atom.engine.text.stop_matcher import StopMatcher
from atom.engine.text.tokenizer import Tokenizer

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class TextDelta(NamedTuple):
    """Text to send, the stop string that ended it, and how many of the pushed tokens it took."""

    text: str
    stop_str: str | None
    num_tokens_used: int


class Detokenizer:
    """The text of one sequence, token by token; constant time per token.

    The concatenated deltas and `finish()` are the decoding of all tokens, up to the first stop
    string: the one that ends first (of several that end together, the longest). The stop itself is
    never sent unless `include_stop_str_in_output`. A stop that is complete within the first
    `min_tokens` tokens is ordinary text. Invalid bytes become U+FFFD. `prompt_ids` matter where the
    text continues the prompt's: a character begun there, or the first space of a SentencePiece
    vocabulary.
    """

    __slots__ = (
        "_decode",
        "_held",
        "_include",
        "_matcher",
        "_min_tokens",
        "_pieces",
        "_state",
        "_strip_first",
        "num_tokens",
        "stop_str",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stop: tuple[str, ...] = (),
        skip_special_tokens: bool = True,
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self.stop_str: str | None = None
        self.num_tokens = 0
        self._pieces = tokenizer.pieces(skip_special_tokens)
        self._decode = _utf8_decoder("replace").decode
        self._decode(tail_bytes(self._pieces, prompt_ids))  # keeps what is unfinished of it
        self._strip_first = tokenizer.strips_first_space and not any(
            self._pieces[token_id] for token_id in prompt_ids
        )
        self._matcher = StopMatcher(stop) if stop else None
        self._state = 0
        self._held = ""
        self._include = include_stop_str_in_output
        self._min_tokens = min_tokens

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """The text that `token_ids` settle. After a stop, further tokens are ignored."""
        if self.stop_str is not None:
            return TextDelta("", self.stop_str, 0)
        if self._matcher is None:
            self.num_tokens += len(token_ids)
            pieces = self._pieces
            text = self._text(b"".join([pieces[i] for i in token_ids]))
            return TextDelta(text, None, len(token_ids))
        out: list[str] = []
        for used, token_id in enumerate(token_ids, 1):
            self.num_tokens += 1
            text = self._text(self._pieces[token_id])
            if text:
                out.append(self._sift(text, self._matcher))
                if self.stop_str is not None:
                    return TextDelta("".join(out), self.stop_str, used)
        return TextDelta("".join(out), None, len(token_ids))

    def finish(self) -> str:
        """What is still held when the sequence has ended; empty after a stop."""
        if self.stop_str is not None:
            return ""
        text = self._text(b"", final=True)
        if self._matcher is None:
            return text
        sent = self._sift(text, self._matcher)
        if self.stop_str is None:
            sent, self._held = sent + self._held, ""
        return sent

    def _text(self, data: bytes, final: bool = False) -> str:
        text = self._decode(data, final)
        if self._strip_first and text:
            self._strip_first = False
            text = text.removeprefix(" ")
        return text

    def _sift(self, text: str, matcher: StopMatcher) -> str:
        """Take in new text; returns what may be sent, and notes a stop."""
        known = self._held + text
        if self.num_tokens <= self._min_tokens:
            self._state = matcher.skip(self._state, text)
        else:
            self._state, read, found = matcher.scan(self._state, text)
            if found >= 0:
                self.stop_str = matcher.stops[found]
                end = len(self._held) + read
                self._held = ""
                return known[: end if self._include else end - len(self.stop_str)]
        hold = 0 if self._include else matcher.hold(self._state)
        cut = len(known) - hold
        self._held = known[cut:]
        return known[:cut]

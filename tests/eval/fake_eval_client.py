"""A `Client` in memory: bytes are tokens, log-probabilities a hash, answers by a rule."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from atom.eval.errors import EvalError
from atom.eval.types import (
    Counts,
    Generated,
    GenerateItem,
    Message,
    Scored,
    ScoreItem,
    SpecialTokens,
)

BOS, EOS = 256, 257
NAMES = {BOS: "<s>", EOS: "</s>"}


def hashed_logprob(tokens: Sequence[int]) -> float:
    """Of the last token after those before it: in (-8, 0)."""
    digest = hashlib.sha256(repr(list(tokens)).encode()).digest()
    return -8.0 * int.from_bytes(digest[:6], "big") / 2**48


class FakeClient:
    """Follows `atom.eval.types.Client`. `answer` makes a generation from its prompt's text."""

    def __init__(
        self,
        answer: Callable[[str], str] = lambda prompt: " nothing",
        *,
        adds_bos: bool = False,
        has_tokenizer: bool = True,
        max_model_len: int | None = None,
    ) -> None:
        self.max_model_len = max_model_len
        self.counts = Counts()
        self.notes: list[str] = []
        self.scored: list[ScoreItem] = []
        self.asked: list[GenerateItem] = []
        self._answer = answer
        self._adds_bos = adds_bos
        self._has_tokenizer = has_tokenizer

    def score(self, items: Sequence[ScoreItem], detail: str = "") -> list[Scored]:
        self.scored += items
        self.counts.requests += 1
        self.counts.prompt_tokens += sum(len(i.context) + len(i.continuation) for i in items)
        return [self.score_one(item) for item in items]

    @staticmethod
    def score_one(item: ScoreItem) -> Scored:
        assert item.context
        assert item.continuation
        whole = [*item.context, *item.continuation]
        ends = range(len(item.context) + 1, len(whole) + 1)
        values = [hashed_logprob(whole[:end]) for end in ends]
        return Scored(sum(values), all(value > -0.5 for value in values))

    def score_rolling(self, texts: Sequence[Sequence[int]], prefix: int) -> list[float]:
        return [s.logprob for s in self.score([ScoreItem([prefix], text) for text in texts])]

    def generate(self, items: Sequence[GenerateItem], detail: str = "") -> list[Generated]:
        self.asked += items
        self.counts.requests += len(items)
        return [self._generate(item) for item in items]

    def _generate(self, item: GenerateItem) -> Generated:
        if item.messages is not None:
            prompt = str(item.messages[-1]["content"])
        else:
            prompt = item.prompt or self.detokenize(item.prompt_ids or [])
        text = self._answer(prompt)
        cut = text[: item.max_tokens]
        self.counts.output_tokens += len(cut)
        reason = "length" if cut != text else "stop"
        return Generated(cut, reason, len(prompt), len(cut))

    def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = False
    ) -> list[list[int]]:
        if not self._has_tokenizer:
            raise EvalError("the server has no /tokenize: name the model's tokenizer")
        return [self._tokens(text, add_special_tokens) for text in texts]

    def _tokens(self, text: str, special: bool) -> list[int]:
        tokens = [BOS] if special and self._adds_bos else []
        for token, name in NAMES.items():
            if text.startswith(name):
                tokens.append(token)
                text = text[len(name) :]
        return [*tokens, *text.encode()]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        parts = [NAMES.get(t, "").encode() if t in NAMES else bytes([t]) for t in token_ids]
        return b"".join(parts).decode()

    def chat_prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        lines = "".join(f"[{m['role']}]{m['content']}" for m in messages)
        return f"<s>{lines}{'[assistant]' if add_generation_prompt else ''}"

    def special_tokens(self) -> SpecialTokens:
        return SpecialTokens(BOS if self._adds_bos else None, EOS, "a template")

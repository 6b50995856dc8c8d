"""The text side of the client: the server's tokenizer, or one in files that must agree with it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from atom.bench.client import ServerInfo
from atom.eval.client.book import Book
from atom.eval.client.tokens import NO_TOKENIZER, Local, Remote, render
from atom.eval.errors import EvalError
from atom.eval.types import Message, SpecialTokens

T = TypeVar("T")


class Wait(Protocol):
    """Runs a coroutine on the client's loop."""

    def __call__(self, work: Coroutine[Any, Any, T], /) -> T: ...


class Texts:
    """Blocking. Raises `EvalError` where neither the server nor files can do it."""

    def __init__(
        self, info: ServerInfo, server: str, remote: Remote, local: Local | None, book: Book
    ) -> None:
        self._info = info
        self._server = server
        self._remote = remote
        self._local = local
        self._book = book
        self._local_checked = False
        self._special: tuple[SpecialTokens, dict[str, str]] | None = None

    def tokenize(self, texts: Sequence[str], add_special: bool, wait: Wait) -> list[list[int]]:
        if self._local is not None:
            self._check_local(self._local, texts, wait)
            return self._local.tokenize(texts, add_special)
        self._need_remote()
        done: Callable[[int], None] = lambda _: None  # noqa: E731
        if len(texts) > 1:
            self._book.begin_plain("building prompts", len(set(texts)), "tokens")
            done = self._book.advance
        return wait(self._remote.tokenize(texts, add_special, done))

    def _need_remote(self) -> None:
        if not self._info.has_tokenize:
            raise EvalError(f"{self._server} has no /tokenize: {NO_TOKENIZER}")

    def _check_local(self, local: Local, texts: Sequence[str], wait: Wait) -> None:
        """Once: other tokens than the server's would give scores that look right and are not."""
        probe = next((text for text in texts if text), None)
        if self._local_checked or probe is None:
            return
        self._local_checked = True
        if not self._info.has_tokenize:
            return
        theirs = wait(self._remote.tokenize([probe], False, lambda _: None))
        if theirs != local.tokenize([probe], False):
            raise EvalError(
                f"--tokenizer {local.path}: it splits text otherwise than {self._server} does; "
                "without it the server's own is used"
            )

    def detokenize(self, token_ids: Sequence[int], wait: Wait) -> str:
        if self._local is not None:
            return self._local.detokenize(token_ids)
        self._need_remote()
        return wait(self._remote.detokenize(token_ids))

    def chat_prompt(self, messages: Sequence[Message], opens: bool, wait: Wait) -> str:
        special, spellings = self.specials(wait)
        if special.chat_template is not None:
            return render(special.chat_template, spellings, messages, opens)
        if self._local is not None:
            raise EvalError(f"--tokenizer {self._local.path} has no chat template")
        self._need_remote()
        return wait(self._remote.chat_prompt(messages, opens))

    def specials(self, wait: Wait) -> tuple[SpecialTokens, dict[str, str]]:
        if self._special is None:
            if self._local is not None:
                self._special = self._local.special_tokens(), self._local.spellings
            elif self._info.has_tokenize:
                self._special = wait(self._remote.special_tokens())
            else:
                self._special = SpecialTokens(None, None), {}
        return self._special

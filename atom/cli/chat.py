"""The chat of `atom run`: reads lines, keeps the history, prints answers as they come."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from atom.cli.answers import Answerer, Message, Question, Usage
from atom.errors import RequestError

HELP = """\
/exit           leave (also Ctrl-D)
/reset          forget the conversation
/system [TEXT]  set the system prompt and start anew; without TEXT: none
/help           this list
Ctrl-C stops the answer. A line that ends in \\ goes on in the next one."""


@dataclass(slots=True)
class Chat:
    """One conversation. `write` takes text as it comes, `note` a line about the conversation."""

    answerer: Answerer
    sampling: dict[str, Any]
    system: str | None = None
    raw: bool = False  # continue each text as it stands; nothing is remembered
    show_usage: bool = False
    write: Callable[[str], None] = lambda text: _write(text)
    note: Callable[[str], None] = lambda text: _note(text)
    history: list[Message] = field(default_factory=list)
    stopped: bool = False  # whether Ctrl-C ended the last answer

    def ask(self, text: str) -> str:
        """Stream one answer; Ctrl-C ends it and keeps what was said."""
        user: Message = {"role": "user", "content": text}
        answer, self.stopped = "", False
        pieces = self.answerer.stream(self._question(user))
        try:
            for piece in pieces:
                answer += piece
                self.write(piece)
        except KeyboardInterrupt:
            self.stopped = True
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        self.write("\n")
        if not self.raw and answer:
            self.history += [user, {"role": "assistant", "content": answer}]
        if self.stopped:
            self.note("stopped")
        elif self.show_usage:
            self.note(describe(self.answerer.usage))
        return answer

    def _question(self, user: Message) -> Question:
        if self.raw:
            return Question(text=user["content"], sampling=self.sampling)
        return Question(messages=(*self.opening(), *self.history, user), sampling=self.sampling)

    def opening(self) -> tuple[Message, ...]:
        return () if self.system is None else ({"role": "system", "content": self.system},)

    def command(self, line: str) -> bool:
        """Obey a /command; returns False if it ends the chat."""
        name, _, rest = line.partition(" ")
        if name in ("/exit", "/quit", "/bye"):
            return False
        if name == "/reset":
            self.history.clear()
            self.note("forgotten")
        elif name == "/system":
            self.history.clear()
            self.system = rest.strip() or None
            self.note("system prompt set" if self.system else "no system prompt")
        else:
            self.note(HELP if name in ("/help", "/?") else f"no command {name}\n{HELP}")
        return True


def converse(chat: Chat, read: Callable[[str], str]) -> None:
    """The loop until /exit or the end of input. `read(prompt)` gives a line, like `input`."""
    chat.note(f"{chat.answerer.name}: /help lists the commands, /exit leaves")
    while True:
        try:
            line = _read_lines(read)
        except EOFError:
            chat.write("\n")
            return
        except KeyboardInterrupt:  # a line thought better of
            chat.write("\n")
            continue
        if not line.strip():
            continue
        if line.startswith("/") and not line.startswith("//"):
            if not chat.command(line.strip()):
                return
            continue
        try:
            chat.ask(line.removeprefix("/") if line.startswith("//") else line)
        except RequestError as error:  # this question was wrong; the next one need not be
            chat.note(f"error: {error}")


def _read_lines(read: Callable[[str], str]) -> str:
    line = read(">>> ")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read("... ")
    return line


def describe(usage: Usage) -> str:
    return (
        f"{usage.prompt_tokens} prompt tokens, {usage.completion_tokens} new "
        f"({usage.finish_reason}); first after {usage.ttft_s:.2f} s, "
        f"then {usage.tokens_per_s:.1f} tokens/s"
    )


def enable_line_editing() -> None:
    """Arrow keys and history in `input()`, where the platform has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
    sys.stdout.flush()
    sys.stderr.write(f"{dim}{text}{plain}\n")
    sys.stderr.flush()

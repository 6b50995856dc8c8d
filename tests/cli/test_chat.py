"""The chat loop, with a scripted answerer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from atom.cli.answers import Question, Usage
from atom.cli.chat import Chat, converse
from atom.errors import EngineDeadError, RequestError


class Scripted:
    """Answers with the given pieces; an exception among them is raised there."""

    name = "scripted"
    can_chat = True

    def __init__(self, *answers: list[str | BaseException]) -> None:
        self.answers = list(answers)
        self.questions: list[Question] = []
        self.open = 0
        self.usage = Usage("stop", 3, 2, 0.5, 1.5)

    def stream(self, question: Question) -> Iterator[str]:
        self.questions.append(question)
        answer = self.answers.pop(0)

        def pieces() -> Iterator[str]:
            self.open += 1
            try:
                for piece in answer:
                    if isinstance(piece, BaseException):
                        raise piece
                    yield piece
            finally:
                self.open -= 1

        return pieces()

    def close(self) -> None:
        pass


class Terminal:
    """What was shown, and a reader of scripted lines."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines = list(lines)
        self.out = ""
        self.notes: list[str] = []

    def read(self, prompt: str) -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def write(self, text: str) -> None:
        self.out += text


@pytest.fixture
def talk() -> Callable[..., tuple[Chat, Terminal]]:
    def start(
        answerer: Scripted, *lines: str | BaseException, raw: bool = False
    ) -> tuple[Chat, Terminal]:
        terminal = Terminal(*lines)
        chat = Chat(answerer, {"temperature": 0.0}, raw=raw)
        chat.write, chat.note = terminal.write, terminal.notes.append
        converse(chat, terminal.read)
        return chat, terminal

    return start


Talk = Callable[..., tuple[Chat, Terminal]]


def test_history_goes_along(talk: Talk) -> None:
    answerer = Scripted(["Hel", "lo"], ["again"])
    _, terminal = talk(answerer, "hi", "", "more", "/exit", "never read")
    assert terminal.out == "Hello\nagain\n"
    assert terminal.lines == ["never read"]
    first, second = answerer.questions
    assert first.messages == ({"role": "user", "content": "hi"},)
    assert [m["content"] for m in second.messages] == ["hi", "Hello", "more"]
    assert second.sampling == {"temperature": 0.0}


def test_commands(talk: Talk) -> None:
    answerer = Scripted(["a"], ["b"], ["c"])
    lines = ["one", "/system Be brief.", "two", "/reset", "three", "/system", "/help", "/wat"]
    chat, terminal = talk(answerer, *lines)
    assert [[m["content"] for m in q.messages] for q in answerer.questions] == [
        ["one"],
        ["Be brief.", "two"],
        ["Be brief.", "three"],
    ]
    assert answerer.questions[1].messages[0]["role"] == "system"
    assert chat.system is None
    assert any("no command /wat" in note for note in terminal.notes)


def test_a_double_slash_is_text(talk: Talk) -> None:
    answerer = Scripted(["ok"])
    talk(answerer, "//exit is a command")
    assert answerer.questions[0].messages[-1]["content"] == "/exit is a command"


def test_a_line_may_go_on(talk: Talk) -> None:
    answerer = Scripted(["ok"])
    talk(answerer, "one\\", "two")
    assert answerer.questions[0].messages[-1]["content"] == "one\ntwo"


def test_interrupt_stops_the_answer_not_the_chat(talk: Talk) -> None:
    answerer = Scripted(["par", KeyboardInterrupt()], ["whole"])
    chat, terminal = talk(answerer, KeyboardInterrupt(), "one", "two")
    assert terminal.out == "\npar\nwhole\n\n"
    assert "stopped" in terminal.notes
    assert [m["content"] for m in answerer.questions[1].messages] == ["one", "par", "two"]
    assert not chat.stopped


def test_an_interrupt_while_printing_closes_the_stream() -> None:
    answerer = Scripted(["a", "b"])
    chat = Chat(answerer, {}, note=lambda _: None)

    def write(text: str) -> None:
        if text == "a":
            raise KeyboardInterrupt

    chat.write = write
    assert chat.ask("x") == "a"
    assert answerer.open == 0
    assert chat.stopped


def test_a_wrong_question_does_not_end_the_chat(talk: Talk) -> None:
    answerer = Scripted([RequestError("too long")], ["fine"])
    chat, terminal = talk(answerer, "one", "two")
    assert "error: too long" in terminal.notes
    assert [m["content"] for m in chat.history] == ["two", "fine"]


def test_a_dead_engine_does(talk: Talk) -> None:
    with pytest.raises(EngineDeadError):
        talk(Scripted([EngineDeadError("gone")]), "one")


def test_raw_text_has_no_history(talk: Talk) -> None:
    answerer = Scripted(["a"], ["b"])
    talk(answerer, "one", "two", raw=True)
    assert [(q.text, q.messages) for q in answerer.questions] == [("one", ()), ("two", ())]


def test_usage_is_told() -> None:
    notes: list[str] = []
    chat = Chat(Scripted(["a"]), {}, show_usage=True, write=lambda _: None, note=notes.append)
    chat.ask("x")
    assert notes == ["3 prompt tokens, 2 new (stop); first after 0.50 s, then 1.0 tokens/s"]

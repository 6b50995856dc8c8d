"""The bytes and the timetable of one mocked answer, and the mock's tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mock_behaviour import Behaviour

WORD = " tok"
_PIECE = re.compile(rb" [a-z]{3}|.", re.DOTALL)
VOCAB_SIZE = 256 + 26**3


def encode(text: str) -> list[int]:
    """A space and three letters are one token (256 on); any other byte is its own."""
    ids = []
    for piece in _PIECE.findall(text.encode()):
        if len(piece) == 4:
            a, b, c = (letter - 97 for letter in piece[1:])
            ids.append(256 + (a * 26 + b) * 26 + c)
        else:
            ids.append(piece[0])
    return ids


def decode(ids: list[int]) -> str:
    parts = []
    for token in ids:
        if token < 256:
            parts.append(bytes((token,)))
        else:
            rest, c = divmod(token - 256, 26)
            parts.append(bytes((32, 97 + rest // 26, 97 + rest % 26, 97 + c)))
    return b"".join(parts).decode("utf-8", "replace")


def chat_text(messages: list[dict[str, Any]]) -> str:
    """The mock's chat template: seven tokens a message, three to open the answer."""
    return "".join(f"<|{m['role'][0]}|>{m['content']}\n\n" for m in messages) + "<|a"[:3]


class Ask(NamedTuple):
    """A generation request, read."""

    index: int  # order of arrival
    chat: bool
    stream: bool
    prompt: str  # its beginning
    prompt_tokens: int
    max_tokens: int
    include_usage: bool
    continuous: bool
    behaviour: Behaviour


class Step(NamedTuple):
    """What happens next: `data` leaves `gap_s` after the last step and carries `tokens`."""

    gap_s: float
    data: bytes
    tokens: int = 0
    after: str = ""  # opening; end: answer complete; cut, reset: the connection goes; hang; idle


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST = b"0\r\n\r\n"
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Stream:
    """Makes the steps of one streamed answer; `active()` tells how many are in service."""

    def __init__(self, ask: Ask, queue_s: float, active: Any) -> None:
        self.ask, self.b, self.queue_s, self.active = ask, ask.behaviour, queue_s, active
        eos_at = self.b.eos_at
        self.total = ask.max_tokens if eos_at is None else min(eos_at, ask.max_tokens)
        fault = self.b.fault(ask.index)
        if fault is not None and fault.number >= self.total:
            fault = None  # the answer ends before
        self.fault = fault.kind if fault else ""
        self.fault_at = fault.number if fault else 0
        usage = self.b.usage
        self.final_usage = ask.include_usage and usage != "none"
        self.continuous = self.final_usage and ask.continuous and usage == "auto"
        kind = "chat.completion.chunk" if ask.chat else "text_completion"
        stem = "chatcmpl" if ask.chat else "cmpl"
        self.envelope = (
            f'{{"id":"{stem}-{ask.index}","object":"{kind}","created":1700000000,'
            f'"model":{json.dumps(self.b.model)},"choices":['
        )

    def usage(self, tokens: int, final: bool) -> str:
        """Six places for the count, so that chunks of a stream have one length."""
        prompt = self.ask.prompt_tokens
        text = (
            f'{{"prompt_tokens":{prompt},"completion_tokens":{tokens:6d},'
            f'"total_tokens":{prompt + tokens:6d}'
        )
        if self.b.cached_tokens is not None:
            text += f',"prompt_tokens_details":{{"cached_tokens":{self.b.cached_tokens}}}'
        if final and self.b.extras:
            text += f',"queue_s":{self.queue_s:.6f},"ttft_s":{self.b.ttft_ms / 1e3:.6f}'
        return text + "}"

    def event(self, body: str) -> bytes:
        if self.b.multiline:
            body = body.replace(',"choices"', ',\ndata: "choices"', 1)
        text = f"{': ping' + chr(10) if self.b.comments else ''}data: {body}\n\n"
        return (text.replace("\n", "\r\n") if self.b.crlf else text).encode()

    def chunk(self, text: str, so_far: int, reason: str | None = None, role: bool = False) -> bytes:
        finish = f'"{reason}"' if reason else "null"
        if not self.ask.chat:
            said = f'"text":{json.dumps(text)}'
        elif role:
            said = '"delta":{"role":"assistant","content":""}'
        elif not text:
            said = '"delta":{}'
        else:
            thinks = 0 < so_far <= self.b.reasoning_tokens
            name = "reasoning_content" if thinks else "content"
            said = f'"delta":{{"{name}":{json.dumps(text)}}}'
        choice = f'{{"index":0,{said},"logprobs":null,"finish_reason":{finish}}}]'
        if self.continuous:
            choice += f',"usage":{self.usage(so_far, False)}'
        elif self.final_usage:
            choice += ',"usage":null'
        return self.event(f"{self.envelope}{choice}}}")

    def ending(self, tokens: int) -> bytes:
        data = b""
        if self.final_usage:
            data = self.event(f'{self.envelope}],"usage":{self.usage(tokens, True)}}}')
        return data + (self.event("[DONE]") if self.b.done else b"")

    def steps(self) -> Iterator[Step]:
        """Every step but those that `split` makes of them."""
        if self.fault == "reset" and not self.fault_at:
            yield Step(0.0, b"", 0, "reset")
            return
        before = 0.0
        head = HEAD
        if self.b.opening if self.ask.chat else self.b.empty_first:
            before = self.b.opening_ms / 1e3
            opening = framed(self.chunk("", 0, role=self.ask.chat))
            yield Step(before, HEAD + opening, after="opening")
            head = b""
        if self.fault == "empty":
            data = self.chunk("", 0, "stop") + self.ending(0)
            yield Step(self.b.ttft_ms / 1e3, head + framed(data) + LAST, 0, "end")
            return
        yield from self._tokens(head, before)

    def _tokens(self, head: bytes, before: float) -> Iterator[Step]:
        b, ask, size = self.b, self.ask, self.b.tokens_per_chunk
        sent, total = 0, self.total
        stop = "length" if total == ask.max_tokens else "stop"
        end = min(total, self.fault_at) if self.fault else total
        template = self._template()
        gap = b.ttft_ms / 1e3 + b.prefill_us * ask.prompt_tokens / 1e6
        gap = max(0.0, gap + b.hold_tokens // size * b.itl_ms / 1e3 - before)
        while sent < end:
            count = min(size if sent or not b.hold_tokens else b.hold_tokens + size, end - sent)
            wait = gap + b.load_ms * self.active() / 1e3 + b.stall_s(ask.index, sent, count)
            sent += count
            gap = b.itl_ms / 1e3
            if template and sent < total and count == size and not head:
                numbers = (sent, ask.prompt_tokens + sent) if self.continuous else ()
                yield Step(wait, template % numbers, count)
            elif sent < total or b.finish_apart:
                yield Step(wait, head + framed(self.chunk(WORD * count, sent)), count)
            else:
                data = self.chunk(WORD * count, sent, stop) + self.ending(sent)
                yield Step(wait, head + framed(data) + LAST, count, "end")
                return
            head = b""
        yield from self._close(head, gap, sent, stop)

    def _template(self) -> bytes:
        """A middle chunk in its frame, to be filled with the counts; empty where chunks differ."""
        b = self.b
        if b.reasoning_tokens:
            return b""
        size = len(self.chunk(WORD * b.tokens_per_chunk, 1))
        body = self.chunk(WORD * b.tokens_per_chunk, -1).replace(b"%", b"%%")
        prompt = self.ask.prompt_tokens
        body = body.replace(b'"completion_tokens":%6d' % -1, b'"completion_tokens":%6d')
        body = body.replace(b'"total_tokens":%6d' % (prompt - 1), b'"total_tokens":%6d')
        return b"%x\r\n%b\r\n" % (size, body)

    def _close(self, head: bytes, gap: float, sent: int, stop: str) -> Iterator[Step]:
        """How a stream ends that has not ended with its last token."""
        match self.fault:
            case "":
                data = self.chunk("", sent, stop) + self.ending(sent)
            case "event":
                error = '{"error":{"message":"the mock fails here","type":"server_error"}}'
                data = self.event(error) + self.event("[DONE]")
            case "garbage":
                data = self.event('{"id": oops') + self.ending(sent)
            case "close":
                data = b""
            case _:
                yield Step(gap, head, 0, self.fault)
                return
        wait = gap if self.fault else 0.0
        yield Step(wait, head + (framed(data) if data else b"") + LAST, 0, "end")


def split(steps: Iterator[Step], size: int, gap_s: float) -> Iterator[Step]:
    """Each step in pieces. The one that completes the first event carries the tokens, the last one
    what comes after."""
    for step in steps:
        data = step.data
        start = len(HEAD) if data.startswith(HEAD) else 0
        # A bare CR ends a line, too: the event is complete with it.
        blank = b"\r\n\r" if b"\r\n\r\n" in data[start:-2] else b"\n\n"
        complete = data.find(blank, start) + len(blank) - 1
        for place in range(0, max(1, len(data)), size):
            carries = place <= complete < place + size
            yield Step(
                step.gap_s if place == 0 else gap_s,
                data[place : place + size],
                step.tokens if carries else 0,
                step.after if place + size >= len(data) else "",
            )


def whole_answer(ask: Ask, queue_s: float, active: int) -> Step:
    """The answer of a request that does not stream: one step."""
    b, stream = ask.behaviour, Stream(ask, queue_s, lambda: active)
    total = stream.total
    chunks = -(-total // b.tokens_per_chunk)
    wait = b.ttft_ms + b.prefill_us * ask.prompt_tokens / 1e3 + max(0, chunks - 1) * b.itl_ms
    wait += b.load_ms * active * chunks
    reason = "length" if total == ask.max_tokens else "stop"
    said = {"message": {"role": "assistant", "content": WORD * total}}
    choice = {"index": 0, **(said if ask.chat else {"text": WORD * total}), "finish_reason": reason}
    body = {
        "id": f"cmpl-{ask.index}",
        "object": "chat.completion" if ask.chat else "text_completion",
        "created": 1700000000,
        "model": b.model,
        "choices": [choice],
        "usage": json.loads(stream.usage(total, True)),
    }
    wait_s = wait / 1e3 + b.stall_s(ask.index, 0, total)
    return Step(wait_s, json.dumps(body).encode(), total, "end")

"""Answers from the engine in this process."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from atom.cli.answers import Question, Usage, timed
from atom.config.fields import settings, value_of
from atom.config.schema import Config
from atom.engine.llm import LLM
from atom.engine.messages import GenerateRequest, TokenChunk
from atom.engine.sampling_params import SamplingParams
from atom.engine.text.detokenizer import Detokenizer
from atom.errors import RequestError


class LocalAnswerer:
    """Loads the model of `config`. One sequence runs at a time; the prefix cache keeps the chat."""

    def __init__(self, config: Config) -> None:
        values = {s.name: value_of(config, s) for s in settings().values()}
        self._llm = LLM(**values)
        self.name = self._llm.core.info.model
        self.can_chat = self._llm.tokenizer.has_chat_template
        self.usage = Usage()
        self._ids = (f"run-{number}" for number in itertools.count())

    def close(self) -> None:
        self._llm.close()

    def stream(self, question: Question) -> Iterator[str]:
        self.usage = Usage()
        return timed(self._pieces(question), self.usage)

    def _prompt(self, question: Question) -> list[int]:
        tokenizer = self._llm.tokenizer
        if question.text is not None:
            return tokenizer.encode(question.text)
        text = tokenizer.apply_chat_template(question.messages)
        return tokenizer.encode(text, add_special_tokens=False)

    def _sampling(self, given: dict[str, Any]) -> SamplingParams:
        values = {"max_tokens": None, **given, "stop": tuple(given.get("stop") or ())}
        return self._llm.default_sampling(**values)

    def _pieces(self, question: Question) -> Iterator[str]:
        prompt = self._prompt(question)
        sampling = self._sampling(question.sampling)
        text = Detokenizer(self._llm.tokenizer, prompt, sampling.stop)
        request_id = next(self._ids)
        self.usage.prompt_tokens = len(prompt)
        with _interrupts_wait() as interrupted:
            self._llm.core.add(GenerateRequest(request_id, prompt, sampling))
            try:
                while self.usage.finish_reason is None:
                    piece = self._take(self._llm.core.step(), text)
                    if interrupted.is_set():
                        raise KeyboardInterrupt
                    if piece:
                        yield piece
            finally:
                self._end(request_id)

    def _take(self, chunks: Sequence[TokenChunk], text: Detokenizer) -> str:
        """The text of one step's chunks; there is one request, so all are its own."""
        piece = ""
        for chunk in chunks:
            if chunk.finish_reason == "error":
                raise RequestError(chunk.error or "the engine failed the request")
            # The token that ends a text is none of it.
            ids = chunk.token_ids if chunk.stop_token_id is None else chunk.token_ids[:-1]
            delta = text.push(ids)
            piece += delta.text
            self.usage.completion_tokens += len(chunk.token_ids)
            if delta.stop_str is not None:
                self.usage.finish_reason = "stop"
            elif chunk.finish_reason is not None:
                piece += text.finish()
                self.usage.finish_reason = "stop" if text.stop_str else chunk.finish_reason
        return piece

    def _end(self, request_id: str) -> None:
        """Nothing of the request may be left behind, however it ended."""
        self._llm.core.abort([request_id])
        while self._llm.core.has_work:
            self._llm.core.step()


@contextmanager
def _interrupts_wait() -> Iterator[threading.Event]:
    """Within: Ctrl-C sets the event instead of striking in the middle of a step."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        interrupted.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)

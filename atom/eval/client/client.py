"""`ServerClient`: what the harness asks through. Blocking; the requests run in a thread of its own.

It forms requests of the items that have no answer yet, and sees each answer written down before
anything else is done with it.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from atom.bench.client import ServerInfo
from atom.bench.client.errand import Answer
from atom.eval.client import generation, scoring
from atom.eval.client.batches import batches, fit, fit_prompt, prompt_order, rolling_windows
from atom.eval.client.book import Book
from atom.eval.client.link import Link, Sleep
from atom.eval.client.texts import Texts
from atom.eval.client.thread import LoopThread, in_parallel
from atom.eval.client.tokens import Local, Remote
from atom.eval.errors import EvalError, EvalStopped, ServerGone
from atom.eval.journal import Journal, item_key
from atom.eval.types import (
    Counts,
    Endpoint,
    Generated,
    GenerateItem,
    Message,
    OnProgress,
    Scored,
    ScoreItem,
    SpecialTokens,
)

T = TypeVar("T")

ROLLING_LENGTH = 2048  # tokens; lm-eval's, where the server does not tell its context
_ABOUT_LENGTH = re.compile(r"context|too (long|large)|maximum.{0,20}length|max_model_len", re.I)
_TOO_LONG = "ask for shorter answers (--max-gen-toks) or fewer examples (--num-fewshot)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the client is given beside its server."""

    on_progress: OnProgress
    stop: Callable[[], bool]
    sleep: Sleep = asyncio.sleep


class ServerClient:
    """Follows `Client`. Made by `connect`; a context manager that ends its connections."""

    def __init__(
        self,
        endpoint: Endpoint,
        info: ServerInfo,
        hooks: Hooks,
        journal: Journal | None = None,
        local: Local | None = None,
    ) -> None:
        self.info = info
        self.max_model_len = info.max_model_len
        self._model = endpoint.model
        self._concurrency = endpoint.concurrency
        self._batch_size = endpoint.batch_size
        self._with_key = endpoint.api_key is not None
        self._server = f"the {info.kind} server" if info.kind != "unknown" else "the server"
        self._server += f" at {info.base_url}"
        self._stop = hooks.stop
        self._book = Book(journal, hooks.on_progress)
        self.counts: Counts = self._book.counts
        self.notes: list[str] = self._book.notes
        self._asked: Counter[str] = Counter()  # how often an item was to be generated
        self._forms = list(scoring.FORMS.get(info.kind, (scoring.PLAIN,)))
        self._form_works = False
        self._max_stops = 10**6
        self._link = Link(endpoint, self.counts, hooks.sleep)
        remote = Remote(self._link, self._model, info.kind, self._server, self._concurrency)
        self._texts = Texts(info, self._server, remote, local, self._book)
        self._thread = LoopThread()
        self._thread.call(self._link.open(), lambda: None)

    def __enter__(self) -> ServerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._thread.call(self._link.close(), lambda: None)
        self._thread.close()

    # Scoring

    def score(self, items: Sequence[ScoreItem], detail: str = "") -> list[Scored]:
        """See `Client`. Equal items are asked once."""
        keys = [item_key("score", self._model, item) for item in items]
        missing = self._book.begin("scoring", keys, Scored, detail)
        if missing:
            self._wait(self._score([keys[i] for i in missing], [items[i] for i in missing]))
        self._book.show()
        return self._book.answers(keys, Scored)

    def score_rolling(self, texts: Sequence[Sequence[int]], prefix: int) -> list[float]:
        """The log-probability of each text (natural logarithm), in lm-eval's rolling windows."""
        room = self._score_limit()
        if room is None and any(len(text) >= ROLLING_LENGTH for text in texts):
            room = ROLLING_LENGTH
            self._book.note(
                f"{self._server} does not tell its context length: long texts were scored in "
                f"windows of {ROLLING_LENGTH} tokens"
            )
        windows = [
            rolling_windows(text, prefix, max(1, len(text) if room is None else room - 1))
            for text in texts
        ]
        scores = iter(self.score([item for row in windows for item in row]))
        return [sum(next(scores).logprob for _ in row) for row in windows]

    def _score_limit(self) -> int | None:
        """Most tokens of a scored prompt."""
        if self.max_model_len is None:
            return None
        return self.max_model_len - self._forms[0].max_tokens

    async def _score(self, keys: list[str], items: list[ScoreItem]) -> None:
        order = batches(items, self._batch_size)

        async def one(numbers: list[int]) -> None:
            await self._score_batch([keys[i] for i in numbers], [items[i] for i in numbers])

        if not self._form_works:
            # The first shows what the server understands, before many are sent.
            await one(order[0])
            order = order[1:]
        await in_parallel(one, order, min(self._concurrency, len(order)))

    async def _score_batch(self, keys: list[str], items: list[ScoreItem]) -> None:
        while True:
            form, limit = self._forms[0], self._score_limit()
            fitted = [fit(item, limit) for item in items]
            body = scoring.request(form, self._model, fitted)
            answer = await self._link.post(scoring.PATH, body)
            if answer.status == 200:
                break
            if answer.status in (400, 422) and not self._form_works and len(self._forms) > 1:
                del self._forms[0]
                continue
            raise self._no_scores(answer)
        scores = scoring.read(answer.body, fitted, form, self._server)
        self._form_works = True
        self._book.count_cut(sum(one.cut for one in fitted), self.max_model_len)
        tokens = sum(len(one.tokens) for one in fitted)
        self._book.keep(dict(zip(keys, scores, strict=True)), tokens, len(items) * form.max_tokens)

    # Generating

    def generate(self, items: Sequence[GenerateItem], detail: str = "") -> list[Generated]:
        """See `Client`. Equal items are asked as often as they are given: they may be samples."""
        keys = [self._sample_key(item) for item in items]
        missing = self._book.begin("generating", keys, Generated, detail)
        if missing:
            self._wait(self._generate([keys[i] for i in missing], [items[i] for i in missing]))
        self._book.show()
        return self._book.answers(keys, Generated)

    def _sample_key(self, item: GenerateItem) -> str:
        plain = item_key("generate", self._model, item)
        number = self._asked[plain]
        self._asked[plain] += 1
        return item_key("generate", self._model, item, number) if number else plain

    async def _generate(self, keys: list[str], items: list[GenerateItem]) -> None:
        async def one(number: int) -> None:
            await self._generate_one(keys[number], items[number])

        await in_parallel(one, prompt_order(items), min(self._concurrency, len(items)))

    async def _generate_one(self, key: str, item: GenerateItem) -> None:
        ids, was_cut = fit_prompt(item, self.max_model_len)
        path = generation.path_of(item)
        while True:
            sent = min(self._max_stops, len(generation.stops_of(item)))
            body = generation.request(item, self._model, ids, sent)
            answer = await self._link.post(path, body)
            if answer.status == 200:
                break
            few = generation.FEW_STOPS
            if answer.status in (400, 422) and "stop" in answer.error.lower() and sent > few:
                self._max_stops = few  # the text is cut at the others here
                continue
            raise self._refused(path, answer)
        made = generation.read(answer.body, item, self._server)
        self._book.count_cut(int(was_cut), self.max_model_len)
        self._book.keep({key: made}, made.prompt_tokens or len(ids), made.output_tokens or 0)

    # Text

    def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = False
    ) -> list[list[int]]:
        return self._texts.tokenize(texts, add_special_tokens, self._wait)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return self._texts.detokenize(token_ids, self._wait)

    def chat_prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Without `add_generation_prompt`: up to the end of the last message, to be continued."""
        return self._texts.chat_prompt(messages, add_generation_prompt, self._wait)

    def special_tokens(self) -> SpecialTokens:
        return self._texts.specials(self._wait)[0]

    # What all of it needs

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """`work` done on the loop, progress shown meanwhile, the user's stop heard."""
        try:
            return self._thread.call(work, self._tick)
        except ServerGone as error:
            raise ServerGone(f"{error}; {self._book.where()}") from None
        except KeyboardInterrupt:
            raise self._stopped() from None

    def _tick(self) -> None:
        self._book.show()
        if self._stop():
            raise self._stopped()

    def _stopped(self) -> EvalStopped:
        return EvalStopped(f"stopped {self._book.where()}")

    def _no_scores(self, answer: Answer) -> EvalError:
        denied = answer.status in (401, 403, 413) or _ABOUT_LENGTH.search(answer.error)
        if self._form_works or denied:
            return self._refused(scoring.PATH, answer)
        return EvalError(
            f"{self._server} cannot score: it refuses echo with logprobs on token ids "
            f"(HTTP {answer.status}): {answer.error}; {scoring.INSTEAD}"
        )

    def _refused(self, path: str, answer: Answer) -> EvalError:
        said = f"(HTTP {answer.status}): {answer.error}"
        if answer.status in (401, 403):
            key = "refuses the API key" if self._with_key else "wants an API key (--api-key)"
            return EvalError(f"{self._server} {key} {said}")
        line = f"{self._server} refuses a request to {path} {said}"
        if answer.status == 413:
            return EvalError(f"{line}; send fewer prompts in one request (--batch-size)")
        return EvalError(f"{line}; {_TOO_LONG}" if _ABOUT_LENGTH.search(answer.error) else line)

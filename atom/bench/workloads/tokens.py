"""Who counts tokens: the server's /tokenize, a tokenizer.json, or the usage of tiny requests.

Whichever it is, what a template or a BOS adds is measured on the server itself, by the
`usage.prompt_tokens` of requests for one token: no other source knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

from atom.bench.errors import BenchError, ServerUnreachable
from atom.bench.types import Target
from atom.bench.workloads import draw
from atom.bench.workloads.http import JsonServer, prompt_tokens
from atom.bench.workloads.pool import STARTER, Pool, pool_of_counts, pool_of_ids, text_of

# How a prompt travels: ids or text to completions, text to chat.
Form = Literal["ids", "text", "chat"]
_PROBES = (3, 29)  # words of the two requests that measure an overhead
_ASKED_AT_ONCE = 8


class TokenSource(Protocol):
    """What a workload needs to know about tokens. Implementations are below."""

    name: str  # for people: "the server's /tokenize"

    def pool(self) -> Pool:
        """Words of one token each."""
        ...

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text alone, without special tokens. Raises `BenchError` if unknown."""
        ...

    def overhead(self, form: Form) -> int:
        """Tokens of a request beyond the pool's words in it: template, BOS, the text's begin.

        Raises `BenchError` where the server refuses this form, or the number is not constant.
        """
        ...


class _Measured:
    """The part that all sources share: the overhead as the server's usage shows it."""

    def __init__(self, server: JsonServer | None) -> None:
        self._server = server
        self._overheads: dict[Form, int] = {}
        self._pool: Pool | None = None

    def pool(self) -> Pool:
        if self._pool is None:
            self._pool = self._make_pool()
        return self._pool

    def _make_pool(self) -> Pool:
        raise NotImplementedError

    def overhead(self, form: Form) -> int:
        if form not in self._overheads:
            self._overheads[form] = self._measure(form)
        return self._overheads[form]

    def _measure(self, form: Form) -> int:
        assert self._server is not None
        pool = self.pool()
        found = []
        for words in _PROBES:
            places = draw.indices(words, len(pool.words), "overhead", words).tolist()
            found.append(_usage(self._server, pool, places, form) - words)
        if found[0] != found[1] or found[0] < 0:
            raise BenchError(
                f"prompt lengths cannot be made exact: around {_PROBES[0]} words the server counts "
                f"{found[0]} more tokens, around {_PROBES[1]} words {found[1]}; "
                "use --tokenizer with the model's own, or a data set from a file"
            )
        return found[0]


def _usage(server: JsonServer, pool: Pool, places: list[int], form: Form) -> int:
    text = text_of([pool.words[i] for i in places])
    if form == "chat":
        return prompt_tokens(server, None, text)
    if form == "text":
        return prompt_tokens(server, text, None)
    if pool.ids is None:
        raise BenchError("token ids are unknown without --tokenizer")
    return prompt_tokens(server, [pool.ids[i] for i in places], None)


class ServerTokens(_Measured):
    """The server's own POST /tokenize: atom's and vLLM's, SGLang's, or llama.cpp's."""

    name = "the server's /tokenize"

    def __init__(self, target: Target) -> None:
        """Raises `BenchError` where the server has no such route."""
        self._http = JsonServer(target)
        super().__init__(self._http)
        self._llama = False
        problem = self._try()
        if problem:
            self._llama = True
            if self._try():
                raise BenchError(f"{target.base_url}/tokenize does not tell tokens: {problem}")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS and the like."""
        body: dict[str, Any]
        if self._llama:
            body = {"content": text, "add_special": False, "parse_special": False}
        else:
            model = self._http.target.model
            body = {"model": model, "prompt": text, "add_special_tokens": False}
        answer = self._http.post("/tokenize", body)
        if answer.status in (401, 403):
            raise ServerUnreachable(f"{self._http.target.base_url} refuses the key: {answer.error}")
        ids = answer.body.get("tokens")
        if answer.status != 200 or not isinstance(ids, list):
            raise BenchError(
                f"{self._http.target.base_url}/tokenize refuses a text: {answer.error}"
            )
        return [int(token_id) for token_id in ids]

    def _try(self) -> str:
        """Why this dialect is not understood, or ''. llama.cpp answers vLLM's with no tokens."""
        try:
            return "" if self.encode(STARTER) else "it answers with no tokens"
        except ServerUnreachable:
            raise
        except BenchError as error:
            return str(error)

    def counts(self, texts: Sequence[str]) -> list[int]:
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            return list(pool.map(lambda text: len(self.encode(text)) if text else 0, texts))

    def _make_pool(self) -> Pool:
        return pool_of_ids(self.encode)


class LocalTokens(_Measured):
    """A `tokenizer.json`, or a folder with one: the model's own, or lengths are wrong."""

    name = "a tokenizer.json"

    def __init__(self, path: str | Path, target: Target | None = None) -> None:
        """`target`: where overheads are measured; without it only ids and plain text are known.

        Raises `BenchError` where there is no such file or it cannot be read.
        """
        super().__init__(JsonServer(target) if target is not None else None)
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise BenchError(f"--tokenizer {path}: no tokenizer.json there")
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # its errors are bare Exceptions
            raise BenchError(f"--tokenizer {file}: {' '.join(str(error).split())}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def counts(self, texts: Sequence[str]) -> list[int]:
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in found]

    def _make_pool(self) -> Pool:
        return pool_of_ids(self.encode)

    def _measure(self, form: Form) -> int:
        if self._server is not None:
            return super()._measure(form)
        if form == "chat":
            raise BenchError("what a chat template adds is known to the server alone; name one")
        return 0 if form == "ids" else len(self._tokenizer.encode(STARTER).ids)

    def overhead(self, form: Form) -> int:
        if form == "ids":
            # Ids of another model's tokenizer would be counted just as well; its text is not.
            super().overhead("text")
        return super().overhead(form)


class UsageTokens(_Measured):
    """Any server that tells `usage`: lengths are found by requests for one token.

    It costs about twenty of them, and the words are few; token ids stay unknown.
    """

    name = "usage of requests for one token"

    def __init__(self, target: Target) -> None:
        super().__init__(JsonServer(target))

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Not known: asking would put the measured prompts into the server's prefix cache."""
        raise BenchError("this server has no /tokenize to count a file's tokens; give --tokenizer")

    def _make_pool(self) -> Pool:
        server = self._server
        assert server is not None
        if server.target.endpoint == "chat":
            return pool_of_counts(lambda text: prompt_tokens(server, None, text))
        return pool_of_counts(lambda text: prompt_tokens(server, text, None))


def open_tokens(target: Target, tokenizer: str | Path | None = None) -> TokenSource:
    """The best source there is: `tokenizer` if given, the server's /tokenize, else its usage.

    Raises `ServerUnreachable`, or `BenchError` for a `tokenizer` that cannot be read.
    """
    if tokenizer is not None:
        return LocalTokens(tokenizer, target)
    try:
        return ServerTokens(target)
    except ServerUnreachable:
        raise
    except BenchError:
        return UsageTokens(target)

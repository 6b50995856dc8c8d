"""The client of an evaluation: asks a server for scores and texts, batched, again after failures,
and only what the journal has no answer to.

`connect` is the door. `client` forms what is asked (`batches`, `scoring`, `generation`, `tokens`),
`link` carries it, `thread` keeps both off the calling thread, `book` knows what is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from atom.bench.client import ServerInfo, probe
from atom.bench.client.errand import Errand
from atom.bench.errors import ServerUnreachable
from atom.eval.client.client import Hooks, ServerClient
from atom.eval.client.link import Sleep
from atom.eval.client.tokens import Local
from atom.eval.errors import EvalError, ServerGone
from atom.eval.journal import Journal
from atom.eval.types import Endpoint, OnProgress, Progress

__all__ = ["Hooks", "ServerClient", "connect"]


def _silent(progress: Progress, /) -> None:
    pass


def connect(
    endpoint: Endpoint,
    *,
    journal: Journal | None = None,
    tokenizer: Path | None = None,
    on_progress: OnProgress = _silent,
    stop: Callable[[], bool] = lambda: False,
    info: ServerInfo | None = None,
    sleep: Sleep = asyncio.sleep,
) -> ServerClient:
    """A client of the server, which is asked who it is (unless `info` says so). Close it, or use it
    as a context manager; the journal stays open.

    `tokenizer`: the model's tokenizer in files, in place of the server's. `stop` is asked a few
    times a second. `on_progress` is called in the calling thread.

    Raises `ServerGone`: nobody is there. `EvalError`: the key is refused, the model is not served,
    the tokenizer cannot be read.
    """
    local = None if tokenizer is None else Local(tokenizer)
    if info is None:
        info = _ask(endpoint)
    return ServerClient(
        endpoint, info, Hooks(on_progress=on_progress, stop=stop, sleep=sleep), journal, local
    )


def _ask(endpoint: Endpoint) -> ServerInfo:
    errand = Errand(
        endpoint.base_url, endpoint.api_key, endpoint.headers, verify_tls=endpoint.verify_tls
    )
    try:
        errand.get("/health")
    except ServerUnreachable as error:
        raise ServerGone(str(error)) from None
    try:
        return probe(
            endpoint.base_url,
            endpoint.api_key,
            endpoint.headers,
            model=endpoint.model,
            verify_tls=endpoint.verify_tls,
        )
    except ServerUnreachable as error:
        raise EvalError(str(error)) from None

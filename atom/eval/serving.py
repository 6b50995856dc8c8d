"""The server that is evaluated: a running one is found, a recipe's is started and stopped."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from atom.bench.errors import BenchError, ServerUnreachable
from atom.bench.server_process import RecipeServer, Stopped
from atom.eval.errors import EvalError, EvalStopped, ServerGone

if TYPE_CHECKING:
    from atom.bench.client import ServerInfo

DEFAULT_URL = "http://127.0.0.1:8000"
READY_S = 1200.0  # a large model on a cold disk
RETRY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the model is: a running server's address, else a recipe, else `DEFAULT_URL`."""

    base_url: str | None = None
    recipe: Path | None = None
    model: str | None = None  # None: the first that the server lists
    api_key: str | None = None  # None: the recipe's, ATOM_API_KEY's first, OPENAI_API_KEY
    headers: Mapping[str, str] = field(default_factory=dict)
    verify_tls: bool = True
    server_args: str = ""  # more flags of atom serve, for a recipe's server
    ready_timeout_s: float | None = None  # None: `READY_S` for a recipe's server, 0 for a running
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def own_server(self) -> bool:
        """Whether the recipe's server is started here."""
        return self.recipe is not None and self.base_url is None

    def key(self) -> str | None:
        from atom.config import resolve

        if self.api_key is not None:
            return self.api_key
        keys = resolve(self.recipe if self.own_server else None, self.env).server.api_key
        return keys[0] if keys else self.env.get("OPENAI_API_KEY") or None


class Served(NamedTuple):
    """A server that answers."""

    base_url: str
    info: ServerInfo
    api_key: str | None
    died: Callable[[], str | None]  # why the recipe's server is gone, or None
    log: Path | None  # of the recipe's server


class Watcher(NamedTuple):
    """Who is told how it goes, and who may end it."""

    say: Callable[[str], None] = lambda _: None
    waiting: Callable[[str, float], None] = lambda what, seconds: None
    stopped: Callable[[], bool] = lambda: False


@contextmanager
def served(place: Place, log_folder: Path, watcher: Watcher) -> Iterator[Served]:
    """The server, for as long as the block runs.

    Raises `ServerGone` (nobody answers, it does not start, wrong key, no such model), `EvalError`
    for what cannot be a server, and `EvalStopped` when the user gives up meanwhile.
    """
    with ExitStack() as stack:
        with _failures():
            server: RecipeServer | None = None
            base_url, wait_s = place.base_url or DEFAULT_URL, place.ready_timeout_s or 0.0
            if place.own_server:
                server = stack.enter_context(_start(place, log_folder, watcher))
                base_url, wait_s = server.url, 0.0
            info = _probe(place, base_url, wait_s, watcher)
        died = server.died if server is not None else lambda: None
        yield Served(base_url, info, place.key(), died, None if server is None else server.log)


@contextmanager
def _failures() -> Iterator[None]:
    """The benchmark's errors in the evaluator's classes, which decide the exit code."""
    try:
        yield
    except Stopped:
        raise EvalStopped("stopped before anything was asked") from None
    except BenchError as error:
        raise ServerGone(str(error)) from None


def _start(place: Place, log_folder: Path, watcher: Watcher) -> RecipeServer:
    recipe = place.recipe
    assert recipe is not None
    if not recipe.exists():
        raise EvalError(f"--recipe {recipe}: there is no such file")
    stamp = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    log = log_folder / f"{stamp}-{recipe.stem}-{os.getpid()}.log"
    watcher.say(f"starting atom serve {recipe}; its log is {log}")
    return RecipeServer(
        recipe,
        log,
        args=_split(place.server_args),
        ready_s=READY_S if place.ready_timeout_s is None else place.ready_timeout_s,
        stopped=watcher.stopped,
        waiting=lambda s: watcher.waiting(f"the server of {recipe} is starting", s),
    )


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise EvalError(f"--server-args {text}: {error}") from None


def _probe(place: Place, base_url: str, wait_s: float, watcher: Watcher) -> ServerInfo:
    """What answers there; waits for it where that was asked for."""
    from atom.bench.client import probe

    began = time.monotonic()
    while True:
        try:
            return probe(
                base_url,
                place.key(),
                headers=place.headers,
                model=place.model,
                verify_tls=place.verify_tls,
            )
        except ServerUnreachable:
            waited = time.monotonic() - began
            if waited >= wait_s:
                raise
            watcher.waiting(f"nothing at {base_url} yet", waited)
        if watcher.stopped():
            raise Stopped
        time.sleep(RETRY_S)

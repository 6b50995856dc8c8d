"""The way in: a model's forward, compiled in pieces or loaded from an earlier start."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from atom.engine.compiler import environment, inductor
from atom.engine.compiler.errors import CannotCompile
from atom.engine.compiler.program import Program
from atom.engine.compiler.split import Piece, Split, split
from atom.engine.compiler.store import PieceFolder, Store
from atom.engine.compiler.structure import Structure
from atom.engine.compiler.trace import trace

log = logging.getLogger("atom.compiler")


@dataclass
class Compiled:
    """A forward and what it took to get it."""

    forward: Program
    num_steps: int  # calls of pieces and of opaque operators
    num_pieces: int  # distinct ones
    traced: bool
    compiled: int  # pieces that no cache had
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.num_steps} calls"]
        if self.num_pieces == 0:
            parts.append("all kernels of ours, with nothing to compile between them")
        else:
            parts.append(f"{self.compiled} of {self.num_pieces} distinct pieces compiled")
        if not self.traced:
            parts.append("cut by an earlier start")
        return ", ".join([*parts, *(f"{name} {s:.1f} s" for name, s in self.seconds.items())])


def compile_forward(
    model: Any, device: torch.device, max_tokens: int, store: Store | None = None
) -> Compiled:
    """`model` is built traceable, and its weights are loaded. Steps have up to `max_tokens` tokens.

    Raises `CannotCompile`.
    """
    return _Compiler(model, device, max_tokens, store or Store()).run()


class _Compiler:
    def __init__(self, model: Any, device: torch.device, max_tokens: int, store: Store) -> None:
        self._model, self._device, self._max_tokens = model, device, max_tokens
        self._store = store
        self._structure = Structure(model)
        self._salt = environment.digest(device, max_tokens)
        self._split: Split | None = None
        self._seconds: dict[str, float] = {}
        self._compiled = 0

    def run(self) -> Compiled:
        facts = (self._salt, environment.source_digest(), self._structure.digest)
        key = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        plan = self._store.read_plan(key)
        if plan is None:
            plan = self._traced().plan
            self._store.write_plan(key, plan)
        calls = {name: self._piece(name) for name in plan.pieces}
        forward = Program(plan, self._model, calls)
        return Compiled(
            forward,
            len(plan.steps),
            len(calls),
            self._split is not None,
            self._compiled,
            self._seconds,
        )

    def _timed(self, name: str, run: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = run()
        self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started
        return result

    def _traced(self) -> Split:
        """The forward traced and cut, at most once: only where something is missing."""
        if self._split is None:
            model, salt = self._model, self._salt

            def make() -> Split:
                with _explained("tracing"):
                    graph = trace(model.forward, self._device, self._max_tokens, model)
                return split(graph, self._structure, salt)

            self._split = self._timed("trace", make)
        return self._split

    def _piece(self, key: str) -> inductor.Call:
        code_key = inductor.key_of_code(key)
        with self._store.piece(code_key) as folder, inductor.files_in(folder.built):
            code = folder.read()
            if code is not None:
                try:
                    call: inductor.Call = self._timed("load", lambda: inductor.load_piece(code))
                    return call
                except Exception as error:  # whatever broken files lead to
                    folder.discard(f"{type(error).__name__}: {error}".splitlines()[0])
            return self._compile(key, folder)

    def _compile(self, key: str, folder: PieceFolder) -> inductor.Call:
        piece: Piece = self._traced().pieces[key]

        def make() -> inductor.Call:
            with folder.writing(), _explained("Inductor"):
                code = inductor.compile_piece(piece)
                call = inductor.load_piece(code)
                folder.commit(code)
            return call

        self._compiled += 1
        call: inductor.Call = self._timed("compile", make)
        return call


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """torch's compiler fails in many ways, and without it a model still runs."""
    try:
        yield
    except (CannotCompile, OSError):
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        log.debug("%s failed", what, exc_info=True)
        raise CannotCompile(f"{what} failed: {type(error).__name__}: {reason}") from error

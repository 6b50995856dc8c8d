"""One piece through Inductor: from a graph to the text of a Python module, and from that to a call.

Inductor's product is a module whose `call(args)` takes the placeholders' values in a list, which it
empties, and returns the outputs. atom keeps that text and calls `call` itself: nothing is pickled,
no guard is checked, and no wrapper stands between. What the wrappers do besides is not needed here:
pieces are functional, no output is a view of an input, and inputs are aligned.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from atom.engine.compiler.errors import CannotCompile
from atom.engine.compiler.split import Piece

Call = Callable[[list[Any]], Any]

OPTIONS: dict[str, Any] = {
    # A piece has a handful of kernels: a pool of processes starts later than they are done.
    "compile_threads": 1,
    # atom's own cache holds the result; Inductor's would hold it a second time, pickled.
    "fx_graph_cache": False,
    # Inputs are right by construction, and each check costs time at every call.
    "size_asserts": False,
    "alignment_asserts": False,
}
_ENVIRONMENT = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def key_of_code(piece: str) -> str:
    """The key of a piece's code: the piece's own, and all of Inductor's settings."""
    from torch._inductor import config

    with config.patch(OPTIONS):
        return hashlib.sha256(piece.encode() + config.get_hash()).hexdigest()[:32]


@contextmanager
def files_in(folder: Path) -> Iterator[None]:
    """What Inductor and Triton write, for code compiled or loaded here, goes into `folder`."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def compile_piece(piece: Piece) -> str:
    """The module's text. Raises `CannotCompile`."""
    from torch._functorch import config as functorch
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile_fx, config

    made: list[Any] = []

    def inner(*args: Any, **kwargs: Any) -> Any:
        made.append(compile_fx.compile_fx_inner(*args, **kwargs))
        return made[-1]

    mode = piece.fake_mode
    with (
        torch.no_grad(),
        tracing(TracingContext(mode)),
        config.patch(OPTIONS),
        functorch.patch(enable_autograd_cache=False),
    ):
        compile_fx.compile_fx(piece.graph, piece.inputs, inner_compile=inner)
    (code,) = made
    if code.constants or code.torchbind_constants or code.mutated_inputs:
        raise CannotCompile("a piece came out with constants of its own, or writes to its inputs")
    return str(code.source_code)


def load_piece(text: str) -> Call:
    """Run the module; its kernels are compiled where no cache has them."""
    from torch._inductor import config

    with config.patch(OPTIONS):
        from torch._inductor.codecache import PyCodeCache

        call: Call = PyCodeCache.load(text).call
    return call

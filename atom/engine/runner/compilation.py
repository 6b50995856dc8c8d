"""Compile levels: what runs as the model's forward, and why.

| level | on CPU and GPU |
|---|---|
| 0 | eager |
| 1 | `torch.compile` as it is: guards kept, recompiled as shapes ask for it |
| 2 | one Dynamo pass with a dynamic token count, guards dropped afterwards |
| 3 | what is fastest on the device; see `choose` |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atom.config.schema import Config

Forward = Callable[[Tensor, Tensor], Tensor]


class Choice(NamedTuple):
    forward: Forward
    mode: str  # "eager", "torch.compile", "compiled once"
    reason: str
    warmup_tokens: tuple[int, ...]  # token counts whose first run is slow


def level_of(config: Config) -> int:
    return 0 if config.compile.enforce_eager else config.compile.level


def needs_tracing(config: Config) -> bool:
    """Whether the model must be built from operators that torch.compile can see through."""
    return level_of(config) in (1, 2)


def choose(model: Any, config: Config, device: torch.device) -> Choice:
    """What serves as `model.forward`."""
    if config.compile.enforce_eager:
        return Choice(model.forward, "eager", "enforce_eager", (4,))
    match config.compile.level:
        case 0:
            return Choice(model.forward, "eager", "level 0", (4,))
        case 1:
            # A first length, another one (which makes it dynamic), and the one that is special.
            return Choice(torch.compile(model.forward), "torch.compile", "level 1", (4, 6, 1))
        case 2:
            return Choice(_compile_once(model.forward), "compiled once", "level 2", (4,))
        case _:
            return Choice(model.forward, "eager", _why_eager(device), (4,))


def _why_eager(device: torch.device) -> str:
    if device.type == "cpu":
        return "level 3: there is no recorded program for this model"
    return "level 3: graphs are not in this version"


def _drop_all(guards: Any) -> list[bool]:
    return [False for _ in guards]


def _compile_once(forward: Forward) -> Forward:
    """Compiled at its first call, for any number of tokens; later calls check nothing.

    What the guards would watch cannot change: the model is frozen, and its inputs are two int64
    vectors of one length.
    """
    compiled: Forward = torch.compile(
        forward, fullgraph=True, dynamic=True, options={"guard_filter_fn": _drop_all}
    )
    first = True

    def run(input_ids: Tensor, positions: Tensor) -> Tensor:
        nonlocal first
        if first:
            torch._dynamo.mark_dynamic(input_ids, 0)
            torch._dynamo.mark_dynamic(positions, 0)
            first = False
        return compiled(input_ids, positions)

    return run

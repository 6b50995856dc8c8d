"""The one thing a layer may look up: the step that is being computed.

Set by the runner round each forward, so that attention needs no plumbing through the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from atom.ops.contracts import AttentionMetadata


@dataclass(slots=True)
class ForwardContext:
    """`around_attention` stands in for every mixer's `run`: (layer, inputs, positions) -> out;
    `inputs` is the QKV tensor of an `Attention` and the list of any other mixer. The capture of
    piecewise graphs cuts the forward there. `rows` [L] int64: those of the hidden states that are
    wanted; see `SampledRows`."""

    attention: AttentionMetadata
    around_attention: Callable[[Any, Any, Tensor], Tensor] | None = None
    rows: Tensor | None = None


_current: ForwardContext | None = None


def forward_context() -> ForwardContext:
    assert _current is not None, "a layer ran outside forward_context"
    return _current


@contextmanager
def set_forward_context(context: ForwardContext) -> Iterator[None]:
    global _current
    outer, _current = _current, context
    try:
        yield
    finally:
        _current = outer

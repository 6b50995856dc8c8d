"""The forward traced once, over fake tensors with a symbolic token count, into one flat graph.

The graph is functional (in-place updates of the model's own values become new values) and is made
of what Inductor takes: core operators and opaque custom ones. Weights stay out of it: they appear
as attributes, each the very tensor of the model.

A node knows the scope of the module that made it (`scope_of`), whatever becomes of it later: so
that what is compiled has names in a profiler's trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import traceback

from atom.engine.marks import Marks
from atom.engine.module_marks import mark_modules

SCOPE = "atom_scope"  # in what torch calls a node's custom annotations


def scope_of(node: fx.Node) -> str:
    """ "" outside of any module."""
    return str(node.meta.get("custom", {}).get(SCOPE, ""))


@contextmanager
def _noting_scopes(model: nn.Module | None) -> Iterator[None]:
    def note(scope: str) -> Any:
        return traceback.annotate({SCOPE: scope})

    marks = Marks()
    if model is not None:
        mark_modules(marks, model)
    with traceback.preserve_node_meta(), marks.during(note):
        yield


def trace(
    forward: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    max_tokens: int,
    model: nn.Module | None = None,
) -> fx.GraphModule:
    """`forward(input_ids [T], positions [T])` for any 1 <= T <= max_tokens.

    `model`: that whose modules give nodes their scopes.

    Nothing is computed. Sizes and values are hinted as those of the largest step, so that choices
    made by size, such as that of 32-bit indices, hold for all smaller ones.
    """
    from torch._dynamo.source import ConstantSource
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import (
        DimDynamic,
        ShapeEnv,
        StatelessSymbolicContext,
    )

    def plain(input_ids: Tensor, positions: Tensor) -> Tensor:  # tracers miscount methods
        return forward(input_ids, positions)

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext([DimDynamic.DYNAMIC])
    hint = torch.zeros(max_tokens, dtype=torch.int64, device=device)
    ids = mode.from_tensor(hint, symbolic_context=context, source=ConstantSource("input_ids"))
    with torch.no_grad(), mode, _noting_scopes(model):
        positions = torch.empty_like(ids)
        traced = make_fx(
            torch.func.functionalize(plain),
            decomposition_table=select_decomp_table(),
            _allow_non_fake_inputs=True,
        )(ids, positions)
    traced.graph.eliminate_dead_code()
    return traced

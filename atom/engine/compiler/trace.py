"""The forward traced once, over fake tensors with a symbolic token count, into one flat graph.

The graph is functional (in-place updates of the model's own values become new values) and is made
of what Inductor takes: core operators and opaque custom ones. Weights stay out of it: they appear
as attributes, each the very tensor of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx


def trace(
    forward: Callable[[Tensor, Tensor], Tensor], device: torch.device, max_tokens: int
) -> fx.GraphModule:
    """`forward(input_ids [T], positions [T])` for any 1 <= T <= max_tokens.

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
    with torch.no_grad(), mode:
        positions = torch.empty_like(ids)
        traced = make_fx(
            torch.func.functionalize(plain),
            decomposition_table=select_decomp_table(),
            _allow_non_fake_inputs=True,
        )(ids, positions)
    traced.graph.eliminate_dead_code()
    return traced

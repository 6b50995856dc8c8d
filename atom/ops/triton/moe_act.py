"""What experts do between their two products: activation and biases, as both kinds of kernels take
them."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import SILU, GatedActivation


class Extras(NamedTuple):
    """The last three arguments of contracts.FusedExperts. Biases are contiguous."""

    act: GatedActivation = SILU
    b13: Tensor | None = None  # [E, 2I]
    b2: Tensor | None = None  # [E, K]

    def constants(self) -> dict[str, Any]:
        """Of the kernels of the first product."""
        return {
            "KIND": self.act.kind,
            "LIMIT": float(self.act.limit),
            "BIAS": self.b13 is not None,
        }


PLAIN = Extras()


@triton.jit
def activate(gate, up, KIND: tl.constexpr, LIMIT: tl.constexpr):
    """contracts.GatedActivation, of float32."""
    if LIMIT > 0.0:
        gate = tl.minimum(gate, LIMIT)
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    if KIND == "silu":
        out = gate * tl.sigmoid(gate) * up
    else:
        out = (up + 1.0) * gate * tl.sigmoid(1.702 * gate)
    return out

"""Backend "reference": every operation in plain torch, correct on any device, the tests' oracle.

Importing this module registers them; they accept every query.
"""

from __future__ import annotations

from atom.ops.reference import (
    attention,
    delta,
    elementwise,
    gates,
    linear,
    mla,
    moe,
    sparse,
    v4,
    v4_hyper,
)

__all__ = [
    "attention",
    "delta",
    "elementwise",
    "gates",
    "linear",
    "mla",
    "moe",
    "sparse",
    "v4",
    "v4_hyper",
]

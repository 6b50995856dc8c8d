"""Dependent launches: how a kernel begins, and the options it is launched with."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from atom.ops.triton import support

_DEPENDENT: dict[str, Any] = {"launch_pdl": True}
_PLAIN: dict[str, Any] = {}


def pdl_options(device: torch.device) -> dict[str, Any]:
    """Launch options of a kernel that calls `begin`; empty where there is no PDL."""
    if device.type == "cuda" and support.supports_pdl(device.index or 0):
        return _DEPENDENT
    return _PLAIN


@triton.jit
def begin(PDL: tl.constexpr):
    """Let the next kernel start, and wait until what the ones before have written is there.

    Reads of what no kernel of a step writes may stand before the call. The next kernel waits in its
    turn for this one's end, so letting it start early only moves its launch.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()

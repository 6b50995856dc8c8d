"""GGUF blocks to float32.

The types that a CPU deployment meets daily are unpacked by torch, several times faster than
the `gguf` package, which does all others.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atom.errors import ModelError
from atom.ops.contracts import GGUFWeight


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block: [n, block_bytes] -> [n, 1] float32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[n, 16] bytes -> [n, 32]: low nibbles first, then the high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=1)


def _q4_0(blocks: Tensor) -> Tensor:
    return (_nibbles(blocks[:, 2:]).float() - 8.0) * _half(blocks, 0)


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:]).float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


_BY_TORCH = {"Q4_0": (18, _q4_0), "Q4_1": (20, _q4_1), "Q8_0": (34, _q8_0)}  # bytes per 32 values


def dequantize(weight: GGUFWeight) -> Tensor:
    """[N, K] float32 on the weight's device; `ModelError` for a type that nobody can unpack."""
    if weight.qtype in _BY_TORCH:
        block_bytes, unpack = _BY_TORCH[weight.qtype]
        return unpack(weight.data.reshape(-1, block_bytes)).view(weight.shape)
    import gguf  # after the start: only rarer types need it

    try:
        qtype = gguf.GGMLQuantizationType[weight.qtype]
        values = gguf.quants.dequantize(weight.data.cpu().numpy(), qtype)
    except (KeyError, NotImplementedError):
        raise ModelError(f"GGUF type {weight.qtype} cannot be dequantised") from None
    dense = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return dense.view(weight.shape).to(weight.data.device)

"""MXFP4 to floating point, and from a checkpoint's order of nibbles to ours."""

from __future__ import annotations

import torch
from torch import Tensor

from atom.ops.contracts import MXFP4Weight

GROUP = 32  # values that share a scale
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of a code's three low bits; the fourth: sign


def pack(blocks: Tensor, scales: Tensor) -> MXFP4Weight:
    """blocks [E, N, K / 32, 16] uint8 of a checkpoint, whose byte i holds values 2i (low bits) and
    2i + 1; scales [E, N, K / 32]."""
    data = torch.empty_like(blocks)
    for expert, to in zip(
        blocks, data, strict=True
    ):  # one at a time: temporaries are four times it
        codes = torch.stack((expert & 15, expert >> 4), -1).flatten(-2)  # [N, K / 32, 32], in order
        torch.bitwise_or(codes[..., :16], codes[..., 16:] << 4, out=to)
    return MXFP4Weight(data.flatten(-2), scales.contiguous())


def dequantize(data: Tensor, scales: Tensor) -> Tensor:
    """Of a MXFP4Weight, or some rows of one: [..., K / 2], [..., K / 32] -> [..., K] float32."""
    grouped = data.view(*scales.shape, GROUP // 2)
    codes = torch.cat((grouped & 15, grouped >> 4), -1).int()
    table = torch.tensor([*VALUES, *(-v for v in VALUES)], device=data.device)
    # E8M0: a power of two, 255 is no number. exp2 of float64 reaches the smallest.
    factors = torch.exp2(scales.double() - 127).float()
    factors = torch.where(scales == 255, float("nan"), factors)
    return (table[codes] * factors.unsqueeze(-1)).flatten(-2)

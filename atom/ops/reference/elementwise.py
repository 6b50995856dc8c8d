"""Norms, rotary embedding and activation in plain torch, float32 inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.registry import register


@register("rms_norm", "reference")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


@register("add_rms_norm", "reference")
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    residual += x
    return rms_norm(residual, weight, eps), residual


@register("projection_sums", "reference")
def projection_sums(qkv: Tensor, q_size: int, k_size: int) -> Tensor:
    q, k, _ = qkv.split_with_sizes((q_size, k_size, qkv.shape[1] - q_size - k_size), 1)
    return torch.stack((q.float().square().sum(-1), k.float().square().sum(-1)), -1)


@register("projection_norm", "reference")
def projection_norm(
    qkv: Tensor,
    q_size: int,
    k_size: int,
    weight: Tensor,
    eps: float,
    sums: Tensor | None,
    counts: tuple[float, float],
) -> Tensor:
    if sums is None:
        sums = projection_sums(qkv, q_size, k_size)
    q, k, v = qkv.split_with_sizes((q_size, k_size, qkv.shape[1] - q_size - k_size), 1)
    weight_q, weight_k = weight.split_with_sizes((q_size, k_size))
    q = q.float() * torch.rsqrt(sums[:, :1] / counts[0] + eps) * weight_q
    k = k.float() * torch.rsqrt(sums[:, 1:] / counts[1] + eps) * weight_k
    return torch.cat((q.to(qkv.dtype), k.to(qkv.dtype), v), 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    """x [T, H, D] in place; cos and sin [T, 1, R/2] float32."""
    rotated = x[..., : 2 * cos.shape[-1]]
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated.chunk(2, dim=-1)
    a, b = first.float(), second.float()
    new_first, new_second = a * cos - b * sin, b * cos + a * sin
    first.copy_(new_first)
    second.copy_(new_second)


@register("rotary", "reference")
def rotary(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    _rotate(q, cos, sin, interleaved)
    _rotate(k, cos, sin, interleaved)
    return q, k


@register("silu_and_mul", "reference")
def silu_and_mul(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x.dtype)

"""Hyper-connections and DeepSeek V4's activation in plain torch, float32 inside."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts_v4 import HyperWeights, Pending
from atom.ops.registry import register


def sinkhorn(comb: Tensor, eps: float, iterations: int) -> Tensor:
    """comb [..., N, N] > 0, brought near to sums of one over rows and columns."""
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return comb


# Opaque for tracers, who would need a minute for so many small operations in every block.
_library = torch.library.Library("atom_reference", "DEF")  # type: ignore[no-untyped-call]
_library.define("sinkhorn(Tensor comb, float eps, int iterations) -> Tensor")  # type: ignore[no-untyped-call]
_library.impl("sinkhorn", sinkhorn, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake(
    "atom_reference::sinkhorn",
    lambda comb, eps, iterations: comb.new_empty(comb.shape),
    lib=_library,
)


def _rms_norm(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _traced(
    streams: Tensor, pending: Pending | None, weights: HyperWeights
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    return hyper_mix(streams, pending, weights, torch.ops.atom_reference.sinkhorn.default)


@register("hyper_mix", "reference", traced=_traced)
def hyper_mix(
    streams: Tensor,
    pending: Pending | None,
    weights: HyperWeights,
    normalise: Callable[[Tensor, float, int], Tensor] = sinkhorn,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    wide = streams.float()
    if pending is not None:
        mixed = torch.matmul(pending.comb.transpose(1, 2), wide)
        mixed = mixed + pending.post.unsqueeze(2) * pending.out.float().unsqueeze(1)
        streams = mixed.to(streams.dtype)
        wide = streams.float()
    n, e = streams.shape[1], weights.hyper_eps
    mix = F.linear(_rms_norm(wide.flatten(1), weights.eps), weights.fn)
    base, scale = weights.base, weights.scale
    pre = torch.sigmoid(mix[:, :n] * scale[0] + base[:n]) + e
    collapsed = (pre.unsqueeze(2) * wide).sum(1).to(streams.dtype)
    x = (_rms_norm(collapsed.float(), weights.eps) * weights.norm.float()).to(streams.dtype)
    if len(base) == n:
        return x, streams, None, None
    post = 2 * torch.sigmoid(mix[:, n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = (mix[:, 2 * n :] * scale[2] + base[2 * n :]).view(-1, n, n).softmax(-1)
    return x, streams, post, normalise(comb + e, e, weights.iterations)


@register("swiglu_clamp", "reference")
def swiglu_clamp(x: Tensor, limit: float) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)).to(x.dtype)

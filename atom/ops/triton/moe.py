"""Mixture of experts on a GPU: which kernels serve how many tokens.

Few tokens go pair by pair (`moe_pairs`); more are sorted by expert first (`moe_grouped`). How many
are few is part of the measured choices (`moe_config`).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from atom.ops.contracts import SILU, GatedActivation, MXFP4Weight
from atom.ops.registry import OpQuery, register
from atom.ops.triton import moe_mxfp4, moe_mxfp4_pairs, moe_route, moe_routing, support
from atom.ops.triton.elementwise import add_rms_norm_apart, rms_norm
from atom.ops.triton.moe_act import Extras
from atom.ops.triton.moe_config import Config, PairConfig, Problem, choose
from atom.ops.triton.moe_grouped import experts_grouped
from atom.ops.triton.moe_pairs import Choice, experts_by_pair

_DTYPES = ("bfloat16", "float16", "float32")
_MAX_EXPERTS = 1024  # logits of a token that one program holds
_MAX_HIDDEN = 16384  # values of a token that one program holds
_FEW = 16  # tokens up to which each program of the router norms its row for itself


@functools.cache
def _card(device: torch.device) -> str:
    """The name under which choices for `device` are kept; none under the interpreter."""
    return "" if device.type == "cpu" else torch.cuda.get_device_name(device)


def config_for(x: Tensor, w2: Tensor, top_k: int) -> Config:
    """The choice for x [T, K] and experts w2 [E, K, I]."""
    experts, size, wide = w2.shape
    problem = Problem(experts, size, wide, top_k)
    return choose(problem, x.shape[0], _card(x.device), x.element_size())


def _declines_routing(query: OpQuery) -> str | None:
    experts = dict(query.shape).get("E", 0)
    if experts > _MAX_EXPERTS:
        return f"E={experts} is more than {_MAX_EXPERTS}"
    return None


def _declines_route(query: OpQuery) -> str | None:
    if query.traceable:
        return "routing is chosen behind an operator, never traced"
    return _declines_routing(query)


def _declines_experts(query: OpQuery) -> str | None:
    if query.dtype not in _DTYPES:
        return f"dtype {query.dtype} is not one of {', '.join(_DTYPES)}"
    if query.weight_format == "mxfp4":
        return _declines_mxfp4(query)
    if query.weight_format != query.dtype:
        return f"weights of {query.weight_format} with activations of {query.dtype}"
    sizes = dict(query.shape)
    for name in ("K", "I"):
        if sizes.get(name, 0) % 8:
            return f"{name}={sizes[name]} is not a multiple of 8"
    return _declines_routing(query)


def _declines_mxfp4(query: OpQuery) -> str | None:
    sizes = dict(query.shape)
    for name in ("K", "I"):
        if sizes.get(name, 0) % 32:
            return f"{name}={sizes[name]} is not a multiple of 32, the values of a group of MXFP4"
    return _declines_routing(query)


def _declines_fused(query: OpQuery) -> str | None:
    size = dict(query.shape).get("K", 0)
    if size > _MAX_HIDDEN:
        return f"K={size} is more than {_MAX_HIDDEN}"
    return _declines_experts(query)


def _topk_fake(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], k)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


_topk_operator = support.define(
    "topk_softmax(Tensor logits, int k, bool renormalize) -> (Tensor, Tensor)",
    moe_routing.topk_softmax,
    _topk_fake,
)

register("topk_softmax", "triton", _declines_routing, traced=_topk_operator)(
    moe_routing.topk_softmax
)
register("topk_route", "triton", _declines_route)(moe_route.topk_route)


@register("fused_experts", "triton", _declines_experts, variants=None)
def fused_experts(
    x: Tensor,
    w13: Tensor | MXFP4Weight,
    w2: Tensor | MXFP4Weight,
    weights: Tensor,
    ids: Tensor,
    act: GatedActivation = SILU,
    b13: Tensor | None = None,
    b2: Tensor | None = None,
) -> Tensor:
    """See contracts.FusedExperts. Called behind an operator that tracers do not look into."""
    weights, ids = weights.contiguous(), ids.contiguous()
    if x.shape[0] == 0:
        return torch.empty_like(x)
    extras = Extras(act, b13, b2)
    if isinstance(w13, MXFP4Weight):
        assert isinstance(w2, MXFP4Weight), "both products are of one format"
        return _packed_experts(x, w13, w2, weights, ids, extras)
    assert isinstance(w2, Tensor), "both products are of one format"
    config = config_for(x, w2, ids.shape[1])
    if isinstance(config, PairConfig):
        return experts_by_pair(x, w13, w2, Choice(ids.shape[1], ids, weights), config, extras)
    return experts_grouped(x, w13, w2, weights, ids, config, extras)


def _packed_experts(
    x: Tensor,
    w13: MXFP4Weight,
    w2: MXFP4Weight,
    weights: Tensor,
    ids: Tensor,
    extras: Extras,
) -> Tensor:
    (experts, size, wide), top_k = w2.shape, ids.shape[1]
    problem = Problem(experts, size, wide, top_k)
    config = moe_mxfp4.choose(problem, x.shape[0], x.element_size())
    if isinstance(config, PairConfig):
        return moe_mxfp4_pairs.experts_by_pair(x, w13, w2, weights, ids, config, extras)
    return moe_mxfp4.experts_grouped(x, w13, w2, weights, ids, config, extras)


@register("sparse_moe", "triton", _declines_fused)
def sparse_moe(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    router: Tensor,
    w13: Tensor,
    w2: Tensor,
    top_k: int,
    renormalize: bool,
) -> tuple[Tensor, Tensor]:
    """See contracts.SparseMoE. Neither x nor the residual is written to."""
    if x.shape[0] == 0:
        return torch.empty_like(x), torch.empty_like(x)
    config = config_for(x, w2, top_k)
    if isinstance(config, PairConfig) or x.shape[0] <= _FEW:
        normed, total, logits = moe_routing.norm_and_score(x, residual, norm_weight, eps, router)
        if isinstance(config, PairConfig):
            choice = Choice(top_k, logits=logits, renormalize=renormalize)
            return experts_by_pair(normed, w13, w2, choice, config), total
        weights, ids = moe_routing.topk_softmax(logits, top_k, renormalize)
    else:
        if residual is None:
            normed, total = rms_norm(x, norm_weight, eps), x.clone()
        else:
            normed, total = add_rms_norm_apart(x, residual, norm_weight, eps)
        parts = moe_routing.route_logits(normed, router)
        weights, ids = moe_routing.topk_of_parts(parts, top_k, renormalize)
    return experts_grouped(normed, w13, w2, weights, ids, config), total

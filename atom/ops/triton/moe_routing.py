"""Which experts a token goes to: norm, router, softmax and choice.

Few tokens: `norm_and_score`, of whose logits the consumers choose for themselves. More: a norm,
then `route_logits` and `topk_of_parts`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.support import next_power_of_2

_PART = 512  # columns of the hidden size that one program of the router sums over


@triton.jit
def router_kernel(
    x,
    weight,
    logits,
    num_tokens,
    x_stride,
    K,
    E,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """logits [parts, T, E] float32 = x [T, K] times weight [E, K] transposed, PART columns each."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    experts = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    first = tl.program_id(2) * PART
    cols = first + tl.arange(0, BLOCK_K)
    known, wanted = rows < num_tokens, experts < E
    a = x + rows.to(tl.int64)[:, None] * x_stride + cols[None, :]
    b = weight + experts[None, :] * K + cols[:, None]
    begin(PDL)
    total = tl.zeros((BLOCK_M, BLOCK_E), dtype=tl.float32)
    for start in range(0, tl.minimum(PART, K - first), BLOCK_K):
        inside = cols < K - start
        left = tl.load(a + start, mask=known[:, None] & inside[None, :], other=0.0)
        right = tl.load(b + start, mask=inside[:, None] & wanted[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    row = tl.program_id(2).to(tl.int64) * num_tokens + rows
    tl.store(
        logits + row[:, None] * E + experts[None, :], total, mask=known[:, None] & wanted[None, :]
    )


def route_logits(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, K], weight [E, K] of one dtype -> [parts, T, E] float32, whose sum the logits are.

    Few tokens leave most of the GPU idle but for the parts.
    """
    (num_tokens, size), experts = x.shape, weight.shape[0]
    many = num_tokens > 2048
    block_m = 64 if many else 16
    block_e = min(128 if many else 16, max(16, next_power_of_2(experts)))
    block_k = min(next_power_of_2(size), (128 if many else 256) // max(1, x.element_size() // 2))
    block_k = max(16, block_k)
    part = block_k * triton.cdiv(size if num_tokens > 512 else min(size, _PART), block_k)
    parts = triton.cdiv(size, part)
    logits = torch.empty(parts, num_tokens, experts, dtype=torch.float32, device=x.device)
    options = pdl_options(x.device)
    grid = (triton.cdiv(num_tokens, block_m), triton.cdiv(experts, block_e), parts)
    router_kernel[grid](
        x,
        weight,
        logits,
        num_tokens,
        x.stride(0),
        size,
        experts,
        BLOCK_M=block_m,
        BLOCK_E=block_e,
        BLOCK_K=block_k,
        PART=part,
        PRECISION="ieee",
        PDL=bool(options),
        num_warps=4,
        num_stages=4 if parts == 1 else 3,
        **options,
    )
    return logits


@triton.jit
def choose(
    scores,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """scores [R, BLOCK_E] -> the TOP_K largest of each row, of equals the first, and their softmax:
    [R, BLOCK_J] each, the rest 0.

    A row of NaN, such as padding may hold, gets NaN weights of experts that exist."""
    experts = tl.arange(0, BLOCK_E)[None, :]
    choices = tl.arange(0, BLOCK_J)[None, :]
    rest = tl.where(scores == scores, scores, float("-inf"))
    largest = tl.max(rest, axis=1)
    total = tl.sum(tl.exp(rest - largest[:, None]), axis=1)
    shares = tl.zeros((scores.shape[0], BLOCK_J), dtype=tl.float32)
    chosen = tl.zeros((scores.shape[0], BLOCK_J), dtype=tl.int32)
    for j in tl.static_range(TOP_K):
        value, best = tl.max(rest, axis=1, return_indices=True)
        share = tl.exp(value - largest) / total
        shares = tl.where(choices == j, share[:, None], shares)
        chosen = tl.where(choices == j, best[:, None], chosen)
        rest = tl.where(experts == best[:, None], float("-inf"), rest)
    if RENORMALIZE:
        shares = shares / tl.sum(shares, axis=1)[:, None]
    return chosen, shares


@triton.jit
def topk_kernel(
    logits,
    weights,
    ids,
    num_tokens,
    logits_stride,
    E,
    PARTS: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PDL: tl.constexpr,
):
    """Softmax over the experts and the TOP_K largest, of BLOCK_T tokens; of equals, the first. The
    logits are the sum of PARTS matrices below each other."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.arange(0, BLOCK_E)
    choices = tl.arange(0, BLOCK_J)
    known = rows < num_tokens
    begin(PDL)
    mask = known[:, None] & (experts < E)[None, :]
    row = rows.to(tl.int64)[:, None]
    places = logits + row * logits_stride + experts[None, :]
    rest = tl.load(places, mask=mask, other=float("-inf")).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        more = logits + (row + part * num_tokens) * logits_stride + experts[None, :]
        rest += tl.load(more, mask=mask, other=0.0).to(tl.float32)
    rest = tl.where(known[:, None], rest, 0.0)
    chosen, shares = choose(rest, TOP_K, RENORMALIZE, BLOCK_E, BLOCK_J)
    out = rows.to(tl.int64)[:, None] * TOP_K + choices[None, :]
    mask = known[:, None] & (choices < TOP_K)[None, :]
    tl.store(weights + out, shares, mask=mask)
    tl.store(ids + out, chosen, mask=mask)


def topk_softmax(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Of contracts.TopkRouting."""
    return topk_of_parts(logits.unsqueeze(0), k, renormalize)


def topk_of_parts(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """As `topk_softmax`, of the sum of logits [parts, T, E] (several only if dense)."""
    parts, num_tokens, experts = logits.shape
    weights = torch.empty(num_tokens, k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(num_tokens, k, dtype=torch.int32, device=logits.device)
    block_t = 1 if num_tokens <= 256 else 8
    options = pdl_options(logits.device)
    topk_kernel[(triton.cdiv(num_tokens, block_t),)](
        logits,
        weights,
        ids,
        num_tokens,
        logits.stride(1),
        experts,
        PARTS=parts,
        TOP_K=k,
        RENORMALIZE=renormalize,
        BLOCK_T=block_t,
        BLOCK_E=next_power_of_2(experts),
        BLOCK_J=next_power_of_2(k),
        PDL=bool(options),
        num_warps=1 if block_t == 1 else 4,
        **options,
    )
    return weights, ids


class Scored(NamedTuple):
    """What the first kernel makes of x and the residual: all [T, ...]."""

    normed: Tensor  # [T, K]
    residual: Tensor  # [T, K]
    logits: Tensor  # [T, E] float32


@triton.jit
def norm_score_kernel(
    x,
    residual,
    norm_weight,
    router,
    normed,
    total,
    logits,
    eps,
    x_stride,
    residual_stride,
    K,
    E,
    HAS_RESIDUAL: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Some experts' logits of one token. Each program norms the whole row for itself, and writes
    SHARE columns of it."""
    experts = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    token = tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, BLOCK_K)
    inside = cols < K
    scale = tl.load(norm_weight + cols, mask=inside, other=0.0).to(tl.float32)
    wanted = experts < E
    tile = router + experts[:, None] * K + cols[None, :]
    matrix = tl.load(tile, mask=wanted[:, None] & inside[None, :], other=0.0)
    begin(PDL)
    row = tl.load(x + token * x_stride + cols, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        before = tl.load(residual + token * residual_stride + cols, mask=inside, other=0.0)
        row = (row.to(tl.float32) + before.to(tl.float32)).to(row.dtype)
    wide = row.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=0) / K + eps)
    out = (wide * inverse * scale).to(row.dtype)
    own = (cols // SHARE == tl.program_id(0)) & inside
    tl.store(normed + token * K + cols, out, mask=own)
    tl.store(total + token * K + cols, row, mask=own)
    scores = tl.sum(matrix.to(tl.float32) * out.to(tl.float32)[None, :], axis=1)
    tl.store(logits + token * E + experts, scores, mask=wanted)


def norm_and_score(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, router: Tensor
) -> Scored:
    """x, residual [T, K]; norm_weight [K]; router [E, K]."""
    (num_tokens, size), experts = x.shape, router.shape[0]
    normed, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    logits = torch.empty(num_tokens, experts, dtype=torch.float32, device=x.device)
    block_k = next_power_of_2(size)
    block_e = max(1, min(4, 8192 // block_k))
    options = pdl_options(x.device)
    programs = triton.cdiv(experts, block_e)
    norm_score_kernel[(programs, num_tokens)](
        x,
        x if residual is None else residual,
        norm_weight,
        router,
        normed,
        total,
        logits,
        eps,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        size,
        experts,
        HAS_RESIDUAL=residual is not None,
        SHARE=triton.cdiv(triton.cdiv(size, programs), 8) * 8,
        BLOCK_E=block_e,
        BLOCK_K=block_k,
        PDL=bool(options),
        num_warps=4,
        **options,
    )
    return Scored(normed, total, logits)

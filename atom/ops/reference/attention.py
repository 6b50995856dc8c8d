"""The paged KV cache in plain torch: one sequence after the other, only slots that hold keys read.

A float8 cache holds e4m3 values over a scale: what exceeds +-448 times it is clamped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.registry import register

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def _bits(cache: Tensor) -> Tensor:
    """Float8 has no indexing kernels, its bytes have."""
    return cache.view(torch.uint8) if cache.dtype == FP8 else cache


def _to_cache(x: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    if dtype == FP8:
        scaled = x.float() / scale
        return scaled.clamp(-FP8_MAX, FP8_MAX).to(FP8).view(torch.uint8)
    assert scale == 1.0, "only a float8 cache has scales"
    return x.to(dtype)


@register("reshape_and_cache", "reference")
def reshape_and_cache(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    block, offset = slots // k_cache.shape[1], slots % k_cache.shape[1]
    _bits(k_cache)[block, offset] = _to_cache(k[kept], k_cache.dtype, k_scale)
    _bits(v_cache)[block, offset] = _to_cache(v[kept], v_cache.dtype, v_scale)


def _gather(cache: Tensor, blocks: Tensor, begin: int, end: int) -> Tensor:
    """Keys or values at positions begin..end of a sequence: [Hk, end - begin, D] float32."""
    size = cache.shape[1]
    first = begin // size
    pages = _bits(cache)[blocks[first : (end + size - 1) // size].long()].view(cache.dtype)
    rows = pages.flatten(0, 1)[begin - first * size : end - first * size]
    return rows.transpose(0, 1).float()


def _mask(num_queries: int, begin: int, end: int, window: int, device: torch.device) -> Tensor:
    """[num_queries, end - begin] bool: the query at position p sees p - window < key <= p."""
    query = torch.arange(end - num_queries, end, device=device).unsqueeze(1)
    key = torch.arange(begin, end, device=device).unsqueeze(0)
    seen = key <= query
    return seen & (key > query - window) if window else seen


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    sinks: Tensor | None,
    soft_cap: float,
) -> Tensor:
    """q [Hq, ql, D], k and v [Hk, n, D], all float32 -> [Hq, ql, D]."""
    groups = q.shape[0] // k.shape[0]
    if sinks is None and not soft_cap:
        return F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=groups > 1
        )[0]
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    scores = torch.matmul(q, k.transpose(1, 2)) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores.masked_fill_(~mask, float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(-1, 1, 1).expand(-1, q.shape[1], 1)
        return torch.matmul(torch.cat((scores, sink), -1).softmax(-1)[..., :-1], v)
    return torch.matmul(scores.softmax(-1), v)


@register("paged_attention", "reference")
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttentionMetadata,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
    soft_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    out = q.new_zeros(q.shape)  # zeros: rows of padding tokens must not hold garbage
    starts = meta.cu_seqlens_q.tolist()
    lengths = meta.seq_lens.tolist()
    for s in range(meta.num_seqs):
        low, high, end = starts[s], starts[s + 1], lengths[s]
        if low == high:
            continue
        begin = max(end - (high - low) - window + 1, 0) if window else 0
        k = _gather(k_cache, meta.block_table[s], begin, end)
        v = _gather(v_cache, meta.block_table[s], begin, end)
        if k_scale != 1.0 or v_scale != 1.0:
            k, v = k * k_scale, v * v_scale
        mask = _mask(high - low, begin, end, window, q.device)
        queries = q[low:high].transpose(0, 1).float()
        result = _attend(queries, k, v, mask, scale, sinks, soft_cap)
        out[low:high] = result.transpose(0, 1).to(q.dtype)
    return out

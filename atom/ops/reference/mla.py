"""Latent attention in plain torch: one sequence after the other, over its latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.reference.attention import FP8, FP8_MAX
from atom.ops.reference.elementwise import rms_norm, rotary
from atom.ops.registry import register


@register("mla_cache", "reference")
def mla_cache(
    q_rope: Tensor,
    kv: Tensor,
    positions: Tensor,
    norm_weight: Tensor,
    eps: float,
    cos_sin: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    rank = norm_weight.shape[0]
    kv[:, :rank] = rms_norm(kv[:, :rank], norm_weight, eps)
    rotary(q_rope, kv[:, None, rank:], positions, cos_sin, True)
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    block, offset = slots // cache.shape[1], slots % cache.shape[1]
    if cache.dtype == FP8:  # without indexing kernels, which its bytes have
        rows = kv.float().clamp(-FP8_MAX, FP8_MAX).to(FP8)
        cache.view(torch.uint8)[block, offset] = rows.view(torch.uint8)[kept]
    else:
        rows = kv.to(cache.dtype)
        cache[block, offset] = rows[kept]
    kv.copy_(rows)


def gather_latents(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
    """The first `length` latents of a sequence: [length, R + P] float32."""
    size = cache.shape[1]
    used = blocks[: (length + size - 1) // size].long()
    pages = cache.view(torch.uint8)[used].view(FP8) if cache.dtype == FP8 else cache[used]
    return pages.flatten(0, 1)[:length].float()


@register("mla_attention", "reference")
def mla_attention(
    q_latent: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    meta: AttentionMetadata,
    scale: float,
) -> Tensor:
    out = torch.zeros_like(q_latent, memory_format=torch.contiguous_format)
    rank = q_latent.shape[2]
    starts, lengths = meta.cu_seqlens_q.tolist(), meta.seq_lens.tolist()
    for s in range(meta.num_seqs):
        low, high, end = starts[s], starts[s + 1], lengths[s]
        if low == high:
            continue
        keys = gather_latents(cache, meta.block_table[s], end)
        positions = torch.arange(end - (high - low), end, device=cache.device)
        mask = torch.arange(end, device=cache.device) <= positions.unsqueeze(1)
        queries = torch.cat((q_latent[low:high], q_rope[low:high]), -1).transpose(0, 1).float()
        scores = (queries @ keys.T) * scale
        weights = F.softmax(scores.masked_fill_(~mask, float("-inf")), -1)
        out[low:high] = (weights @ keys[:, :rank]).transpose(0, 1).to(out.dtype)
    return out

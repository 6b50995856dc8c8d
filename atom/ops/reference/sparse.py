"""Sparse attention in plain torch: index keys, the choice among them, attention over the chosen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_sparse import IndexNorm
from atom.ops.reference.attention import FP8
from atom.ops.reference.elementwise import rotary
from atom.ops.registry import register

# Products of queries and keys held at a time, in elements: 64 MB of float32.
MOST_PRODUCTS = 1 << 24


@register("index_cache", "reference")
def index_cache(
    q: Tensor | None,
    k: Tensor,
    norm: IndexNorm,
    positions: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    weight, bias = norm.weight.float(), norm.bias.float()
    k = F.layer_norm(k.float(), (k.shape[1],), weight, bias, norm.eps).to(k.dtype)
    heads = k.new_empty(k.shape[0], 0, k.shape[1]) if q is None else q
    rotary(heads, k.unsqueeze(1), positions, norm.cos_sin, norm.interleaved)
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    cache[slots // cache.shape[1], slots % cache.shape[1]] = k[kept].to(cache.dtype)


def index_scores(q: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """q [n, Hi, Di], weights [n, Hi], keys [m, Di] -> [n, m] float32."""
    count, heads, _ = q.shape
    products = (q.float().flatten(0, 1) @ keys.float().T).relu_().view(count, heads, -1)
    return torch.bmm(weights.float().unsqueeze(1), products).squeeze(1)


def _best(scores: Tensor, positions: Tensor, k: int) -> Tensor:
    """The k best of each row's keys 0 .. position, ascending; -1 after the last: [n, k]."""
    num_keys = scores.shape[1]
    key = torch.arange(num_keys, device=scores.device)
    scores = scores.masked_fill(key > positions.unsqueeze(1), float("-inf"))
    # A stable sort keeps equal scores in order of position; a topk makes no such promise.
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    best = best.masked_fill(best > positions.unsqueeze(1), num_keys).sort(1).values
    best = F.pad(best, (0, k - best.shape[1]), value=num_keys)
    return best.masked_fill(best == num_keys, -1)


@register("index_topk", "reference")
def index_topk(
    q: Tensor, weights: Tensor, cache: Tensor, meta: AttentionMetadata, k: int
) -> Tensor:
    out = torch.full((q.shape[0], k), -1, dtype=torch.int32, device=q.device)
    starts, lengths, size = meta.cu_seqlens_q.tolist(), meta.seq_lens.tolist(), cache.shape[1]
    for s in range(meta.num_seqs):
        low, high, end = starts[s], starts[s + 1], lengths[s]
        if low == high or not end:
            continue
        blocks = meta.block_table[s, : (end + size - 1) // size].long()
        slots = (blocks.unsqueeze(1) * size + torch.arange(size, device=q.device)).flatten()[:end]
        keys = cache[blocks].flatten(0, 1)[:end]
        step = max(1, MOST_PRODUCTS // (q.shape[1] * end))
        for row in range(low, high, step):
            rows = slice(row, min(row + step, high))
            positions = torch.arange(rows.start, rows.stop, device=q.device) + (end - high)
            best = _best(index_scores(q[rows], weights[rows], keys), positions, k)
            out[rows] = torch.where(best < 0, -1, slots[best.clamp_min(0)]).int()
    return out


@register("sparse_mla", "reference")
def sparse_mla(
    q_latent: Tensor, q_rope: Tensor, cache: Tensor, slots: Tensor, scale: float
) -> Tensor:
    out = torch.zeros_like(q_latent, memory_format=torch.contiguous_format)
    rows = (cache.view(torch.uint8) if cache.dtype == FP8 else cache).flatten(0, 1)
    step = max(1, MOST_PRODUCTS // (slots.shape[1] * cache.shape[2]))
    for row in range(0, len(slots), step):
        part = slice(row, row + step)
        queries = torch.cat((q_latent[part], q_rope[part]), -1).float()
        seen = (slots[part] >= 0).unsqueeze(1)
        keys = rows[slots[part].clamp_min(0).long()].view(cache.dtype).float()
        # Slot 0 may hold NaN, which a weight of zero would not hide.
        keys = keys.masked_fill(~seen.transpose(1, 2), 0.0)
        scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(scale)
        weights = scores.masked_fill_(~seen, float("-inf")).softmax(-1).nan_to_num_(0.0)
        out[part] = torch.bmm(weights, keys[..., : q_latent.shape[2]]).to(out.dtype)
    return out

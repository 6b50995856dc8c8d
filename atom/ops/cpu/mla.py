"""op `mla_prefill` on CPU, by torch: each sequence in the form that takes fewer operations.

16 heads of DeepSeek's sizes, one thread, one layer: 512 tokens with nothing before them take 52 ms
(over latents 161 ms), 4 decodes after 4096 tokens 30 ms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.reference.mla import gather_latents


def makes_keys(context: int, new: int, rank: int, nope: int, rope: int, value: int) -> bool:
    """Whether making keys and values of `context + new` latents, for each head, takes fewer
    products than absorbing the matrices into `new` queries."""
    extra = (2 * rank + rope) - (nope + rope + value)  # of every pair of query and key
    return 2 * context * (nope + value) * rank < extra * new * (2 * context + new)


def _over_keys(
    q: Tensor, latents: Tensor, w_uk: Tensor, w_uv: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """q [H, n, N + P], latents [L, R + P] -> [H, n, V]."""
    heads, _, rank = w_uk.shape
    value, query = w_uv.shape[2], q.shape[2]
    c = latents[:, :rank].expand(heads, -1, -1)
    rope = latents[:, rank:].expand(heads, -1, -1)
    k = torch.cat((torch.bmm(c, w_uk.transpose(1, 2)), rope), -1)
    v = torch.bmm(c, w_uv)
    if value < query:  # torch's blocked kernel wants them of one size
        v = F.pad(v, (0, query - value))
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale)
    return out[0, ..., :value]


def _over_latents(
    q: Tensor, latents: Tensor, w_uk: Tensor, w_uv: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    _, nope, rank = w_uk.shape
    queries = torch.cat((torch.bmm(q[..., :nope], w_uk), q[..., nope:]), -1)
    scores = (queries @ latents.T).mul_(scale)
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    return torch.bmm(scores.softmax(-1) @ latents[:, :rank], w_uv)


def mla_prefill(
    q: Tensor,
    kv: Tensor,
    cache: Tensor,
    w_uk: Tensor,
    w_uv: Tensor,
    meta: AttentionMetadata,
    scale: float,
    out: Tensor,
) -> Tensor:
    starts, lengths = meta.cu_seqlens_q.tolist(), meta.seq_lens.tolist()
    nope, rank = w_uk.shape[1:]
    rope, value = q.shape[2] - nope, w_uv.shape[2]
    w_uk, w_uv = w_uk.float(), w_uv.float()
    out.zero_()  # rows of padding tokens must not hold garbage
    for s in range(meta.num_seqs):
        low, high, end = starts[s], starts[s + 1], lengths[s]
        if low == high:
            continue
        new = high - low
        latents = gather_latents(cache, meta.block_table[s], end)
        mask = None  # a single query sees all
        if new > 1:
            mask = torch.arange(end) <= torch.arange(end - new, end).unsqueeze(1)
        makes = makes_keys(end - new, new, rank, nope, rope, value)
        attend = _over_keys if makes else _over_latents
        queries = q[low:high].transpose(0, 1).float()
        result = attend(queries, latents, w_uk, w_uv, mask, scale)
        out[low:high] = result.transpose(0, 1).to(out.dtype)
    return out

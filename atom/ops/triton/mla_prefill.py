"""op `mla_prefill`: chunks with keys and values of their own, what came before them as latents.

Operations per pair of query and key and head, R = 512, N = V = 128, P = 64: 2176 over latents, 640
over keys and values of which making one costs 262 thousand, as much as absorbing W_uk and W_uv into
a query does. So among themselves new tokens always gain, 3.4 times where attention dominates.
Keys from before the step would have to be made anew for each step; they pay from about 170 queries
a sequence on, but how many keys there are only the device knows: they stay latents. Not measured
yet on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.registry import OpQuery, register
from atom.ops.triton import support
from atom.ops.triton.mla_attention import LOG2_E, attend_latents
from atom.ops.triton.mla_prefill_kernel import join_kernel, own_kernel

JOIN_HEADS = 8


def _pad(size: int) -> int:
    return max(support.next_power_of_2(size), 16)


def attend_own(
    q: Tensor,
    kv: Tensor,
    w_uk: Tensor,
    w_uv: Tensor,
    meta: AttentionMetadata,
    scale: float,
    out: Tensor,
    lse: Tensor | None,
) -> None:
    """The step's tokens among each other, into `out` [T, H, V] and `lse` [T, H] float32."""
    heads, nope, rank = w_uk.shape
    rope, value = q.shape[2] - nope, w_uv.shape[2]
    latents = kv[:, :rank].expand(heads, -1, -1)
    k = torch.bmm(latents, w_uk.transpose(1, 2))
    v = torch.bmm(latents, w_uv)
    single = q.dtype == torch.float32
    block_q, keys = (32, 32) if single else (128, 64)
    own_kernel[heads, meta.num_tokens // block_q + meta.num_seqs](
        out, out if lse is None else lse, q, k, v, kv[:, rank:], meta.cu_seqlens_q, meta.num_seqs,
        scale * LOG2_E, out.stride(0), out.stride(1), q.stride(0), q.stride(1), k.stride(0),
        k.stride(1), v.stride(0), v.stride(1), kv.stride(0),
        NUM_HEADS=heads, N=nope, N_PAD=_pad(nope), P=rope, P_PAD=_pad(rope), V=value,
        V_PAD=_pad(value), BLOCK_Q=block_q, BLOCK_N=keys, LSE=lse is not None,
        PRECISION="ieee" if single else "tf32", num_warps=4 if single else 8,
        num_stages=1 if single else 2,
    )  # fmt: skip


def _begins_all(meta: AttentionMetadata) -> bool:
    """Whether it is known on the host that no sequence has computed anything before."""
    whole = meta.num_seqs * meta.max_query_len == meta.num_tokens
    return whole and meta.max_seq_len == meta.max_query_len


def _declines(query: OpQuery) -> str | None:
    if query.kv_dtype not in (query.dtype, "float8_e4m3fn"):
        return f"the cache must be {query.dtype} or float8_e4m3fn"
    if query.size("R") > 512:
        return "kv_lora_rank must be at most 512"
    return None


@register("mla_prefill", "triton", _declines)
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
    tokens, heads = q.shape[:2]
    nope, value = w_uk.shape[1], w_uv.shape[2]
    if _begins_all(meta):
        attend_own(q, kv, w_uk, w_uv, meta, scale, out, None)
    else:
        own, before = torch.empty(2, tokens, heads, dtype=torch.float32, device=q.device)
        attend_own(q, kv, w_uk, w_uv, meta, scale, out, own)
        q_latent = torch.bmm(q[..., :nope].transpose(0, 1), w_uk).transpose(0, 1)
        mixed = attend_latents(
            q_latent, q[..., nope:], cache, meta, scale, context=True, lse=before
        )
        other = torch.bmm(mixed.transpose(0, 1), w_uv).transpose(0, 1)
        join_kernel[meta.num_tokens, -(-heads // JOIN_HEADS)](
            out, other, own, before, out.stride(0), out.stride(1), other.stride(0),
            other.stride(1),
            NUM_HEADS=heads, HEADS=JOIN_HEADS, V=value, V_PAD=_pad(value), num_warps=4,
        )  # fmt: skip
    if tokens > meta.num_tokens:
        out[meta.num_tokens :].zero_()  # padding
    return out

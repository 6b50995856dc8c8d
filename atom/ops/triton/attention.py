"""Op `attention`: from the QKV projection to attention's output, in one launch or two.

Decode steps are one kernel, which norms and rotates in registers. Others prepare the queries and
write the cache in a launch of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atom.ops.contracts import AttentionMetadata, AttentionParams
from atom.ops.registry import OpQuery, register
from atom.ops.triton import decode_attention
from atom.ops.triton.rope_cache import rope_cache
from atom.ops.triton.varlen_attention import varlen_attention

_DTYPES = ("bfloat16", "float16", "float32")


def _declines(query: OpQuery) -> str | None:
    if query.dtype not in _DTYPES:
        return f"activations must be one of {', '.join(_DTYPES)}"
    if query.kv_dtype not in (query.dtype, "float8_e4m3fn"):
        return f"the cache must be {query.dtype} or float8_e4m3fn"
    if query.size("D") > 256:
        return "head_dim must be at most 256"
    if query.size("Hq") % query.size("Hk"):
        return "query heads must divide evenly among KV heads"
    return None


@register("attention", "triton", _declines)
def attention(
    qkv: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttentionMetadata,
    params: AttentionParams,
    out: Tensor | None = None,
) -> Tensor:
    if out is None:
        shape = (qkv.shape[0], params.num_heads, params.head_dim)
        out = torch.empty(shape, dtype=qkv.dtype, device=qkv.device)
    if meta.is_decode:
        return decode_attention.launch(qkv, k_cache, v_cache, meta, params, out, positions)
    # So that a capture finds it made: the first step of a process is never captured.
    decode_attention.workspace(qkv.device)
    q = rope_cache(qkv, positions, k_cache, v_cache, meta, params)
    result: Tensor = varlen_attention(
        q,
        k_cache,
        v_cache,
        meta,
        params.scale,
        params.window,
        params.sinks,
        params.soft_cap,
        params.k_scale,
        params.v_scale,
        out,
    )
    return result

"""op `paged_attention`: decode steps go to the kernel that splits keys, all others to the tiles."""

from __future__ import annotations

from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.registry import OpQuery, register
from atom.ops.triton.decode_attention import decode_attention
from atom.ops.triton.varlen_attention import varlen_attention

MAX_HEAD_DIM = 256


def _declines(query: OpQuery) -> str | None:
    if query.size("D") > MAX_HEAD_DIM:
        return f"heads of at most {MAX_HEAD_DIM}"
    return None


@register("paged_attention", "triton", _declines)
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
    attend = decode_attention if meta.is_decode else varlen_attention
    return attend(q, k_cache, v_cache, meta, scale, window, sinks, soft_cap, k_scale, v_scale)

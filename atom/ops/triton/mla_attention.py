"""op `mla_attention`: attention over latents, for decodes, chunks and mixtures of them.

Decode floor: the latents' bytes, read once: (R + P) values a key for all heads (576 for DeepSeek),
at 4.8 TB/s of an H200 4.2e9 keys a second in bfloat16. 16 heads (128 over 8 ranks) are 35 kFLOP a
key, 145 TFLOP/s at that rate; 128 heads on one GPU are bound by products instead. The shapes below
follow from what fits (acc is [rows, 512] float32 in registers, keys [BLOCK_N, 576] in shared
memory); they were not measured yet on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.registry import OpQuery, register
from atom.ops.triton import support
from atom.ops.triton.mla_kernel import merge_kernel, mla_kernel

LOG2_E = 1.4426950408889634
MIN_PART = 256  # keys that are worth a part of their own
MAX_PARTS = 128
MERGE_HEADS = 4
FP8 = torch.float8_e4m3fn


class Cut(NamedTuple):
    """A tile is `block_q` tokens of `heads` heads against `keys` keys at a time."""

    block_q: int
    heads: int
    keys: int
    warps: int
    stages: int
    parts: int
    min_part: int = MIN_PART


def num_tiles(meta: AttentionMetadata, block_q: int) -> int:
    if meta.is_decode:
        return meta.num_seqs
    return meta.num_tokens // block_q + meta.num_seqs


def choose_cut(
    dtype: torch.dtype, packed: bool, heads: int, rank: int, meta: AttentionMetadata, num_sms: int
) -> Cut:
    """`heads` are the rank's, `rank` the latents' channels, `packed` a cache of float8. Reads only
    counts that the host knows."""
    single = dtype == torch.float32
    most = 16 if single and rank > 256 else 64
    tile_heads = min(support.next_power_of_2(heads), most)
    block_q = max(most // tile_heads, 1)
    if meta.is_decode:  # products take at least 16 columns
        tile_heads, block_q = max(tile_heads, 16), 1
    # What the compiler fits into 255 registers without spilling much; on gfx942 its two stages of
    # 64 keys would be 76 KB of shared memory, of which there are 64.
    few = meta.is_decode and tile_heads <= 32 and not (single or packed or support.IS_ROCM)
    keys = 16 if single else 64 if few else 32
    warps = 8 if rank > 256 else 4
    tiles = -(-heads // tile_heads) * num_tiles(meta, block_q)
    parts = min(num_sms // max(tiles, 1), -(-meta.max_seq_len // MIN_PART), MAX_PARTS)
    # A power of two: few kernels are compiled.
    parts = 1 << max(parts, 1).bit_length() - 1
    return Cut(block_q, tile_heads, keys, warps, 1 if single else 2 if few else 3, parts)


def attend_latents(
    q_latent: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    meta: AttentionMetadata,
    scale: float,
    *,
    context: bool = False,
    lse: Tensor | None = None,
    cut: Cut | None = None,
) -> Tensor:
    """-> [T, H, R]. `context`: over the keys before the step's only; `lse` [T, H] float32 gets the
    logarithms of the softmax's denominators in powers of two, -inf without keys. With `lse`, keys
    are not shared out."""
    tokens, heads, rank = q_latent.shape
    rope = q_rope.shape[2]
    if cut is None:
        sms = support.num_sms(cache.device.index or 0)
        cut = choose_cut(q_latent.dtype, cache.dtype == FP8, heads, rank, meta, sms)
    parts = cut.parts if lse is None else 1
    out = torch.empty(tokens, heads, rank, dtype=q_latent.dtype, device=cache.device)
    target, weights = out, lse if lse is not None else out
    if parts > 1:
        sizes = (parts, tokens, heads)
        target = torch.empty(*sizes, rank, dtype=torch.float32, device=cache.device)
        weights = torch.empty(sizes, dtype=torch.float32, device=cache.device)
    blocks = -(-heads // cut.heads)
    r_pad, p_pad = support.next_power_of_2(rank), max(support.next_power_of_2(rope), 16)
    mla_kernel[blocks, num_tiles(meta, cut.block_q), parts](
        target, weights, q_latent, q_rope, cache, meta.block_table, meta.cu_seqlens_q,
        meta.seq_lens, meta.num_seqs, tokens, scale * LOG2_E, cut.min_part,
        target.stride(-3), target.stride(-2), q_latent.stride(0), q_latent.stride(1),
        q_rope.stride(0), q_rope.stride(1), cache.stride(0), cache.stride(1),
        meta.block_table.stride(0),
        NUM_HEADS=heads, HEADS=cut.heads, R=rank, R_PAD=r_pad, P=rope, P_PAD=p_pad,
        BLOCK_SIZE=cache.shape[1], BLOCK_Q=cut.block_q, BLOCK_N=cut.keys, PARTS=parts,
        CONTEXT=context, LSE=lse is not None or parts > 1, DECODE=meta.is_decode,
        PRECISION="ieee" if q_latent.dtype == torch.float32 else "tf32",
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    if parts > 1:
        merge_kernel[meta.num_tokens, -(-heads // MERGE_HEADS)](
            out, target, weights, tokens, out.stride(0), out.stride(1),
            NUM_HEADS=heads, HEADS=MERGE_HEADS, R=rank, R_PAD=r_pad, PARTS=parts,
            PARTS_PAD=support.next_power_of_2(parts), num_warps=4,
        )  # fmt: skip
    if tokens > meta.num_tokens:
        out[meta.num_tokens :].zero_()  # padding: nothing else is multiplied there
    return out


def _declines(query: OpQuery) -> str | None:
    if query.kv_dtype not in (query.dtype, "float8_e4m3fn"):
        return f"the cache must be {query.dtype} or float8_e4m3fn"
    if query.size("R") > 512:
        return "kv_lora_rank must be at most 512"
    return None


@register("mla_attention", "triton", _declines)
def mla_attention(
    q_latent: Tensor, q_rope: Tensor, cache: Tensor, meta: AttentionMetadata, scale: float
) -> Tensor:
    return attend_latents(q_latent, q_rope, cache, meta, scale)

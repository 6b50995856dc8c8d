"""Writing keys and values into the paged cache: one program per token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.registry import register
from atom.ops.triton import support
from atom.ops.triton.launch import begin, pdl_options
from atom.ops.triton.rotation import to_cache


@triton.jit
def reshape_and_cache_kernel(
    k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale,
    k_token, k_row, v_token, v_row, k_block, k_slot, k_head, v_block, v_slot, v_head,
    BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    begin(PDL)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    at = tl.arange(0, BLOCK)
    head, d = at // D, at % D
    mask = at < HEADS * D
    page, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    x = tl.load(k + token * k_token + head * k_row + d, mask=mask)
    to = k_cache + page * k_block + offset * k_slot + head * k_head + d
    tl.store(to, to_cache(x, k_scale, k_cache.dtype.element_ty), mask=mask)
    x = tl.load(v + token * v_token + head * v_row + d, mask=mask)
    to = v_cache + page * v_block + offset * v_slot + head * v_head + d
    tl.store(to, to_cache(x, v_scale, v_cache.dtype.element_ty), mask=mask)


@register("reshape_and_cache", "triton")
def reshape_and_cache(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    heads, dim = k.shape[1:]
    quantised = k_cache.dtype == torch.float8_e4m3fn
    assert quantised or k_scale == v_scale == 1.0, "only a float8 cache has scales"
    block = support.next_power_of_2(heads * dim)
    reshape_and_cache_kernel[(slot_mapping.shape[0],)](
        k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1), *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        BLOCK_SIZE=k_cache.shape[1], HEADS=heads, D=dim, BLOCK=block,
        num_warps=min(max(block // 512, 1), 8), PDL=bool(options := pdl_options(k.device)),
        **options,
    )  # fmt: skip

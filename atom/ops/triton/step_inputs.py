"""A decode step's tensors from the batch's tables, and sampled tokens back into them.

Few launches, which all can stand in a captured graph, whose replays then need nothing from the host
but a few short arrays.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.triton import support
from atom.ops.triton.argmax import best_key, best_of_parts
from atom.ops.triton.launch import begin, pdl_options

_BLOCKS = 1024  # block ids that one program copies


@triton.jit
def prepare_decode_kernel(
    rows,
    computed,
    new_blocks,
    token_pool,
    pool_stride,
    block_table,
    table_stride,
    block_size,
    input_ids,
    positions,
    slot_mapping,
    seq_lens,
    step_table,
    step_stride,
    EDITS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per sequence and BLOCK entries of its block table."""
    begin(PDL)
    seq = tl.program_id(0)
    part = tl.program_id(1)
    row = tl.load(rows + seq).to(tl.int64)
    position = tl.load(computed + seq)
    padding = row < 0
    row = tl.maximum(row, 0)
    position = tl.where(padding, 0, position)
    length = tl.where(padding, 0, position + 1)
    table = block_table + row * table_stride
    cols = part * BLOCK + tl.arange(0, BLOCK)
    valid = cols < (length + block_size - 1) // block_size
    ids = tl.load(table + cols, mask=valid, other=0)
    column = position // block_size
    new = tl.full((), -1, tl.int32)
    if EDITS:
        # Another program of the sequence may load the table's old entry, and knows better too.
        new = tl.where(padding, -1, tl.load(new_blocks + seq))
        ids = tl.where((cols == column) & (new >= 0), new, ids)
    tl.store(step_table + seq.to(tl.int64) * step_stride + cols, ids, mask=valid)
    if part == 0:
        token = tl.load(token_pool + row * pool_stride + position, mask=padding == 0, other=0)
        block = tl.load(table + column, mask=padding == 0, other=0).to(tl.int64)
        if EDITS:
            block = tl.where(new >= 0, new.to(tl.int64), block)
            tl.store(table + column, new, mask=new >= 0)
        slot = tl.where(padding, -1, block * block_size + position % block_size)
        tl.store(input_ids + seq, token.to(tl.int64))
        tl.store(positions + seq, position.to(tl.int64))
        tl.store(slot_mapping + seq, slot)
        tl.store(seq_lens + seq, length)


@triton.jit
def finish_decode_kernel(
    best_keys,
    rows,
    computed,
    token_pool,
    pool_stride,
    slot,
    landing,
    landing_stride,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The second half of argmax, and where its tokens go: program (sequence)."""
    begin(PDL)
    seq = tl.program_id(0)
    if PARTS == 1:  # noqa: SIM108 (one of them cannot be compiled)
        token = tl.load(best_keys + seq)
    else:
        token = best_key(best_keys, seq, PARTS, BLOCK)
    tl.store(landing + tl.load(slot) * landing_stride + seq, token)
    row = tl.load(rows + seq).to(tl.int64)
    position = tl.load(computed + seq) + 1
    tl.store(token_pool + row * pool_stride + position, token.to(tl.int32), mask=row >= 0)


@triton.jit(do_not_specialize=["count"])
def put_tokens_kernel(
    tokens, rows, computed, token_pool, pool_stride, count, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    begin(PDL)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    row = tl.load(rows + index, mask=inside, other=-1).to(tl.int64)
    taken = row >= 0
    position = tl.load(computed + index, mask=taken, other=0) + 1
    token = tl.load(tokens + index, mask=taken, other=0)
    tl.store(token_pool + row * pool_stride + position, token.to(tl.int32), mask=taken)


def prepare_decode(
    rows: Tensor,
    computed: Tensor,
    token_pool: Tensor,
    block_table: Tensor,
    block_size: int,
    *,
    input_ids: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    seq_lens: Tensor,
    step_table: Tensor,
    new_blocks: Tensor | None = None,
) -> None:
    """Write the inputs of a step in which row `rows[s]` computes its position `computed[s]`.

    rows, computed [S] int32, row -1 = padding; token_pool [R, W] and block_table [R, C] int32.
    Written: input_ids, positions, slot_mapping [S] int64, seq_lens [S] int32, and of step_table
    [S, C] int32 the entries that hold the sequence. Padding: id 0, position 0, slot -1, length 0.

    `new_blocks` [S] int32: the block that the row's table shall have at the position computed, and
    which is then written there as well; -1: the one it has. No row may come twice.
    """
    count, columns = step_table.shape
    if count == 0:
        return
    block = min(_BLOCKS, max(16, int(triton.next_power_of_2(columns))))
    pdl = pdl_options(rows.device)
    prepare_decode_kernel[(count, -(-columns // block))](
        rows,
        computed,
        rows if new_blocks is None else new_blocks,
        token_pool,
        token_pool.stride(0),
        block_table,
        block_table.stride(0),
        block_size,
        input_ids,
        positions,
        slot_mapping,
        seq_lens,
        step_table,
        step_table.stride(0),
        EDITS=new_blocks is not None,
        BLOCK=block,
        PDL=bool(pdl),
        num_warps=max(1, block // 256),
        **pdl,
    )


def finish_decode(
    logits: Tensor,
    rows: Tensor,
    computed: Tensor,
    token_pool: Tensor,
    slot: Tensor,
    landing: Tensor,
) -> None:
    """The argmax of logits [S, V] (see `argmax`) into landing[slot[0], :S], and as of `put_tokens`.

    slot [1] int64, landing [N, at least S] int64.
    """
    count = len(logits)
    if count == 0:
        return
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    keys, parts = best_of_parts(logits, tokens)
    pdl = pdl_options(logits.device)
    finish_decode_kernel[(count,)](
        keys,
        rows,
        computed,
        token_pool,
        token_pool.stride(0),
        slot,
        landing,
        landing.stride(0),
        PARTS=parts,
        BLOCK=support.next_power_of_2(parts),
        PDL=bool(pdl),
        num_warps=1,
        **pdl,
    )


def put_tokens(tokens: Tensor, rows: Tensor, computed: Tensor, token_pool: Tensor) -> None:
    """token_pool[rows[s], computed[s] + 1] = tokens[s] [S] int64, where rows[s] >= 0."""
    count = len(tokens)
    if count == 0:
        return
    pdl = pdl_options(rows.device)
    put_tokens_kernel[(-(-count // 128),)](
        tokens,
        rows,
        computed,
        token_pool,
        token_pool.stride(0),
        count,
        BLOCK=128,
        PDL=bool(pdl),
        num_warps=4,
        **pdl,
    )

"""The attention of `varlen_attention` for Hopper, in Gluon: who loads and who computes is explicit.

One block per multiprocessor takes tile after tile from a counter. Four warps gather queries, and
keys and values from the pages, into shared memory; two groups of four take half of the tile's rows
each. A group multiplies the next block's scores while the product with this block's values still
runs, and the groups take turns: one has the tensor cores while the other is in its softmax.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def _find_tile(cu_seqlens, seq_lens, tile, num_seqs, BLOCK_Q: gl.constexpr, WINDOW: gl.constexpr,
               BLOCK_N: gl.constexpr):  # fmt: skip
    """(sequence, first row of q, position of the first query, end of the keys, first block, blocks)
    of query tile `tile`; no blocks for a tile past its sequence. Long tiles come first."""
    low, high = 0, num_seqs
    while low < high:
        middle = (low + high) // 2
        if gl.load(cu_seqlens + middle) // BLOCK_Q + middle <= tile:
            low = middle + 1
        else:
            high = middle
    seq = low - 1
    start = gl.load(cu_seqlens + seq)
    q_len = gl.load(cu_seqlens + seq + 1) - start
    tiles = (q_len + BLOCK_Q - 1) // BLOCK_Q
    first = (tiles - 1 - (tile - (start // BLOCK_Q + seq))) * BLOCK_Q
    context = gl.load(seq_lens + seq) - q_len
    lowest = context + first
    end = gl.minimum(lowest + BLOCK_Q, context + q_len)
    begin = 0
    if WINDOW > 0:
        begin = gl.maximum(lowest - WINDOW + 1, 0) // BLOCK_N
    blocks = gl.maximum((end + BLOCK_N - 1) // BLOCK_N - begin, 0)
    if first < 0:
        blocks = 0
    return seq, start + first, lowest, end, begin, blocks


@gluon.jit
def _publish(tiles, tile_full, slot, head, first, lowest, end, begin, blocks):
    """Tell those who compute about the next tile."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    fields = (head, first, lowest, end, begin, blocks)
    for i in gl.static_range(6):
        value = gl.full([1], 0, gl.int32, layout) + fields[i]
        tiles.index(slot * 6 + i).store(value)
    mbarrier.arrive(tile_full.index(slot), count=1)


@gluon.jit
def _field(tiles, slot, i: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    return gl.max(tiles.index(slot * 6 + i).load(layout), 0)


@gluon.jit
def _load(
    schedule, q, k_cache, v_cache, block_table, cu_seqlens, seq_lens, num_seqs, num_tiles,
    q_token, q_head, cache_block, cache_slot, cache_head, table_row,
    tiles, q_smem, k_smem, v_smem,
    tile_full, tile_empty, q_full, k_full, k_empty, v_full, v_empty,
    HEADS: gl.constexpr, GROUP: gl.constexpr, GROUP_PAD: gl.constexpr, D: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_N: gl.constexpr,
    WINDOW: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Queries of every tile, then its keys and values from the last block to the first.

    Of the type that is computed in, they are copied past the registers; float8 is converted in
    them.
    """
    copied: gl.constexpr = k_cache.dtype == q.dtype
    q_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    q_row = gl.arange(0, 64, gl.SliceLayout(1, q_layout))
    q_d = gl.arange(0, D, gl.SliceLayout(0, q_layout))
    wide: gl.constexpr = 128 // k_cache.dtype.element_ty.primitive_bitwidth  # 16 bytes
    layout: gl.constexpr = gl.BlockedLayout([1, wide], [32 * wide // D, D // wide], [4, 1], [1, 0])
    row = gl.arange(0, BLOCK_N, gl.SliceLayout(1, layout))
    d = gl.arange(0, D, gl.SliceLayout(0, layout))
    done, turn = 0, 0  # blocks and tiles so far
    work = gl.program_id(0)
    while work < num_tiles:
        head = work % HEADS
        seq, first, lowest, end, begin, blocks = _find_tile(
            cu_seqlens, seq_lens, work // HEADS, num_seqs, BLOCK_Q, WINDOW, BLOCK_N
        )
        if blocks > 0:
            slot = turn % 2
            mbarrier.wait(tile_empty.index(slot), (turn // 2) & 1 ^ 1)
            _publish(tiles, tile_full, slot, head, first, lowest, end, begin, blocks)
            for part in gl.static_range(2):
                token = (64 * part + q_row) // GROUP_PAD
                member = (64 * part + q_row) % GROUP_PAD
                alive = (lowest + token < end) & (member < GROUP)
                q_at = (first + token).to(gl.int64) * q_token + (head * GROUP + member) * q_head
                async_copy.async_copy_global_to_shared(
                    q_smem.index(slot * 2 + part),
                    q + (q_at[:, None] + q_d[None, :]),
                    mask=alive[:, None],
                )
            async_copy.mbarrier_arrive(q_full.index(slot), increment_count=False)
            turn += 1
        work = gl.num_programs(0) + gl.atomic_add(schedule, 1, sem="relaxed")
        table = block_table + seq.to(gl.int64) * table_row
        k_base, v_base = k_cache + head * cache_head, v_cache + head * cache_head
        key = (begin + blocks - 1) * BLOCK_N + row
        page = gl.load(table + key // BLOCK_SIZE, mask=(key < end) & (blocks > 0), other=0)
        for _ in range(blocks):
            stage, parity = done % STAGES, (done // STAGES) & 1 ^ 1
            at = page.to(gl.int64) * cache_block + (key % BLOCK_SIZE) * cache_slot
            if not copied:
                k = gl.load(k_base + (at[:, None] + d[None, :]))
                mask = (key < end)[:, None]
                v = gl.load(v_base + (at[:, None] + d[None, :]), mask=mask, other=0.0)
            mbarrier.wait(k_empty.index(stage), parity)
            if copied:
                async_copy.async_copy_global_to_shared(
                    k_smem.index(stage), k_base + (at[:, None] + d[None, :])
                )
                async_copy.mbarrier_arrive(k_full.index(stage), increment_count=False)
            else:
                k_smem.index(stage).store(k.to(k_smem.dtype))
                fence_async_shared()
                mbarrier.arrive(k_full.index(stage), count=1)
            live = key < end
            key -= BLOCK_N
            page = gl.load(table + key // BLOCK_SIZE, mask=key >= 0, other=0)
            mbarrier.wait(v_empty.index(stage), parity)
            # Slots that hold no key may hold NaN: they are not read, zeros stand for them.
            if copied:
                async_copy.async_copy_global_to_shared(
                    v_smem.index(stage), v_base + (at[:, None] + d[None, :]), mask=live[:, None]
                )
                async_copy.mbarrier_arrive(v_full.index(stage), increment_count=False)
            else:
                v_smem.index(stage).store(v.to(v_smem.dtype))
                fence_async_shared()
                mbarrier.arrive(v_full.index(stage), count=1)
            done += 1
    mbarrier.wait(tile_empty.index(turn % 2), (turn // 2) & 1 ^ 1)
    _publish(tiles, tile_full, turn % 2, 0, 0, 0, 0, 0, 0)  # no blocks: the end
    # The last to finish leaves the counters as it found them.
    if gl.atomic_add(schedule + 1, 1, sem="acq_rel") == gl.num_programs(0) - 1:
        gl.store(schedule, 0)
        gl.store(schedule + 1, 0)


@gluon.jit
def _softmax(s, top, total, at, query, lowest, end, scale_log2, WINDOW: gl.constexpr,
             BLOCK_N: gl.constexpr, layout: gl.constexpr):  # fmt: skip
    """(weights, factor of what was before, new maximum, new total) of the scores of keys `at`.."""
    edge = at + BLOCK_N > lowest + 1
    if WINDOW > 0:
        edge = edge | (at <= end - 1 - WINDOW)
    if edge:
        key = at + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))
        seen = key[None, :] <= query[:, None]
        if WINDOW > 0:
            seen = seen & (key[None, :] > query[:, None] - WINDOW)
        s = gl.where(seen, s, float("-inf"))
    new_top = gl.maximum(top, gl.max(s, 1) * scale_log2)
    # A row may have seen no key yet: outside the window, or in the last block, if queries of the
    # tile stand on both sides of its start. Its weights are 0, not NaN.
    base = gl.where(new_top == float("-inf"), 0.0, new_top)
    p = gl.exp2(s * scale_log2 - base[:, None])
    alpha = gl.exp2(top - base)
    return p, alpha, new_top, total * alpha + gl.sum(p, 1)


@gluon.jit
def _computed(total):
    """`total`, in a way that keeps the assembler from moving a later wait to before the sum."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred never; setp.lt.f32 never, $1, 0f00000000; @never fence.proxy.async;"
        " mov.b32 $0, $1; }",
        "=f,f", [total], dtype=gl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _compute(
    out, sinks, scale_log2, v_scale, out_token, out_head,
    tiles, q_smem, k_smem, v_smem,
    tile_full, tile_empty, q_full, k_full, k_empty, v_full, v_empty, turns,
    part: gl.constexpr, GROUP: gl.constexpr, GROUP_PAD: gl.constexpr, D: gl.constexpr,
    BLOCK_N: gl.constexpr, WINDOW: gl.constexpr, SINKS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Rows 64 * part .. of every tile."""
    dtype: gl.constexpr = out.dtype.element_ty
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    io_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    io_row = 64 * part + gl.arange(0, 64, gl.SliceLayout(1, io_layout))
    io_d = gl.arange(0, D, gl.SliceLayout(0, io_layout))
    io_token, io_member = io_row // GROUP_PAD, io_row % GROUP_PAD
    row = 64 * part + gl.arange(0, 64, rows)
    done, turn, rounds = 0, 0, 0
    mbarrier.wait(tile_full.index(0), 0)
    blocks = _field(tiles, 0, 5)
    while blocks > 0:
        slot = turn % 2
        head, first = _field(tiles, slot, 0), _field(tiles, slot, 1)
        lowest, end = _field(tiles, slot, 2), _field(tiles, slot, 3)
        begin = _field(tiles, slot, 4)
        query = gl.minimum(lowest + row // GROUP_PAD, end - 1)
        if SINKS:
            member = row % GROUP_PAD
            top = gl.load(sinks + head * GROUP + member, mask=member < GROUP, other=0.0)
            top = top * LOG2_E
            total = gl.full([64], 1.0, gl.float32, rows)
        else:
            top = gl.full([64], float("-inf"), gl.float32, rows)
            total = gl.full([64], 0.0, gl.float32, rows)
        acc = gl.zeros([64, D], gl.float32, o_layout)
        zero = gl.zeros([64, BLOCK_N], gl.float32, s_layout)

        at = (begin + blocks - 1) * BLOCK_N
        stage, parity = done % STAGES, (done // STAGES) & 1
        queries = q_smem.index(slot * 2 + part)
        mbarrier.wait(q_full.index(slot), (turn // 2) & 1)
        mbarrier.wait(k_full.index(stage), parity)
        fence_async_shared()
        s = warpgroup_mma(queries, k_smem.index(stage).permute((1, 0)), zero, use_acc=False,
                          is_async=True)  # fmt: skip
        s = warpgroup_mma_wait(0, deps=(s,))
        mbarrier.arrive(k_empty.index(stage), count=1)
        p, _, top, total = _softmax(
            s, top, total, at, query, lowest, end, scale_log2, WINDOW, BLOCK_N, s_layout
        )
        weights = gl.convert_layout(p.to(dtype), p_layout)
        for _ in range(blocks - 1):
            before, before_parity = done % STAGES, (done // STAGES) & 1
            done += 1
            at -= BLOCK_N
            stage, parity = done % STAGES, (done // STAGES) & 1
            mbarrier.wait(v_full.index(before), before_parity)
            mbarrier.wait(k_full.index(stage), parity)
            fence_async_shared()
            mbarrier.wait(turns.index(part), (rounds & 1) ^ (1 - part))
            s_next = warpgroup_mma(
                queries, k_smem.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True
            )
            acc_next = warpgroup_mma(weights, v_smem.index(before), acc, is_async=True)
            mbarrier.arrive(turns.index(1 - part), count=1)
            rounds += 1
            s = warpgroup_mma_wait(1, deps=(s_next,))
            mbarrier.arrive(k_empty.index(stage), count=1)
            p, alpha, top, total = _softmax(
                s, top, total, at, query, lowest, end, scale_log2, WINDOW, BLOCK_N, s_layout
            )
            total = _computed(total)
            acc = warpgroup_mma_wait(0, deps=(acc_next,))
            mbarrier.arrive(v_empty.index(before), count=1)
            acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, o_layout))[:, None]
            weights = gl.convert_layout(p.to(dtype), p_layout)
        mbarrier.arrive(tile_empty.index(slot), count=1)
        turn += 1
        stage, parity = done % STAGES, (done // STAGES) & 1
        done += 1
        mbarrier.wait(v_full.index(stage), parity)
        fence_async_shared()
        acc_last = warpgroup_mma(weights, v_smem.index(stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc_last,))
        mbarrier.arrive(v_empty.index(stage), count=1)
        alive = (lowest + io_token < end) & (io_member < GROUP)
        out_at = (first + io_token).to(gl.int64) * out_token
        out_at += (head * GROUP + io_member) * out_head
        factor = gl.where(total > 0, v_scale / total, 0.0)
        acc = acc * gl.convert_layout(factor, gl.SliceLayout(1, o_layout))[:, None]
        gl.store(
            out + (out_at[:, None] + io_d[None, :]),
            gl.convert_layout(acc.to(dtype), io_layout),
            mask=alive[:, None],
        )
        mbarrier.wait(tile_full.index(turn % 2), (turn // 2) & 1)
        blocks = _field(tiles, turn % 2, 5)


# Sizes that change from step to step must not lead to new compilations.
@gluon.jit(do_not_specialize=["num_seqs", "num_tiles", "table_row"])
def varlen_hopper_kernel(
    out, schedule, q, k_cache, v_cache, block_table, cu_seqlens, seq_lens, sinks,
    num_seqs, num_tiles, scale_log2, v_scale,
    out_token, out_head, q_token, q_head, cache_block, cache_slot, cache_head, table_row,
    HEADS: gl.constexpr, GROUP: gl.constexpr, GROUP_PAD: gl.constexpr, D: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_N: gl.constexpr, WINDOW: gl.constexpr,
    SINKS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """`num_tiles` counts (query tile, KV head) pairs; BLOCK_Q * GROUP_PAD is 128. `schedule` [2]
    int32: tiles handed out after each block's first, and blocks that are done; zero before and
    after."""
    dtype: gl.constexpr = q.dtype.element_ty
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, D], dtype)
    q_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, D], dtype)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], layout)
    q_smem = gl.allocate_shared_memory(dtype, [4, 64, D], q_layout)  # two tiles, two halves
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    tiles = gl.allocate_shared_memory(gl.int32, [12, 1], plain)  # two tiles, six fields
    tile_full = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    tile_empty = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    # Copies arrive once for each thread; what was converted arrives once.
    loaders: gl.constexpr = 128 if k_cache.dtype == q.dtype else 1
    for i in gl.static_range(2):
        mbarrier.init(tile_full.index(i), count=1)
        mbarrier.init(tile_empty.index(i), count=2)
        mbarrier.init(q_full.index(i), count=128)
        mbarrier.init(turns.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=loaders)
        mbarrier.init(v_full.index(i), count=loaders)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_compute, (
                out, sinks, scale_log2, v_scale, out_token, out_head,
                tiles, q_smem, k_smem, v_smem,
                tile_full, tile_empty, q_full, k_full, k_empty, v_full, v_empty, turns,
                0, GROUP, GROUP_PAD, D, BLOCK_N, WINDOW, SINKS, STAGES,
            )),
            (_compute, (
                out, sinks, scale_log2, v_scale, out_token, out_head,
                tiles, q_smem, k_smem, v_smem,
                tile_full, tile_empty, q_full, k_full, k_empty, v_full, v_empty, turns,
                1, GROUP, GROUP_PAD, D, BLOCK_N, WINDOW, SINKS, STAGES,
            )),
            (_load, (
                schedule, q, k_cache, v_cache, block_table, cu_seqlens, seq_lens, num_seqs,
                num_tiles, q_token, q_head, cache_block, cache_slot, cache_head, table_row,
                tiles, q_smem, k_smem, v_smem,
                tile_full, tile_empty, q_full, k_full, k_empty, v_full, v_empty,
                HEADS, GROUP, GROUP_PAD, D, BLOCK_SIZE, BLOCK_Q, BLOCK_N, WINDOW, STAGES,
            )),
        ],
        [4, 4],
        [REGISTERS, 504 - 2 * REGISTERS],
    )  # fmt: skip

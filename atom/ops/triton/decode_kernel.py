"""Device code of decode attention: one query token per sequence over the paged cache.

Program (h, s, i) takes KV head h of sequence s, with all the query heads that read it, and part i
of the keys: tiles are dealt out in turn to as many parts as the length is worth, the others end at
once. The part that finishes last merges them, in their order.

With FUSED the query comes unrotated, from the projection: every program norms and rotates its query
heads in registers, and the first part also the new key, which it writes to the cache and attends to
without reading it back.
"""

from __future__ import annotations

import triton
import triton.language as tl

from atom.ops.triton.rotation import rotated, rotation, to_cache

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scores(s, factor, cap, CAPPED: tl.constexpr):
    """Scaled scores in powers of two."""
    s = s * factor
    if CAPPED:
        # tanh(x) = 1 - 2 / (e^2x + 1), exact at both ends.
        tanh = 1.0 - 2.0 / (tl.exp2(s * (2.0 * LOG2_E / cap)) + 1.0)
        s = cap * LOG2_E * tanh
    return s


@triton.jit
def _tile(
    q, k, v, seen, m, den, acc, factor, cap,
    CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the running softmax: q [G, D], k and v [N, D], seen [N]. The denominator stays a
    sum per column until the end: adding up columns takes all threads."""
    s = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION)
    s = tl.where(seen[None, :], _scores(s, factor[:, None], cap, CAPPED), float("-inf"))
    new_m = tl.maximum(m, tl.max(s, 1))
    alpha = tl.exp2(m - new_m)
    p = tl.exp2(s - new_m[:, None])
    den = den * alpha[:, None] + p
    acc = tl.dot(p.to(q.dtype), v.to(q.dtype), acc * alpha[:, None], input_precision=PRECISION)
    return new_m, den, acc


@triton.jit
def _unpack(words):
    """Words [N, D / 4] of four float8 each as four tiles of float16: tile j holds channels 4i + j.
    Two words at a time, as one instruction converts two values."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 x, y;
        .reg .b16 low, high;
        prmt.b32 x, $4, $5, 0x5140;
        prmt.b32 y, $4, $5, 0x7362;
        mov.b32 {low, high}, x;
        cvt.rn.f16x2.e4m3x2 $0, low;
        cvt.rn.f16x2.e4m3x2 $1, high;
        mov.b32 {low, high}, y;
        cvt.rn.f16x2.e4m3x2 $2, low;
        cvt.rn.f16x2.e4m3x2 $3, high;
        }""",
        "=r,=r,=r,=r,r,r",
        [words],
        dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def _deal(x):
    """x [G, D] as four tiles, its channels dealt out as `_unpack` does."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 4, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _undeal(x0, x1, x2, x3):
    x = tl.join(tl.join(x0, x2), tl.join(x1, x3))
    return tl.reshape(x, (x0.shape[0], 4 * x0.shape[1]))


@triton.jit
def _packed_tile(
    q0, q1, q2, q3, words_k, words_v, seen, m, den, a0, a1, a2, a3, factor, cap,
    CAPPED: tl.constexpr,
):  # fmt: skip
    """`_tile` over float8 words."""
    k0, k1, k2, k3 = _unpack(words_k)
    s = tl.dot(q0, tl.trans(k0))
    s = tl.dot(q1, tl.trans(k1), s)
    s = tl.dot(q2, tl.trans(k2), s)
    s = tl.dot(q3, tl.trans(k3), s)
    s = tl.where(seen[None, :], _scores(s, factor[:, None], cap, CAPPED), float("-inf"))
    new_m = tl.maximum(m, tl.max(s, 1))
    alpha = tl.exp2(m - new_m)[:, None]
    p = tl.exp2(s - new_m[:, None])
    den = den * alpha + p
    p = p.to(tl.float16)
    v0, v1, v2, v3 = _unpack(words_v)
    a0 = tl.dot(p, v0, a0 * alpha)
    a1 = tl.dot(p, v1, a1 * alpha)
    a2 = tl.dot(p, v2, a2 * alpha)
    a3 = tl.dot(p, v3, a3 * alpha)
    return new_m, den, a0, a1, a2, a3


@triton.jit
def _store_out(
    out, m, den, acc, sinks, v_scale, heads, mask_heads, D: tl.constexpr, SINKS: tl.constexpr
):  # fmt: skip
    """Divide by the softmax's denominator, which the sinks join. `out`: the token's row."""
    d = tl.arange(0, acc.shape[1])
    factor = tl.full(den.shape, 1.0, tl.float32)
    if SINKS:
        sink = tl.load(sinks + heads, mask=mask_heads, other=0.0) * LOG2_E
        top = tl.maximum(m, sink)
        factor = tl.exp2(m - top)
        den = den * factor + tl.exp2(sink - top)
    acc = acc * (factor * v_scale / den)[:, None]
    mask = mask_heads[:, None] & (d < D)[None, :]
    tl.store(out + heads[:, None] * D + d[None, :], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _merge(
    out, partials, parts, base, total, head, sinks, v_scale,
    G: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, SINKS: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """Combine the first `parts` partial results of a sequence and KV head in their order, STEP
    at a time: their loads overlap."""
    ROWS: tl.constexpr = triton.next_power_of_2(G)
    g, d = tl.arange(0, ROWS), tl.arange(0, D_PAD)
    m = tl.full((ROWS,), float("-inf"), tl.float32)
    den = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D_PAD), tl.float32)
    sums = partials + total.to(tl.int64) * (G * D)
    for first in range(0, parts, STEP):
        part = first + tl.arange(0, STEP)
        row = (base + part).to(tl.int64)[:, None] * G + g[None, :]
        mask = (part < parts)[:, None] & (g < G)[None, :]
        part_m = tl.load(sums + row * 2, mask=mask, other=float("-inf"), cache_modifier=".cg")
        part_l = tl.load(sums + row * 2 + 1, mask=mask, other=0.0, cache_modifier=".cg")
        wide = mask[:, :, None] & (d < D)[None, None, :]
        at = partials + row[:, :, None] * D + d[None, None, :]
        part_acc = tl.load(at, mask=wide, other=0.0, cache_modifier=".cg")
        new_m = tl.maximum(m, tl.max(part_m, 0))
        safe = tl.where(new_m == float("-inf"), 0.0, new_m)
        weight = tl.exp2(part_m - safe[None, :])
        alpha = tl.exp2(m - safe)
        den = den * alpha + tl.sum(part_l * weight, 0)
        acc = acc * alpha[:, None] + tl.sum(part_acc * weight[:, :, None], 0)
        m = new_m
    _store_out(out, m, den, acc, sinks, v_scale, head * G + g, g < G, D, SINKS)


@triton.jit
def _num_parts(num_keys, most, min_part):
    """Into how many parts the keys are dealt out."""
    return tl.minimum(tl.maximum(tl.cdiv(num_keys, min_part), 1), most)


@triton.jit
def _pages(table, start, offsets, bound, BLOCK_SIZE: tl.constexpr, ONE_PAGE: tl.constexpr):
    """The blocks of the keys from `start` on, those past `bound` left out: of each key, or the one
    of them all."""
    n = start if ONE_PAGE else start + offsets
    return tl.load(table + n // BLOCK_SIZE, mask=n < bound, other=0)


@triton.jit
def _places(
    page, start, offsets, cache_block, cache_slot,
    BLOCK_SIZE: tl.constexpr, ONE_PAGE: tl.constexpr,
):  # fmt: skip
    """Where the keys from `start` on stand in a cache: [N, 1]."""
    base = page.to(tl.int64) * cache_block
    if ONE_PAGE:
        return base + start % BLOCK_SIZE * cache_slot + (offsets * cache_slot)[:, None]
    return (base + (start + offsets) % BLOCK_SIZE * cache_slot)[:, None]


@triton.jit
def decode_kernel(
    out, q, k_cache, v_cache, block_table, seq_lens, sinks, partials, counters,
    positions, slots, cos_sin, q_norm, k_norm,
    scale, cap, k_scale, v_scale, eps,
    out_row, q_row, table_row, cache_block, cache_slot, cache_head, min_part,
    HK: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, R: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr,
    FUSED: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr, ONE_PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, AHEAD: tl.constexpr, STAGES: tl.constexpr,
    PACKED: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """AHEAD: the next tile of keys and values is read into registers while one is worked on.
    Otherwise Triton pipelines the loop in STAGES. PACKED: caches of float8 come as words of four,
    strides count words.

    All that the kernel before this one cannot have written is read before waiting for it: lengths,
    block table, positions, slots, cached keys. The step's first launches write those, so between
    them and this kernel there must be one launch that is not a dependent one.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    head, seq, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = max(16, triton.next_power_of_2(G))
    g, d, offsets = tl.arange(0, GROUP), tl.arange(0, D_PAD), tl.arange(0, BLOCK_N)
    in_d, in_r = (d < D)[None, :], (d < R)[None, :]
    table = block_table + seq.to(tl.int64) * table_row
    length = tl.load(seq_lens + seq)
    low = tl.maximum(length - WINDOW, 0) if WINDOW > 0 else 0
    first = low + part * BLOCK_N
    # Which of them hold keys is not known yet: the length is on its way, too.
    page = _pages(table, first, offsets, table_row * BLOCK_SIZE, BLOCK_SIZE, ONE_PAGE)
    if FUSED:
        angles = cos_sin + tl.load(positions + seq) * R
        slot = tl.load(slots + seq)
    end = length - 1 if FUSED else length  # keys in the cache
    parts = _num_parts(end - low, tl.num_programs(2), min_part) if SPLIT else 1
    if (length == 0) | (part >= parts):
        # The first part waits all the same: the next kernel relies on this one for those before.
        if PDL and part == 0:
            tl.extra.cuda.gdc_wait()
        return
    step = parts * BLOCK_N

    WORD: tl.constexpr = 4 if PACKED else 1  # channels
    ZERO: tl.constexpr = 0 if PACKED else 0.0
    kv_type: tl.constexpr = tl.float8e4nv if PACKED else k_cache.dtype.element_ty
    w = tl.arange(0, D_PAD // WORD)
    in_w = (w < D // WORD)[None, :]
    k_base = k_cache + head * cache_head + w[None, :]
    v_base = v_cache + head * cache_head + w[None, :]
    if AHEAD:
        at = _places(page, first, offsets, cache_block, cache_slot, BLOCK_SIZE, ONE_PAGE)
        here = (first + offsets < end)[:, None] & in_w
        k = tl.load(k_base + at, mask=here, other=ZERO)
        v = tl.load(v_base + at, mask=here, other=ZERO)
        page = _pages(table, first + step, offsets, end, BLOCK_SIZE, ONE_PAGE)
    weight_q, other_q, weight_k, other_k = 1.0, 1.0, 1.0, 1.0
    if FUSED:
        other, cos, sin = rotation(angles, D_PAD, R, INTERLEAVED)
        if NORM:
            weight_q = tl.load(q_norm + d[None, :], mask=in_d, other=0.0)
            other_q = tl.load(q_norm + other, mask=in_r, other=0.0)
            weight_k = tl.load(k_norm + d[None, :], mask=in_d, other=0.0)
            other_k = tl.load(k_norm + other, mask=in_r, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()

    mask_heads = g < G
    mask_q = mask_heads[:, None] & in_d
    source = q + seq.to(tl.int64) * q_row
    rows = source + (head * G + g)[:, None] * D
    query = tl.load(rows + d[None, :], mask=mask_q, other=0.0)
    if FUSED:
        query_y = tl.load(rows + other, mask=mask_heads[:, None] & in_r, other=0.0)
        source += (HK * G + head) * D
        owned = in_d & (part == 0)
        key = tl.load(source + d[None, :], mask=owned, other=0.0)
        key_y = tl.load(source + other, mask=in_r & (part == 0), other=0.0)
        value = tl.load(source + HK * D + d[None, :], mask=owned, other=0.0)
        query = rotated(query, query_y, weight_q, other_q, cos, sin, eps, D, NORM)
    query = query.to(tl.float32)
    factor = tl.full((GROUP,), 1.0, tl.float32) * (scale * k_scale)
    if not CAPPED:
        factor *= LOG2_E
    if kv_type == tl.float8e4nv and q.dtype.element_ty != tl.float32:
        # float16 holds float8 exactly, and is what the hardware converts it to; the query is
        # scaled into its range.
        most = tl.maximum(tl.max(tl.abs(query), 1), 1e-30)
        factor *= most
        query = (query / most[:, None]).to(tl.float16)
    else:
        query = query.to(q.dtype.element_ty)

    if FUSED:
        key = rotated(key, key_y, weight_k, other_k, cos, sin, eps, D, NORM)
        new_k = to_cache(key, k_scale, kv_type)
        new_v = to_cache(value, v_scale, kv_type)
        place = slot // BLOCK_SIZE * cache_block + slot % BLOCK_SIZE * cache_slot
        place = (place + head * cache_head) * WORD + d[None, :]
        pointer: tl.constexpr = tl.pointer_type(kv_type)
        tl.store(k_cache.to(pointer, bitcast=True) + place, new_k, mask=owned & (slot >= 0))
        tl.store(v_cache.to(pointer, bitcast=True) + place, new_v, mask=owned & (slot >= 0))
        new_s = tl.sum(query.to(tl.float32) * new_k.to(tl.float32), 1)
        new_s = _scores(new_s, factor, cap, CAPPED)
        new_s = tl.where(part == 0, new_s, float("-inf"))

    m = tl.full((GROUP,), float("-inf"), tl.float32)
    den = tl.zeros((GROUP, BLOCK_N), tl.float32)
    if PACKED:
        q0, q1, q2, q3 = _deal(query)
        a0 = tl.zeros((GROUP, D_PAD // 4), tl.float32)
        a1, a2, a3 = a0, a0, a0
    else:
        acc = tl.zeros((GROUP, D_PAD), tl.float32)
    if AHEAD:
        for start in tl.range(first, end, step, num_stages=1):
            n = start + step
            at = _places(page, n, offsets, cache_block, cache_slot, BLOCK_SIZE, ONE_PAGE)
            here = (n + offsets < end)[:, None] & in_w
            next_k = tl.load(k_base + at, mask=here, other=ZERO)
            next_v = tl.load(v_base + at, mask=here, other=ZERO)
            page = _pages(table, n + step, offsets, end, BLOCK_SIZE, ONE_PAGE)
            seen = start + offsets < end
            if PACKED:
                m, den, a0, a1, a2, a3 = _packed_tile(
                    q0, q1, q2, q3, k, v, seen, m, den, a0, a1, a2, a3, factor, cap, CAPPED
                )
            else:
                m, den, acc = _tile(query, k, v, seen, m, den, acc, factor, cap, CAPPED, PRECISION)
            k, v = next_k, next_v
    else:
        for start in tl.range(first, end, step, num_stages=STAGES):
            seen = start + offsets < end
            at = _places(page, start, offsets, cache_block, cache_slot, BLOCK_SIZE, ONE_PAGE)
            k = tl.load(k_base + at, mask=seen[:, None] & in_w, other=ZERO)
            v = tl.load(v_base + at, mask=seen[:, None] & in_w, other=ZERO)
            page = _pages(table, start + step, offsets, end, BLOCK_SIZE, ONE_PAGE)
            if PACKED:
                m, den, a0, a1, a2, a3 = _packed_tile(
                    q0, q1, q2, q3, k, v, seen, m, den, a0, a1, a2, a3, factor, cap, CAPPED
                )
            else:
                m, den, acc = _tile(query, k, v, seen, m, den, acc, factor, cap, CAPPED, PRECISION)

    if PACKED:
        acc = _undeal(a0, a1, a2, a3)
    total = tl.sum(den, 1)
    if FUSED:
        new_m = tl.maximum(m, new_s)
        alpha, weight = tl.exp2(m - new_m), tl.exp2(new_s - new_m)
        total = total * alpha + weight
        acc = acc * alpha[:, None] + weight[:, None] * new_v.to(tl.float32)
        m = new_m
    out += seq.to(tl.int64) * out_row
    heads = head * G + g
    if not SPLIT or parts == 1:
        _store_out(out, m, total, acc, sinks, v_scale, heads, mask_heads, D, SINKS)
    else:
        base = (seq * HK + head) * tl.num_programs(2)
        all_parts = tl.num_programs(1) * HK * tl.num_programs(2)
        row = (base + part).to(tl.int64) * G + g
        sums = partials + all_parts.to(tl.int64) * (G * D)
        tl.store(sums + row * 2, m, mask=mask_heads)
        tl.store(sums + row * 2 + 1, total, mask=mask_heads)
        tl.store(partials + row[:, None] * D + d[None, :], acc, mask=mask_q)
        tl.debug_barrier()  # all threads have written before one of them says so
        counter = counters + seq * HK + head
        if tl.atomic_add(counter, 1, sem="acq_rel") == parts - 1:
            tl.store(counter, 0)  # ready for the next launch
            _merge(
                out, partials, parts, base, all_parts, head, sinks, v_scale, G, D, D_PAD,
                SINKS, STEP,
            )  # fmt: skip

"""Device code of attention over latents: one key and value for all heads, which is read once.

A tile is BLOCK_Q query tokens of one sequence times HEADS heads; keys c, r and values c are one
tile [BLOCK_N, R] with one [BLOCK_N, P] beside it. Keys are the rows of scores and queries their
columns: a step of few queries still fills the 64 rows of an instruction, both products read c from
shared memory, and registers hold no query. PARTS programs share the keys of a tile out: each
writes what its keys alone would give, normed, with the logarithm of its weight; a second kernel
adds them up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from atom.ops.triton.varlen_attention import find_sequence


@triton.jit
def _step(
    q_c, q_r, c, r, seen, top, total, acc, factor, MASKED: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """One step of the running softmax: q_c [R, M], q_r [P, M], c [N, R], r [N, P], acc [R, M].
    Scores [N, M] are in powers of two."""
    c, r = c.to(q_c.dtype), r.to(q_c.dtype)
    s = tl.dot(c, q_c, input_precision=PRECISION)
    s = tl.dot(r, q_r, s, input_precision=PRECISION) * factor[None, :]
    if MASKED:
        s = tl.where(seen, s, float("-inf"))
    new_top = tl.maximum(top, tl.max(s, 0))
    # A query that has seen no key yet: its weights are 0, not NaN.
    base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    p = tl.exp2(s - base[None, :])
    alpha = tl.exp2(top - base)
    total = total * alpha + tl.sum(p, 0)
    acc = tl.dot(tl.trans(c), p.to(c.dtype), acc * alpha[None, :], input_precision=PRECISION)
    return new_top, total, acc


# Sizes that change from step to step must not lead to new compilations.
@triton.jit(do_not_specialize=["num_seqs", "num_tokens", "table_row", "min_part"])
def mla_kernel(
    out, lse, q_latent, q_rope, cache, block_table, cu_seqlens, seq_lens,
    num_seqs, num_tokens, scale_log2, min_part,
    out_token, out_head, qc_token, qc_head, qr_token, qr_head, cache_block, cache_slot, table_row,
    NUM_HEADS: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr, R_PAD: tl.constexpr,
    P: tl.constexpr, P_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr, PARTS: tl.constexpr, CONTEXT: tl.constexpr, LSE: tl.constexpr,
    DECODE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (h, t, i): block h of the heads, query tile t, part i of the keys. DECODE: tile t is
    sequence t, of one query.

    `out` [PARTS, T, H, R], `lse` [PARTS, T, H] float32 in powers of two, -inf without keys.
    CONTEXT: only the keys before the step's, which every query sees. LSE: `lse` is wanted.
    """
    block, tile, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if DECODE:
        seq, start, q_len, first = tile, tile, 1, 0
    else:
        seq = find_sequence(cu_seqlens, tile, num_seqs, BLOCK_Q)
        start = tl.load(cu_seqlens + seq)
        q_len = tl.load(cu_seqlens + seq + 1) - start
        first = (tile - (start // BLOCK_Q + seq)) * BLOCK_Q
    if first >= q_len:
        return
    context = tl.load(seq_lens + seq) - q_len
    lowest = context + first  # positions of the tile's queries: lowest .. end - 1
    end = tl.minimum(lowest + BLOCK_Q, context + q_len)
    num_keys = tl.maximum(context if CONTEXT else end, 0)

    row = tl.arange(0, BLOCK_Q * HEADS)
    token, head = row // HEADS, block * HEADS + row % HEADS
    alive = (first + token < q_len) & (head < NUM_HEADS)
    at = (start + first + token).to(tl.int64)
    d, e = tl.arange(0, R_PAD), tl.arange(0, P_PAD)
    in_c, in_r = (d < R)[None, :], (e < P)[None, :]
    top = tl.full([BLOCK_Q * HEADS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q * HEADS], tl.float32)
    acc = tl.zeros([R_PAD, BLOCK_Q * HEADS], tl.float32)
    factor = tl.full([BLOCK_Q * HEADS], 1.0, tl.float32) * scale_log2

    low, high = 0, num_keys
    if PARTS > 1:
        parts = tl.minimum(tl.maximum(tl.cdiv(num_keys, min_part), 1), PARTS)
        share = tl.cdiv(tl.cdiv(num_keys, parts), BLOCK_N) * BLOCK_N
        low = tl.minimum(part * share, num_keys)
        high = tl.minimum(low + share, num_keys)
    if low < high:
        source = q_latent + at * qc_token + head * qc_head
        q_c = tl.load(source[:, None] + d[None, :], mask=alive[:, None] & in_c, other=0.0)
        source = q_rope + at * qr_token + head * qr_head
        q_r = tl.load(source[:, None] + e[None, :], mask=alive[:, None] & in_r, other=0.0)
        if cache.dtype.element_ty == tl.float8e4nv and q_latent.dtype.element_ty != tl.float32:
            # float16 holds float8 exactly, and is what the hardware converts it to; the query is
            # scaled into its range.
            most = tl.maximum(tl.max(tl.abs(q_c.to(tl.float32)), 1), 1e-30)
            most = tl.maximum(tl.max(tl.abs(q_r.to(tl.float32)), 1), most)
            factor *= most
            q_c = (q_c.to(tl.float32) / most[:, None]).to(tl.float16)
            q_r = (q_r.to(tl.float32) / most[:, None]).to(tl.float16)
        q_c, q_r = tl.trans(q_c), tl.trans(q_r)
        table = block_table + seq.to(tl.int64) * table_row
        # Blocks before `tail` are seen in full by every query of the tile.
        tail = (num_keys if CONTEXT else lowest + 1) // BLOCK_N * BLOCK_N
        tail = tl.maximum(tl.minimum(tail, high), low)
        for PHASE in tl.static_range(2):
            for n in range(low if PHASE == 0 else tail, tail if PHASE == 0 else high, BLOCK_N):
                key = n + tl.arange(0, BLOCK_N)
                live = key < high
                if PHASE == 0:
                    page = tl.load(table + key // BLOCK_SIZE).to(tl.int64)
                else:
                    page = tl.load(table + key // BLOCK_SIZE, mask=live, other=0).to(tl.int64)
                place = (cache + page * cache_block + (key % BLOCK_SIZE) * cache_slot)[:, None]
                # A slot without a key may hold NaN: the mask hides it in scores, zeros do in c.
                if PHASE == 1:
                    c = tl.load(place + d[None, :], mask=live[:, None] & in_c, other=0.0)
                    r = tl.load(place + R + e[None, :], mask=live[:, None] & in_r, other=0.0)
                elif R < R_PAD or P < P_PAD:
                    c = tl.load(place + d[None, :], mask=in_c, other=0.0)
                    r = tl.load(place + R + e[None, :], mask=in_r, other=0.0)
                else:
                    c = tl.load(place + d[None, :])
                    r = tl.load(place + R + e[None, :])
                seen = live[:, None]
                if not CONTEXT:
                    seen = seen & (key[:, None] <= (lowest + token)[None, :])
                top, total, acc = _step(
                    q_c, q_r, c, r, seen, top, total, acc, factor, PHASE == 1, PRECISION
                )
    # Padding sequences of a captured step have no keys: zeros.
    acc = acc * tl.where(total > 0, 1.0 / total, 0.0)[None, :]
    at += part.to(tl.int64) * num_tokens
    if LSE:
        weight = tl.where(total > 0, top + tl.log2(total), float("-inf"))
        tl.store(lse + at * NUM_HEADS + head, weight, mask=alive)
    if PARTS == 1 or low < high:  # an empty part is left out of the sum
        target = out + at * out_token + head * out_head
        result = tl.trans(acc.to(out.dtype.element_ty))
        tl.store(target[:, None] + d[None, :], result, mask=alive[:, None] & in_c)


@triton.jit
def merge_kernel(
    out, partial, lse, num_tokens, out_token, out_head,
    NUM_HEADS: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr, R_PAD: tl.constexpr,
    PARTS: tl.constexpr, PARTS_PAD: tl.constexpr,
):  # fmt: skip
    """Program (t, h): token t, block h of the heads: the parts' sum, in their order.

    `partial` [PARTS, T, H, R] and `lse` [PARTS, T, H] are float32, contiguous."""
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head, d, i = block * HEADS + tl.arange(0, HEADS), tl.arange(0, R_PAD), tl.arange(0, PARTS_PAD)
    own = (head < NUM_HEADS)[:, None] & (d < R)[None, :]
    at = (i * num_tokens + token)[None, :] * NUM_HEADS + head[:, None]
    mask = (i < PARTS)[None, :] & (head < NUM_HEADS)[:, None]
    top = tl.max(tl.load(lse + at, mask=mask, other=float("-inf")), 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([HEADS], tl.float32)
    acc = tl.zeros([HEADS, R_PAD], tl.float32)
    for part in range(PARTS):
        row = (part * num_tokens + token) * NUM_HEADS + head
        weight = tl.load(lse + row, mask=head < NUM_HEADS, other=float("-inf"))
        weight = tl.exp2(weight - top)
        source = partial + row[:, None] * R + d[None, :]
        x = tl.load(source, mask=own & (weight > 0)[:, None], other=0.0)
        total += weight
        acc += x * weight[:, None]
    acc = acc * tl.where(total > 0, 1.0 / total, 0.0)[:, None]
    target = out + token * out_token + head[:, None] * out_head + d[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=own)

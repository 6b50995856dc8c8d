"""Device code of chunks whose keys and values are made of latents for the occasion.

`own_kernel`: a step's tokens among each other, all operands dense. What came before the step is
attended to as latents; `join_kernel` adds up both by their weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from atom.ops.triton.varlen_attention import find_sequence


@triton.jit(do_not_specialize=["num_seqs"])
def own_kernel(
    out, lse, q, k, v, rope, cu_seqlens, num_seqs, scale_log2,
    out_token, out_head, q_token, q_head, k_head, k_token, v_head, v_token, rope_token,
    NUM_HEADS: tl.constexpr, N: tl.constexpr, N_PAD: tl.constexpr, P: tl.constexpr,
    P_PAD: tl.constexpr, V: tl.constexpr, V_PAD: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr, LSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (h, t): head h and query tile t. A key is k [N] of its head, then `rope` [P] of all;
    `lse` [T, H] float32 gets the logarithm of the denominator in powers of two, if LSE."""
    head, tile = tl.program_id(0), tl.program_id(1)
    seq = find_sequence(cu_seqlens, tile, num_seqs, BLOCK_Q)
    start = tl.load(cu_seqlens + seq)
    q_len = tl.load(cu_seqlens + seq + 1) - start
    local = tile - (start // BLOCK_Q + seq)
    tiles = (q_len + BLOCK_Q - 1) // BLOCK_Q
    if local >= tiles:
        return
    # The last tile of a sequence has the most keys: heavy work starts first.
    first = (tiles - 1 - local) * BLOCK_Q
    end = tl.minimum(first + BLOCK_Q, q_len)

    token = first + tl.arange(0, BLOCK_Q)
    alive = token < q_len
    at = (start + token).to(tl.int64)
    d, e, f = tl.arange(0, N_PAD), tl.arange(0, P_PAD), tl.arange(0, V_PAD)
    in_n, in_p, in_v = (d < N)[None, :], (e < P)[None, :], (f < V)[None, :]
    rows = (q + at * q_token + head * q_head)[:, None]
    x = tl.load(rows + d[None, :], mask=alive[:, None] & in_n, other=0.0)
    y = tl.load(rows + N + e[None, :], mask=alive[:, None] & in_p, other=0.0)
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, V_PAD], tl.float32)
    tail = (first + 1) // BLOCK_N * BLOCK_N  # blocks before are seen by every query of the tile
    for PHASE in tl.static_range(2):
        for n in range(0 if PHASE == 0 else tail, tail if PHASE == 0 else end, BLOCK_N):
            key = n + tl.arange(0, BLOCK_N)
            live = (key < end)[:, None] if PHASE == 1 else True
            place = (start + key).to(tl.int64)[:, None]
            keys = tl.load(k + head * k_head.to(tl.int64) + place * k_token + d[None, :],
                           mask=live & in_n, other=0.0)  # fmt: skip
            turned = tl.load(rope + place * rope_token + e[None, :], mask=live & in_p, other=0.0)
            values = tl.load(v + head * v_head.to(tl.int64) + place * v_token + f[None, :],
                             mask=live & in_v, other=0.0)  # fmt: skip
            s = tl.dot(x, tl.trans(keys), input_precision=PRECISION)
            s = tl.dot(y, tl.trans(turned), s, input_precision=PRECISION) * scale_log2
            if PHASE == 1:
                s = tl.where(key[None, :] <= token[:, None], s, float("-inf"))
            new_top = tl.maximum(top, tl.max(s, 1))
            p = tl.exp2(s - new_top[:, None])
            alpha = tl.exp2(top - new_top)
            total = total * alpha + tl.sum(p, 1)
            acc = acc * alpha[:, None]
            acc = tl.dot(p.to(values.dtype), values, acc, input_precision=PRECISION)
            top = new_top
    acc = acc / total[:, None]
    if LSE:
        tl.store(lse + at * NUM_HEADS + head, top + tl.log2(total), mask=alive)
    target = (out + at * out_token + head * out_head)[:, None] + f[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=alive[:, None] & in_v)


@triton.jit
def join_kernel(
    out, other, lse, other_lse, out_token, out_head, other_token, other_head,
    NUM_HEADS: tl.constexpr, HEADS: tl.constexpr, V: tl.constexpr, V_PAD: tl.constexpr,
):  # fmt: skip
    """Program (t, h): `out` and `other` [T, H, V] of token t and block h of the heads, weighed by
    `lse` and `other_lse` [T, H] in powers of two, of which the second may be -inf, to `out`."""
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head, f = block * HEADS + tl.arange(0, HEADS), tl.arange(0, V_PAD)
    there = head < NUM_HEADS
    one = tl.load(lse + token * NUM_HEADS + head, mask=there, other=0.0)
    two = tl.load(other_lse + token * NUM_HEADS + head, mask=there, other=0.0)
    share = (1.0 / (1.0 + tl.exp2(one - two)))[:, None]  # of the other
    mask = there[:, None] & (f < V)[None, :]
    target = out + token * out_token + head[:, None] * out_head + f[None, :]
    source = other + token * other_token + head[:, None] * other_head + f[None, :]
    x = tl.load(target, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    tl.store(target, (x + (y - x) * share).to(out.dtype.element_ty), mask=mask)

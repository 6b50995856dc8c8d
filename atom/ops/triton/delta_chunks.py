"""Gated DeltaNet, many tokens of a sequence: chunks of 64 as matrix products.

The formulas, and why a chunk is solved with the state in it, are in `atom.ops.cpu.delta`. Here

| kernel | a program | does |
|---|---|---|
| `conv_kernel` | 32 tokens, a head | convolution, norms of queries and keys, gates |
| `solve_kernel` | a chunk, a value head | (I + A)^-1 diag(beta) and P, both [64, 64] |
| `scan_kernel` | a sequence, a part of a value head | chunk after chunk: outputs, state, ring |
| `gated_norm_kernel` | tokens, a value head | norm and gate of the outputs |

Only the scan is sequential. It keeps the state in float32 and rounds it to the activations' dtype
as an operand; for a prompt of 8 192 tokens its 128 steps of five small products, some 1.5 us each,
are what a layer waits for: 0.2 ms on an H200 by this count, beside the 1.5 ms of Qwen3-Next's other
products. Not measured on a GPU yet: `benchmarks/gpu_delta.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_delta import L2_EPS, DeltaNetParams
from atom.ops.triton import support
from atom.ops.triton.delta_decode import silu, softplus
from atom.ops.triton.varlen_attention import find_sequence

CHUNK = 64
BLOCK_T = 32  # tokens of a program of the convolution
BLOCK_V = 32  # rows of a state that a program of the scan has
NORM_ROWS = 16


@triton.jit(do_not_specialize=["num_seqs"])
def conv_kernel(
    y, norms, log_g, beta, x, conv_state, slots, cu_seqlens, seq_lens, weight, rate, dt_bias,
    num_seqs, x_row,
    HK: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, TAPS: tl.constexpr,
    L2: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (p, t): tile t of some sequence's tokens; p a query, key or value head. D: the larger
    of DK and DV. y [T, C]; norms [T, 2 HK], what queries and keys are to be multiplied by."""
    part, tile = tl.program_id(0), tl.program_id(1)
    CHANNELS: tl.constexpr = 2 * HK * DK + HV * DV
    seq = find_sequence(cu_seqlens, tile, num_seqs, BLOCK)
    start = tl.load(cu_seqlens + seq)
    length = tl.load(cu_seqlens + seq + 1) - start
    first = (tile - (start // BLOCK + seq)) * BLOCK
    if (first >= length) | (length == 1):
        return
    done = tl.load(seq_lens + seq) - length
    ring = conv_state + tl.load(slots + seq).to(tl.int64) * (TAPS * CHANNELS)
    head = part - 2 * HK
    d = tl.arange(0, D)
    channel = tl.where(head < 0, part * DK, 2 * HK * DK + head * DV) + d
    inside = (d < tl.where(head < 0, DK, DV))[None, :]
    t = first + tl.arange(0, BLOCK)
    live = t < length
    token = (start + t).to(tl.int64)
    acc = tl.zeros([BLOCK, D], tl.float32)
    for j in tl.static_range(TAPS):
        back = TAPS - 1 - j
        source = x + (token - back)[:, None] * x_row + channel[None, :]
        here = (live & (t >= back))[:, None] & inside
        value = tl.load(source, mask=here, other=0.0).to(tl.float32)
        if first < back:
            before = (live & (t < back) & (done + t >= back))[:, None] & inside
            rows = (done + t - back + TAPS) % TAPS
            held = ring + rows[:, None] * CHANNELS + channel[None, :]
            value += tl.load(held, mask=before, other=0.0).to(tl.float32)
        tap = tl.load(
            weight + j * CHANNELS + channel, mask=d < tl.where(head < 0, DK, DV), other=0.0
        )
        acc += value * tap.to(tl.float32)[None, :]
    result = silu(acc).to(y.dtype.element_ty)
    tl.store(y + token[:, None] * CHANNELS + channel[None, :], result, mask=live[:, None] & inside)
    if head < 0:
        wide = result.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, 1) + L2) * tl.where(part < HK, DK**-0.5, 1.0)
        tl.store(norms + token * (2 * HK) + part, scale, mask=live)
    else:
        gate = x + token * x_row + CHANNELS + HV * DV + head
        b = tl.load(gate, mask=live, other=0.0).to(tl.float32)
        a = tl.load(gate + HV, mask=live, other=0.0).to(tl.float32)
        log = -tl.load(rate + head) * softplus(a + tl.load(dt_bias + head))
        tl.store(log_g + token * HV + head, log, mask=live)
        tl.store(beta + token * HV + head, tl.sigmoid(b), mask=live)


@triton.jit(do_not_specialize=["num_seqs"])
def solve_kernel(
    solve, scores, y, norms, log_g, beta, cu_seqlens, num_seqs,
    HK: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (h, t): value head h of chunk t. solve, scores [T, HV, C]: a token's row of each.

    The inverse of I + A is built from its diagonal blocks of 1, 2, .. C: with X the inverses of the
    blocks of size n and L what joins two of them, those of size 2 n are X - X L X.
    """
    head, tile = tl.program_id(0), tl.program_id(1)
    CHANNELS: tl.constexpr = 2 * HK * DK + HV * DV
    seq = find_sequence(cu_seqlens, tile, num_seqs, C)
    start = tl.load(cu_seqlens + seq)
    length = tl.load(cu_seqlens + seq + 1) - start
    first = (tile - (start // C + seq)) * C
    if (first >= length) | (length == 1):
        return
    key_head = head // (HV // HK)
    i, d = tl.arange(0, C), tl.arange(0, DK)
    live = first + i < length
    token = (start + first + i).to(tl.int64)
    q_at = y + token[:, None] * CHANNELS + key_head * DK + d[None, :]
    q = tl.load(q_at, mask=live[:, None], other=0.0)
    k = tl.load(q_at + HK * DK, mask=live[:, None], other=0.0)
    norm_at = norms + token * (2 * HK) + key_head
    q_norm = tl.load(norm_at, mask=live, other=0.0)
    k_norm = tl.load(norm_at + HK, mask=live, other=0.0)
    rate = tl.load(beta + token * HV + head, mask=live, other=0.0)
    total = tl.cumsum(tl.load(log_g + token * HV + head, mask=live, other=0.0), 0)

    row, col = i[:, None], i[None, :]
    decay = tl.exp(tl.where(row >= col, total[:, None] - total[None, :], 0.0)) * k_norm[None, :]
    near = tl.dot(k, tl.trans(k), input_precision=PRECISION) * decay
    near = tl.where(row > col, near * (k_norm * rate)[:, None], 0.0)
    inverse = tl.where(row == col, 1.0, 0.0) - tl.where(row // 2 == col // 2, near, 0.0)
    for level in range(1, 6):  # blocks of 2 ** level; a real loop: unrolled, it compiles for long
        joins = (row >> (level + 1) == col >> (level + 1)) & (row >> level != col >> level)
        joining = tl.dot(tl.where(joins, near, 0.0), inverse, input_precision=PRECISION)
        inverse -= tl.dot(inverse, joining, input_precision=PRECISION)
    at = (token[:, None] * HV + head) * C + col
    tl.store(solve + at, (inverse * rate[None, :]).to(solve.dtype.element_ty), mask=live[:, None])
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * decay * q_norm[:, None]
    score = tl.where(row >= col, score, 0.0).to(scores.dtype.element_ty)
    tl.store(scores + at, score, mask=live[:, None])


@triton.jit
def _remember(
    x, ring, token, length, position, x_row, channel, CHANNELS: tl.constexpr, TAPS: tl.constexpr
):
    """The last inputs of the convolution go to the ring, for some channels."""
    for j in tl.static_range(TAPS):
        t = length - TAPS + j
        live = channel * 0 + t >= 0
        value = tl.load(x + (token + t) * x_row + channel, mask=live, other=0.0)
        row = (position + t + TAPS) % TAPS
        tl.store(ring + row * CHANNELS + channel, value, mask=live)


@triton.jit
def scan_kernel(
    out, state, conv_state, x, y, solve, scores, norms, log_g, slots, cu_seqlens, seq_lens, x_row,
    HK: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, TAPS: tl.constexpr,
    C: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (h, s): BV rows of one value head's state of sequence s. out [T, HV DV] gets what is
    still to be normed."""
    PARTS: tl.constexpr = DV // BV
    CHANNELS: tl.constexpr = 2 * HK * DK + HV * DV
    head, seq = tl.program_id(0) // PARTS, tl.program_id(1)
    first_v = tl.program_id(0) % PARTS * BV
    start = tl.load(cu_seqlens + seq)
    length = tl.load(cu_seqlens + seq + 1) - start
    slot = tl.load(slots + seq).to(tl.int64)
    if (length <= 1) | (slot < 0):
        return
    done = tl.load(seq_lens + seq) - length
    key_head = head // (HV // HK)
    i, d, v = tl.arange(0, C), tl.arange(0, DK), tl.arange(0, BV)
    v_at = head * DV + first_v + v
    held_at = state + (slot * HV + head) * (DV * DK) + (first_v + v)[None, :] * DK + d[:, None]
    known = (d[:, None] * 0 + v[None, :] * 0 + done) > 0
    held = tl.load(held_at, mask=known, other=0.0)  # [DK, BV]: the state, turned
    dtype = y.dtype.element_ty
    for first in range(0, length, C):
        live = first + i < length
        token = (start + first + i).to(tl.int64)
        row = y + token[:, None] * CHANNELS
        q = tl.load(row + (key_head * DK + d)[None, :], mask=live[:, None], other=0.0)
        k = tl.load(row + ((HK + key_head) * DK + d)[None, :], mask=live[:, None], other=0.0)
        value = tl.load(row + (2 * HK * DK + v_at)[None, :], mask=live[:, None], other=0.0)
        at = (token[:, None] * HV + head) * C + i[None, :]
        inverse = tl.load(solve + at, mask=live[:, None], other=0.0)
        score = tl.load(scores + at, mask=live[:, None], other=0.0)
        norm_at = norms + token * (2 * HK) + key_head
        q_norm = tl.load(norm_at, mask=live, other=0.0)
        k_norm = tl.load(norm_at + HK, mask=live, other=0.0)
        log = tl.load(log_g + token * HV + head, mask=live, other=0.0)
        total, last = tl.cumsum(log, 0), tl.sum(log, 0)
        rounded = held.to(dtype)
        grown = tl.exp(total)
        past = tl.dot(k, rounded, input_precision=PRECISION) * (grown * k_norm)[:, None]
        wanted = (value.to(tl.float32) - past).to(dtype)
        u = tl.dot(inverse, wanted, input_precision=PRECISION)
        o = tl.dot(q, rounded, input_precision=PRECISION) * (grown * q_norm)[:, None]
        o = tl.dot(score, u.to(dtype), o, input_precision=PRECISION)
        tl.store(
            out + token[:, None] * (HV * DV) + v_at[None, :],
            o.to(out.dtype.element_ty),
            mask=live[:, None],
        )
        faded = (u * (k_norm * tl.exp(last - total))[:, None]).to(dtype)
        held = tl.dot(tl.trans(k), faded, held * tl.exp(last), input_precision=PRECISION)
    tl.store(held_at, held)
    ring = conv_state + slot * (TAPS * CHANNELS)
    token = start.to(tl.int64)
    _remember(x, ring, token, length, done, x_row, 2 * HK * DK + v_at, CHANNELS, TAPS)
    if (head % (HV // HK) == 0) & (first_v == 0):
        _remember(x, ring, token, length, done, x_row, key_head * DK + d, CHANNELS, TAPS)
        _remember(x, ring, token, length, done, x_row, (HK + key_head) * DK + d, CHANNELS, TAPS)


@triton.jit(do_not_specialize=["num_tokens", "num_rows"])
def gated_norm_kernel(
    out, x, norm_weight, num_tokens, num_rows, x_row, eps,
    Z: tl.constexpr, HV: tl.constexpr, DV: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out [rows, HV DV] in place: its norm per head, times silu(z), z column Z of x; rows from
    `num_tokens` on become 0."""
    head = tl.program_id(1)
    d = tl.arange(0, DV)[None, :]
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    live, inside = (row < num_tokens) & (d >= 0), (row < num_rows) & (d >= 0)
    at = out + row * (HV * DV) + head * DV + d
    o = tl.load(at, mask=live, other=0.0).to(tl.float32)
    z = tl.load(x + row * x_row + Z + head * DV + d, mask=live, other=0.0).to(tl.float32)
    o *= tl.rsqrt(tl.sum(o * o, 1) / DV + eps)[:, None] * tl.load(norm_weight + d) * silu(z)
    tl.store(at, o.to(out.dtype.element_ty), mask=inside)


def launch(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    meta: AttentionMetadata,
    params: DeltaNetParams,
    out: Tensor,
) -> None:
    """Writes every row of `out` [T, Hv Dv]; those whose sequence has one token, or none, with
    anything."""
    rows, hk, hv = meta.num_tokens, params.num_k_heads, params.num_v_heads
    sizes = {"HK": hk, "HV": hv, "DK": params.k_dim, "DV": params.v_dim}
    y = x.new_empty(rows, params.channels)
    solve, scores = x.new_empty(2, rows, hv, CHUNK)
    norms = x.new_empty(rows, 2 * hk, dtype=torch.float32)
    log_g, beta = x.new_empty(2, rows, hv, dtype=torch.float32)
    cu_seqlens, seqs = meta.cu_seqlens_q, meta.num_seqs
    where = (meta.state_slots, cu_seqlens, meta.seq_lens)
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    conv_kernel[(2 * hk + hv, rows // BLOCK_T + seqs)](
        y, norms, log_g, beta, x, conv_state, *where, params.conv_weight, params.rate,
        params.dt_bias, seqs, x.stride(0), **sizes, TAPS=params.taps, L2=L2_EPS,
        D=max(params.k_dim, params.v_dim), BLOCK=BLOCK_T, num_warps=4,
    )  # fmt: skip
    solve_kernel[(hv, rows // CHUNK + seqs)](
        solve, scores, y, norms, log_g, beta, cu_seqlens, seqs, **sizes, C=CHUNK,
        PRECISION=precision, num_warps=4,
    )  # fmt: skip
    block_v = min(BLOCK_V, params.v_dim)
    scan_kernel[(hv * (params.v_dim // block_v), seqs)](
        out, state, conv_state, x, y, solve, scores, norms, log_g, *where, x.stride(0), **sizes,
        TAPS=params.taps, C=CHUNK, BV=block_v, PRECISION=precision,
        num_warps=4, num_stages=1 if support.IS_ROCM or x.dtype == torch.float32 else 2,
    )  # fmt: skip
    gated_norm_kernel[(-(-x.shape[0] // NORM_ROWS), hv)](
        out, x, params.norm_weight, rows, x.shape[0], x.stride(0), params.eps,
        Z=params.channels, HV=hv, DV=params.v_dim, ROWS=NORM_ROWS, num_warps=4,
    )  # fmt: skip

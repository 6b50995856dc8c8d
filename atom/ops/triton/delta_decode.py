"""Gated DeltaNet, one token of each sequence: everything between the projections in one launch.

A program has one value head of one sequence: its state is read once, held in registers (64 KiB of
float32 for 128 x 128) and written once, which is the floor: 2 x 4 Dv Dk bytes a head, 4 MiB a
sequence for 32 heads, so 56 us of an H200's 4.8 TB/s for 64 sequences, a layer. The convolution of
a key head is computed by each of its value heads, and its ring row written by each, with equal
values: no program reads that row. Not measured on a GPU yet: `benchmarks/gpu_delta.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_delta import L2_EPS, DeltaNetParams
from atom.ops.triton.launch import begin, pdl_options


@triton.jit
def softplus(x):
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _conv_step(x, ring, weight, position, channel, CHANNELS: tl.constexpr, TAPS: tl.constexpr):
    """silu(conv) at the next token of a sequence, for some channels; its input goes to the ring."""
    dtype = x.dtype.element_ty
    value = tl.load(x + channel)
    acc = value.to(tl.float32) * tl.load(weight + (TAPS - 1) * CHANNELS + channel).to(tl.float32)
    for j in tl.static_range(TAPS - 1):
        at = position - (TAPS - 1) + j
        row = ring + (at + TAPS) % TAPS * CHANNELS
        past = tl.load(row + channel, mask=channel * 0 + at >= 0, other=0.0).to(tl.float32)
        acc += past * tl.load(weight + j * CHANNELS + channel).to(tl.float32)
    tl.store(ring + position % TAPS * CHANNELS + channel, value)
    return silu(acc).to(dtype).to(tl.float32)


# Sizes that change from step to step must not lead to new compilations.
@triton.jit(do_not_specialize=["num_seqs"])
def delta_decode_kernel(
    out, x, conv_state, state, slots, cu_seqlens, seq_lens,
    weight, rate, dt_bias, norm_weight, num_seqs, x_row, eps,
    HK: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, TAPS: tl.constexpr,
    L2: tl.constexpr, DECODE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (h, s): value head h of sequence s. DECODE: all sequences have one token, row s;
    otherwise those with another number are left to others."""
    head, seq = tl.program_id(0), tl.program_id(1)
    CHANNELS: tl.constexpr = 2 * HK * DK + HV * DV
    dk, dv = tl.arange(0, DK), tl.arange(0, DV)
    token = seq
    slot = tl.load(slots + seq, mask=seq < num_seqs, other=-1).to(tl.int64)
    if not DECODE:
        token = tl.load(cu_seqlens + seq)
        if tl.load(cu_seqlens + seq + 1) - token != 1:
            return
    out_at = out + token.to(tl.int64) * (HV * DV) + head * DV + dv
    if slot < 0:
        begin(PDL)
        tl.store(out_at, tl.zeros([DV], out.dtype.element_ty))
        return
    position = tl.load(seq_lens + seq) - 1
    # No other kernel of the step writes the state: it may be on its way before they have ended.
    held_at = state + (slot * HV + head) * (DV * DK) + dv[:, None] * DK + dk[None, :]
    known = (dv[:, None] * 0 + dk[None, :] * 0 + position) > 0
    held = tl.load(held_at, mask=known, other=0.0)
    scale = tl.load(norm_weight + dv)
    speed, bias = tl.load(rate + head), tl.load(dt_bias + head)
    begin(PDL)

    row = x + token.to(tl.int64) * x_row
    ring = conv_state + slot * (TAPS * CHANNELS)
    q_at = head // (HV // HK) * DK + dk
    q = _conv_step(row, ring, weight, position, q_at, CHANNELS, TAPS)
    k = _conv_step(row, ring, weight, position, HK * DK + q_at, CHANNELS, TAPS)
    v_at = 2 * HK * DK + head * DV + dv
    v = _conv_step(row, ring, weight, position, v_at, CHANNELS, TAPS)
    q *= tl.rsqrt(tl.sum(q * q, 0) + L2) * DK**-0.5
    k *= tl.rsqrt(tl.sum(k * k, 0) + L2)
    z = tl.load(row + CHANNELS + head * DV + dv).to(tl.float32)
    beta = tl.sigmoid(tl.load(row + CHANNELS + HV * DV + head).to(tl.float32))
    a = tl.load(row + CHANNELS + HV * DV + HV + head).to(tl.float32)
    held *= tl.exp(-speed * softplus(a + bias))
    change = beta * (v - tl.sum(held * k[None, :], 1))
    held += change[:, None] * k[None, :]
    tl.store(held_at, held)
    o = tl.sum(held * q[None, :], 1)
    o *= tl.rsqrt(tl.sum(o * o, 0) / DV + eps) * scale * silu(z)
    tl.store(out_at, o.to(out.dtype.element_ty))


def launch(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    meta: AttentionMetadata,
    params: DeltaNetParams,
    out: Tensor,
) -> None:
    """Writes the rows of `out` [T, Hv Dv] whose sequences have one token; in a step of decodes, all
    rows, zero where there is no sequence."""
    rows = x.shape[0] if meta.is_decode else meta.num_seqs
    pdl = pdl_options(x.device) if meta.is_decode else {}
    delta_decode_kernel[(params.num_v_heads, rows)](
        out, x, conv_state, state, meta.state_slots, meta.cu_seqlens_q, meta.seq_lens,
        params.conv_weight, params.rate, params.dt_bias, params.norm_weight, meta.num_seqs,
        x.stride(0), params.eps,
        HK=params.num_k_heads, HV=params.num_v_heads, DK=params.k_dim, DV=params.v_dim,
        TAPS=params.taps, L2=L2_EPS, DECODE=meta.is_decode, PDL=bool(pdl),
        num_warps=warps(params), **pdl,
    )  # fmt: skip


def warps(params: DeltaNetParams) -> int:
    """128 values of a state to a thread: ptxas gives 236 registers, and two programs fit an SM, of
    which one computes while the other waits for memory. Eight warps would take 250."""
    return max(1, params.k_dim * params.v_dim // 4096)

"""Gated DeltaNet in plain torch: the recurrence, token by token, as its contract states it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_delta import L2_EPS, DeltaNetParams
from atom.ops.registry import register


def causal_conv(x: Tensor, ring: Tensor, done: int, weight: Tensor) -> Tensor:
    """x [n, C] of one sequence at positions `done`.. -> silu(conv) [n, C] float32, rounded to x's
    dtype. `ring` [K, C] gives the inputs before and takes the last ones."""
    taps = ring.shape[0]
    history = x.new_zeros(taps - 1, x.shape[1])
    known = min(done, taps - 1)
    if known:
        before = torch.arange(done - known, done, device=x.device) % taps
        history[taps - 1 - known :] = ring[before].to(x.dtype)
    padded = torch.cat((history, x)).float()
    y = sum(padded[j : j + x.shape[0]] * weight[j].float() for j in range(taps))
    kept = min(x.shape[0], taps)
    end = done + x.shape[0]
    ring[torch.arange(end - kept, end, device=x.device) % taps] = x[-kept:].to(ring.dtype)
    assert isinstance(y, Tensor)
    return F.silu(y).to(x.dtype).float()


def split_heads(y: Tensor, params: DeltaNetParams) -> tuple[Tensor, Tensor, Tensor]:
    """y [n, C] float32 -> q, k [n, Hv, Dk], normalised, q scaled too; v [n, Hv, Dv]."""
    size, times = params.qk_size, params.num_v_heads // params.num_k_heads
    q, k = (
        part.view(-1, params.num_k_heads, params.k_dim).repeat_interleave(times, 1)
        for part in (y[:, :size], y[:, size : 2 * size])
    )
    q = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + L2_EPS) * params.k_dim**-0.5
    k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + L2_EPS)
    return q, k, y[:, 2 * size :].view(-1, params.num_v_heads, params.v_dim)


def gates(x: Tensor, params: DeltaNetParams) -> tuple[Tensor, Tensor]:
    """x [n, width] -> (log g, beta) [n, Hv] float32."""
    b, a = x[:, -2 * params.num_v_heads :].float().chunk(2, dim=1)
    return -params.rate * F.softplus(a + params.dt_bias), torch.sigmoid(b)


def gated_norm(o: Tensor, x: Tensor, params: DeltaNetParams) -> Tensor:
    """o [n, Hv, Dv] float32, x [n, width] -> [n, Hv Dv] in x's dtype."""
    z = x[:, params.channels : params.channels + params.v_size].float()
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + params.eps) * params.norm_weight
    return (o.flatten(1) * F.silu(z)).to(x.dtype)


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """q, k [n, Hv, Dk], v [n, Hv, Dv], log_g, beta [n, Hv], state [Hv, Dv, Dk], float32 -> (out
    [n, Hv, Dv], the state after)."""
    out = torch.empty_like(v)
    decay = log_g.exp()
    for t in range(q.shape[0]):
        state = state * decay[t, :, None, None]
        change = beta[t, :, None] * (v[t] - torch.einsum("hvk,hk->hv", state, k[t]))
        state = state + change[:, :, None] * k[t, :, None, :]
        out[t] = torch.einsum("hvk,hk->hv", state, q[t])
    return out, state


@register("gated_delta_net", "reference")
def gated_delta_net(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    meta: AttentionMetadata,
    params: DeltaNetParams,
    out: Tensor | None = None,
) -> Tensor:
    if out is None:
        out = x.new_empty(x.shape[0], params.v_size)
    out.zero_()
    assert meta.state_slots is not None, "the runner gives slots to a model with states"
    starts, lengths = meta.cu_seqlens_q.tolist(), meta.seq_lens.tolist()
    for s, slot in enumerate(meta.state_slots.tolist()[: meta.num_seqs]):
        low, high = starts[s], starts[s + 1]
        done = lengths[s] - (high - low)
        if slot < 0 or low == high:
            continue
        rows = x[low:high]
        y = causal_conv(rows[:, : params.channels], conv_state[slot], done, params.conv_weight)
        before = state[slot] if done else torch.zeros_like(state[slot])
        result, state[slot] = recurrence(*split_heads(y, params), *gates(rows, params), before)
        out[low:high] = gated_norm(result, rows, params)
    return out

"""Gated DeltaNet on CPU: prompts in chunks of matrix products, decodes batched up to the state.

With G_i the sum of log g over a chunk's first i tokens and S the state before it (rows are values),
the recurrence of the contract gives, for all tokens of the chunk at once,

    (I + A) U = diag(beta) (V - diag(e^G) K S^T),  A_ij = beta_i e^(G_i - G_j) k_i . k_j, j < i
    O = diag(e^G) Q S^T + P U,                     P_ij = e^(G_i - G_j) q_i . k_j, j <= i
    S' = e^(G_n) S + U^T diag(e^(G_n - G)) K

U is solved for with S in it, chunk after chunk: the two solutions of the usual WY form, which do
not know S, would let chunks be prepared in parallel, which heads are enough for here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_delta import DeltaNetParams
from atom.ops.reference.delta import causal_conv, gated_norm, gates, split_heads

CHUNK = 64


def chunked(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """As `recurrence` of the reference: q, k [n, Hv, Dk], v [n, Hv, Dv], log_g, beta [n, Hv],
    state [Hv, Dv, Dk], float32 -> (out [n, Hv, Dv], the state after)."""
    out = torch.empty_like(v)
    for first in range(0, q.shape[0], CHUNK):
        rows = slice(first, first + CHUNK)
        parts = [x[rows].transpose(0, 1) for x in (q, k, v, log_g, beta)]
        result, state = _chunk(parts, state)
        out[rows] = result.transpose(0, 1)
    return out, state


def _chunk(parts: list[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk, heads first: q, k [Hv, c, Dk], v [Hv, c, Dv], log_g, beta [Hv, c]."""
    q, k, v, log_g, beta = parts
    total = log_g.cumsum(1)
    grown = total.exp().unsqueeze(-1)  # [Hv, c, 1]
    # Above the diagonal differences are positive, and might overflow.
    between = (total.unsqueeze(2) - total.unsqueeze(1)).tril().exp()
    keys = k.transpose(1, 2)
    system = torch.bmm(k * beta.unsqueeze(-1), keys).mul_(between).tril_(-1)
    before = torch.bmm(torch.cat((k, q), 1) * grown.repeat(1, 2, 1), state.transpose(1, 2))
    of_k, of_q = before.chunk(2, dim=1)
    wanted = (v - of_k) * beta.unsqueeze(-1)
    u = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    out = torch.baddbmm(of_q, torch.bmm(q, keys).mul_(between).tril_(), u)
    faded = k * (total[:, -1:] - total).exp().unsqueeze(-1)
    return out, torch.baddbmm(state * grown[:, -1:], u.transpose(1, 2), faded)


def _conv_step(x: Tensor, rings: Tensor, slots: Tensor, at: Tensor, weight: Tensor) -> Tensor:
    """The next token of n sequences. x [n, C], slots [n], its positions `at` [n] -> as
    `causal_conv`."""
    taps = rings.shape[1]
    rings[slots, at % taps] = x.to(rings.dtype)
    places = at.unsqueeze(1) + torch.arange(1, taps + 1) - taps  # the last is `at`
    seen = rings[slots.unsqueeze(1), places % taps].float()
    seen = seen.masked_fill_((places < 0).unsqueeze(-1), 0.0)
    return F.silu((seen * weight.float()).sum(1)).to(x.dtype).float()


def _decode(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    slots: list[int],
    done: list[int],
    params: DeltaNetParams,
) -> Tensor:
    """One token x [n, width] of each of n sequences -> [n, Hv Dv]."""
    where, at = torch.tensor(slots), torch.tensor(done)
    y = _conv_step(x[:, : params.channels], conv_state, where, at, params.conv_weight)
    q, k, v = split_heads(y, params)
    log_g, beta = gates(x, params)
    decay, beta = log_g.exp().unsqueeze(-1), beta.unsqueeze(-1)
    out = torch.empty_like(v)
    for i, slot in enumerate(slots):  # in place: a state is larger than all else
        held = state[slot]
        held.mul_(decay[i].unsqueeze(-1)) if done[i] else held.zero_()
        change = (v[i] - torch.bmm(held, k[i].unsqueeze(-1))[..., 0]) * beta[i]
        held.baddbmm_(change.unsqueeze(-1), k[i].unsqueeze(1))
        torch.bmm(held, q[i].unsqueeze(-1), out=out[i].unsqueeze(-1))
    return gated_norm(out, x, params)


def gated_delta_net(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    meta: AttentionMetadata,
    params: DeltaNetParams,
    out: Tensor | None = None,
) -> Tensor:
    """op `gated_delta_net`."""
    if out is None:
        out = x.new_empty(x.shape[0], params.v_size)
    out.zero_()
    assert meta.state_slots is not None, "the runner gives slots to a model with states"
    starts, lengths = meta.cu_seqlens_q.tolist(), meta.seq_lens.tolist()
    single: list[tuple[int, int, int]] = []  # (row, slot, position)
    for s, slot in enumerate(meta.state_slots.tolist()[: meta.num_seqs]):
        low, high = starts[s], starts[s + 1]
        done = lengths[s] - (high - low)
        if slot < 0 or low == high:
            continue
        if high - low == 1:
            single.append((low, slot, done))
            continue
        rows, held = x[low:high], state[slot]
        y = causal_conv(rows[:, : params.channels], conv_state[slot], done, params.conv_weight)
        before = held if done else torch.zeros_like(held)
        result, after = chunked(*split_heads(y, params), *gates(rows, params), before)
        held.copy_(after)
        out[low:high] = gated_norm(result, rows, params)
    if single:
        at, slots, places = (list(part) for part in zip(*single, strict=True))
        out[at] = _decode(x[at], conv_state, state, slots, places, params)
    return out

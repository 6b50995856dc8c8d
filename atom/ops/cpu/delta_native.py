"""Gated DeltaNet through the native library: float32, heads of whole vectors."""

from __future__ import annotations

from struct import Struct

import torch
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_delta import DeltaNetParams
from atom.ops.cpu import delta, native

_DELTA = Struct("=3q2q3q6q4qd3q")  # fields as in native/ops.h
_DIMS = (16, 32, 64, 128)
_MAX_TAPS = 8

_gated_delta_net = native.op("gated_delta_net")


def serves(x: Tensor, params: DeltaNetParams) -> bool:
    """Whether the kernel has these sizes and types; torch has the others."""
    return (
        x.dtype == torch.float32
        and params.k_dim in _DIMS
        and params.v_dim % 16 == 0
        and params.taps <= _MAX_TAPS
    )


def gated_delta_net(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    meta: AttentionMetadata,
    params: DeltaNetParams,
    out: Tensor | None = None,
) -> Tensor:
    """op `gated_delta_net`."""
    if not serves(x, params):
        return delta.gated_delta_net(x, conv_state, state, meta, params, out)
    assert meta.state_slots is not None, "the runner gives slots to a model with states"
    rows, heads = x.shape[0], params.num_v_heads
    out = x.new_zeros(rows, params.v_size) if out is None else out.zero_()
    y, gates = x.new_empty(rows, params.channels), x.new_empty(rows, 2, heads)
    args = _DELTA.pack(
        x.data_ptr(), x.stride(0), meta.num_seqs, conv_state.data_ptr(), state.data_ptr(),
        meta.state_slots.data_ptr(), meta.cu_seqlens_q.data_ptr(), meta.seq_lens.data_ptr(),
        params.num_k_heads, heads, params.k_dim, params.v_dim, params.taps, params.channels,
        params.conv_weight.data_ptr(), params.rate.data_ptr(), params.dt_bias.data_ptr(),
        params.norm_weight.data_ptr(), params.eps, y.data_ptr(), gates.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    native.run_now(_gated_delta_net, args)
    return out

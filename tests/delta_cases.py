"""Random steps of op `gated_delta_net`, for every implementation of it.

A slot that no sequence has holds NaN, and so does one whose sequence begins; inputs are strided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_delta import DeltaNetParams
from atom.ops.reference.delta import gated_delta_net as reference


class Case(NamedTuple):
    x: Tensor
    conv_state: Tensor
    state: Tensor
    meta: AttentionMetadata
    params: DeltaNetParams

    def copied(self) -> Case:
        return self._replace(conv_state=self.conv_state.clone(), state=self.state.clone())


def make_params(
    heads: tuple[int, int], dims: tuple[int, int], taps: int, dtype: torch.dtype, device: str
) -> DeltaNetParams:
    """`heads`: key and value heads; `dims`: their sizes."""
    (hk, hv), (dk, dv) = heads, dims
    return DeltaNetParams(
        num_k_heads=hk,
        num_v_heads=hv,
        k_dim=dk,
        v_dim=dv,
        taps=taps,
        eps=1e-6,
        conv_weight=(torch.randn(taps, 2 * hk * dk + hv * dv) * taps**-0.5).to(device, dtype),
        rate=(torch.rand(hv) * 0.9 + 0.05).to(device),
        dt_bias=(torch.randn(hv) * 0.5 - 1).to(device),
        norm_weight=(torch.randn(dv) * 0.2 + 1).to(device),
    )


def make_case(
    sequences: Sequence[tuple[int, int]],
    heads: tuple[int, int] = (2, 4),
    dims: tuple[int, int] = (16, 16),
    taps: int = 4,
    dtype: torch.dtype = torch.float32,
    padding: int = 0,
    device: str = "cpu",
) -> Case:
    """`sequences`: tokens done and new of each; (-1, 1) is padding of a captured step, without a
    slot. `padding`: rows past the step's tokens."""
    params = make_params(heads, dims, taps, dtype, device)
    total = sum(new for _, new in sequences)
    wide = torch.full((total + padding, params.width + 8), float("nan"))
    wide[:, : params.width] = torch.randn(total + padding, params.width)
    slots = torch.randperm(len(sequences) + 3)[: len(sequences)]
    conv_state = torch.full((len(sequences) + 3, taps, params.channels), float("nan"))
    state = torch.full((len(sequences) + 3, params.num_v_heads, dims[1], dims[0]), float("nan"))
    starts, lengths, held = [0], [], []
    for (done, new), slot in zip(sequences, slots.tolist(), strict=True):
        starts.append(starts[-1] + new)
        lengths.append(done + new)
        held.append(slot if done + new else -1)
        if done > 0:
            rows = torch.arange(max(0, done - taps), done) % taps
            conv_state[slot, rows] = torch.randn(len(rows), params.channels)
            state[slot] = torch.randn(state.shape[1:]) * 0.3

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    meta = AttentionMetadata(
        num_tokens=total,
        num_seqs=len(sequences),
        max_query_len=max(new for _, new in sequences),
        max_seq_len=max(lengths),
        slot_mapping=torch.zeros(total + padding, dtype=torch.int64, device=device),
        block_table=torch.zeros(len(sequences), 1, dtype=torch.int32, device=device),
        cu_seqlens_q=ints(starts),
        seq_lens=ints(lengths),
        state_slots=ints(held),
    )
    x = wide.to(device, dtype)[:, : params.width]
    return Case(x, conv_state.to(device, dtype), state.to(device), meta, params)


STEPS: dict[str, list[tuple[int, int]]] = {
    "one token": [(0, 1)],
    "two tokens": [(2, 2), (1, 2), (3, 2)],
    "decode": [(1, 1), (0, 1), (7, 1), (130, 1), (2, 1)],
    "captured decode": [(5, 1), (64, 1), (-1, 1), (-1, 1)],
    "prompt": [(0, 150)],
    "whole chunks": [(0, 64), (64, 128)],
    "mixed": [(9, 1), (0, 70), (33, 65), (0, 3), (4, 1), (1, 2)],
}


def check_same(
    case: Case,
    run: Callable[..., Tensor],
    tolerance: float,
    state_tolerance: float | None = None,
    **options: Any,
) -> None:
    """`run` against the reference: the outputs, and what it leaves in every slot. Tolerances are
    relative to the largest value."""
    want_case, got_case = case.copied(), case.copied()
    want = reference(*want_case)
    got = run(*got_case, **options)
    tokens = case.meta.num_tokens
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    near(got[:tokens], want[:tokens], tolerance)
    assert bool(got.isfinite().all()), "padding rows"
    near(got_case.state, want_case.state, state_tolerance or tolerance)
    assert torch.equal(got_case.conv_state.nan_to_num(7.5), want_case.conv_state.nan_to_num(7.5))


def near(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert torch.equal(got.isnan(), want.isnan()), "NaN elsewhere"
    got, want = got.float().nan_to_num(), want.float().nan_to_num()
    error = float((got - want).abs().max() / want.abs().max())
    assert error < tolerance, error

"""Norms over all heads, of which a rank holds some."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.projection_norm import ProjectionNorm
from atom.parallel.state import ParallelState

HEADS, KV_HEADS, DIM, EPS = 8, 2, 4, 1e-5


def make(rank: int, size: int, weights: dict[str, Tensor]) -> ProjectionNorm:
    build = BuildContext(parallel=ParallelState(rank, size))
    norm = ProjectionNorm(build, HEADS, KV_HEADS, DIM, EPS)
    for slot in norm.slots("m.norm"):
        tensor = weights[slot.name]
        assert slot.shape == tuple(tensor.shape)
        slot.load(SimpleNamespace(dense=lambda *index, of=tensor: of[index]))
    norm.finish()
    return norm


@pytest.mark.parametrize("size", [1, 2, 4, 8])  # beyond 2, ranks hold copies of key heads
def test_the_mean_is_over_the_heads_of_all_ranks(size: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
    weights = {
        "m.q_norm.weight": torch.rand(HEADS * DIM) + 0.5,
        "m.k_norm.weight": torch.rand(KV_HEADS * DIM) + 0.5,
    }
    want_q, want_k = (
        torch.nn.functional.rms_norm(x.flatten(1), (x[0].numel(),), weights[f"m.{name}"], EPS)
        for name, x in (("q_norm.weight", q), ("k_norm.weight", k))
    )
    norms = [make(rank, size, weights) for rank in range(size)]
    inputs = []
    for norm in norms:
        rows_q, rows_k = norm.rows
        own = [q.flatten(1)[:, rows_q], k.flatten(1)[:, rows_k], v.flatten(1)[:, rows_k]]
        inputs.append(torch.cat(own, 1))
    sums: list[Tensor] = []

    def record(x: Tensor) -> Tensor:
        sums.append(x.clone())
        return x

    for norm, qkv in zip(norms, inputs, strict=True):  # what each would send
        norm._sum = record
        norm(qkv)
    for norm, qkv in zip(norms, inputs, strict=True):
        norm._sum = lambda x: torch.stack(sums).sum(0)
        rows_q, rows_k = norm.rows
        want = torch.cat((want_q[:, rows_q], want_k[:, rows_k], v.flatten(1)[:, rows_k]), 1)
        torch.testing.assert_close(norm(qkv), want)

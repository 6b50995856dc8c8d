"""Gated DeltaNet's kernels against the reference, for every kind of step."""

from __future__ import annotations

import pytest
import torch
from delta_cases import STEPS, check_same, make_case

from atom.ops.triton.delta import gated_delta_net

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@pytest.mark.parametrize("steps", STEPS)
def test_steps(steps: str, device: str) -> None:
    case = make_case(STEPS[steps], (1, 2), (32, 16), padding=2, device=device)
    check_same(case, gated_delta_net, TOLERANCE[torch.float32])


@pytest.mark.filterwarnings("ignore:.*encountered in multiply")  # rows that decodes write over
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("steps", ["decode", "mixed"])
def test_half_precision(steps: str, dtype: torch.dtype, device: str) -> None:
    case = make_case(STEPS[steps], (2, 2), (16, 16), dtype=dtype, device=device)
    check_same(case, gated_delta_net, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_published_sizes(dtype: torch.dtype, device: str, on_gpu: bool) -> None:
    if not on_gpu:
        pytest.skip("too much for the interpreter")
    steps = ([(100, 1)], [(7 * i, 1) for i in range(70)], [(0, 2000), (64, 700), (9, 1)])
    for sequences in steps:
        case = make_case(sequences, (16, 32), (128, 128), dtype=dtype, device=device)
        check_same(case, gated_delta_net, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_token_that_repeats(dtype: torch.dtype, device: str) -> None:
    """Equal keys, nothing forgotten: powers of the chunk's matrix reach 1e18, its inverse 1."""
    case = make_case([(0, 90)], (1, 1), (16, 16), dtype=dtype, device=device)
    case.x[:] = case.x[0].clone()
    case.x[:, -2:-1] = 8.0  # beta of nearly 1
    case.params.rate.fill_(1e-6)
    check_same(case, gated_delta_net, TOLERANCE[dtype])

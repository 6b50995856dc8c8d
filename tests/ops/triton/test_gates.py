"""Gates against the reference, in every layout allowed."""

from __future__ import annotations

import pytest
import torch

from atom.ops.reference import gates as reference
from atom.ops.triton import gates

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gates(dtype: torch.dtype, device: str, on_gpu: bool) -> None:
    shapes = [(1, 64), (3, 100), (0, 8), (2, 2048)]
    if on_gpu:
        shapes += [(4096, 4096), (1, 2048), (70000, 16)]
    tolerance = TOLERANCE[dtype]
    for rows, size in shapes:
        wide = torch.randn(4, rows, 2 * size + 16, device=device).to(dtype)
        part, y, x, gate = (each[:, 16 : 16 + size] for each in wide)
        g = (torch.randn(size, device=device) * size**-0.5).to(dtype)
        for got, want in (
            (gates.sigmoid_mul(x, gate), reference.sigmoid_mul(x, gate)),
            (gates.add_gated(part, y, x, g), reference.add_gated(part, y, x, g)),
        ):
            assert got.is_contiguous()
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_reference_gates() -> None:
    x, y, part = torch.randn(3, 5, 8, dtype=torch.float64).float()
    g = torch.randn(8)
    close = torch.testing.assert_close
    close(reference.sigmoid_mul(x, y), x / (1 + (-y).exp()))
    scale = 1 / (1 + (-(x * g).sum(1, keepdim=True)).exp())
    close(reference.add_gated(part, y, x, g), part + scale * y)


def test_traced_forms_are_sound(device: str) -> None:
    """Shapes as declared, no input mutated, no alias returned, for any number of tokens."""
    x = torch.randn(4, 64, device=device)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    ops = torch.ops.atom_triton
    for operator, inputs in ((ops.sigmoid_mul, (x, x)), (ops.add_gated, (x, x, x, x[0]))):
        torch.library.opcheck(operator.default, inputs, test_utils=checks)

"""Linear and embedding of the reference, and GGUF blocks against the `gguf` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from atom.errors import ModelError
from atom.models.gguf import QUANT_TYPES
from atom.ops.contracts import GGUFWeight
from atom.ops.reference.gguf import dequantize
from atom.ops.reference.linear import embedding, pack

BLOCK_TYPES = [kind for kind in QUANT_TYPES.values() if kind.block > 1]


def random_blocks(name: str, rows: int, cols: int) -> GGUFWeight:
    """Blocks of any type from random bytes; scales are kept finite by halving their exponents."""
    kind = next(k for k in BLOCK_TYPES if k.name == name)
    rng = np.random.default_rng(0)
    size = (rows, cols // kind.block * kind.block_bytes)
    data = rng.integers(0, 256, size, dtype=np.uint8) & 0xBB
    return GGUFWeight(name, torch.from_numpy(data), (rows, cols))


@pytest.mark.parametrize("name", [kind.name for kind in BLOCK_TYPES])
def test_dequantize_agrees_with_the_gguf_package(name: str) -> None:
    weight = random_blocks(name, 3, 512)
    qtype = gguf.GGMLQuantizationType[name]
    want = gguf.quants.dequantize(weight.data.numpy(), qtype)
    got = dequantize(weight)
    assert got.dtype == torch.float32
    assert got.shape == (3, 512)
    assert bool(torch.isfinite(got).all())
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=0)


def test_dequantize_by_hand() -> None:
    """One block of each common type, byte by byte."""
    low, high = np.arange(16) % 16, (np.arange(16) * 7) % 16
    nibbles = (low | high << 4).astype(np.uint8)
    d, m = np.array([0.5], np.float16), np.array([-2.0], np.float16)
    both = np.concatenate((low, high)).astype(np.float32)
    q4_0 = np.concatenate((d.view(np.uint8), nibbles))
    q4_1 = np.concatenate((d.view(np.uint8), m.view(np.uint8), nibbles))
    signed = np.arange(-16, 16, dtype=np.int8)
    q8_0 = np.concatenate((d.view(np.uint8), signed.view(np.uint8)))
    for name, block, want in (
        ("Q4_0", q4_0, (both - 8) * 0.5),
        ("Q4_1", q4_1, both * 0.5 - 2),
        ("Q8_0", q8_0, signed * 0.5),
    ):
        weight = GGUFWeight(name, torch.from_numpy(block[None].copy()), (1, 32))
        assert dequantize(weight)[0].tolist() == want.tolist(), name


def test_unknown_type_is_refused() -> None:
    with pytest.raises(ModelError, match="Q9_X"):
        dequantize(GGUFWeight("Q9_X", torch.zeros(1, 18, dtype=torch.uint8), (1, 32)))


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 3, 5), (7, 33, 1), (4, 64, 96)])
def test_dense_linear(
    weight_dtype: torch.dtype, dtype: torch.dtype, sizes: tuple[int, int, int]
) -> None:
    rows, n, k = sizes
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n, k, generator=generator).to(weight_dtype)
    x, bias = torch.randn(rows, k, generator=generator).to(dtype), torch.randn(n).to(dtype)
    want = np.einsum("mk,nk->mn", x.double().numpy(), weight.double().numpy())
    packed = pack(weight)
    assert (packed.out_features, packed.in_features) == (n, k)
    assert packed.nbytes == n * k * weight.element_size()
    assert torch.equal(packed.dequantize(), weight.float())
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2 * k**0.5
    for out, expected in ((packed(x), want), (packed(x, bias), want + bias.double().numpy())):
        assert out.dtype == dtype
        np.testing.assert_allclose(out.double().numpy(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0", "Q6_K"])
def test_gguf_linear_and_embedding(name: str) -> None:
    weight = random_blocks(name, 5, 256)
    values = gguf.quants.dequantize(weight.data.numpy(), gguf.GGMLQuantizationType[name])
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    packed = pack(weight)
    want = x.double().numpy() @ values.astype(np.float64).T
    scale = np.abs(want).max()
    np.testing.assert_allclose(packed(x).double().numpy(), want, atol=1e-5 * scale, rtol=0)
    ids = torch.tensor([4, 0, 4, 2])
    looked = embedding(ids, packed, torch.float32)
    np.testing.assert_allclose(looked.numpy(), values[ids.numpy()], rtol=1e-6)


def test_embedding_of_a_pack_that_is_not_ours() -> None:
    """Another backend's pack says only what its values are."""

    class Opaque:
        in_features, out_features, nbytes = 3, 4, 0
        values = torch.arange(12.0).view(4, 3)

        def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            raise AssertionError("a lookup multiplies nothing")

        def dequantize(self) -> torch.Tensor:
            return self.values

    out = embedding(torch.tensor([3, 1]), Opaque(), torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert out.tolist() == [[9.0, 10.0, 11.0], [3.0, 4.0, 5.0]]

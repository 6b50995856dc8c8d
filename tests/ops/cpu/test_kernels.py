"""Every native kernel against the reference, on random inputs of odd shapes."""

from __future__ import annotations

import pytest
import torch
from cpu_support import PagedCase, make_weight, poisoned

from atom.ops.contracts import AttentionMetadata, GGUFWeight
from atom.ops.cpu.build import CannotBuild
from atom.ops.reference import attention as ref_attention
from atom.ops.reference import elementwise as ref
from atom.ops.reference import linear as ref_linear

try:
    from atom.ops.cpu import attention, elementwise, linear, native

    native.load()
except CannotBuild as reason:
    pytest.skip(f"no native kernels: {reason}", allow_module_level=True)

QUANTIZED = ["Q4_0", "Q4_1", "Q8_0"]
FORMATS = [*QUANTIZED, "bfloat16", "float16", "float32"]


@pytest.fixture(autouse=True)
def _poisoned_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results start as NaN: whatever a kernel forgets to write shows."""

    def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if dtype.is_floating_point:
            return poisoned(*shape, dtype=dtype)
        return torch.full(shape, -(2**31), dtype=dtype)

    monkeypatch.setattr(native, "empty", empty)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", [(16, 32), (33, 96), (576, 1536), (7, 64)])
def test_packing_loses_nothing(fmt: str, shape: tuple[int, int]) -> None:
    weight = make_weight(fmt, *shape)
    want = ref_linear.pack(weight).dequantize()
    torch.testing.assert_close(linear.NativeLinear(weight).dequantize(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 15, 16, 17, 24, 33, 47, 128, 301])
def test_linear(fmt: str, rows: int) -> None:
    weight = make_weight(fmt, 161, 416)
    x = torch.randn(rows, 500)[:, 7:423]  # rows are strided
    bias = torch.randn(161)
    packed = linear.NativeLinear(weight)
    want = torch.nn.functional.linear(x, packed.dequantize(), bias)
    if fmt in QUANTIZED:  # 15 bits or more of the activations for few rows, bfloat16 for many
        tolerance = 1e-4 if rows <= 48 else 5e-3
    else:
        tolerance = 1e-6 if fmt == "float32" else 5e-3
    assert relative_error(packed(x, bias), want) < tolerance
    assert relative_error(packed(x), want - bias) < tolerance


@pytest.mark.parametrize("fmt", ["Q4_1", "bfloat16", "float32"])
def test_wide_linear_goes_in_several_passes(fmt: str) -> None:
    packed = linear.NativeLinear(make_weight(fmt, 48, 4800))
    x = torch.randn(70, 4800)
    want = torch.nn.functional.linear(x, packed.dequantize())
    assert relative_error(packed(x), want) < 5e-3


@pytest.mark.parametrize("rows", [1, 8, 16, 64])
def test_row_does_not_depend_on_its_batch_mates(rows: int) -> None:
    packed = linear.NativeLinear(make_weight("Q4_1", 96, 320))
    x = torch.randn(rows, 320)
    other = torch.randn(rows, 320) * 100
    other[0] = x[0]
    assert torch.equal(packed(x)[0], packed(other)[0])


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("packed", [True, False])
def test_embedding(fmt: str, packed: bool) -> None:
    weight = make_weight(fmt, 130, 96)
    if isinstance(weight, GGUFWeight) and not packed:
        pytest.skip("GGUF blocks are always packed")
    ids = torch.tensor([0, 129, 17, 17, 64])
    want = ref_linear.pack(weight).dequantize()[ids]
    table = linear.NativeLinear(weight) if packed else weight
    got = linear.embedding(ids, table, torch.float32)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("width", [5, 64, 576, 1000])
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_norms(width: int, rows: int) -> None:
    x, weight = torch.randn(rows, width + 3)[:, :width], torch.randn(width)
    want = ref.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(elementwise.rms_norm(x, weight, 1e-5), want, rtol=1e-5, atol=1e-5)
    residual = torch.randn(rows, width)
    want_out, want_residual = ref.add_rms_norm(x, residual.clone(), weight, 1e-5)
    got_out, got_residual = elementwise.add_rms_norm(x, residual, weight, 1e-5)
    assert got_residual is residual
    torch.testing.assert_close(got_residual, want_residual)
    torch.testing.assert_close(got_out, want_out, rtol=1e-5, atol=1e-5)


def test_norm_per_head_of_a_slice() -> None:
    x, weight = torch.randn(9, 7, 32)[:, 2:5], torch.randn(32)
    want = ref.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(elementwise.rms_norm(x, weight, 1e-6), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "rotated"), [(64, 64), (80, 20), (16, 16)])
def test_rotary(interleaved: bool, dim: int, rotated: int) -> None:
    qkv = torch.randn(19, 9, dim)
    expected = qkv.clone()
    table, positions = torch.randn(64, rotated), torch.randint(0, 64, (19,))
    ref.rotary(expected[:, :4], expected[:, 4:6], positions, table, interleaved)
    elementwise.rotary(qkv[:, :4], qkv[:, 4:6], positions, table, interleaved)
    torch.testing.assert_close(qkv, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "width"), [(1, 1536), (3, 40), (130, 7), (2, 513)])
def test_silu_and_mul(rows: int, width: int) -> None:
    x = torch.randn(rows, 2 * width) * 10
    got = elementwise.silu_and_mul(x)
    torch.testing.assert_close(got, ref.silu_and_mul(x), rtol=1e-5, atol=1e-6)


def test_silu_of_extreme_values() -> None:
    x = torch.tensor([[-1e30, -100.0, 0.0, 100.0, 1e30, 1.0, 1.0, 1.0, 1.0, 1.0]])
    got = elementwise.silu_and_mul(x)
    torch.testing.assert_close(got, ref.silu_and_mul(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [1, 9, 1024, 49152])
def test_argmax_takes_the_first_of_the_largest(width: int) -> None:
    x = torch.randint(-50, 50, (5, width)).float()
    want = torch.tensor([int((row == row.max()).nonzero()[0]) for row in x])
    assert torch.equal(elementwise.argmax(x), want)


def test_gather_rows() -> None:
    x, ids = torch.randn(20, 33), torch.tensor([19, 0, 0, 7])
    assert torch.equal(elementwise.gather_rows(x, ids), x[ids])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_is_written_at_the_slots_and_nowhere_else(dtype: torch.dtype) -> None:
    kv = torch.randn(6, 5, 48)
    k, v = kv[:, 1:3], kv[:, 3:5]
    slots = torch.tensor([5, -1, 31, 0, -1, 17])
    caches = [poisoned(4, 8, 2, 48, dtype=dtype) for _ in range(4)]
    attention.reshape_and_cache(k, v, caches[0], caches[1], slots)
    ref_attention.reshape_and_cache(k, v, caches[2], caches[3], slots)
    for got, want in zip(caches[:2], caches[2:], strict=True):
        assert torch.equal(torch.nan_to_num(got, 99.0), torch.nan_to_num(want, 99.0))


LENGTHS = {
    "one decode": [(1, 1)],
    "decodes": [(1, 160), (1, 17), (1, 33), (1, 5)],
    "long decode": [(1, 3000)],
    "split and short": [(1, 2500), (1, 10), (4, 9)],
    "prefill": [(130, 130)],
    "chunk": [(50, 177)],
    "mixture": [(1, 70), (37, 37), (1, 129), (100, 260), (3, 3)],
}


def check_attention(case: PagedCase, tolerance: float, **options: object) -> None:
    got = attention.paged_attention(
        case.q, case.k_cache, case.v_cache, case.meta, case.dim**-0.5, **options
    )
    want = ref_attention.paged_attention(
        case.q, case.k_cache, case.v_cache, case.meta, case.dim**-0.5, **options
    )
    assert relative_error(got, want) < tolerance
    assert float((got - want).abs().max()) < tolerance * 20


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("heads", [(9, 3, 64), (8, 1, 128), (4, 4, 16), (32, 2, 80)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention(
    lengths: list[tuple[int, int]], heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    case = PagedCase(lengths, *heads, block_size=16, kv_dtype=dtype)
    check_attention(case, 2e-5 if dtype == torch.float32 else 6e-3)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("block_size", [1, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_options(
    lengths: list[tuple[int, int]], block_size: int, dtype: torch.dtype
) -> None:
    case = PagedCase(lengths, 6, 2, 32, block_size=block_size, kv_dtype=dtype, seed=1)
    tolerance = 2e-5 if dtype == torch.float32 else 6e-3
    check_attention(case, tolerance, window=20)
    check_attention(case, tolerance, sinks=torch.randn(6) * 3)
    check_attention(case, tolerance, soft_cap=5.0)
    check_attention(case, tolerance, window=64, sinks=torch.randn(6), soft_cap=2.0)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize(("block_size", "run"), [(4, 1), (4, 6), (8, 2), (2, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_blocks_that_are_neighbours_or_not(
    lengths: list[tuple[int, int]], block_size: int, run: int, dtype: torch.dtype
) -> None:
    case = PagedCase(lengths, 9, 3, 64, block_size, dtype, seed=2, run=run)
    check_attention(case, 2e-5 if dtype == torch.float32 else 6e-3)
    check_attention(case, 2e-5 if dtype == torch.float32 else 6e-3, window=20)


def test_rows_of_padding_tokens_are_zero() -> None:
    case = PagedCase([(1, 9), (3, 12)], 4, 2, 32, block_size=16, kv_dtype=torch.float32)
    padded = torch.cat([case.q, poisoned(5, 4, 32)])
    meta: AttentionMetadata = case.meta
    got = attention.paged_attention(padded, case.k_cache, case.v_cache, meta, 1.0)
    assert torch.equal(got[4:], torch.zeros(5, 4, 32))
    assert torch.isfinite(got).all()

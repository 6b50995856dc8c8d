"""Operations and bytes: each formula against counting them one by one."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from atom.trace.errors import TraceError
from atom.trace.roofline.devices import _CARDS, ceilings_of
from atom.trace.roofline.operators import operator_work
from atom.trace.roofline.work import Attended, attended, attention, bits_of, experts, product

BF16 = "c10::BFloat16"


def shapes(*dims: Any, types: list[str] | None = None) -> str:
    return json.dumps({"Input Dims": dims, "Input type": types or [BF16] * len(dims)})


def count_pairs(requests: list[tuple[int, int]]) -> int:
    """Unmasked (query, key) pairs, counted: query j of q is at position k - q + j."""
    return sum(1 for q, k in requests for j in range(q) for key in range(k) if key <= k - q + j)


@pytest.mark.parametrize("seed", range(20))
def test_pairs_of_causal_attention_are_counted(seed: int) -> None:
    draw = random.Random(seed)
    requests = []
    for _ in range(draw.randint(1, 5)):
        q = draw.randint(1, 12)
        requests.append((q, q + draw.randint(0, 20)))
    fields = {
        "bs": len(requests),
        "tok": sum(q for q, _ in requests),
        "sk": sum(k for _, k in requests),
        "sqsk": sum(q * k for q, k in requests),
        "sqsq": sum(q * q for q, _ in requests),
    }
    seen = attended(fields)
    assert seen == Attended(fields["tok"], fields["sk"], count_pairs(requests))


def test_decode_needs_no_squares_and_other_steps_do() -> None:
    assert attended({"bs": 3, "tok": 3, "sk": 100}) == Attended(3, 100, 100)
    assert attended({"bs": 1, "tok": 3, "sk": 100}) is None
    assert attended({"bs": 1, "tok": 1}) is None


def test_work_of_attention() -> None:
    seen = Attended(tokens=2, keys=10, pairs=10)
    work = attention(seen, 4, 2, 8, bits=16, kv_bits=8)
    multiply_adds = 10 * 4 * 8 * 2  # q k^T and p v
    assert work.flops == 2 * multiply_adds
    assert work.nbytes == 2 * 10 * 2 * 8 * 1 + 2 * 2 * 4 * 8 * 2
    assert work.keys == 10
    windowed = attention(seen, 4, 2, 8, bits=16, kv_bits=8, window=3)
    assert windowed.flops == work.flops * 6 / 10
    assert "window" in windowed.note


def test_work_of_a_product() -> None:
    work = product(32, 6144, 4096, 16)
    assert work.flops == 2 * 32 * 6144 * 4096
    assert work.nbytes == 2 * (6144 * 4096 + 32 * 4096 + 32 * 6144)
    packed = product(32, 6144, 4096, 16, weight_bytes=100.0)
    assert packed.nbytes == 100 + 2 * (32 * 4096 + 32 * 6144)


def test_experts_read_are_what_even_routing_expects() -> None:
    facts = {
        "num_experts": 8,
        "top_k": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "weight_bytes": 8 * 3 * 16 * 32 * 2,
    }
    draw = random.Random(0)
    trials = 4000
    used = sum(len({e for _ in range(3) for e in draw.sample(range(8), 2)}) for _ in range(trials))
    work = experts(3, facts, 16)
    read = (work.nbytes - 2 * 3 * 16 * 2) / (3 * 16 * 32 * 2)
    assert read == pytest.approx(used / trials, rel=0.02)
    assert work.flops == 2 * 3 * 2 * 3 * 16 * 32


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("aten::mm", shapes([32, 4096], [4096, 6144]), "32 x 6144 x 4096"),
        ("aten::addmm", shapes([6144], [32, 4096], [4096, 6144]), "32 x 6144 x 4096"),
        ("aten::linear", shapes([2, 16, 4096], [6144, 4096], [6144]), "32 x 6144 x 4096"),
        ("aiter::gemm_a8w8", shapes([32, 4096], [6144, 4096]), "32 x 6144 x 4096"),
        ("aten::bmm", shapes([8, 32, 64], [8, 64, 128]), "8 x (32 x 128 x 64)"),
        ("aten::mm", shapes([32, 4096], [1000, 6144]), None),
        ("aten::mm", shapes([[1, 2]]), None),
        ("aten::mm", "", None),
        ("aten::mm", "{not json", None),
        ("aten::copy_", shapes([32, 4096], [4096, 6144]), None),
    ],
)
def test_products_are_read_from_shapes(name: str, args: str, expected: str | None) -> None:
    work = operator_work(name, args, None)
    assert (work.shape if work else None) == expected


def test_attention_is_read_from_shapes() -> None:
    args = shapes(
        [32, 32, 128], [835874, 1, 8, 128], [33], types=[BF16, "c10::Float8_e4m3fnuz", "int"]
    )
    seen = Attended(32, 32785, 32785)
    work = operator_work("sgl::attention_paged_100", args, seen)
    assert work == attention(seen, 32, 8, 128, bits=16, kv_bits=8)
    assert operator_work("sgl::attention_paged_100", args, None) is None
    assert operator_work("sgl::attention_paged_100", args, Attended(31, 9, 9)) is None
    dense = operator_work(
        "aten::_scaled_dot_product_flash_attention",
        shapes([2, 8, 16, 64], [2, 8, 16, 64], [2, 8, 16, 64]),
        None,
    )
    assert dense is not None
    assert dense.flops == 4 * 2 * count_pairs([(16, 16)]) * 8 * 64
    assert "causal" in dense.note


def test_types_are_read() -> None:
    assert [bits_of(t) for t in ("bfloat16", "float", "Scalar", "")] == [16, 32, None, None]


def test_devices_are_told_apart() -> None:
    assert ceilings_of("NVIDIA H200").bandwidth == 4.8e12
    assert ceilings_of("NVIDIA L40S").bandwidth != ceilings_of("NVIDIA L4").bandwidth
    assert (
        ceilings_of("NVIDIA H100 PCIe").bandwidth < ceilings_of("NVIDIA H100 80GB HBM3").bandwidth
    )
    assert ceilings_of("AMD Instinct MI300X").flops_of(8) == 2614.9e12
    assert ceilings_of("NVIDIA A100-SXM4-80GB").flops_of(8) == 312e12  # no unit for it
    given = ceilings_of("Some Card", bandwidth=2.0, flops=100.0)
    assert (given.bandwidth, given.flops_of(8), given.source) == (2e12, 1e14, "given")


def test_every_device_has_ceilings_of_its_own_for_common_widths() -> None:
    for card in _CARDS:
        flops = ceilings_of(card).flops
        assert {16, 32} <= flops.keys()
        assert flops[32] < flops[16]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("Some Card", None, None), "--bandwidth"),
        (("", 1.0, None), "does not name"),
        (("NVIDIA H200", 0.0, None), "--bandwidth must be above 0"),
        (("NVIDIA H200", None, float("nan")), "--flops must be above 0"),
    ],
)
def test_ceilings_that_cannot_be(args: tuple[str, float, float], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        ceilings_of(*args)

"""Decode attention against the reference, whole and cut into parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import FP8, attend, make_cached, relative_error
from harness import poison

from atom.ops.contracts import AttentionParams
from atom.ops.triton.decode_attention import Cut, choose_cut, decode_attention, launch, workspace

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LIMITS = {F32: 2e-5, BF16: 6e-3, F16: 2e-3}

# lengths, (Hq, Hk, D), block size, dtype, cache's dtype, what else
CASES: dict[str, tuple[Any, ...]] = {
    "plain": ([37, 1, 70], (4, 2, 64), 16, F32, F32, {}),
    "bf16 grouped": ([5, 40], (8, 1, 128), 16, BF16, BF16, {}),
    "padded head, padding rows": ([0, 33, 0], (3, 1, 80), 16, BF16, BF16, {}),
    "tokens as blocks": ([19, 34], (2, 1, 96), 1, F16, F16, {}),
    "window": ([50, 9, 64], (2, 2, 64), 16, F32, F32, {"window": 20}),
    "window of one": ([50, 1], (2, 2, 64), 32, F32, F32, {"window": 1}),
    "sinks, cap": ([45, 3], (4, 2, 64), 16, F32, F32, {"sinks": True, "soft_cap": 3.0}),
    "float8": ([40, 17], (4, 2, 64), 16, BF16, FP8, {"k_scale": 0.02, "v_scale": 0.5}),
    "float8, wide, all": (
        [40, 17],
        (2, 1, 256),
        48,
        BF16,
        FP8,
        {"k_scale": 2.0, "v_scale": 0.3, "sinks": True, "soft_cap": 9.0, "window": 33},
    ),
}
GPU_CASES: dict[str, tuple[Any, ...]] = {
    "long": ([5000, 1, 777, 2049], (32, 8, 128), 16, BF16, BF16, {}),
    "long window": ([5000, 1, 777, 2049], (16, 8, 128), 16, BF16, BF16, {"window": 1000}),
    "long float8": ([5000, 31, 1], (32, 4, 128), 16, BF16, FP8, {"k_scale": 0.1, "v_scale": 0.1}),
    "many": ([1, 300, 20] * 40, (32, 8, 128), 16, BF16, BF16, {}),
}


def _check(case: tuple[Any, ...], device: str, cuts: list[Cut | None]) -> None:
    lengths, (hq, hk, dim), block_size, dtype, kv_dtype, extra = case
    extra = dict(extra)
    scales = (extra.get("k_scale", 1.0), extra.get("v_scale", 1.0))
    if extra.get("sinks"):
        extra["sinks"] = torch.randn(hq, device=device)
    cached = make_cached(
        lengths, hk, dim, block_size, dtype, kv_dtype, device, filled=True, scales=scales
    )
    fused = torch.randn(len(lengths), hq + 3, dim).to(device, dtype)
    q, scale = fused[:, :hq], dim**-0.5  # strided rows
    cos_sin = torch.zeros(1, 2, device=device)
    params = AttentionParams(hq, hk, dim, scale, cos_sin, **extra)
    expected = attend(q, cached, params)
    rows = cached.meta.slot_mapping >= 0
    for cut in cuts:
        out = poison(torch.empty(q.shape, dtype=dtype, device=device))
        if cut is None:
            got = decode_attention(
                q, cached.k_cache, cached.v_cache, cached.meta, scale, out=out, **extra
            )
            assert got is out
        else:
            launch(q, cached.k_cache, cached.v_cache, cached.meta, params, out, cut=cut)
        assert relative_error(out[rows], expected[rows]) < LIMITS[dtype], cut
        assert not workspace(q.device).counters.any()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ahead", [True, False])
def test_equals_the_reference(device: str, on_gpu: bool, name: str, ahead: bool) -> None:
    cuts: list[Cut | None] = [Cut(16, 1, 16, 4, ahead), Cut(16, 4, 16, 4, ahead)]
    if on_gpu:
        cuts += [None, Cut(32, 8, 32, 4, ahead, 3), Cut(64, 2, 64, 8, ahead, 2)]
        if CASES[name][4] == FP8:
            cuts += [Cut(32, 2, 32, 2, ahead, 3, packed=True)]
    _check(CASES[name], device, cuts)


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_CASES)
def test_long_contexts(device: str, on_gpu: bool, name: str) -> None:
    if not on_gpu:
        pytest.skip("needs a GPU")
    cuts: list[Cut | None] = [None, Cut(64, 4, 64, 4, True), Cut(32, 2, 128, 2, False, 3)]
    if len(GPU_CASES[name][0]) < 8:  # the workspace bounds sequences times parts
        cuts += [Cut(16, 64, 16, 1, True), Cut(16, 32, 64, 1, False, 5)]
    if GPU_CASES[name][4] == FP8:
        cuts += [Cut(64, 1, 64, 4, ahead, 3, packed=True) for ahead in (True, False)]
    _check(GPU_CASES[name], device, cuts)


def test_short_parts_are_merged(device: str) -> None:
    _check(CASES["plain"], device, [Cut(16, 4, 16, 4, True)])


def test_equal_twice(device: str) -> None:
    """The order in which parts end does not show."""
    cached = make_cached([300, 40], 2, 64, 16, BF16, BF16, device, filled=True)
    q = torch.randn(2, 4, 64).to(device, BF16)
    first = decode_attention(q, cached.k_cache, cached.v_cache, cached.meta, 0.125)
    again = decode_attention(q, cached.k_cache, cached.v_cache, cached.meta, 0.125)
    assert torch.equal(first, again)


def test_cut_fills_the_device_and_its_workspace() -> None:
    assert choose_cut(256, 8, 4, 128, 2, 131072, 132).parts == 1
    alone = choose_cut(1, 8, 4, 128, 2, 131072, 132)
    assert alone.parts * 8 >= 132
    for seqs in (1, 3, 8, 64):
        cut = choose_cut(seqs, 8, 16, 256, 2, 1 << 20, 132)
        assert seqs * 8 * cut.parts * 16 * 258 <= workspace(torch.device("cpu")).partials.numel()

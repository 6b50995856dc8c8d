"""The whole of attention as one operation against the reference's operations in a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import FP8, Cached, compose, make_cached, make_params, relative_error
from harness import poison
from torch import Tensor

from atom.ops.contracts import AttentionParams
from atom.ops.registry import OpQuery
from atom.ops.triton import attention as module
from atom.ops.triton.attention import attention
from atom.ops.triton.decode_attention import Cut, launch

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LIMITS = {F32: 2e-5, BF16: 8e-3, F16: 2e-3}

# lengths, new tokens, (Hq, Hk, D), R, dtype, cache's dtype, what else
CASES: dict[str, tuple[Any, ...]] = {
    "decode": ([37, 1, 70], None, (8, 2, 64), 64, BF16, BF16, {}),
    "decode, norms": ([37, 20], None, (4, 2, 128), 128, F32, F32, {"norms": True}),
    "decode, interleaved": (
        [33, 17],
        None,
        (4, 2, 64),
        32,
        F32,
        F32,
        {"norms": True, "interleaved": True},
    ),
    "decode, padding": ([0, 18, 0, 3], None, (3, 1, 80), 40, F16, F16, {}),
    "decode, window, sinks, cap": (
        [50, 9, 33],
        None,
        (4, 2, 64),
        64,
        F32,
        F32,
        {"window": 17, "sinks": True, "soft_cap": 4.0},
    ),
    "decode, window of one": ([50, 1], None, (2, 2, 64), 64, F32, F32, {"window": 1}),
    "decode, float8": (
        [40, 17, 1],
        None,
        (4, 2, 96),
        96,
        BF16,
        FP8,
        {"norms": True, "k_scale": 0.02, "v_scale": 0.005},
    ),
    "decode, block of 1": ([5, 20], None, (2, 1, 64), 64, F32, F32, {"block_size": 1}),
    "mixed": ([37, 1, 30], [9, 1, 30], (4, 2, 64), 64, BF16, BF16, {"norms": True}),
    "mixed, float8": (
        [37, 5],
        [9, 1],
        (4, 2, 64),
        64,
        BF16,
        FP8,
        {"k_scale": 0.02, "v_scale": 0.005},
    ),
}
CUTS = [Cut(16, 1, 16, 4, True), Cut(16, 3, 16, 4, False)]


def _case(name: str, device: str, longer: int) -> tuple[Cached, AttentionParams, Tensor, Tensor]:
    lengths, new, (hq, hk, dim), rotated, dtype, kv_dtype, extra = CASES[name]
    extra = dict(extra)
    scales = (extra.pop("k_scale", 1.0), extra.pop("v_scale", 1.0))
    block_size = extra.pop("block_size", 16)
    lengths = [n + longer if n > 1 else n for n in lengths]
    cached = make_cached(
        lengths, hk, dim, block_size, dtype, kv_dtype, device, new=new, scales=scales
    )
    if extra.pop("sinks", False):
        extra["sinks"] = torch.randn(hq, device=device)
    params = make_params(hq, hk, dim, rotated, dtype, device, **extra)
    params = replace(params, k_scale=scales[0], v_scale=scales[1])
    tokens = cached.meta.slot_mapping.shape[0]
    positions = torch.randint(params.cos_sin.shape[0], (tokens,), device=device)
    qkv = torch.randn(tokens, hq + 2 * hk, dim).to(device, dtype)
    return cached, params, positions, qkv


def _compare(
    got: Tensor, cached: Cached, expected: Tensor, other: Cached, dtype: torch.dtype
) -> None:
    rows = cached.meta.slot_mapping >= 0
    assert relative_error(got[rows], expected[rows]) < LIMITS[dtype]
    limit = 0.02 if cached.k_cache.dtype == FP8 else LIMITS[dtype]
    for mine, want in ((cached.k_cache, other.k_cache), (cached.v_cache, other.v_cache)):
        mine, want = mine.float(), want.float()
        assert torch.equal(mine.isnan(), want.isnan())
        assert relative_error(mine.nan_to_num(), want.nan_to_num()) < limit


@pytest.mark.parametrize("longer", [0, 700])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_operations_in_a_row(device: str, on_gpu: bool, name: str, longer: int) -> None:
    if longer and not on_gpu:
        pytest.skip("too slow without a GPU")
    cached, params, positions, qkv = _case(name, device, longer)
    other = cached.copy()
    expected, _ = compose(qkv.clone(), positions, other, params)
    runs = [None, *(CUTS if cached.meta.is_decode else [])]
    if on_gpu and cached.meta.is_decode and cached.k_cache.dtype == FP8:
        runs += [Cut(32, 2, 32, 2, ahead, 3, packed=True) for ahead in (True, False)]
    for cut in runs:
        mine = cached.copy()
        given = poison(torch.empty_like(expected))
        if cut is None:
            got = attention(
                qkv.clone(), positions, mine.k_cache, mine.v_cache, mine.meta, params, given
            )
            assert got is given
        else:
            launch(
                qkv.clone(), mine.k_cache, mine.v_cache, mine.meta, params, given, positions, cut
            )
        _compare(given, mine, expected, other, qkv.dtype)


def test_makes_its_output_where_none_is_given(device: str) -> None:
    cached, params, positions, qkv = _case("decode", device, 0)
    other = cached.copy()
    expected, _ = compose(qkv.clone(), positions, other, params)
    got = attention(qkv, positions, cached.k_cache, cached.v_cache, cached.meta, params)
    _compare(got, cached, expected, other, qkv.dtype)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dtype": "float64"}, "activations"),
        ({"kv_dtype": "float16"}, "float8_e4m3fn"),
        ({"shape": (("Hq", 4), ("Hk", 2), ("D", 512))}, "head_dim"),
        ({"shape": (("Hq", 5), ("Hk", 2), ("D", 64))}, "evenly"),
    ],
)
def test_says_why_it_declines(changes: dict[str, Any], word: str) -> None:
    query = OpQuery(
        op="attention",
        device="cuda",
        dtype="bfloat16",
        kv_dtype="bfloat16",
        shape=(("Hq", 4), ("Hk", 2), ("D", 64)),
    )
    assert module._declines(query) is None
    assert word in (module._declines(replace(query, **changes)) or "")


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[700], [0, 33, 1000, 0], [192] * 128])
def test_a_captured_step_is_replayed_with_other_lengths(
    device: str, on_gpu: bool, lengths: list[int]
) -> None:
    if not on_gpu:
        pytest.skip("needs a GPU")
    hq, hk, dim = 32, 8, 128
    cached = make_cached(lengths, hk, dim, 16, BF16, BF16, device)
    params = make_params(hq, hk, dim, dim, BF16, device, norms=True)
    count = len(lengths)
    positions = torch.randint(params.cos_sin.shape[0], (count,), device=device)
    qkv = torch.randn(count, hq + 2 * hk, dim, device=device, dtype=BF16)
    mine, given = cached.copy(), torch.empty(count, hq, dim, device=device, dtype=BF16)
    meta = replace(
        cached.meta,
        max_seq_len=32768,
        seq_lens=torch.zeros_like(cached.meta.seq_lens),
        slot_mapping=torch.full_like(cached.meta.slot_mapping, -1),
    )
    arguments = (positions, mine.k_cache, mine.v_cache, meta, params, given)
    static = qkv.clone()
    attention(static, *arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(static, *arguments)
    meta.seq_lens.copy_(cached.meta.seq_lens)
    meta.slot_mapping.copy_(cached.meta.slot_mapping)
    static.copy_(qkv)
    for _ in range(3):
        poison(given)
        graph.replay()
    other = cached.copy()
    expected, _ = compose(qkv.clone(), positions, other, params)
    _compare(given, mine, expected, other, BF16)

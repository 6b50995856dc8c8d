"""Paged attention of the reference against a loop over single scores in float64."""

from __future__ import annotations

import math

import pytest
import torch
from harness import make_metadata, poison
from torch import Tensor

from atom.ops.reference.attention import paged_attention, reshape_and_cache

FP8 = torch.float8_e4m3fn


def naive(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, sinks: Tensor | None, cap: float
) -> Tensor:
    """One sequence: q [ql, Hq, D] stands at the end of k, v [n, Hk, D]; score by score."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    n, groups = len(k), q.shape[1] // k.shape[1]
    for i in range(len(q)):
        position = n - len(q) + i
        for h in range(q.shape[1]):
            first = max(0, position - window + 1) if window else 0
            scores = []
            for j in range(first, position + 1):
                score = float(q[i, h].double() @ k[j, h // groups].double()) * scale
                scores.append(cap * math.tanh(score / cap) if cap else score)
            extra = [float(sinks[h])] if sinks is not None else []
            top = max(scores + extra)
            total = sum(math.exp(s - top) for s in scores + extra)
            for j, score in zip(range(first, position + 1), scores, strict=True):
                out[i, h] += math.exp(score - top) / total * v[j, h // groups].double()
    return out


class Case:
    """Sequences (tokens done, new tokens) in caches that are NaN wherever nothing was written."""

    def __init__(
        self,
        rows: list[tuple[int, int]],
        heads: tuple[int, int, int],
        block_size: int,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype = torch.float32,
        num_padding: int = 0,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        hq, hk, dim = heads
        counts = [-(-(done + new) // block_size) for done, new in rows]
        order = torch.randperm(sum(counts) + 3, generator=generator).tolist()
        blocks = [[order.pop() for _ in range(count)] for count in counts]
        self.k_cache = poison(torch.empty(sum(counts) + 3, block_size, hk, dim, dtype=kv_dtype))
        self.v_cache = poison(torch.empty_like(self.k_cache))
        self.k, self.v, fused = [], [], []
        for row_blocks, (done, new) in zip(blocks, rows, strict=True):
            k, v = torch.randn(2, done + new, hk, dim, generator=generator).to(dtype)
            if done:
                old = make_metadata([(row_blocks, 0, done)], block_size)
                reshape_and_cache(k[:done], v[:done], self.k_cache, self.v_cache, old.slot_mapping)
            self.k.append(k)
            self.v.append(v)
            q = torch.randn(new, hq, dim, generator=generator).to(dtype)
            fused.append(torch.cat((q, k[done:], v[done:]), 1))
        fused.append(torch.full((num_padding, hq + 2 * hk, dim), float("nan"), dtype=dtype))
        # Strided rows, as attention gets them from a fused projection.
        self.q, new_k, new_v = torch.cat(fused).split((hq, hk, hk), 1)
        triples = [(b, done, new) for b, (done, new) in zip(blocks, rows, strict=True)]
        self.meta = make_metadata(triples, block_size, num_padding)
        slots = self.meta.slot_mapping
        reshape_and_cache(new_k, new_v, self.k_cache, self.v_cache, slots)
        self.stored = [
            tuple(t.clamp(-448, 448).to(kv_dtype).float() for t in pair)
            for pair in zip(self.k, self.v, strict=True)
        ]

    def check(
        self, tolerance: float, window: int = 0, sinks: Tensor | None = None, cap: float = 0.0
    ) -> None:
        out = paged_attention(
            self.q, self.k_cache, self.v_cache, self.meta, 0.3, window, sinks, cap
        )
        assert out.dtype == self.q.dtype
        starts = self.meta.cu_seqlens_q.tolist()
        for row, (k, v) in enumerate(self.stored):
            q = self.q[starts[row] : starts[row + 1]]
            want = naive(q, k, v, 0.3, window, sinks, cap)
            got = out[starts[row] : starts[row + 1]].double()
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
        assert not out[starts[-1] :].any(), "padding rows are zero"


MIXED = [(0, 7), (13, 1), (5, 6), (0, 1), (32, 1), (16, 16)]


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("heads", [(4, 2, 8), (3, 3, 5), (9, 1, 16)])
def test_mixed_batch(block_size: int, heads: tuple[int, int, int]) -> None:
    Case(MIXED, heads, block_size).check(1e-5)


@pytest.mark.parametrize("window", [1, 3, 16, 1000])
def test_window(window: int) -> None:
    Case(MIXED, (4, 2, 8), 4).check(1e-5, window=window)


@pytest.mark.parametrize("window", [0, 5])
def test_sinks_and_soft_cap(window: int) -> None:
    sinks = torch.randn(4, generator=torch.Generator().manual_seed(1))
    case = Case(MIXED, (4, 2, 8), 4)
    case.check(1e-5, window, sinks)
    case.check(1e-5, window, None, 0.7)
    case.check(1e-5, window, sinks, 0.7)


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.float16, FP8])
def test_narrow_caches(kv_dtype: torch.dtype) -> None:
    Case(MIXED, (4, 2, 8), 16, kv_dtype=kv_dtype).check(1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_activations(dtype: torch.dtype) -> None:
    Case(MIXED, (4, 2, 8), 16, dtype=dtype, kv_dtype=dtype).check(1e-2)


def test_padding_tokens_write_and_read_nothing() -> None:
    case = Case([(3, 2), (0, 4)], (4, 2, 8), 4, num_padding=5)
    case.check(1e-5)
    written = sum(done + new for done, new in ((3, 2), (0, 4)))
    assert int(case.k_cache.isfinite().all(-1).all(-1).sum()) == written
    assert int(case.v_cache.isfinite().all(-1).all(-1).sum()) == written


def test_cache_holds_exactly_what_was_written() -> None:
    k, v = torch.randn(2, 5, 2, 3)
    caches = torch.full((2, 4, 4, 2, 3), float("nan"))
    slots = torch.tensor([9, -1, 0, 15, 6])
    reshape_and_cache(k, v, caches[0], caches[1], slots)
    for cache, values in zip(caches, (k, v), strict=True):
        flat = cache.view(16, 2, 3)
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                assert torch.equal(flat[slot], values[row])
        assert int(flat.isfinite().any(-1).any(-1).sum()) == 4


def test_fp8_saturates_instead_of_becoming_nan() -> None:
    k = torch.tensor([1e6, -1e6, 0.4]).view(1, 1, 3)
    cache = torch.zeros(2, 1, 2, 1, 3).to(FP8)
    reshape_and_cache(k, k, cache[0], cache[1], torch.tensor([1]))
    assert cache[0].float().view(2, 3)[1].tolist() == [448.0, -448.0, 0.40625]

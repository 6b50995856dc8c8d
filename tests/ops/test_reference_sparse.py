"""The index of sparse attention and attention over the chosen, against one key at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import make_metadata, poison
from torch import Tensor

from atom.ops import registry
from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_sparse import SPARSE_OPS, IndexNorm
from atom.ops.reference import sparse
from atom.ops.registry import OpQuery

BLOCKS = [[3, 0, 6], [5], [2, 7, 1]]
SIZE, DIM, HEADS = 4, 8, 3
# Tokens in the cache already and new ones, of three sequences.
DONE, NEW = (5, 0, 9), (4, 3, 1)


def cached(count: int, size: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """[8 blocks, SIZE, size], NaN but where the sequences have `count` more tokens than DONE."""
    cache = poison(torch.empty(8, SIZE, size, dtype=dtype))
    for blocks, done, new in zip(BLOCKS, DONE, NEW, strict=True):
        for p in range(done + min(new, count)):
            cache[blocks[p // SIZE], p % SIZE] = torch.randn(size).to(dtype)
    return cache


def metadata(num_padding: int = 2) -> AttentionMetadata:
    return make_metadata(list(zip(BLOCKS, DONE, NEW, strict=True)), SIZE, num_padding)


def rows() -> list[tuple[int, list[int], int]]:
    """(row, blocks, position) of every token of the step."""
    out: list[tuple[int, list[int], int]] = []
    for blocks, done, new in zip(BLOCKS, DONE, NEW, strict=True):
        out += [(len(out) + i, blocks, done + i) for i in range(new)]
    return out


def slot(blocks: list[int], position: int) -> int:
    return blocks[position // SIZE] * SIZE + position % SIZE


@pytest.mark.parametrize("products", [1, 1 << 24], ids=["a row at a time", "whole"])
@pytest.mark.parametrize("k", [1, 4, 9, 12])
def test_the_best_keys(monkeypatch: pytest.MonkeyPatch, k: int, products: int) -> None:
    monkeypatch.setattr(sparse, "MOST_PRODUCTS", products)
    torch.manual_seed(k)
    cache, meta = cached(9, DIM), metadata()
    q, weights = torch.randn(10, HEADS, DIM), torch.randn(10, HEADS)
    got = sparse.index_topk(q, weights, cache, meta, k)
    assert got.dtype == torch.int32
    for row, blocks, position in rows():
        keys = [cache[blocks[p // SIZE], p % SIZE] for p in range(position + 1)]
        scores = [float((weights[row] * (q[row] @ key).relu()).sum()) for key in keys]
        best = sorted(sorted(range(position + 1), key=lambda p: -scores[p])[:k])
        want = [slot(blocks, p) for p in best] + [-1] * (k - len(best))
        assert got[row].tolist() == want
    assert (got[8:] == -1).all()


def test_of_equal_scores_the_first() -> None:
    cache, meta = cached(9, DIM), metadata(0)
    q, weights = torch.randn(8, HEADS, DIM), torch.zeros(8, HEADS)
    got = sparse.index_topk(q, weights, cache, meta, 3)
    for row, blocks, position in rows():
        want = [slot(blocks, p) for p in range(min(3, position + 1))]
        assert got[row].tolist() == want + [-1] * (3 - len(want))


def test_padding_sequences_of_a_captured_step_have_no_keys() -> None:
    cache, meta = cached(9, DIM), make_metadata([([3], 1, 1), ([5], 0, 1)], SIZE)
    meta.seq_lens[1] = 0
    got = sparse.index_topk(torch.randn(2, HEADS, DIM), torch.randn(2, HEADS), cache, meta, 2)
    assert got.tolist() == [[12, 13], [-1, -1]]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("short", [False, True])
def test_index_keys_are_normed_rotated_and_kept(interleaved: bool, short: bool) -> None:
    cache, meta = cached(0, DIM), metadata()
    before, q, k = cache.clone(), torch.randn(10, HEADS, DIM), torch.randn(10, DIM) * 3 + 1
    angles = torch.randn(20, 2)
    table = torch.cat((angles.cos(), angles.sin()), 1)
    norm = IndexNorm(torch.randn(DIM), torch.randn(DIM), 1e-6, table, interleaved)
    positions = torch.tensor([p for _, _, p in rows()] + [0, 0])
    want_q = q.clone()
    normed = F.layer_norm(k, (DIM,), norm.weight, norm.bias, norm.eps)
    pairs = [(0, 1), (2, 3)] if interleaved else [(0, 2), (1, 3)]
    for row, position in enumerate(positions.tolist()):
        for i, (a, b) in enumerate(pairs):
            turn = torch.polar(torch.tensor(1.0), angles[position, i])
            for x in (normed[row], *want_q[row]):
                x[a], x[b] = torch.view_as_real(torch.complex(x[a], x[b]) * turn)
    sparse.index_cache(None if short else q, k.clone(), norm, positions, cache, meta.slot_mapping)
    if not short:
        torch.testing.assert_close(q, want_q)
    for row, blocks, position in rows():
        at = blocks[position // SIZE], position % SIZE
        torch.testing.assert_close(cache[at], normed[row])
        before[at] = cache[at]
    assert torch.equal(cache.nan_to_num(9.0), before.nan_to_num(9.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_attention_over_the_chosen(dtype: torch.dtype) -> None:
    cache = cached(9, DIM, dtype=dtype)
    q = torch.randn(3, HEADS, DIM)
    first, second = BLOCKS[0], BLOCKS[2]
    chosen = [[slot(first, p) for p in (0, 3, 8)], [slot(second, 2)], []]
    slots = torch.tensor([row + [-1] * (4 - len(row)) for row in chosen], dtype=torch.int32)
    got = sparse.sparse_mla(q[..., :5], q[..., 5:], cache, slots, 0.3)
    for row, places in enumerate(chosen[:2]):
        keys = torch.stack([cache.float().flatten(0, 1)[s] for s in places])
        want = (0.3 * q[row] @ keys.T).softmax(-1) @ keys[:, :5]
        torch.testing.assert_close(got[row], want)
    assert not got[2].any()


@pytest.mark.parametrize("op", sorted(SPARSE_OPS))
def test_the_reference_serves_them(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PREFERENCE", {"cpu": ("reference",)})
    assert registry.candidates(OpQuery(op=op)) == [("reference", None)]

"""Kernels of sparse attention against the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attention_cases import relative_error
from harness import PagedModel, make_metadata, poison
from hub import FAMILIES
from torch import Tensor

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.layers.indexer import Indexer, SparseMLA
from atom.models.loader import load_model
from atom.models.source import resolve_source
from atom.ops import registry
from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_sparse import IndexNorm
from atom.ops.reference import sparse as reference
from atom.ops.registry import OpQuery
from atom.ops.triton import sparse_cache, sparse_mla, sparse_scores, sparse_topk
from atom.ops.triton.sparse_mla import Cut

F32, BF16, FP8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
SIZE = 16


def step(
    chunks: list[tuple[int, int]], padding: int, device: str
) -> tuple[AttentionMetadata, list[Tensor]]:
    """Sequences of (tokens in the cache, new ones), and the slots of each."""
    counts = [-(-(done + new) // SIZE) for done, new in chunks]
    order = torch.randperm(sum(counts) + 2).tolist()
    rows = [([order.pop() for _ in range(n)], *c) for n, c in zip(counts, chunks, strict=True)]
    slots = [
        make_metadata([(blocks, 0, done + new)], SIZE, 0, device).slot_mapping
        for blocks, done, new in rows
    ]
    return make_metadata(rows, SIZE, padding, device), slots


def filled(slots: list[Tensor], dim: int, dtype: torch.dtype, device: str) -> Tensor:
    """A cache that is NaN but at `slots`."""
    blocks = sum(-(-len(s) // SIZE) for s in slots) + 2
    cache = poison(torch.empty(blocks * SIZE, dim, dtype=dtype, device=device))
    values = torch.randn(sum(map(len, slots)), dim).to(device, dtype)
    raw = cache.view(torch.uint8) if dtype == FP8 else cache
    raw[torch.cat(slots)] = values.view(torch.uint8) if dtype == FP8 else values
    return cache.view(blocks, SIZE, dim)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(("dim", "rotated"), [(32, 16), (48, 48)])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("short", [False, True])
def test_index_cache(
    device: str, dtype: torch.dtype, dim: int, rotated: int, interleaved: bool, short: bool
) -> None:
    meta, slots = step([(5, 3), (0, 2)], 1, device)
    fused = torch.randn(6, 20 * dim + dim).to(device, dtype)  # strided rows, as of a projection
    table = torch.randn(30, rotated, device=device)
    weight, bias = torch.randn(2, dim).to(device, dtype)
    norm = IndexNorm(weight, bias, 1e-6, table, interleaved)
    positions = torch.tensor([5, 6, 7, 0, 1, 29], device=device)
    caches, queries = [], []
    for run in (reference.index_cache, sparse_cache.index_cache):
        mine = fused.clone()
        q, k = mine[:, : 20 * dim].view(6, 20, dim), mine[:, 20 * dim :]
        cache = filled(slots, dim, dtype, device)
        cache.fill_(7.0)
        run(None if short else q, k, norm, positions, cache, meta.slot_mapping)
        caches.append(cache)
        queries.append(q)
    limit = 1e-6 if dtype == F32 else 4e-3
    assert relative_error(caches[1], caches[0]) < limit
    assert relative_error(queries[1], queries[0]) < limit
    assert torch.equal(caches[1] == 7.0, caches[0] == 7.0)


def check_topk(
    q: Tensor, weights: Tensor, cache: Tensor, meta: AttentionMetadata, k: int, **cut: int
) -> None:
    got = sparse_topk.index_topk(q, weights, cache, meta, k, **cut)
    want = reference.index_topk(q, weights, cache, meta, k)
    assert got.dtype == torch.int32
    assert torch.equal(got, want)


# Sequences, dtype, k, segment, workspace
TOPK_CASES = {
    "prefill, a segment": ([(0, 10), (11, 3)], F32, 8, 64, 1 << 20),
    "mixed, several segments": ([(40, 1), (3, 9)], BF16, 8, 16, 1 << 20),
    "four stages": ([(33, 1)], F32, 4, 8, 1 << 20),
    "a tile at a time": ([(13, 9), (16, 1)], F32, 8, 16, 1),
    "decode": ([(70, 1), (3, 1), (8, 1), (7, 1)], BF16, 8, 32, 1 << 20),
    "decode in parts": ([(50, 1), (3, 1), (40, 1)], F32, 6, 16, 110),
    "shorter than k": ([(3, 4), (0, 2)], F32, 32, 64, 1 << 20),
    "k that is no power of two": ([(20, 2)], BF16, 7, 16, 1 << 20),
}


@pytest.mark.parametrize("name", TOPK_CASES)
def test_index_topk(device: str, name: str) -> None:
    chunks, dtype, k, segment, workspace = TOPK_CASES[name]
    meta, slots = step(chunks, 3, device)
    cache, tokens = filled(slots, 32, F32, device), meta.num_tokens + 3
    # Small whole numbers: both sums are exact, and there are ties.
    q = torch.randint(-2, 3, (tokens, 3, 32)).to(device, dtype)
    weights = torch.randint(-3, 4, (tokens, 3)).to(device, dtype)
    cache = cache.mul(2).round().clamp(-3, 3).to(dtype)
    check_topk(q, weights, cache, meta, k, segment=segment, workspace=workspace)


@pytest.mark.parametrize("chunks", [[(100, 1), (5, 1)], [(75, 3)]], ids=str)
def test_programs_that_score_many_blocks(
    device: str, monkeypatch: pytest.MonkeyPatch, chunks: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(sparse_scores.support, "num_sms", lambda _: 0)
    meta, slots = step(chunks, 0, device)
    cache = filled(slots, 32, F32, device)
    q = torch.randn(meta.num_tokens, 16, 32, device=device)
    weights = torch.randn(meta.num_tokens, 16, device=device)
    check_topk(q, weights, cache, meta, 16, segment=64)


def test_index_topk_of_padding_sequences(device: str) -> None:
    meta, slots = step([(40, 1), (30, 1), (20, 1)], 0, device)
    meta.seq_lens[1] = 0
    cache = filled(slots, 32, F32, device)
    q, weights = torch.randn(3, 16, 32, device=device), torch.randn(3, 16, device=device)
    check_topk(q, weights, cache, meta, 8, segment=32)
    assert (sparse_topk.index_topk(q, weights, cache, meta, 8)[1] == -1).all()


def test_zeros_of_both_signs_are_equal(device: str) -> None:
    meta, slots = step([(20, 1)], 0, device)
    cache = filled(slots, 32, F32, device)
    q = torch.zeros(1, 2, 32, device=device)
    weights = torch.tensor([[-1.0, 1.0]], device=device)
    check_topk(q, weights, cache, meta, 5, segment=32)


@pytest.mark.parametrize(
    ("heads", "sizes", "dtype", "kv", "cut"),
    [
        (4, (64, 16), F32, F32, Cut(16, 16, 1, 4, 1)),
        (20, (32, 16), F32, F32, Cut(16, 16, 4, 4, 1)),
        (20, (64, 16), BF16, BF16, Cut(32, 32, 2, 4, 1)),
        (4, (64, 16), BF16, FP8, Cut(16, 16, 2, 4, 1)),
        (4, (64, 16), F32, F32, None),
    ],
    ids=str,
)
def test_sparse_mla(
    device: str, heads: int, sizes: tuple[int, int], dtype: torch.dtype, kv: torch.dtype,
    cut: Cut | None,
) -> None:  # fmt: skip
    rank, rope = sizes
    _, slots = step([(70, 1), (30, 1)], 0, device)
    cache = filled(slots, rank + rope, kv, device)
    chosen = torch.full((5, 40), -1, dtype=torch.int32, device=device)
    for row, (count, source) in enumerate([(40, 0), (31, 1), (1, 0), (0, 0), (17, 1)]):
        picked = torch.randperm(len(slots[source]))[:count].sort().values.to(device)
        chosen[row, :count] = slots[source][picked].int()
    # Queries as they come: a product by head, and a part of a projection.
    q_latent = torch.randn(heads, 5, rank).to(device, dtype).transpose(0, 1)
    q_rope = torch.randn(5, heads, 2 * rope).to(device, dtype)[..., rope:]
    want = reference.sparse_mla(q_latent, q_rope, cache, chosen, 0.2)
    got = sparse_mla.sparse_mla(q_latent, q_rope, cache, chosen, 0.2, cut=cut)
    assert got.shape == want.shape
    assert relative_error(got, want) < (1e-5 if dtype == F32 else 8e-3)
    assert not got[3].any()


def test_the_sizes_of_published_models(device: str, on_gpu: bool) -> None:
    """64 index heads of 128, 2048 keys of up to 40000."""
    if not on_gpu:
        pytest.skip("too much for the interpreter")
    meta, slots = step([(39999, 1), (1500, 1), (20000, 1), (17000, 70), (0, 2100)], 0, device)
    cache = filled(slots, 128, F32, device).mul(2).round().clamp(-3, 3).to(BF16)
    q = torch.randint(-2, 3, (meta.num_tokens, 64, 128)).to(device, BF16)
    weights = torch.randint(-3, 4, (meta.num_tokens, 64)).to(device, BF16)
    check_topk(q, weights, cache, meta, 2048)
    check_topk(q, weights, cache, meta, 2048, workspace=1 << 22)
    chosen = sparse_topk.index_topk(q, weights, cache, meta, 2048)
    latents = filled(slots, 576, BF16, device)
    for heads in (16, 128):
        q_latent = torch.randn(heads, meta.num_tokens, 512).to(device, BF16).transpose(0, 1)
        q_rope = torch.randn(meta.num_tokens, heads, 64).to(device, BF16)
        for rows in (slice(0, 3), slice(None)):
            args = (q_latent[rows], q_rope[rows], latents, chosen[rows], 0.05)
            error = relative_error(sparse_mla.sparse_mla(*args), reference.sparse_mla(*args))
            assert error < 8e-3


@pytest.mark.parametrize(
    ("op", "shape", "reason"),
    [
        ("index_topk", {"Hi": 64, "D": 128, "k": 2048}, None),
        ("index_topk", {"Hi": 256, "D": 128, "k": 2048}, "at most 128 index heads of at most 128"),
        ("index_topk", {"Hi": 64, "D": 128, "k": 5000}, "at most 4096 keys"),
        ("sparse_mla", {"H": 16, "R": 512, "P": 64}, None),
        ("sparse_mla", {"H": 16, "R": 384, "P": 64}, "latents of 384 + 64: powers of two"),
    ],
    ids=str,
)
def test_what_is_declined(op: str, shape: dict[str, int], reason: str | None) -> None:
    query = OpQuery(op=op, dtype="bfloat16", shape=tuple(shape.items()))
    answer = registry._state.table[op, "triton"].why_not(query)
    assert answer is None if reason is None else reason in str(answer)


def test_the_cut_gives_every_multiprocessor_work() -> None:
    assert sparse_mla.choose_cut(1, 16, 2048, 2, 132).parts == 8
    assert sparse_mla.choose_cut(4096, 128, 2048, 2, 132) == Cut(64, 32, 1, 8, 2)
    assert sparse_topk.stages(131072, 2048, 16384) == [(131072, 8), (16384, 1)]
    assert [s.segments for s in sparse_topk.stages(163840, 2048, 16384)] == [10, 2, 1]


def test_a_model_with_them(device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the block's own projections to its output: strides, padding, short and long contexts."""
    monkeypatch.setattr(sparse_topk, "choose_segment", lambda _: 32)
    raw = {**FAMILIES["glm_moe_dsa"]["config"], "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model_config = ModelConfig(model=str(tmp_path), dtype="float32", load_dummy=True)
    config = Config(model=model_config, engine=EngineConfig(kv_cache_block_size=SIZE))
    source = resolve_source(config.model)
    model = load_model(source, config, torch.device(device), F32)
    ids = torch.randint(0, 256, (20,)).tolist()

    def logits() -> Tensor:
        paged = PagedModel(model, SIZE, device=device)
        parts = [paged.step({"a": ids[:7], "b": ids[:12]}, num_padding=2)["b"]]
        parts.append(paged.step({"a": ids[7:9], "b": ids[12:19]}, num_padding=1)["b"])
        parts.append(paged.step({"a": ids[9:10], "b": ids[19:20]})["b"])
        return torch.cat(parts)

    kernels = {"_write": sparse_cache.index_cache, "_best": sparse_topk.index_topk}
    plain = {"_write": reference.index_cache, "_best": reference.index_topk}
    results = []
    for ops, attend in ((plain, reference.sparse_mla), (kernels, sparse_mla.sparse_mla)):
        for layer in model.modules():
            if isinstance(layer, Indexer):
                layer._write, layer._best = ops["_write"], ops["_best"]
            if isinstance(layer, SparseMLA):
                layer._attend_chosen = attend
        results.append(logits())
    assert float(results[0].std()) > 0.01
    assert relative_error(results[1], results[0]) < 1e-5

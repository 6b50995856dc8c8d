"""Kernels of latent attention against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import FP8, relative_error
from harness import PagedModel, make_metadata, poison
from hub import hub_checkpoint, hub_reference
from torch import Tensor

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.layers.mla import MLA
from atom.models.loader import load_model
from atom.models.source import resolve_source
from atom.ops.contracts import AttentionMetadata
from atom.ops.reference import mla as reference
from atom.ops.triton import mla_attention
from atom.ops.triton.mla_attention import Cut, attend_latents
from atom.ops.triton.mla_cache import mla_cache
from atom.ops.triton.mla_prefill import mla_prefill

F32, BF16 = torch.float32, torch.bfloat16
LIMITS = {F32: 2e-5, BF16: 8e-3}

# sequences (context, new), sizes (H, R, P), block size, dtype, cache's dtype
CASES: dict[str, tuple[Any, ...]] = {
    "chunks": ([(0, 37), (21, 1), (50, 9)], (4, 64, 16), 4, F32, F32),
    "padded sizes": ([(3, 5), (0, 20)], (3, 48, 16), 16, BF16, BF16),
    "decodes": ([(36, 1), (0, 1), (90, 1)], (4, 64, 16), 16, BF16, BF16),
    "more heads than rows": ([(17, 2), (40, 1)], (70, 32, 16), 16, F32, F32),
    "float8": ([(36, 1), (20, 12)], (4, 64, 16), 16, BF16, FP8),
}


def make_case(
    case: tuple[Any, ...], device: str
) -> tuple[Tensor, Tensor, Tensor, AttentionMetadata]:
    """q_latent, q_rope (strided), a cache that is NaN where no key is, and the metadata."""
    lengths, (heads, rank, rope), size, dtype, kv_dtype = case
    counts = [-(-sum(pair) // size) for pair in lengths]
    order = torch.randperm(sum(counts) + 2).tolist()
    cache = poison(torch.empty(sum(counts) + 2, size, rank + rope, dtype=kv_dtype, device=device))
    chunks = []
    for (done, new), count in zip(lengths, counts, strict=True):
        blocks = [order.pop() for _ in range(count)]
        chunks.append((blocks, done, new))
        slots = make_metadata([(blocks, 0, done + new)], size, 0, device).slot_mapping
        rows = torch.randn(done + new, rank + rope, device=device).to(kv_dtype)
        bits = torch.uint8 if kv_dtype == FP8 else kv_dtype
        cache.view(bits)[slots // size, slots % size] = rows.view(bits)
    meta = make_metadata(chunks, size, 0, device)
    q = torch.randn(meta.num_tokens, heads, rank + rope + 4, device=device).to(dtype)
    return q[..., :rank], q[..., rank : rank + rope], cache, meta


@pytest.mark.parametrize("parts", [0, 4])
@pytest.mark.parametrize("name", CASES)
def test_attention_equals_the_reference(name: str, parts: int, device: str) -> None:
    q_latent, q_rope, cache, meta = make_case(CASES[name], device)
    want = reference.mla_attention(q_latent, q_rope, cache, meta, 0.11)
    heads = min(q_latent.shape[1], 8)
    heads = 1 << (heads - 1).bit_length()
    block_q = 1 if meta.is_decode else 16 // heads
    cut = Cut(block_q, 16 // block_q, 16, 4, 2, parts, 16) if parts else None
    got = attend_latents(q_latent, q_rope, cache, meta, 0.11, cut=cut)
    assert relative_error(got, want) < LIMITS[q_latent.dtype]


def test_padding_gives_zeros(device: str) -> None:
    """Sequences of a captured step without keys, and rows behind the tokens."""
    q_latent, q_rope, cache, meta = make_case(CASES["decodes"], device)
    meta.seq_lens[1] = 0
    more = torch.cat((q_latent, q_latent)), torch.cat((q_rope, q_rope))
    for cut in (None, Cut(1, 16, 16, 4, 2, 4, 16)):
        got = attend_latents(*more, cache, meta, 0.11, cut=cut)
        assert not got[1].any()
        assert not got[3:].any()
        assert got[0].isfinite().all()


def test_keys_before_the_step(device: str) -> None:
    """`context`: what the step's own keys add, and the weight of both, give the whole."""
    q_latent, q_rope, cache, meta = make_case(CASES["chunks"], device)
    lse = torch.empty(q_latent.shape[:2], device=device)
    got = attend_latents(q_latent, q_rope, cache, meta, 0.11, context=True, lse=lse)
    starts = meta.cu_seqlens_q.tolist()
    for s, (done, _) in enumerate(CASES["chunks"][0]):
        rows = slice(starts[s], starts[s + 1])
        if not done:
            assert not got[rows].any()
            assert bool((lse[rows] == float("-inf")).all())
            continue
        keys = reference.gather_latents(cache, meta.block_table[s], done)
        scores = torch.cat((q_latent[rows], q_rope[rows]), -1) @ keys.T * 0.11
        want = scores.softmax(-1) @ keys[:, :64]
        assert relative_error(got[rows], want) < 2e-5
        log = scores.exp().sum(-1).log2()
        torch.testing.assert_close(lse[rows], log, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "kv"), [(F32, F32), (BF16, BF16), (BF16, FP8)], ids=str)
def test_writes(dtype: torch.dtype, kv: torch.dtype, device: str) -> None:
    tokens, heads, rank, rope = 7, 18, 48, 16
    projected = torch.randn(tokens, heads, 40, device=device).to(dtype)
    latents = torch.randn(tokens, 80, device=device).to(dtype)
    angles = torch.rand(64, rope // 2, device=device) * 6.3
    cos_sin = torch.cat((angles.cos(), angles.sin()), 1)
    positions = torch.randint(0, 64, (tokens,), device=device)
    slots = torch.tensor([5, -1, 17, 0, 31, -1, 8], device=device)
    weight = (1 + torch.rand(rank, device=device)).to(dtype)
    results = []
    for write in (reference.mla_cache, mla_cache):
        q, rows = projected.clone(), latents.clone()
        cache = poison(torch.empty(4, 8, rank + rope, dtype=kv, device=device))
        args = (positions, weight, 1e-6, cos_sin, cache, slots)
        write(q[..., 24:], rows[:, 16:], *args)
        results.append((q, rows, cache.float().nan_to_num(7.0)))
    for want, got in zip(*results, strict=True):
        assert relative_error(got, want) < LIMITS[dtype]
    assert torch.equal(results[0][2] == 7.0, results[1][2] == 7.0)


def test_cuts(device: str) -> None:
    meta = make_case(CASES["decodes"], device)[3]
    long = replace(meta, max_seq_len=1 << 17)
    alone = mla_attention.choose_cut(BF16, False, 16, 512, replace(long, num_seqs=1), 132)
    assert alone.parts == mla_attention.MAX_PARTS
    many = mla_attention.choose_cut(BF16, False, 16, 512, replace(long, num_seqs=256), 132)
    assert many.parts == 1
    assert mla_attention.choose_cut(BF16, False, 128, 512, long, 132).heads == 64


@pytest.mark.parametrize("name", ["chunks", "padded sizes", "nothing before", "float8"])
def test_prefill_equals_the_reference(name: str, device: str) -> None:
    lengths, (heads, rank, rope), size, dtype, kv_dtype = {
        **CASES, "nothing before": ([(0, 40), (0, 40)], (2, 32, 16), 16, F32, F32)
    }[name]  # fmt: skip
    _, _, cache, meta = make_case((lengths, (heads, rank, rope), size, dtype, kv_dtype), device)
    kv = torch.empty(meta.num_tokens, rank + rope, dtype=dtype, device=device)
    starts = meta.cu_seqlens_q.tolist()
    for s, (done, new) in enumerate(lengths):
        latents = reference.gather_latents(cache, meta.block_table[s], done + new)
        kv[starts[s] : starts[s + 1]] = latents[done:].to(dtype)
    q = torch.randn(meta.num_tokens + 1, heads, 24 + rope, device=device).to(dtype)
    w_uk = torch.randn(heads, 24, rank, device=device).to(dtype) / 5
    w_uv = torch.randn(heads, rank, 20, device=device).to(dtype)
    out = poison(torch.empty(len(q), heads, 20, dtype=dtype, device=device))
    padded = torch.cat((kv, kv[:1]))
    mla_prefill(q, padded, cache, w_uk, w_uv, meta, 0.11, out)
    wide = [x.float() for x in (q[:-1], w_uk, w_uv)]
    q_latent = torch.einsum("thn,hnr->thr", wide[0][..., :24], wide[1])
    mixed = reference.mla_attention(q_latent, wide[0][..., 24:], cache, meta, 0.11)
    want = torch.einsum("thr,hrv->thv", mixed, wide[2])
    assert relative_error(out[:-1], want) < LIMITS[dtype]
    assert not out[-1].any()


def test_a_model_with_them(device: str) -> None:
    """From the block's own projections to its output: strides, chunks, decodes, padding."""
    path = hub_checkpoint("deepseek_v3", num_hidden_layers=1)
    engine = EngineConfig(kv_cache_block_size=8)
    config = Config(model=ModelConfig(model=str(path), dtype="float32"), engine=engine)
    source = resolve_source(config.model)
    model = load_model(source, config, torch.device(device), F32)
    (layer,) = (layer for layer in model.modules() if isinstance(layer, MLA))
    layer._write, layer._prefill, layer._chunk = mla_cache, mla_prefill, 32
    layer._attend = mla_attention.mla_attention
    found = hub_reference(path)
    ids, want = found["input_ids"].tolist(), found["logits"]
    paged = PagedModel(model, 8, device=device)
    parts = [paged.step({"a": ids[:7], "b": ids[:33]}, num_padding=2)["b"]]
    parts.append(paged.step({"a": ids[7:9], "b": ids[33:38]}, num_padding=1)["b"])
    parts.append(paged.step({"a": ids[9:42], "b": ids[38:39]})["b"])
    parts.append(paged.step({"a": ids[42:43], "b": ids[39:40]}, num_padding=1)["b"])
    got = torch.cat(parts)
    limit = 1e-4 if device == "cpu" else 5e-3  # other products may use TF32 there
    assert float((got - want[:40]).abs().max() / want.abs().max()) < limit

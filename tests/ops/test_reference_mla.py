"""Latent attention: over latents is the same as over the keys and values that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import make_metadata, poison
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.cpu import mla as cpu
from atom.ops.reference import mla as reference

H, N, P, R, V, SIZE = 3, 8, 4, 16, 6, 4
SCALE = 0.2


class Case:
    """Sequences (context, new) with all their latents, and the cache that holds those before the
    step; the rest of it is NaN."""

    def __init__(self, lengths: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.lengths = lengths
        self.latents = [torch.randn(sum(pair), R + P) for pair in lengths]
        self.w_uk, self.w_uv = torch.randn(H, N, R), torch.randn(H, R, V)
        order = torch.randperm(64).tolist()
        chunks = []
        for done, new in lengths:
            blocks = [order.pop() for _ in range(-(-(done + new) // SIZE))]
            chunks.append((blocks, done, new))
        self.meta: AttentionMetadata = make_metadata(chunks, SIZE)
        self.cache = poison(torch.empty(64, SIZE, R + P, dtype=dtype))
        for (blocks, done, new), latents in zip(chunks, self.latents, strict=True):
            slots = make_metadata([(blocks, 0, done + new)], SIZE).slot_mapping
            self.cache[slots // SIZE, slots % SIZE] = latents.to(dtype)
        self.q = torch.randn(self.meta.num_tokens, H, N + P)

    def expected(self) -> Tensor:
        """One query after the other over keys and values: [T, H, V]."""
        rows, at = [], 0
        for (done, new), latents in zip(self.lengths, self.latents, strict=True):
            c, r = latents[:, :R], latents[:, R:]
            for i in range(new):
                seen = done + i + 1
                for h in range(H):
                    k = torch.cat((c[:seen] @ self.w_uk[h].T, r[:seen]), -1)
                    weights = (k @ self.q[at + i, h] * SCALE).softmax(0)
                    rows.append(weights @ (c[:seen] @ self.w_uv[h]))
            at += new
        return torch.stack(rows).view(-1, H, V)


LENGTHS: dict[str, list[tuple[int, int]]] = {
    "one chunk": [(0, 9)],
    "chunks and decodes": [(5, 1), (0, 4), (21, 7), (11, 1)],
}


@pytest.mark.parametrize("name", LENGTHS)
def test_over_latents(name: str) -> None:
    case = Case(LENGTHS[name])
    q_latent = torch.einsum("thn,hnr->thr", case.q[..., :N], case.w_uk)
    mixed = reference.mla_attention(q_latent, case.q[..., N:], case.cache, case.meta, SCALE)
    got = torch.einsum("thr,hrv->thv", mixed, case.w_uv)
    torch.testing.assert_close(got, case.expected(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("makes", [True, False, None], ids=["keys", "latents", "chosen"])
@pytest.mark.parametrize("name", LENGTHS)
def test_prefill_on_cpu(name: str, makes: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(LENGTHS[name])
    if makes is not None:
        monkeypatch.setattr(cpu, "makes_keys", lambda *_: makes)
    out = torch.full((len(case.q) + 2, H, V), float("nan"))
    padded = torch.cat((case.q, case.q[:2]))
    args: tuple[Any, ...] = (case.cache, case.w_uk, case.w_uv, case.meta, SCALE, out)
    assert cpu.mla_prefill(padded, torch.empty(0), *args) is out
    torch.testing.assert_close(out[:-2], case.expected(), rtol=1e-5, atol=1e-5)
    assert not out[-2:].any()


def test_which_form_takes_fewer_operations() -> None:
    """Of DeepSeek's sizes: with nothing before, always keys; else from some 170 queries on."""
    sizes = {"rank": 512, "nope": 128, "rope": 64, "value": 128}
    assert cpu.makes_keys(0, 1, **sizes)
    assert not cpu.makes_keys(5000, 160, **sizes)
    assert cpu.makes_keys(5000, 180, **sizes)


def test_a_float8_cache_holds_what_fits() -> None:
    """Values beyond the type's range are clamped, and `kv` becomes what is in the cache."""
    kv = torch.randn(3, R + P) * 300
    kv[0, R] = 9000.0
    cache = poison(torch.empty(2, SIZE, R + P, dtype=torch.float8_e4m3fn))
    slots, positions = torch.tensor([6, -1, 1]), torch.zeros(3, dtype=torch.int64)
    cos_sin = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    weight = torch.full((R,), 100.0)
    q_rope = torch.randn(3, H, P)
    reference.mla_cache(q_rope, kv, positions, weight, 1e-6, cos_sin, cache, slots)
    assert float(kv[0, R]) == 448.0
    assert torch.equal(cache.view(-1, R + P)[slots[[0, 2]]].float(), kv[[0, 2]])
    assert bool(cache.view(-1, R + P)[0].float().isnan().all())

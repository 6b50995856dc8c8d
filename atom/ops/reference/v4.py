"""DeepSeek V4's attention in plain torch: one sequence after the other, float32 inside."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_v4 import Compressor
from atom.ops.reference.attention import FP8, FP8_MAX
from atom.ops.registry import register


def rotate_tail(x: Tensor, positions: Tensor, cos_sin: Tensor, back: bool = False) -> Tensor:
    """x [T, ..., D] float32: its last R channels turned by `positions` [T], in pairs."""
    cos, sin = cos_sin[positions].chunk(2, dim=-1)
    shape = (len(x), *(1,) * (x.dim() - 2), -1)
    cos, sin = cos.view(shape), sin.view(shape)
    if back:
        sin = -sin
    size = cos_sin.shape[1]
    even, odd = x[..., -size:].reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
    return torch.cat((x[..., :-size], turned), -1)


def _unit(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _bits(cache: Tensor) -> Tensor:
    """Float8 has no indexing kernels, its bytes have."""
    return cache.view(torch.uint8) if cache.dtype == FP8 else cache


def _store(cache: Tensor, block: Tensor, row: Tensor, values: Tensor) -> None:
    if cache.dtype == FP8:
        values = values.float().clamp(-FP8_MAX, FP8_MAX)
    _bits(cache)[block, row] = _bits(values.to(cache.dtype))


def _load(cache: Tensor, table: Tensor, positions: Tensor, rows: int, ring: int = 0) -> Tensor:
    """What `cache` holds at `positions` of a sequence, `rows` of them a block: [n, ...] float32.
    With `ring`, a block keeps only so many."""
    offset = positions % rows
    block = table[positions // rows].long()
    return _bits(cache)[block, offset % ring if ring else offset].view(cache.dtype).float()


def _sequences(meta: AttentionMetadata) -> Iterator[tuple[int, int, int, int]]:
    """(s, first row, row after the last, length) of those that compute anything. The padding of a
    captured decode step has rows but no length."""
    starts, lengths = meta.cu_seqlens_q.tolist(), meta.seq_lens.tolist()
    for s in range(meta.num_seqs):
        if starts[s] < starts[s + 1] and lengths[s] > 0:
            yield s, starts[s], starts[s + 1], lengths[s]


@register("v4_write", "reference")
def v4_write(
    q: Tensor,
    kv: Tensor,
    kv_norm: Tensor,
    eps: float,
    positions: Tensor,
    cos_sin: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    keys = rotate_tail(_unit(kv.float(), eps) * kv_norm.float(), positions, cos_sin)
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    _store(cache, slots // cache.shape[1], slots % cache.shape[1], keys[kept].to(kv.dtype))
    return rotate_tail(_unit(q.float(), eps), positions, cos_sin).to(q.dtype)


def pool(x: Tensor, compressor: Compressor, first: bool) -> Tensor:
    """x [n r, 2 W] float32, the tokens of n entries -> those entries [n, D] (with overlap, one less
    unless it is the `first` of all that x begins with), neither normed nor rotated."""
    values, gates = x.view(-1, compressor.ratio, x.shape[1]).chunk(2, dim=-1)
    gates = gates + compressor.bias
    if compressor.overlap:
        (old, new), (old_gates, new_gates) = values.chunk(2, -1), gates.chunk(2, -1)
        if first:
            old = torch.cat((torch.zeros_like(old[:1]), old))
            old_gates = torch.cat((torch.full_like(old_gates[:1], float("-inf")), old_gates))
        else:
            new, new_gates = new[1:], new_gates[1:]
        values = torch.cat((old[:-1], new), 1)
        gates = torch.cat((old_gates[:-1], new_gates), 1)
    out: Tensor = (values * gates.softmax(1)).sum(1)
    return out


@register("v4_compress", "reference")
def v4_compress(
    x: Tensor, compressor: Compressor, ring: Tensor, entries: Tensor, meta: AttentionMetadata
) -> None:
    assert meta.window is not None, "a model with window caches"
    ratio, rows = compressor.ratio, entries.shape[1]
    size = rows * ratio
    for s, low, high, end in _sequences(meta):
        begin, table = end - (high - low), meta.window.block_table[s]
        first, last = begin // ratio, end // ratio
        if first < last:
            lead = max(first - int(compressor.overlap), 0) * ratio
            before = torch.arange(lead, begin, device=x.device)
            old = _load(ring, table, before, size, ring.shape[1])
            tokens = torch.cat((old, x[low : low + last * ratio - begin].float()))
            made = _unit(pool(tokens, compressor, first == 0), compressor.eps)
            where = torch.arange(first, last, device=x.device)
            made = rotate_tail(made * compressor.norm.float(), where * ratio, compressor.cos_sin)
            block = meta.block_table[s][where // rows].long()
            _store(entries, block, where % rows, made.to(x.dtype))
        _keep(x[low:high], ring, table, begin, size)


def _keep(x: Tensor, ring: Tensor, table: Tensor, begin: int, size: int) -> None:
    """x [n, 2 W] of the tokens from `begin` on, into the rings of blocks of `size` tokens."""
    kept = ring.shape[1]
    where = torch.arange(begin, begin + len(x), device=x.device)
    overwritten = torch.clamp((where // size + 1) * size, max=begin + len(x)) - kept
    alive = where >= overwritten
    where = where[alive]
    ring[table[where // size].long(), where % size % kept] = x[alive].to(ring.dtype)


@register("v4_choose", "reference")
def v4_choose(
    q: Tensor,
    weights: Tensor,
    keys: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    meta: AttentionMetadata,
    ratio: int,
    k: int,
) -> Tensor:
    chosen = torch.full((len(q), k), -1, dtype=torch.int32, device=q.device)
    for s, low, high, end in _sequences(meta):
        count = end // ratio
        if count == 0:
            continue
        every = torch.arange(count, device=q.device)
        hidden = every >= (positions[low:high, None] + 1) // ratio
        if count <= k:
            chosen[low:high, :count] = torch.where(hidden, -1, every).to(torch.int32)
            continue
        turned = rotate_tail(q[low:high].float(), positions[low:high], cos_sin)
        found = _load(keys, meta.block_table[s], every, keys.shape[1])
        scores = torch.einsum("thd,nd->thn", turned, found).relu_()
        total = torch.einsum("thn,th->tn", scores, weights[low:high].float())
        best = total.masked_fill_(hidden, float("-inf")).topk(k, dim=-1).indices
        chosen[low:high] = torch.where(hidden.gather(1, best), -1, best).to(torch.int32)
    return chosen


@register("v4_attention", "reference")
def v4_attention(
    q: Tensor,
    cache: Tensor,
    entries: Tensor | None,
    chosen: Tensor | None,
    positions: Tensor,
    cos_sin: Tensor,
    meta: AttentionMetadata,
    window: int,
    ratio: int,
    sinks: Tensor,
) -> Tensor:
    assert meta.window is not None, "a model with window caches"
    out = q.new_zeros(q.shape)  # zeros: rows of padding tokens must not hold garbage
    for s, low, high, end in _sequences(meta):
        where = positions[low:high, None]
        keys = torch.arange(max(end - (high - low) - window + 1, 0), end, device=q.device)
        seen = (keys <= where) & (keys > where - window)
        found = _load(cache, meta.window.block_table[s], keys, cache.shape[1])
        if entries is not None and end >= ratio:
            every = torch.arange(end // ratio, device=q.device)
            visible = every < (where + 1) // ratio
            if chosen is not None:
                named = F.one_hot(chosen[low:high].long() + 1, len(every) + 1).sum(1)[:, 1:]
                visible &= named > 0
            seen = torch.cat((seen, visible), 1)
            found = torch.cat((found, _load(entries, meta.block_table[s], every, entries.shape[1])))
        part = _attend(q[low:high].float(), found, seen, sinks)
        out[low:high] = rotate_tail(part, positions[low:high], cos_sin, back=True).to(q.dtype)
    return out


def _attend(q: Tensor, keys: Tensor, seen: Tensor, sinks: Tensor) -> Tensor:
    """q [T, Hq, D], keys [n, D], seen [T, n] -> [T, Hq, D], all float32."""
    scores = torch.einsum("thd,nd->thn", q, keys) * q.shape[-1] ** -0.5
    scores.masked_fill_(~seen.unsqueeze(1), float("-inf"))
    sink = sinks.view(1, -1, 1).expand(len(q), -1, 1)
    weights = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
    return torch.einsum("thn,nd->thd", weights, keys)

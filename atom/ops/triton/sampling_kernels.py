"""Kernels of the sampler. `sampling` says what they do together, and in which order they run.

A row of logits is cut into chunks of CHUNK, whatever the batch; sums are taken per chunk, in a
fixed order, so a row's token does not depend on the rows beside it. Weights are relative to the
row's maximum. A token lighter than e^-32 of the heaviest, or NaN, is never drawn. A row whose
maximum is not finite gets its argmax.
"""

from __future__ import annotations

import triton
import triton.language as tl

from atom.ops.sampling_row import FLOORED, SEARCHED, WORDS
from atom.ops.triton.argmax import order_key
from atom.ops.triton.launch import begin

_WORDS = tl.constexpr(WORDS)
_FLOORED = tl.constexpr(FLOORED)
_SEARCHED = tl.constexpr(SEARCHED)
_LOG2_E = tl.constexpr(1.4426950408889634)
_REACH = tl.constexpr(32.0)  # nats below the maximum where weights end
_LEAST = tl.constexpr(-0x80000000)
_NOWHERE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _value_of(key):
    """The inverse of `order_key`."""
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _real(settings, row, WORD: tl.constexpr):
    return tl.load(settings + row * _WORDS + WORD).to(tl.float32, bitcast=True)


@triton.jit
def _weights(x, top, temperature):
    """exp((x - top) / temperature); 0 where x is NaN or minus infinity."""
    weight = tl.exp2((x - top) * (_LOG2_E / temperature))
    return tl.where(x > float("-inf"), weight, 0.0)


@triton.jit
def _chunk_of(logits, row, chunk, stride, size, CHUNK: tl.constexpr):
    """(logits, columns) of a chunk; NaN past the end."""
    cols = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row.to(tl.int64) * stride + cols, mask=cols < size, other=float("nan"))
    return x.to(tl.float32), cols


@triton.jit
def _top_of(keys, row, num_chunks, CHUNKS: tl.constexpr):
    """(maximum of the row, where it stands first, the chunks' own maxima [CHUNKS])."""
    chunk = tl.arange(0, CHUNKS)
    packed = tl.load(
        keys + row * num_chunks + chunk, mask=chunk < num_chunks, other=-0x8000000000000000
    )
    best = tl.max(packed, axis=0)
    index = 0x7FFFFFFF - (best & 0x7FFFFFFF)
    return _value_of((best >> 32).to(tl.int32)), index, _value_of((packed >> 32).to(tl.int32))


@triton.jit
def chunk_stats_kernel(
    logits,  # [L, V] float32
    settings,  # [L, WORDS] int32, see `sampling_row`
    keys,  # [L, C] int64: maximum and where, as of `argmax`
    sums,  # [L, C] float32: weights relative to the chunk's own maximum
    least,  # [L, C] float32: minimum
    stride,
    size,
    num_chunks,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    x, cols = _chunk_of(logits, row, chunk, stride, size, CHUNK)
    key = order_key(x)
    best = tl.max(key, axis=0)
    index = tl.min(tl.where((key == best) & (cols < size), cols, _NOWHERE), axis=0)
    packed = (best.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)
    place = row * num_chunks + chunk
    tl.store(keys + place, packed)
    if tl.load(settings + row * _WORDS + 7) > 0:
        weight = _weights(x, _value_of(best), _real(settings, row, 0))
        tl.store(sums + place, tl.sum(weight, axis=0))
        tl.store(least + place, tl.min(tl.where(x == x, x, float("inf")), axis=0))


@triton.jit
def _floor(settings, row, top):
    """The least logit whose weight is at least min_p of the heaviest."""
    temperature, min_p = _real(settings, row, 0), _real(settings, row, 2)
    drop = temperature.to(tl.float64) * tl.log(tl.maximum(min_p, 1e-30).to(tl.float64))
    floor = tl.maximum((top.to(tl.float64) + drop).to(tl.float32), top - _REACH * temperature)
    return tl.where(min_p > 0.0, floor, top - _REACH * temperature)


@triton.jit
def _next_window(
    settings, row, state, pivots, partials, num_rows, num_chunks,
    CHUNKS: tl.constexpr, PIVOTS: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """What round ROUND has found: (lo, hi, target, base).

    The tokens that weigh `lo` or more reach the target, those of `hi` or more, which measure
    `base`, do not. If all of the row does not, hi = lo.
    """
    old = state + (ROUND * num_rows + row) * 4
    lo, hi, base = tl.load(old), tl.load(old + 1), tl.load(old + 3)
    j, chunk = tl.arange(0, PIVOTS), tl.arange(0, CHUNKS)
    line = (ROUND * num_rows + row).to(tl.int64) * num_chunks
    parts = tl.load(
        partials + (line + chunk[:, None]) * PIVOTS + j[None, :],
        mask=(chunk < num_chunks)[:, None],
        other=0.0,
    )
    measures = tl.sum(parts.to(tl.float64), axis=0)
    if ROUND == 0:
        whole = tl.sum(tl.where(j == 0, measures, 0.0), axis=0)
        top_k = tl.load(settings + row * _WORDS + 3)
        share = whole * _real(settings, row, 1).to(tl.float64)
        target = tl.where(top_k > 0, top_k.to(tl.float64), share)
    else:
        target = tl.load(old + 2)
    best = tl.max(tl.where(measures >= target, j, -1), axis=0)
    edges = tl.load(pivots + (ROUND * num_rows + row) * PIVOTS + j).to(tl.float64)
    above = tl.sum(tl.where(j == best + 1, edges, 0.0), axis=0)
    base = tl.where(best + 1 < PIVOTS, tl.sum(tl.where(j == best + 1, measures, 0.0), axis=0), base)
    hi = tl.where(best < 0, lo, tl.where(best + 1 < PIVOTS, above, hi))
    lo = tl.where(best < 0, lo, tl.sum(tl.where(j == best, edges, 0.0), axis=0))
    return lo, hi, target, base


@triton.jit
def _save(state, row, lo, hi, target, base, num_rows, ROUND: tl.constexpr):
    place = state + (ROUND * num_rows + row) * 4
    tl.store(place, lo)
    tl.store(place + 1, hi)
    tl.store(place + 2, target)
    tl.store(place + 3, base)


@triton.jit
def narrow_kernel(
    logits,
    settings,
    keys,
    least,
    state,  # [3, L, 4] float64: lo, hi, target, base before each round
    pivots,  # [2, L, PIVOTS] float32
    partials,  # [2, L, C, PIVOTS] float32: what weighs at least the pivot, per chunk
    stride,
    size,
    num_rows,
    num_chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,  # C rounded up
    PIVOTS: tl.constexpr,
    ROUND: tl.constexpr,
    PDL: tl.constexpr,
):
    """Measure the tokens above PIVOTS logits between lo and hi: their number where there is a
    top_k, else their weight."""
    begin(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    if tl.load(settings + row * _WORDS + 7) != _SEARCHED:
        return
    top, _, _ = _top_of(keys, row, num_chunks, CHUNKS)
    temperature = _real(settings, row, 0)
    by_count = tl.load(settings + row * _WORDS + 3) > 0
    x, _ = _chunk_of(logits, row, chunk, stride, size, CHUNK)
    if ROUND == 0:
        c = tl.arange(0, CHUNKS)
        lows = tl.load(least + row * num_chunks + c, mask=c < num_chunks, other=float("inf"))
        lo = tl.maximum(_floor(settings, row, top), tl.min(lows, axis=0)).to(tl.float64)
        hi = (top + tl.maximum((top - lo.to(tl.float32)) * 1e-3, tl.abs(top) * 1e-6 + 1e-30)).to(
            tl.float64
        )
        target, base = lo * 0.0, lo * 0.0
    else:
        lo, hi, target, base = _next_window(
            settings, row, state, pivots, partials, num_rows, num_chunks, CHUNKS, PIVOTS, ROUND - 1
        )
    weight = tl.where(by_count, 1.0, _weights(x, top, temperature))
    start, width = lo.to(tl.float32), (hi - lo).to(tl.float32)
    j = tl.arange(0, PIVOTS)
    edges = tl.zeros((PIVOTS,), tl.float32)
    measures = tl.zeros((PIVOTS,), tl.float32)
    for i in tl.static_range(PIVOTS):
        edge = start + width * (i / PIVOTS)
        edges = tl.where(j == i, edge, edges)
        measures = tl.where(j == i, tl.sum(tl.where(x >= edge, weight, 0.0), axis=0), measures)
    line = (ROUND * num_rows + row).to(tl.int64)
    tl.store(partials + (line * num_chunks + chunk) * PIVOTS + j, measures)
    if chunk == 0:
        tl.store(pivots + line * PIVOTS + j, edges)
        _save(state, row, lo, hi, target, base, num_rows, ROUND)


@triton.jit
def collect_kernel(
    logits,
    settings,
    state,
    pivots,
    partials,
    found,  # [L, C, CAPACITY] float32: the logits of a chunk that are in the window
    counts,  # [L, C] int32: how many there are, also beyond the capacity
    stride,
    size,
    num_rows,
    num_chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PIVOTS: tl.constexpr,
    CAPACITY: tl.constexpr,
    PDL: tl.constexpr,
):
    """List the logits among which the threshold is; all from `lo` on if top_p follows top_k."""
    begin(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    if tl.load(settings + row * _WORDS + 7) != _SEARCHED:
        return
    x, _ = _chunk_of(logits, row, chunk, stride, size, CHUNK)
    lo, hi, target, base = _next_window(
        settings, row, state, pivots, partials, num_rows, num_chunks, CHUNKS, PIVOTS, 1
    )
    both = (tl.load(settings + row * _WORDS + 3) > 0) & (_real(settings, row, 1) < 1.0)
    hi = tl.where(both, float("inf"), hi)
    base = tl.where(both, 0.0, base)
    inside = (x >= lo.to(tl.float32)) & (x < hi.to(tl.float32))
    ones = inside.to(tl.int32)
    place = tl.cumsum(ones, axis=0) - 1
    line = row.to(tl.int64) * num_chunks + chunk
    tl.store(found + line * CAPACITY + place, x, mask=inside & (place < CAPACITY))
    tl.store(counts + line, tl.sum(ones, axis=0))
    if chunk == 0:
        _save(state, row, lo, hi, target, base, num_rows, 2)


@triton.jit
def _bisect(keys, measures, low, high, base, target):
    """The largest key such that `base` and what is not below it measure the target. `low` does."""
    while high - low > 1:
        middle = low + (high - low) // 2
        above = tl.sum(tl.where(keys >= middle.to(tl.int32), measures, 0.0))
        enough = base + above.to(tl.float64) >= target
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low


@triton.jit
def _row_above(
    line, size, num_chunks, least_key, high, by_count, top, temperature, base, CHUNK: tl.constexpr
):
    """`base` and what the keys in [least_key, high) of a whole row measure."""
    total = base
    for chunk in range(0, num_chunks):
        cols = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(line + cols, mask=cols < size, other=float("nan")).to(tl.float32)
        key = order_key(x).to(tl.int64)
        weight = tl.where(by_count, 1.0, _weights(x, top, temperature))
        inside = (key >= least_key) & (key < high) & (x == x)
        total += tl.sum(tl.where(inside, weight, 0.0), axis=0).to(tl.float64)
    return total


@triton.jit
def _bisect_row(
    line, size, num_chunks, low, high, by_count, top, temperature, base, target,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """As `_bisect`, over a row that is read again and again."""
    end = high
    while high - low > 1:
        middle = low + (high - low) // 2
        enough = target <= _row_above(
            line, size, num_chunks, middle, end, by_count, top, temperature, base, CHUNK
        )
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low


@triton.jit
def threshold_kernel(
    logits,
    settings,
    keys,
    state,
    found,
    counts,
    floors,  # [L] float32: the least logit that passes the filters
    stride,
    size,
    num_rows,
    num_chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    CAPACITY: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per row. The listed logits stand in its registers; a row with a chunk that has
    more of them than a list holds, as where many are equal, is read again and again instead."""
    begin(PDL)
    row = tl.program_id(0)
    kind = tl.load(settings + row * _WORDS + 7)
    if kind < _FLOORED:
        return
    top, _, _ = _top_of(keys, row, num_chunks, CHUNKS)
    floor = _floor(settings, row, top)
    if kind == _SEARCHED:
        temperature, top_p = _real(settings, row, 0), _real(settings, row, 1)
        by_count = tl.load(settings + row * _WORDS + 3) > 0
        both = by_count & (top_p < 1.0)
        place = state + (2 * num_rows + row) * 4
        lo, hi = tl.load(place).to(tl.float32), tl.load(place + 1).to(tl.float32)
        target, base = tl.load(place + 2), tl.load(place + 3)
        end = order_key(top).to(tl.int64) + 1
        low, high = order_key(lo).to(tl.int64), tl.minimum(order_key(hi).to(tl.int64), end)
        c, i = tl.arange(0, CHUNKS), tl.arange(0, CAPACITY)
        lines = row.to(tl.int64) * num_chunks + c
        count = tl.load(counts + lines, mask=c < num_chunks, other=0)
        if tl.max(count, axis=0) <= CAPACITY:
            listed = i[None, :] < count[:, None]
            x = tl.load(found + lines[:, None] * CAPACITY + i[None, :], mask=listed, other=0.0)
            key = tl.where(listed, order_key(x), _LEAST)
            weight = tl.where(listed, _weights(x, top, temperature), 0.0)
            measure = tl.where(by_count & listed, 1.0, weight)
            low = _bisect(key, measure, low, high, base, target)
            if both:
                whole = tl.sum(tl.where(key >= low.to(tl.int32), weight, 0.0)).to(tl.float64)
                low = _bisect(key, weight, low, end, base, whole * top_p.to(tl.float64))
        else:
            line = logits + row.to(tl.int64) * stride
            low = _bisect_row(
                line, size, num_chunks, low, high, by_count, top, temperature, base, target, CHUNK
            )
            if both:
                whole = _row_above(
                    line, size, num_chunks, low, end, False, top, temperature, base, CHUNK
                )
                target = whole * top_p.to(tl.float64)
                low = _bisect_row(
                    line, size, num_chunks, low, end, False, top, temperature, base, target, CHUNK
                )
        floor = _value_of(low.to(tl.int32))
    tl.store(floors + row, floor)


@triton.jit
def mass_kernel(
    logits,
    settings,
    keys,
    floors,
    sums,  # [L, C] float32: of filtered rows, the weights that pass, relative to the row's maximum
    stride,
    size,
    num_chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    if tl.load(settings + row * _WORDS + 7) < _FLOORED:
        return
    top, _, _ = _top_of(keys, row, num_chunks, CHUNKS)
    x, _ = _chunk_of(logits, row, chunk, stride, size, CHUNK)
    weight = _weights(x, top, _real(settings, row, 0))
    kept = tl.where(x >= tl.load(floors + row), weight, 0.0)
    tl.store(sums + row * num_chunks + chunk, tl.sum(kept, axis=0))


@triton.jit
def _mix(x):
    """The finaliser of SplitMix64, on uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def uniform_of(settings, row):
    """float64 in (0, 1) of the row's key and position: bit for bit that of `randomness`."""
    line = settings + row * _WORDS
    low = tl.load(line + 4).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(line + 5).to(tl.uint32, bitcast=True).to(tl.uint64)
    step = tl.load(line + 6).to(tl.uint64) + 1
    bits = _mix((low | (high << 32)) + step * 0x9E3779B97F4A7C15) >> 24
    return (bits.to(tl.int64).to(tl.float64) + 0.5) * 9.094947017729282379150390625e-13


@triton.jit
def _pick(weights, share, SIZE: tl.constexpr):
    """(the first place at which the running sum exceeds `share` of the total, the share of that
    place's own weight that is left). float64 weights; one of weight zero is never picked."""
    place = tl.arange(0, SIZE)
    ends = tl.cumsum(weights, axis=0)
    target = share * tl.max(ends, axis=0)
    past = tl.min(tl.where((ends > target) & (weights > 0.0), place, SIZE), axis=0)
    last = tl.max(tl.where(weights > 0.0, place, 0), axis=0)
    chosen = tl.minimum(past, last)
    own = tl.sum(tl.where(place == chosen, weights, 0.0), axis=0)
    end = tl.sum(tl.where(place == chosen, ends, 0.0), axis=0)
    return chosen, tl.maximum((target - end + own) / own, 0.0)


@triton.jit
def draw_kernel(
    logits,
    settings,
    keys,
    sums,
    floors,
    out,  # [L] int64
    stride,
    size,
    num_chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    FILTERS: tl.constexpr,  # whether `floors` says anything
    PDL: tl.constexpr,
):
    """One program per row: a chunk by the chunks' sums, then a token in it."""
    begin(PDL)
    row = tl.program_id(0)
    kind = tl.load(settings + row * _WORDS + 7)
    top, token, tops = _top_of(keys, row, num_chunks, CHUNKS)
    if (kind > 0) & (tl.abs(top) < float("inf")):
        temperature = _real(settings, row, 0)
        chunk = tl.arange(0, CHUNKS)
        inside = chunk < num_chunks
        mass = tl.load(sums + row * num_chunks + chunk, mask=inside, other=0.0).to(tl.float64)
        floor = float("-inf")
        filtered = kind >= _FLOORED
        if FILTERS:
            floor = tl.where(filtered, tl.load(floors + row, mask=filtered, other=0.0), floor)
        scale = _weights(tl.where(inside, tops, float("-inf")), top, temperature)
        mass *= tl.where(filtered, 1.0, scale).to(tl.float64)
        which, share = _pick(mass, uniform_of(settings, row), CHUNKS)
        x, _ = _chunk_of(logits, row, which, stride, size, CHUNK)
        weight = tl.where(x >= floor, _weights(x, top, temperature), 0.0)
        place, _ = _pick(weight.to(tl.float64), share, CHUNK)
        token = (which * CHUNK + place).to(tl.int64)
    tl.store(out + row, token)

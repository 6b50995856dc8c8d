"""Kernels of the sampler: sums over a row, and draws. Thresholds are found in `sampling_filters`.
`sampling` says what they do together, and in which order they run.

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
def value_of(key):
    """The inverse of `order_key`."""
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def real(settings, row, WORD: tl.constexpr):
    return tl.load(settings + row * _WORDS + WORD).to(tl.float32, bitcast=True)


@triton.jit
def weights_of(x, top, temperature):
    """exp((x - top) / temperature); 0 where x is NaN or minus infinity."""
    weight = tl.exp2((x - top) * (_LOG2_E / temperature))
    return tl.where(x > float("-inf"), weight, 0.0)


@triton.jit
def chunk_of(logits, row, chunk, stride, size, CHUNK: tl.constexpr):
    """(logits, columns) of a chunk; NaN past the end."""
    cols = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row.to(tl.int64) * stride + cols, mask=cols < size, other=float("nan"))
    return x.to(tl.float32), cols


@triton.jit
def top_of(keys, row, num_chunks, CHUNKS: tl.constexpr):
    """(maximum of the row, where it stands first, the chunks' own maxima [CHUNKS])."""
    chunk = tl.arange(0, CHUNKS)
    packed = tl.load(
        keys + row * num_chunks + chunk, mask=chunk < num_chunks, other=-0x8000000000000000
    )
    best = tl.max(packed, axis=0)
    index = 0x7FFFFFFF - (best & 0x7FFFFFFF)
    return value_of((best >> 32).to(tl.int32)), index, value_of((packed >> 32).to(tl.int32))


@triton.jit
def chunk_stats_kernel(
    logits,  # [L, V] float32
    settings,  # [L, WORDS] int32, see `sampling_row`
    keys,  # [L, C] int64: maximum and where, as of `argmax`
    sums,  # [L, C] float32: weights relative to the chunk's own maximum
    least,  # [L, C] float32: minimum
    peaks,  # [L, C * GROUPS] float32: maxima of the groups that a chunk is cut into
    stride,
    size,
    num_chunks,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    SEARCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """`least` and `peaks` are of the rows that have top_k or top_p, if SEARCH."""
    begin(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    kind = tl.load(settings + row * _WORDS + 7)
    x, cols = chunk_of(logits, row, chunk, stride, size, CHUNK)
    key = order_key(x)
    best = tl.max(key, axis=0)
    index = tl.min(tl.where((key == best) & (cols < size), cols, _NOWHERE), axis=0)
    packed = (best.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)
    place = row * num_chunks + chunk
    tl.store(keys + place, packed)
    if kind > 0:
        weight = weights_of(x, value_of(best), real(settings, row, 0))
        tl.store(sums + place, tl.sum(weight, axis=0))
    if SEARCH:  # noqa: SIM102 - settled when compiled
        if kind == _SEARCHED:
            tl.store(least + place, tl.min(tl.where(x == x, x, float("inf")), axis=0))
            numbers = tl.where(x == x, x, float("-inf"))
            grouped = tl.reshape(numbers, (GROUPS, CHUNK // GROUPS))
            group = tl.arange(0, GROUPS)
            tl.store(peaks + place.to(tl.int64) * GROUPS + group, tl.max(grouped, axis=1))


@triton.jit
def floor_of(settings, row, top):
    """The least logit whose weight is at least min_p of the heaviest."""
    temperature, min_p = real(settings, row, 0), real(settings, row, 2)
    drop = temperature.to(tl.float64) * tl.log(tl.maximum(min_p, 1e-30).to(tl.float64))
    floor = tl.maximum((top.to(tl.float64) + drop).to(tl.float32), top - _REACH * temperature)
    return tl.where(min_p > 0.0, floor, top - _REACH * temperature)


@triton.jit
def mass_kernel(
    logits,
    settings,
    keys,
    numbers,
    floors,
    sums,  # [L, C] float32: of filtered rows, the weights that pass, relative to the row's maximum
    stride,
    size,
    num_chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    SEARCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Of rows with min_p alone, and of those whose sums `threshold_kernel` has left."""
    begin(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    kind = tl.load(settings + row * _WORDS + 7)
    left = kind == _FLOORED
    if SEARCH:
        searched = kind == _SEARCHED
        left = left | (searched & (tl.load(numbers + row, mask=searched, other=1) == 0))
    if left:
        top, _, _ = top_of(keys, row, num_chunks, CHUNKS)
        floor = floor_of(settings, row, top)
        if SEARCH:  # noqa: SIM102 - settled when compiled
            if kind == _SEARCHED:
                floor = tl.load(floors + row)
        x, _ = chunk_of(logits, row, chunk, stride, size, CHUNK)
        weight = weights_of(x, top, real(settings, row, 0))
        kept = tl.where(x >= floor, weight, 0.0)
        tl.store(sums + row * num_chunks + chunk, tl.sum(kept, axis=0))
        if (chunk == 0) & (kind == _FLOORED):
            tl.store(floors + row, floor)


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
    LINE: tl.constexpr,
    FILTERS: tl.constexpr,  # whether `floors` says anything
    PDL: tl.constexpr,
):
    """One program per row: a chunk by the chunks' sums, a line of it by theirs, then a token."""
    begin(PDL)
    row = tl.program_id(0)
    kind = tl.load(settings + row * _WORDS + 7)
    top, token, tops = top_of(keys, row, num_chunks, CHUNKS)
    if (kind > 0) & (tl.abs(top) < float("inf")):
        temperature = real(settings, row, 0)
        chunk = tl.arange(0, CHUNKS)
        inside = chunk < num_chunks
        mass = tl.load(sums + row * num_chunks + chunk, mask=inside, other=0.0).to(tl.float64)
        floor = float("-inf")
        filtered = kind >= _FLOORED
        if FILTERS:
            floor = tl.where(filtered, tl.load(floors + row, mask=filtered, other=0.0), floor)
        scale = weights_of(tl.where(inside, tops, float("-inf")), top, temperature)
        mass *= tl.where(filtered, 1.0, scale).to(tl.float64)
        which, share = _pick(mass, uniform_of(settings, row), CHUNKS)
        x, _ = chunk_of(logits, row, which, stride, size, CHUNK)
        weight = tl.where(x >= floor, weights_of(x, top, temperature), 0.0)
        by_line = tl.sum(tl.reshape(weight, (CHUNK // LINE, LINE)), axis=1)
        line, share = _pick(by_line.to(tl.float64), share, CHUNK // LINE)
        cols = which * CHUNK + line * LINE + tl.arange(0, LINE)
        x = tl.load(
            logits + row.to(tl.int64) * stride + cols, mask=cols < size, other=float("nan")
        ).to(tl.float32)
        weight = tl.where(x >= floor, weights_of(x, top, temperature), 0.0)
        place, _ = _pick(weight.to(tl.float64), share, LINE)
        token = (which * CHUNK + line * LINE + place).to(tl.int64)
    tl.store(out + row, token)

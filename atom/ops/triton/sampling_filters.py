"""Kernels of the sampler that find the least logit that passes a row's min_p, top_k and top_p.

Each is a threshold on a measure of the tokens above it: their number, or their weight.
"""

from __future__ import annotations

import triton
import triton.language as tl

from atom.ops.sampling_row import SEARCHED, WORDS
from atom.ops.triton.argmax import order_key
from atom.ops.triton.launch import begin
from atom.ops.triton.sampling_kernels import (
    chunk_of,
    floor_of,
    real,
    top_of,
    value_of,
    weights_of,
)

_WORDS = tl.constexpr(WORDS)
_SEARCHED = tl.constexpr(SEARCHED)
_LEAST = tl.constexpr(-0x80000000)
_NARROWINGS = tl.constexpr(2)  # rounds of `narrow_kernel`; the state after them has this number


@triton.jit
def _bisect(keys, measures, low, high, base, target, gap):
    """The largest key such that `base` and what is not below it measure the target; at most `gap`
    less than that. `low` reaches it."""
    while high - low > gap:
        middle = low + (high - low) // 2
        above = tl.sum(tl.where(keys >= middle.to(tl.int32), measures, 0.0))
        enough = base + above.to(tl.float64) >= target
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low


@triton.jit
def _save(state, row, lo, hi, target, base, num_rows, ROUND: tl.constexpr):
    place = state + (ROUND * num_rows + row) * 4
    tl.store(place, lo)
    tl.store(place + 1, hi)
    tl.store(place + 2, target)
    tl.store(place + 3, base)


@triton.jit(do_not_specialize=["num_rows"])
def bound_kernel(
    settings,
    keys,
    sums,
    peaks,
    state,  # [3, L, 4] float64: lo, hi, target, base before each round
    numbers,  # [L] int32: of members; 0: rounds are to narrow the row; -1: it is to be searched
    members,  # [L, MEMBERS] int32: the groups that have a token from lo on
    num_rows,
    num_chunks,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,  # of a chunk
    ALL: tl.constexpr,  # CHUNKS * GROUPS
    MEMBERS: tl.constexpr,
    NARROW: tl.constexpr,  # whether rounds follow for rows with too many members
    PDL: tl.constexpr,
):
    """One program per row: a logit that the threshold is surely not below, and where such are.

    It is the threshold of the groups' maxima alone, which measure less than all tokens do.
    """
    begin(PDL)
    row = tl.program_id(0)
    if tl.load(settings + row * _WORDS + 7) == _SEARCHED:
        top, _, tops = top_of(keys, row, num_chunks, CHUNKS)
        temperature, top_p = real(settings, row, 0), real(settings, row, 1)
        top_k = tl.load(settings + row * _WORDS + 3)
        floor = floor_of(settings, row, top)
        c = tl.arange(0, CHUNKS)
        mass = tl.load(sums + row * num_chunks + c, mask=c < num_chunks, other=0.0)
        scale = weights_of(tl.where(c < num_chunks, tops, float("-inf")), top, temperature)
        whole = tl.sum((mass * scale).to(tl.float64), axis=0)
        target = tl.where(top_k > 0, top_k.to(tl.float64), whole * top_p.to(tl.float64))
        i = tl.arange(0, ALL)
        line = peaks + row.to(tl.int64) * num_chunks * GROUPS
        peak = tl.load(line + i, mask=i < num_chunks * GROUPS, other=float("-inf"))
        counts = peak >= floor
        key = tl.where(counts, order_key(peak), _LEAST)
        weight = tl.where(top_k > 0, 1.0, weights_of(peak, top, temperature))
        measure = tl.where(counts, weight, 0.0)
        low, high = order_key(floor).to(tl.int64), order_key(top).to(tl.int64) + 1
        # What top_p is a share of is known only when min_p has been applied.
        known = (top_k > 0) | (real(settings, row, 2) == 0.0)
        if known & (tl.sum(measure, axis=0).to(tl.float64) >= target):
            low = _bisect(key, measure, low, high, 0.0 * whole, target, ((high - low) >> 12) + 1)
        member = (key >= low.to(tl.int32)).to(tl.int32)
        number = tl.sum(member, axis=0)
        index = tl.cumsum(member, axis=0) - 1
        places = members + row * MEMBERS + index
        tl.store(places, i, mask=(member > 0) & (index < MEMBERS))
        tl.store(numbers + row, tl.where(number <= MEMBERS, number, 0 if NARROW else -1))
        lo = value_of(low.to(tl.int32)).to(tl.float64)
        _save(state, row, lo, float("inf"), target, 0.0, num_rows, _NARROWINGS)


@triton.jit
def _next_window(
    settings, row, state, pivots, partials, num_rows, num_chunks,
    CHUNKS: tl.constexpr, PIVOTS: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """What round ROUND has found: (lo, hi, target, base).

    The tokens of logit `lo` or more reach the target, those of `hi` or more, which measure `base`,
    do not. If all of the row does not, hi = lo.
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
        share = whole * real(settings, row, 1).to(tl.float64)
        target = tl.where(top_k > 0, top_k.to(tl.float64), share)
    else:
        target = tl.load(old + 2)
    best = tl.max(tl.where(measures >= target, j, -1), axis=0)
    edges = tl.load(pivots + (ROUND * num_rows + row) * PIVOTS + j).to(tl.float64)
    above = tl.sum(tl.where(j == best + 1, edges, 0.0), axis=0)
    more = tl.sum(tl.where(j == best + 1, measures, 0.0), axis=0)
    base = tl.where(best + 1 < PIVOTS, more, base)
    hi = tl.where(best < 0, lo, tl.where(best + 1 < PIVOTS, above, hi))
    lo = tl.where(best < 0, lo, tl.sum(tl.where(j == best, edges, 0.0), axis=0))
    return lo, hi, target, base


@triton.jit(do_not_specialize=["num_rows"])
def narrow_kernel(
    logits,
    settings,
    keys,
    least,
    state,
    numbers,
    pivots,  # [2, L, PIVOTS] float32
    partials,  # [2, L, C, PIVOTS] float32: what the tokens from the pivot on measure, per chunk
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
    """Of rows to be narrowed, measure the tokens above PIVOTS logits between lo and hi."""
    begin(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    searched = tl.load(settings + row * _WORDS + 7) == _SEARCHED
    if tl.load(numbers + row, mask=searched, other=1) == 0:
        top, _, _ = top_of(keys, row, num_chunks, CHUNKS)
        by_count = tl.load(settings + row * _WORDS + 3) > 0
        x, _ = chunk_of(logits, row, chunk, stride, size, CHUNK)
        if ROUND == 0:
            c = tl.arange(0, CHUNKS)
            lows = tl.load(least + row * num_chunks + c, mask=c < num_chunks, other=float("inf"))
            start = tl.maximum(floor_of(settings, row, top), tl.min(lows, axis=0))
            above = top + tl.maximum((top - start) * 1e-3, tl.abs(top) * 1e-6 + 1e-30)
            lo, hi = start.to(tl.float64), above.to(tl.float64)
            target, base = lo * 0.0, lo * 0.0
        else:
            lo, hi, target, base = _next_window(
                settings, row, state, pivots, partials, num_rows, num_chunks, CHUNKS, PIVOTS,
                ROUND - 1,
            )  # fmt: skip
        weight = tl.where(by_count, 1.0, weights_of(x, top, real(settings, row, 0)))
        start, width = lo.to(tl.float32), (hi - lo).to(tl.float32)
        j = tl.arange(0, PIVOTS)
        edges = tl.zeros((PIVOTS,), tl.float32)
        measures = tl.zeros((PIVOTS,), tl.float32)
        for i in tl.static_range(PIVOTS):
            edge = start + width * (i / PIVOTS)
            edges = tl.where(j == i, edge, edges)
            above = tl.sum(tl.where(x >= edge, weight, 0.0), axis=0)
            measures = tl.where(j == i, above, measures)
        line = (ROUND * num_rows + row).to(tl.int64)
        tl.store(partials + (line * num_chunks + chunk) * PIVOTS + j, measures)
        if chunk == 0:
            tl.store(pivots + line * PIVOTS + j, edges)
            _save(state, row, lo, hi, target, base, num_rows, ROUND)


@triton.jit(do_not_specialize=["num_rows"])
def collect_kernel(
    logits,
    settings,
    state,
    numbers,
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
    """Of rows that were narrowed, list the logits among which the threshold is; all from `lo` on
    if top_p follows top_k."""
    begin(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    searched = tl.load(settings + row * _WORDS + 7) == _SEARCHED
    if tl.load(numbers + row, mask=searched, other=1) == 0:
        x, _ = chunk_of(logits, row, chunk, stride, size, CHUNK)
        lo, hi, target, base = _next_window(
            settings, row, state, pivots, partials, num_rows, num_chunks, CHUNKS, PIVOTS, 1
        )
        top_k = tl.load(settings + row * _WORDS + 3)
        both = (top_k > 0) & (real(settings, row, 1) < 1.0)
        hi = tl.where(both, float("inf"), hi)
        base = tl.where(both, 0.0, base)
        if chunk == 0:
            _save(state, row, lo, hi, target, base, num_rows, _NARROWINGS)
        inside = (x >= lo.to(tl.float32)) & (x < hi.to(tl.float32))
        ones = inside.to(tl.int32)
        index = tl.cumsum(ones, axis=0) - 1
        line = row.to(tl.int64) * num_chunks + chunk
        tl.store(found + line * CAPACITY + index, x, mask=inside & (index < CAPACITY))
        tl.store(counts + line, tl.sum(ones, axis=0))


@triton.jit
def _search_tile(
    x, inside, top, temperature, by_count, first, again, low, high, base, target, top_p
):
    """(the threshold's key, the weights of what passes it) of the logits x [A, B] in registers."""
    key = tl.where(inside, order_key(x), _LEAST)
    weight = tl.where(inside, weights_of(x, top, temperature), 0.0)
    if first:
        measure = tl.where(by_count & inside, 1.0, weight)
        low = _bisect(key, measure, low, high, base, target, 1)
    if again:
        whole = tl.sum(tl.where(key >= low.to(tl.int32), weight, 0.0)).to(tl.float64)
        end = order_key(top).to(tl.int64) + 1
        low = _bisect(key, weight, low, end, 0.0 * base, whole * top_p.to(tl.float64), 1)
    return low, tl.where(key >= low.to(tl.int32), weight, 0.0)


@triton.jit
def _search_members(
    line, size, members, number, lo, top, temperature, by_count, first, again, low, high, base,
    target, top_p, CHUNKS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """(the threshold's key, per chunk the weight of what passes it) of `number` <= WIDTH groups of
    GROUP logits, which hold all that may pass."""
    m = tl.arange(0, WIDTH)
    member = tl.load(members + m, mask=m < number, other=0)
    cols = member[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (m < number)[:, None] & (cols < size)
    x = tl.load(line + cols, mask=inside, other=float("-inf")).to(tl.float32)
    low, kept = _search_tile(
        x, inside & (x >= lo), top, temperature, by_count, first, again, low, high, base, target,
        top_p,
    )  # fmt: skip
    own = tl.sum(kept, axis=1)
    same = (member // GROUPS)[None, :] == tl.arange(0, CHUNKS)[:, None]
    return low, tl.sum(tl.where(same, own[None, :], 0.0), axis=1)


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
        weight = tl.where(by_count, 1.0, weights_of(x, top, temperature))
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
def _search_row(
    line, size, num_chunks, top, temperature, by_count, first, again, low, high, base, target,
    top_p, CHUNK: tl.constexpr,
):  # fmt: skip
    """The threshold's key of any row."""
    if first:
        low = _bisect_row(
            line, size, num_chunks, low, high, by_count, top, temperature, base, target, CHUNK
        )
    if again:
        end, none = order_key(top).to(tl.int64) + 1, 0.0 * base
        whole = _row_above(line, size, num_chunks, low, end, False, top, temperature, none, CHUNK)
        low = _bisect_row(
            line, size, num_chunks, low, end, False, top, temperature, none,
            whole * top_p.to(tl.float64), CHUNK,
        )  # fmt: skip
    return low


@triton.jit(do_not_specialize=["num_rows"])
def threshold_kernel(
    logits,
    settings,
    keys,
    state,
    numbers,
    members,
    found,
    counts,
    floors,  # [L] float32: the least logit that passes the filters
    sums,  # [L, C] float32: of rows that were not narrowed, the weights that pass
    stride,
    size,
    num_rows,
    num_chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    SMALL: tl.constexpr,  # members that most rows have no more of
    CAPACITY: tl.constexpr,
    NARROW: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per row that has top_k or top_p. The logits among which the threshold is stand
    in its registers; where they do not fit, as when many are equal, the row is read again and
    again instead."""
    begin(PDL)
    row = tl.program_id(0)
    kind = tl.load(settings + row * _WORDS + 7)
    top, _token, _tops = top_of(keys, row, num_chunks, CHUNKS)
    if (kind == _SEARCHED) & (tl.abs(top) < float("inf")):
        temperature, top_p = real(settings, row, 0), real(settings, row, 1)
        by_count = tl.load(settings + row * _WORDS + 3) > 0
        number = tl.load(numbers + row)
        # A share of what min_p leaves is taken when that is at hand, with nothing to find before.
        of_rest = (number != 0) & (real(settings, row, 2) > 0.0) & (by_count == 0)
        first, again = of_rest == 0, (top_p < 1.0) & (by_count | of_rest)
        place = state + (_NARROWINGS * num_rows + row) * 4
        lo, hi = tl.load(place).to(tl.float32), tl.load(place + 1).to(tl.float32)
        target, base = tl.load(place + 2), tl.load(place + 3)
        low, end = order_key(lo).to(tl.int64), order_key(top).to(tl.int64) + 1
        high = tl.minimum(order_key(hi).to(tl.int64), end)
        line, own_members = logits + row.to(tl.int64) * stride, members + row * MEMBERS
        c = tl.arange(0, CHUNKS)
        lines = row.to(tl.int64) * num_chunks + c
        kept = tl.zeros((CHUNKS,), tl.float32)
        scan = number < 0
        if number > SMALL:
            low, kept = _search_members(
                line, size, own_members, number, lo, top, temperature, by_count, first, again,
                low, high, base, target, top_p, CHUNKS, GROUPS, CHUNK // GROUPS, MEMBERS,
            )  # fmt: skip
        elif number > 0:
            low, kept = _search_members(
                line, size, own_members, number, lo, top, temperature, by_count, first, again,
                low, high, base, target, top_p, CHUNKS, GROUPS, CHUNK // GROUPS, SMALL,
            )  # fmt: skip
        if NARROW:  # noqa: SIM102 - settled when compiled
            if number == 0:
                count = tl.load(counts + lines, mask=c < num_chunks, other=0)
                scan = tl.max(count, axis=0) > CAPACITY
                if scan == 0:
                    i = tl.arange(0, CAPACITY)
                    inside = i[None, :] < count[:, None]
                    slots = found + lines[:, None] * CAPACITY + i[None, :]
                    x = tl.load(slots, mask=inside, other=0.0)
                    low, _kept = _search_tile(
                        x, inside, top, temperature, by_count, first, again, low, high, base,
                        target, top_p,
                    )  # fmt: skip
        if scan:
            low = _search_row(
                line, size, num_chunks, top, temperature, by_count, first, again, low, high, base,
                target, top_p, CHUNK,
            )  # fmt: skip
        if number < 0:
            for chunk in range(0, num_chunks):
                x, _cols = chunk_of(logits, row, chunk, stride, size, CHUNK)
                weight = weights_of(x, top, temperature)
                passes = x >= value_of(low.to(tl.int32))
                own = tl.sum(tl.where(passes, weight, 0.0), axis=0)
                kept = tl.where(c == chunk, own, kept)
        if number != 0:
            tl.store(sums + lines, kept, mask=c < num_chunks)
        tl.store(floors + row, value_of(low.to(tl.int32)))

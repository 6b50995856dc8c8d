"""Kernels of `linear` for few tokens, where the time is that of reading the weight once.

Those for one token take the RMS norm before the product along. A gated product owns gate row n and
up row n + N and writes silu(gate) * up. Under `PDL` a program fetches weights, which nobody writes,
while the kernel before it still runs; everything else waits for that kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _prefetch(address):
    """Bring the cache lines at `address` (a tensor of pointers) into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [address.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _prefetch_rows(weight, first, N, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The first `COLS` elements of `ROWS` rows from `first` on, a line of 128 bytes at a time."""
    rows = tl.minimum(first + tl.arange(0, ROWS), N - 1).to(tl.int64)
    lines = tl.minimum(tl.arange(0, COLS // 64) * 64, K - 1)
    _prefetch(weight + rows[:, None] * K + lines[None, :])


@triton.jit
def _silu(gate):
    return gate * tl.sigmoid(gate)


@triton.jit
def gemv_rows(
    x,  # [K]
    residual,  # [K]
    gamma,  # [K] weight of the norm
    weight,  # [N, K]; gated: [2N, K]
    bias,  # [N]; gated: [2N]
    out,  # [N]
    new_residual,  # [K]
    N,
    K: tl.constexpr,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # at least K: a program has whole rows, and x, in registers
    PREFETCH: tl.constexpr,  # further rows that are brought into the L2 cache before the wait
    ADD: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token. Programs walk over tiles of rows, the next tile's loads always in flight."""
    pid = tl.program_id(0)
    step = tl.num_programs(0) * BLOCK_N
    cols = tl.arange(0, BLOCK_K)
    inside = cols < K
    rows = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (rows < N)[:, None] & inside[None, :]
    tile = weight + rows.to(tl.int64)[:, None] * K + cols[None, :]
    w_next = tl.load(tile, mask=mask, other=0.0, eviction_policy="evict_first")
    if GATED:
        up = weight + N.to(tl.int64) * K
        tile_up = up + rows.to(tl.int64)[:, None] * K + cols[None, :]
        u_next = tl.load(tile_up, mask=mask, other=0.0, eviction_policy="evict_first")
    if NORM:
        g = tl.load(gamma + cols, mask=inside, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if PREFETCH > 0:
            for i in tl.static_range(1, 1 + PREFETCH):
                _prefetch_rows(weight, pid * BLOCK_N + i * step, N, K, BLOCK_N, BLOCK_K)
                if GATED:
                    _prefetch_rows(up, pid * BLOCK_N + i * step, N, K, BLOCK_N, BLOCK_K)
        tl.extra.cuda.gdc_wait()
    r = tl.load(x + cols, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        r += tl.load(residual + cols, mask=inside, other=0.0).to(tl.float32)
        r = r.to(x.dtype.element_ty)
        if pid == 0:
            tl.store(new_residual + cols, r, mask=inside)
        r = r.to(tl.float32)
    scale = 1.0
    if NORM:
        # Only results are scaled, so that products need not wait for the sum over all of r.
        scale = tl.rsqrt(tl.sum(r * r, 0) / K + eps)
        r *= g.to(tl.float32)
    for first in range(pid * BLOCK_N, N, step):
        w = w_next
        rows = first + tl.arange(0, BLOCK_N)
        later = rows + step
        mask = (later < N)[:, None] & inside[None, :]
        offsets = later.to(tl.int64)[:, None] * K + cols[None, :]
        w_next = tl.load(weight + offsets, mask=mask, other=0.0, eviction_policy="evict_first")
        if GATED:
            u = u_next
            u_next = tl.load(up + offsets, mask=mask, other=0.0, eviction_policy="evict_first")
        y = tl.sum(w.to(tl.float32) * r[None, :], 1) * scale
        if BIAS:
            y += tl.load(bias + rows, mask=rows < N, other=0.0).to(tl.float32)
        if GATED:
            y_up = tl.sum(u.to(tl.float32) * r[None, :], 1) * scale
            if BIAS:
                y_up += tl.load(bias + N + rows, mask=rows < N, other=0.0).to(tl.float32)
            y = _silu(y) * y_up
        tl.store(out + rows, y.to(out.dtype.element_ty), mask=rows < N)


@triton.jit
def gemv_columns(
    x,  # [K]
    residual,  # [K]
    gamma,  # [K]
    weight,  # [N, K]; gated: [2N, K]
    bias,  # [N]; gated: [2N]
    out,  # [N]
    new_residual,  # [K]
    N,
    K: tl.constexpr,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,  # elements of each row, a power of two; 0: none
    ADD: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token. A program has `BLOCK_N` rows and walks along them, `STAGES` blocks in flight."""
    pid = tl.program_id(0)
    first = pid * BLOCK_N
    rows = first + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    valid = rows < N
    tile = weight + rows.to(tl.int64)[:, None] * K + cols[None, :]
    up = weight + N.to(tl.int64) * K
    tile_up = up + rows.to(tl.int64)[:, None] * K + cols[None, :]
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if PREFETCH > 0:
            _prefetch_rows(weight, first, N, K, BLOCK_N, PREFETCH)
            if GATED:
                _prefetch_rows(up, first, N, K, BLOCK_N, PREFETCH)
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        inside = k + cols < K
        mask = valid[:, None] & inside[None, :]
        w = tl.load(tile + k, mask=mask, other=0.0, eviction_policy="evict_first")
        if GATED:
            u = tl.load(tile_up + k, mask=mask, other=0.0, eviction_policy="evict_first")
        r = tl.load(x + k + cols, mask=inside, other=0.0).to(tl.float32)
        if ADD:
            r += tl.load(residual + k + cols, mask=inside, other=0.0).to(tl.float32)
            r = r.to(x.dtype.element_ty)
            if pid == 0:
                tl.store(new_residual + k + cols, r, mask=inside)
            r = r.to(tl.float32)
        if NORM:
            squares += r * r
            r *= tl.load(gamma + k + cols, mask=inside, other=0.0).to(tl.float32)
        acc += w.to(tl.float32) * r[None, :]
        if GATED:
            acc_up += u.to(tl.float32) * r[None, :]
    y = tl.sum(acc, 1)
    y_up = tl.sum(acc_up, 1)
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        y *= scale
        y_up *= scale
    if BIAS:
        y += tl.load(bias + rows, mask=valid, other=0.0).to(tl.float32)
    if GATED:
        if BIAS:
            y_up += tl.load(bias + N + rows, mask=valid, other=0.0).to(tl.float32)
        y = _silu(y) * y_up
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["M"])
def skinny(
    x,  # [M, K], rows `stride_x` apart
    weight,  # [N, K]; gated: [2N, K]
    tiles,  # a tensor descriptor of `weight` in blocks [BLOCK_N, BLOCK_K], if TMA
    bias,  # [N]; gated: [2N]
    out,  # [M, N]
    partial,  # [SPLIT, M, N] float32, if SPLIT > 1
    arrivals,  # [tiles of N] int32, zero between launches, if SPLIT > 1
    M,
    N,
    K: tl.constexpr,
    stride_x,
    BLOCK_M: tl.constexpr,  # at least M
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # divides K / SPLIT
    SPLIT: tl.constexpr,
    SWAP: tl.constexpr,  # the weight is the product's left operand
    TMA: tl.constexpr,
    PREFETCH: tl.constexpr,  # elements of each row, a power of two; 0: none
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A few tokens on the matrix units; the weight streams through once. The norm is done.

    Split along K, the last program to arrive at a tile adds the parts, always in the same order.
    """
    pid = tl.program_id(0)
    part = tl.program_id(1)
    first = pid * BLOCK_N
    rows = first + tl.arange(0, BLOCK_N)
    tokens = tl.arange(0, BLOCK_M)
    start = part * (K // SPLIT)
    cols = start + tl.arange(0, BLOCK_K)
    valid = rows < N
    valid_m = tokens < M
    up = weight + N.to(tl.int64) * K
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if PREFETCH > 0:
            _prefetch_rows(weight + start, first, N, K, BLOCK_N, PREFETCH)
            if GATED:
                _prefetch_rows(up + start, first, N, K, BLOCK_N, PREFETCH)
        tl.extra.cuda.gdc_wait()
    x_tile = x + tokens.to(tl.int64)[:, None] * stride_x + cols[None, :]
    if not TMA:
        w_tile = weight + rows.to(tl.int64)[:, None] * K + cols[None, :]
        u_tile = up + rows.to(tl.int64)[:, None] * K + cols[None, :]
    if SWAP:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        acc_up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        acc_up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K // SPLIT, BLOCK_K):
        if TMA:
            w = tiles.load([first, start + k])
            if GATED:
                u = tiles.load([N + first, start + k])
        else:
            w = tl.load(w_tile + k, mask=valid[:, None], other=0.0, eviction_policy="evict_first")
            if GATED:
                u = tl.load(
                    u_tile + k, mask=valid[:, None], other=0.0, eviction_policy="evict_first"
                )
        a = tl.load(x_tile + k, mask=valid_m[:, None], other=0.0)
        if SWAP:
            acc = tl.dot(w, tl.trans(a), acc)
            if GATED:
                acc_up = tl.dot(u, tl.trans(a), acc_up)
        else:
            acc = tl.dot(a, tl.trans(w), acc)
            if GATED:
                acc_up = tl.dot(a, tl.trans(u), acc_up)
    if SWAP:
        acc = tl.trans(acc)
        acc_up = tl.trans(acc_up)
    mask = valid_m[:, None] & valid[None, :]
    place = tokens[:, None] * N + rows[None, :]
    last = True
    if SPLIT > 1:
        tl.store(partial + part * M * N + place, acc, mask=mask)
        tl.debug_barrier()  # every thread's stores come before the arrival
        last = tl.atomic_add(arrivals + pid, 1, sem="acq_rel") == SPLIT - 1
    if last:
        if SPLIT > 1:
            acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for i in tl.static_range(SPLIT):
                # Past the first-level cache, which other programs' stores do not reach.
                acc += tl.load(
                    partial + i * M * N + place, mask=mask, other=0.0, cache_modifier=".cg"
                )
            tl.store(arrivals + pid, 0)
        if BIAS:
            acc += tl.load(bias + rows, mask=valid, other=0.0).to(tl.float32)[None, :]
        if GATED:
            if BIAS:
                acc_up += tl.load(bias + N + rows, mask=valid, other=0.0).to(tl.float32)[None, :]
            acc = _silu(acc) * acc_up
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)

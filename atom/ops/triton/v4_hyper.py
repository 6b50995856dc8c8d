"""op `hyper_mix` in two launches, and op `swiglu_clamp`.

The first launch adds what is pending to the streams and multiplies them by `fn`, cut over channels;
the second one sums that up, finds the coefficients and collapses the streams. Floor of a decode:
the float32 bytes of `fn`, 4 N (2 + N) N H, read once for 16 tokens. Not measured on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from atom.ops.contracts_v4 import HyperWeights, Pending
from atom.ops.registry import OpQuery, register
from atom.ops.triton import elementwise, support

TOKENS = 16  # of a program of the first launch
CHANNELS = 64  # more would not fit registers


@triton.jit(do_not_specialize=["tokens"])
def hyper_mix_kernel(
    mixed, products, squares, streams, out, post, comb, fn, tokens, out_row,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr, PENDING: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, TF32X3: tl.constexpr,
):  # fmt: skip
    """Program (i, j): channels j of tokens i. `products` [T, parts, M] and `squares` [T, parts] are
    the sums over the program's channels of fn * stream and stream^2, of all streams."""
    part, parts = tl.program_id(1), tl.num_programs(1)
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    c, m = part * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, M_PAD)
    alive = t < tokens
    mask = alive[:, None] & (c < H)[None, :]
    total = tl.zeros([BLOCK_T, M_PAD], tl.float32)
    square = tl.zeros([BLOCK_T], tl.float32)
    if PENDING:
        add = tl.load(out + t[:, None] * out_row + c[None, :], mask=mask, other=0.0)
    for k in tl.static_range(N):
        if PENDING:
            gain = tl.load(post + t * N + k, mask=alive, other=0.0)
            x = gain[:, None] * add.to(tl.float32)
            for j in tl.static_range(N):
                share = tl.load(comb + (t * N + j) * N + k, mask=alive, other=0.0)
                at = streams + (t * N + j)[:, None] * H + c[None, :]
                x += share[:, None] * tl.load(at, mask=mask, other=0.0).to(tl.float32)
            at = mixed + (t * N + k)[:, None] * H + c[None, :]
            x = x.to(mixed.dtype.element_ty)
            tl.store(at, x, mask=mask)
        else:
            x = tl.load(streams + (t * N + k)[:, None] * H + c[None, :], mask=mask, other=0.0)
        x = x.to(tl.float32)
        weight = tl.load(
            fn + m[None, :] * (N * H) + k * H + c[:, None],
            mask=(m < M)[None, :] & (c < H)[:, None], other=0.0,
        )  # fmt: skip
        total = tl.dot(x, weight, total, input_precision="tf32x3" if TF32X3 else "ieee")
        square += tl.sum(x * x, 1)
    row = t * parts + part
    tl.store(
        products + row[:, None] * M + m[None, :], total, mask=alive[:, None] & (m < M)[None, :]
    )
    tl.store(squares + row, square, mask=alive)


@triton.jit
def hyper_collapse_kernel(
    x, post, comb, streams, products, squares, base, scale, norm, eps, hyper_eps,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, PARTS: tl.constexpr,
    PARTS_PAD: tl.constexpr, ITERATIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program a token. M = N: only the streams' collapse is wanted."""
    token = tl.program_id(0).to(tl.int64)
    p, n = tl.arange(0, PARTS_PAD), tl.arange(0, N)
    there = (p < PARTS)[:, None]
    square = tl.sum(tl.load(squares + token * PARTS + p, mask=p < PARTS, other=0.0), 0)
    factor = tl.rsqrt(square / (N * H) + eps)
    rows = products + (token * PARTS + p)[:, None] * M
    pre = tl.sum(tl.load(rows + n[None, :], mask=there, other=0.0), 0) * factor
    pre = tl.sigmoid(pre * tl.load(scale) + tl.load(base + n)) + hyper_eps
    if M > N:
        gain = tl.sum(tl.load(rows + N + n[None, :], mask=there, other=0.0), 0) * factor
        gain = 2.0 * tl.sigmoid(gain * tl.load(scale + 1) + tl.load(base + N + n))
        tl.store(post + token * N + n, gain)
        place = 2 * N + n[:, None] * N + n[None, :]
        each = tl.load(rows[:, :, None] + place[None, :, :], mask=there[:, :, None], other=0.0)
        c = tl.sum(each, 0) * factor
        c = c * tl.load(scale + 2) + tl.load(base + place)
        c = tl.exp(c - tl.max(c, 1)[:, None])
        c = c / tl.sum(c, 1)[:, None] + hyper_eps
        c = c / (tl.sum(c, 0)[None, :] + hyper_eps)
        for _ in range(ITERATIONS - 1):
            c = c / (tl.sum(c, 1)[:, None] + hyper_eps)
            c = c / (tl.sum(c, 0)[None, :] + hyper_eps)
        tl.store(comb + token * (N * N) + n[:, None] * N + n[None, :], c)
    d = tl.arange(0, BLOCK)
    value = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(N):
        share = tl.sum(tl.where(n == k, pre, 0.0), 0)
        at = streams + (token * N + k) * H + d
        value += share * tl.load(at, mask=d < H, other=0.0).to(tl.float32)
    value = value.to(x.dtype.element_ty).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / H + eps)
    value *= tl.load(norm + d, mask=d < H, other=0.0).to(tl.float32)
    tl.store(x + token * H + d, value.to(x.dtype.element_ty), mask=d < H)


def launch(
    streams: Tensor, pending: Pending | None, weights: HyperWeights
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, streams, post, comb), the last two empty without them; streams are new if a layer's
    output is added."""
    tokens, n, size = streams.shape
    count, device = len(weights.fn), streams.device
    wide = n if count > n else 0
    x = torch.empty((tokens, size), dtype=streams.dtype, device=device)
    post = torch.empty((tokens, wide), dtype=torch.float32, device=device)
    comb = torch.empty((tokens, wide, wide), dtype=torch.float32, device=device)
    mixed = streams if pending is None else torch.empty_like(streams)
    if tokens == 0:
        return x, mixed, post, comb
    parts = triton.cdiv(size, CHANNELS)
    products = torch.empty((tokens, parts, count), dtype=torch.float32, device=device)
    squares = torch.empty((tokens, parts), dtype=torch.float32, device=device)
    added = Pending(streams, squares, squares) if pending is None else pending
    exact = support.IS_ROCM or support.INTERPRETED
    hyper_mix_kernel[triton.cdiv(tokens, TOKENS), parts](
        mixed, products, squares, streams, added.out, added.post, added.comb, weights.fn, tokens,
        added.out.stride(0),
        N=n, H=size, M=count, M_PAD=max(support.next_power_of_2(count), 16),
        PENDING=pending is not None, BLOCK_T=TOKENS, BLOCK_C=CHANNELS,
        TF32X3=not exact, num_warps=4,
    )  # fmt: skip
    hyper_collapse_kernel[(tokens,)](
        x, post, comb, mixed, products, squares, weights.base, weights.scale, weights.norm,
        weights.eps, weights.hyper_eps,
        N=n, H=size, M=count, PARTS=parts, PARTS_PAD=support.next_power_of_2(parts),
        ITERATIONS=weights.iterations, BLOCK=support.next_power_of_2(size), num_warps=8,
    )  # fmt: skip
    return x, mixed, post, comb


def hyper_mix(
    streams: Tensor, pending: Pending | None, weights: HyperWeights
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """streams [T, N, H], dense."""
    x, mixed, post, comb = launch(streams, pending, weights)
    return (x, mixed, post, comb) if post.shape[1] else (x, mixed, None, None)


def _operator(
    streams: Tensor,
    out: Tensor | None,
    post: Tensor | None,
    comb: Tensor | None,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    norm: Tensor,
    eps: float,
    hyper_eps: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pending = None
    if out is not None:
        assert post is not None
        assert comb is not None
        pending = Pending(out, post, comb)
    weights = HyperWeights(fn, base, scale, eps, hyper_eps, iterations, norm)
    x, mixed, new_post, new_comb = launch(streams, pending, weights)
    return x, streams.clone() if pending is None else mixed, new_post, new_comb


def _fake(streams: Tensor, out: Tensor | None, *rest: object) -> tuple[Tensor, ...]:
    fn = rest[2]
    assert isinstance(fn, Tensor)
    tokens, n, size = streams.shape
    wide = n if len(fn) > n else 0
    made = [fn.new_empty((tokens, wide)), fn.new_empty((tokens, wide, wide))]
    return (streams.new_empty((tokens, size)), streams.new_empty(streams.shape), *made)


_hyper_mix = support.define(
    "hyper_mix(Tensor streams, Tensor? out, Tensor? post, Tensor? comb, Tensor fn, Tensor base,"
    " Tensor scale, Tensor norm, float eps, float hyper_eps, int iterations)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _operator,
    _fake,
)


def _traced(
    streams: Tensor, pending: Pending | None, weights: HyperWeights
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    out, post, comb = (None, None, None) if pending is None else pending
    x, mixed, new_post, new_comb = _hyper_mix(
        streams,
        out,
        post,
        comb,
        weights.fn,
        weights.base,
        weights.scale,
        weights.norm,
        weights.eps,
        weights.hyper_eps,
        weights.iterations,
    )
    if weights.fn.shape[0] == streams.shape[1]:
        return x, mixed, None, None
    return x, mixed, new_post, new_comb


def _declines(query: OpQuery) -> str | None:
    n, size = query.size("N"), query.size("K")
    if n != support.next_power_of_2(n):
        return f"{n} streams are not a power of two"
    if size > 16384:
        return f"K={size} is more than 16384"
    return elementwise.declines(query)


register("hyper_mix", "triton", _declines, traced=_traced)(hyper_mix)


@triton.jit
def swiglu_clamp_kernel(x, out, stride, limit, I: tl.constexpr, BLOCK: tl.constexpr):  # noqa: E741
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < I
    gate = tl.load(x + row * stride + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * stride + I + cols, mask=inside, other=0.0).to(tl.float32)
    gate = tl.minimum(gate, limit)
    up = tl.minimum(tl.maximum(up, -limit), limit)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * I + cols, value.to(out.dtype.element_ty), mask=inside)


def swiglu_clamp(x: Tensor, limit: float) -> Tensor:
    """x [T, 2I], rows strided as they like -> [T, I]."""
    rows, size = x.shape[0], x.shape[1] // 2
    out = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    block = min(1024, support.next_power_of_2(size))
    swiglu_clamp_kernel[rows, triton.cdiv(size, block)](
        x, out, x.stride(0), limit, I=size, BLOCK=block, num_warps=max(1, block // 256)
    )
    return out


register(
    "swiglu_clamp",
    "triton",
    elementwise.declines,
    traced=support.define(
        "swiglu_clamp(Tensor x, float limit) -> Tensor",
        swiglu_clamp,
        lambda x, limit: x.new_empty((x.shape[0], x.shape[1] // 2)),
    ),
)(swiglu_clamp)

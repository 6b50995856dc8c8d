"""The operations of DeepSeek V4, each stated once, as in `atom.ops.contracts`.

Layout words beyond those there: D head size, of which the last R channels are rotated in
neighbouring pairs; r the compression ratio; an *entry* is what r tokens become, entry e standing
for tokens r e .. r e + r - 1; N hyper-connection streams of H channels each.

One head of keys serves all query heads, and a key is its value too. `meta.block_table` is that of
the caches of entries [B, bs // r, D], `meta.window` that of the caches of recent tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from atom.ops.contracts import AttentionMetadata


class V4Write(Protocol):
    """op `v4_write`. Queries and keys as attention wants them; keys go into the window cache.

    q [T, Hq, D] is divided by the root of its mean square (+ eps) per head, kv [T, D] likewise and
    multiplied by `kv_norm` [D]; then both are rotated by `positions` [T]. Keys are written to
    `cache` [Bw, bs, D] at `slot_mapping` [T] (those of the window; -1: not). Returns q, like its
    argument, which may be overwritten.
    """

    def __call__(
        self,
        q: Tensor,
        kv: Tensor,
        kv_norm: Tensor,
        eps: float,
        positions: Tensor,
        cos_sin: Tensor,
        cache: Tensor,
        slot_mapping: Tensor,
    ) -> Tensor: ...


@dataclass(slots=True)
class Compressor:
    """What does not change from step to step where tokens are compressed.

    With `overlap`, an entry is made of 2 r tokens: its own and those of the entry before it, each
    by their own half of W = 2 D channels (first half: for the next entry); else W = D.
    """

    ratio: int
    overlap: bool
    bias: Tensor  # [r, W] float32, added to the gates by the token's place in its entry
    norm: Tensor  # [D]
    eps: float
    cos_sin: Tensor  # as of op `rotary`

    @property
    def span(self) -> int:
        """Tokens that make an entry."""
        return self.ratio * (2 if self.overlap else 1)


class V4Compress(Protocol):
    """op `v4_compress`. Tokens whose entry is complete become that entry.

    x [T, 2 W]: values, then gates. Per channel, an entry is the sum of its tokens' values weighted
    by the softmax of their gates; it is RMS-normed by `norm` and rotated as token r e would be.
    Entry e goes to `entries` at block (r e) // bs of the sequence, row e % (bs // r).

    `ring` [Bw, rows, 2 W] keeps x of recent tokens, token p of a block in row p % bs % rows; rows
    is at least the span. Tokens of the step before the last `rows` ones of a block need not be
    kept. Of the first entry, the tokens before it weigh nothing.
    """

    def __call__(
        self,
        x: Tensor,
        compressor: Compressor,
        ring: Tensor,
        entries: Tensor,
        meta: AttentionMetadata,
    ) -> None: ...


class V4Choose(Protocol):
    """op `v4_choose`. The entries that each token attends to: [T, k] int32, -1 for none.

    q [T, Hi, Di] is rotated by `positions`; an entry's score is the sum over heads of
    weights [T, Hi] * max(q . key, 0), up to a constant factor. Chosen are the k best of those that
    are complete at the token, (p + 1) // r of them, in any order, before any -1; all where they are
    no more than k. `keys` [B, bs // r, Di] are the entries' index keys.
    """

    def __call__(
        self,
        q: Tensor,
        weights: Tensor,
        keys: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        meta: AttentionMetadata,
        ratio: int,
        k: int,
    ) -> Tensor: ...


class V4Attention(Protocol):
    """op `v4_attention`. q [T, Hq, D], as `v4_write` gives it -> [T, Hq, D], rotated back.

    A token at p sees the last `window` tokens, itself included, in `cache` [Bw, bs, D], and, where
    `ratio` > 0, of `entries` those that `chosen` [T, k] names, or, for None, all (p + 1) // ratio
    that are complete. `sinks` [Hq] float32 join the softmax's denominator. Keys are the values. The
    result's last R channels are rotated by -p. Rows of padding tokens hold anything finite.
    """

    def __call__(
        self,
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
    ) -> Tensor: ...


@dataclass(slots=True)
class HyperWeights:
    """What decides how streams mix before one layer: M = N (2 + N) numbers a token, or N before the
    head. `fn` [M, N H], `base` [M] and `scale` [3] (or [1]) are float32."""

    fn: Tensor
    base: Tensor
    scale: Tensor
    eps: float  # of the RMS norm over all streams
    hyper_eps: float
    iterations: int  # of Sinkhorn's normalisation
    norm: Tensor  # [H], of the layer's own RMS norm


class Pending(NamedTuple):
    """A layer's output [T, H] that has not been added to the streams yet, with how it is to be:
    new stream k = post[k] out + sum_j comb[j, k] stream j. post [T, N], comb [T, N, N] float32."""

    out: Tensor
    post: Tensor
    comb: Tensor


class HyperMix(Protocol):
    """op `hyper_mix`. From one layer's output to the next layer's input.

    streams [T, N, H] take `pending` in first, if it is given, rounded to their dtype. All N H
    channels z over the root of their mean square give `mix = fn z`, which split N, N, N N is:
    pre = sigmoid(scale[0] mix + base) + e, post = 2 sigmoid(scale[1] mix + base) and comb =
    softmax over rows of (scale[2] mix + base) + e, whose columns are then divided by their sum + e,
    after which rows and columns are so in turn `iterations` - 1 times; e = `hyper_eps`.

    Returns (x [T, H], streams [T, N, H], post, comb), x the RMS norm of sum_k pre[k] stream k.
    Without post and comb in `fn` (before the head) these are None. `streams` may be overwritten.
    """

    def __call__(
        self, streams: Tensor, pending: Pending | None, weights: HyperWeights
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]: ...


class SwigluClamp(Protocol):
    """op `swiglu_clamp`. x [T, 2I] -> silu(min(gate, limit)) * clamp(up, -limit, limit)."""

    def __call__(self, x: Tensor, limit: float) -> Tensor: ...


OPS: dict[str, Any] = {
    "v4_write": V4Write,
    "v4_compress": V4Compress,
    "v4_choose": V4Choose,
    "v4_attention": V4Attention,
    "hyper_mix": HyperMix,
    "swiglu_clamp": SwigluClamp,
}

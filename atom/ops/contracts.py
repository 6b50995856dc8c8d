"""The operations of the house, each stated once. `reference` implements all; others some.

Layout words: T tokens of the step, S scheduled sequences, Hq query heads, Hk KV heads, D head size,
B blocks of the pool, bs block size. "In place" results are also returned. Tensors are contiguous in
their last dimension; rows may be strided (a slice of a fused projection).

Every function below is a `typing.Protocol` for type checkers and documentation; the callables
themselves come from `registry.select(OpQuery(op=...))`, asked once when a layer is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(slots=True)
class AttentionMetadata:
    """Where the step's tokens stand in the paged cache. Made by the runner, read by attention.

    All tensors live on the device. `slot_mapping` is `block_id * block_size + offset` per
    token; padding tokens have -1 and are not written. Query rows of a sequence are its last
    `query_len` positions.
    """

    num_tokens: int
    num_seqs: int
    max_query_len: int
    max_seq_len: int
    slot_mapping: Tensor  # [T] int64
    block_table: (
        Tensor  # [S, max_blocks] int32, only the first ceil(len/bs) entries of a row are valid
    )
    cu_seqlens_q: Tensor  # [S + 1] int32, prefix sums of the query lengths
    seq_lens: Tensor  # [S] int32, KV length including this step's tokens
    # The same step with the tables of the window caches; None where the model has none.
    window: AttentionMetadata | None = None
    # [S] int32, the slot of each sequence's recurrent state, -1 for padding; None without states.
    state_slots: Tensor | None = None

    @property
    def is_decode(self) -> bool:
        """Every sequence computes one token; in a captured graph, padding ones have length 0."""
        return self.max_query_len == 1


@dataclass(slots=True)
class GGUFWeight:
    """A weight still in GGUF blocks: `data` [N, row_bytes] uint8 of quantisation `qtype` (e.g.
    Q4_1)."""

    qtype: str
    data: Tensor
    shape: tuple[int, int]  # [N, K]


@dataclass(slots=True)
class MXFP4Weight:
    """Matrices [E, N, K] of experts in MXFP4: numbers of four bits (e2m1: a sign, and 0, 0.5, 1,
    1.5, 2, 3, 4 or 6), each 32 of a row times a power of two (e8m0).

    `data` [E, N, K / 2] uint8: of the 16 bytes of a group, byte i holds values i (low bits) and
    i + 16. `scales` [E, N, K / 32] uint8, of which 2^(s - 127).
    """

    data: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        experts, rows, half = self.data.shape
        return experts, rows, 2 * half

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes


class PackedLinear(Protocol):
    """A weight in the form its kernel wants; opaque outside the backend that packed it."""

    in_features: int
    out_features: int

    @property
    def nbytes(self) -> int: ...

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[T, K] -> [T, N], in x's dtype, accumulated in float32."""
        ...

    def dequantize(self) -> Tensor:
        """[N, K] float32: the values that the kernel multiplies by."""
        ...


class WideLinear(PackedLinear, Protocol):
    """A packed weight whose kernel can write its sums unrounded, as the output head wants them."""

    def linear_f32(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N] float32."""
        ...


class FusedLinear(PackedLinear, Protocol):
    """A packed weight whose kernel takes the RMS norm before it, and the gated activation after.

    Both methods: x [T, K]; `residual` [T, K] or None (then x is the residual); `norm_weight` [K].
    The new residual r = x + residual, rounded to x's dtype, is returned, and may be a new tensor or
    `residual` itself. y is computed from RMSNorm(r) * norm_weight, which may stay unrounded.
    """

    def norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(y [T, N], r [T, K])."""
        ...

    def norm_gated(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The weight is [2I, K], gate rows first: (silu(gate) * up [T, I], r [T, K])."""
        ...


class PackLinear(Protocol):
    """op `linear`. `query.weight_format` is the dtype of a dense weight or the GGUF type."""

    def __call__(self, weight: Tensor | GGUFWeight) -> PackedLinear: ...


class Embedding(Protocol):
    """op `embedding`. ids [T] int64 in range -> [T, K]; `weight` may be packed as for `linear`."""

    def __call__(
        self, ids: Tensor, weight: Tensor | PackedLinear, dtype: torch.dtype
    ) -> Tensor: ...


class RMSNorm(Protocol):
    """op `rms_norm`. x / sqrt(mean(x^2) + eps) * weight over the last dimension, float32 inside.

    x [..., K] (also [T, H, D] for per-head norms), weight [K] -> new tensor like x.
    """

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...


class AddRMSNorm(Protocol):
    """op `add_rms_norm`. r = residual + x, in place or not; returns (RMSNorm(r), r)."""

    def __call__(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]: ...


class ProjectionSums(Protocol):
    """op `projection_sums`. qkv [T, W] -> [T, 2] float32: the squares of a token's first `q_size`
    values added up, and of the `k_size` after them."""

    def __call__(self, qkv: Tensor, q_size: int, k_size: int) -> Tensor: ...


class ProjectionNorm(Protocol):
    """op `projection_norm`. RMSNorm of q and of k, each over all heads at once.

    qkv [T, W], of which q is the first `q_size` columns and k the `k_size` after them; weight
    [q_size + k_size] float32. `sums` [T, 2] float32 are those of `projection_sums` over all ranks,
    or None: then qkv is whole. Their means are over `counts`. Returns qkv with both normed, float32
    inside; qkv is consumed.
    """

    def __call__(
        self,
        qkv: Tensor,
        q_size: int,
        k_size: int,
        weight: Tensor,
        eps: float,
        sums: Tensor | None,
        counts: tuple[float, float],
    ) -> Tensor: ...


class RotaryEmbedding(Protocol):
    """op `rotary`. Rotates q [T, Hq, D] and k [T, Hk, D] in place by position; returns both.

    `cos_sin` [max_position, R] float32 holds cos then sin of R/2 angles; the first R channels
    are rotated, half-split (neox) or, with `interleaved`, in neighbouring pairs.
    """

    def __call__(
        self, q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool
    ) -> tuple[Tensor, Tensor]: ...


class ReshapeAndCache(Protocol):
    """op `reshape_and_cache`. Writes k, v [T, Hk, D] at `slot_mapping` [T]; slots < 0 are skipped.

    Caches are [B, bs, Hk, D] in the cache's dtype. A float8 cache holds k / k_scale and
    v / v_scale, clamped to the type's range; other caches take no scales (they must be 1).
    """

    def __call__(
        self,
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slot_mapping: Tensor,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> None: ...


class PagedAttention(Protocol):
    """op `paged_attention`. Causal attention of q [T, Hq, D] over the paged cache -> [T, Hq, D].

    One call serves prefill chunks, decodes and mixtures: the queries of sequence s are rows
    `cu_seqlens_q[s] : cu_seqlens_q[s+1]` and stand at its last positions, so query i of length
    ql sees keys `0 .. seq_len - ql + i`. `window` > 0 keeps only the last `window` keys, the
    query's own included. `sinks` [Hq] float32 joins the softmax's denominator. `soft_cap` > 0:
    cap*tanh(s/cap). Query head h reads KV head h // (Hq // Hk). Softmax in float32. Cached values
    are multiplied by `k_scale` and `v_scale`. Rows past `meta.num_tokens` are padding: anything.
    """

    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        meta: AttentionMetadata,
        scale: float,
        window: int = 0,
        sinks: Tensor | None = None,
        soft_cap: float = 0.0,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> Tensor: ...


@dataclass(slots=True)
class AttentionParams:
    """What does not change from step to step in an attention layer. Norms are per head."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    cos_sin: Tensor  # as of op `rotary`
    interleaved: bool = False
    q_norm: Tensor | None = None  # [D] RMS-norm weight of the query heads, before rotation
    k_norm: Tensor | None = None
    norm_eps: float = 0.0
    window: int = 0
    sinks: Tensor | None = None
    soft_cap: float = 0.0
    k_scale: float = 1.0
    v_scale: float = 1.0


class FusedAttention(Protocol):
    """op `attention`. From the QKV projection's output to attention's, optional to implement.

    qkv [T, Hq + 2 Hk, D]: heads of q, k, v. Norms q and k where there are weights, rotates them by
    `positions` [T], writes k and v at the step's slots, attends: [T, Hq, D], into `out` if given.
    The same as `rms_norm`, `rotary`, `reshape_and_cache` and `paged_attention` one after the other.
    qkv is consumed: it may be overwritten.
    """

    def __call__(
        self,
        qkv: Tensor,
        positions: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        meta: AttentionMetadata,
        params: AttentionParams,
        out: Tensor | None = None,
    ) -> Tensor: ...


class SiluAndMul(Protocol):
    """op `silu_and_mul`. x [T, 2I] -> silu(x[:, :I]) * x[:, I:]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class TopkRouting(Protocol):
    """op `topk_softmax`. logits [T, E] -> (weights [T, k] float32, ids [T, k] int32).

    Softmax over all experts, then the k largest; `renormalize` divides by their sum.
    """

    def __call__(self, logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen; op `topk_route`. Scores are `scoring` of the logits: "softmax" over
    all experts, "sigmoid", or "sqrt_softplus" (sqrt(log(1 + e^x))).

    With groups, only experts of the `top_groups` best groups are eligible; a group's score is the
    "max" of its experts' or the sum of its "top2". The choice, groups' included, goes by score plus
    correction bias; weights are the scores without it, divided by their sum if `renormalize`, then
    times `scale`.
    """

    scoring: str = "softmax"
    renormalize: bool = False
    num_groups: int = 1
    top_groups: int = 1
    group_score: str = "max"
    scale: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Op `topk_softmax` serves it, if there is no bias."""
        return self.scoring == "softmax" and self.num_groups == 1 and self.scale == 1.0


class TopkRoute(Protocol):
    """op `topk_route`. logits [T, E], bias [E] float32 or None -> (weights [T, k] float32, ids
    [T, k] int32), in float32 throughout."""

    def __call__(
        self, logits: Tensor, k: int, routing: Routing, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """What an MLP does with its gate and up halves.

    "silu": silu(gate) * up. "gpt_oss": (up + 1) * gate * sigmoid(1.702 gate). With `limit` > 0 gate
    is at most `limit` and up within +-`limit`, before anything else.
    """

    kind: str = "silu"
    limit: float = 0.0

    @property
    def is_plain(self) -> bool:
        return self == SILU


SILU = GatedActivation()


class FusedExperts(Protocol):
    """op `fused_experts`. sum_j w[t, j] * down_e(act(gate_e x, up_e x)), e = ids[t, j].

    x [T, K]; w13 [E, 2I, K] gate rows first; w2 [E, K, I]; ids local to the rank, -1 =
    elsewhere, which contributes zero. b13 [E, 2I] and b2 [E, K] are added to the products. Returns
    [T, K] in x's dtype. With the `weight_format` "mxfp4", w13 and w2 are MXFP4Weights. A query's
    `variant` is "" for plain SiLU without biases; "act" or "bias" or
    "act,bias" where the last three arguments are used, and only then are they given.
    """

    def __call__(
        self,
        x: Tensor,
        w13: Tensor | MXFP4Weight,
        w2: Tensor | MXFP4Weight,
        weights: Tensor,
        ids: Tensor,
        act: GatedActivation = SILU,
        b13: Tensor | None = None,
        b2: Tensor | None = None,
    ) -> Tensor: ...


class PackedExperts(Protocol):
    """Experts in the form their kernel wants: as `fused_experts`, without the weights."""

    @property
    def nbytes(self) -> int: ...

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor: ...


class PackingExperts(FusedExperts, Protocol):
    """A kernel of op `fused_experts` that would rather keep w13 and w2 in a form of its own. They
    may be let go afterwards."""

    def pack(
        self,
        w13: Tensor,
        w2: Tensor,
        act: GatedActivation,
        b13: Tensor | None,
        b2: Tensor | None,
    ) -> PackedExperts: ...


class SparseMoE(Protocol):
    """op `sparse_moe`. A mixture of experts from the norm before it on, optional to implement.

    r = x + residual (without one, x), rounded; y = RMSNorm(r) * norm_weight; logits y @ router.T
    choose as `topk_softmax` does; then `fused_experts`. x, residual [T, K]; router [E, K]; w13 and
    w2 as there. Returns (the experts' sum [T, K], r); r is a new tensor and no input is written.
    """

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        router: Tensor,
        w13: Tensor,
        w2: Tensor,
        top_k: int,
        renormalize: bool,
    ) -> tuple[Tensor, Tensor]: ...


OPS: dict[str, Any] = {
    "linear": PackLinear,
    "embedding": Embedding,
    "rms_norm": RMSNorm,
    "add_rms_norm": AddRMSNorm,
    "projection_sums": ProjectionSums,
    "projection_norm": ProjectionNorm,
    "rotary": RotaryEmbedding,
    "reshape_and_cache": ReshapeAndCache,
    "paged_attention": PagedAttention,
    "silu_and_mul": SiluAndMul,
    "topk_softmax": TopkRouting,
    "topk_route": TopkRoute,
    "fused_experts": FusedExperts,
}

# Operations that a caller composes of others where no backend has them.
FUSED_OPS: dict[str, Any] = {
    "attention": FusedAttention,
    "sparse_moe": SparseMoE,
}

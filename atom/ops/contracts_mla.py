"""Operations of multi-head latent attention (MLA: DeepSeek V2 and what follows it).

A token's keys and values of all heads are products of one latent vector with matrices that do not
depend on the token: k_h = [W_uk_h c; r], v_h = W_uv_h c, with c [R] (R = `kv_lora_rank`) and a
rotated part r [P] that the heads share. Only c and r are cached. Since q_h . k_h =
(W_uk_h^T q_h) . c + q_rope_h . r, attention can run over the latents themselves, all heads with one
key and value (`mla_attention`), or over keys and values that are made of them for the occasion.

Layout words beside those of `atom.ops.contracts`: H heads of the rank, N = `qk_nope_head_dim`,
P = `qk_rope_head_dim`, V = `v_head_dim`. A latent cache is [B, bs, R + P]: c, then r. In float8 it
holds the values themselves, clamped to the type's range.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from atom.ops.contracts import AttentionMetadata


class MLACache(Protocol):
    """op `mla_cache`. Makes the step's latents, writes them at its slots, and rotates the queries.

    q_rope [T, H, P] is rotated in place, in neighbouring pairs, by `cos_sin` [max_position, P]
    float32 (cos, then sin). kv [T, R + P] becomes what the cache holds, rounded to its type: the
    RMSNorm with `norm_weight` [R] of its first R channels, the rotation of the rest. Slots < 0 are
    skipped.
    """

    def __call__(
        self,
        q_rope: Tensor,
        kv: Tensor,
        positions: Tensor,
        norm_weight: Tensor,
        eps: float,
        cos_sin: Tensor,
        cache: Tensor,
        slot_mapping: Tensor,
    ) -> None: ...


class MLAAttention(Protocol):
    """op `mla_attention`. Causal attention of queries over the latents: -> [T, H, R].

    q_latent [T, H, R] and q_rope [T, H, P], already rotated, are dotted with c and r; the result is
    the weighted sum of c. Rows, masks and padding are as of `paged_attention`. Over some of the
    keys only: op `sparse_mla` of `atom.ops.contracts_sparse`.
    """

    def __call__(
        self,
        q_latent: Tensor,
        q_rope: Tensor,
        cache: Tensor,
        meta: AttentionMetadata,
        scale: float,
    ) -> Tensor: ...


class MLAPrefill(Protocol):
    """op `mla_prefill`. From rotated queries to values, optional to implement: -> `out` [T, H, V].

    q [T, H, N + P] and kv [T, R + P] are as `mla_cache` leaves them, which has written the step's
    latents; w_uk [H, N, R], w_uv [H, R, V]. The same as `mla_attention` of q_nope W_uk and q_rope,
    times W_uv, by fewer operations for steps of many tokens. Padding is as there.
    """

    def __call__(
        self,
        q: Tensor,
        kv: Tensor,
        cache: Tensor,
        w_uk: Tensor,
        w_uv: Tensor,
        meta: AttentionMetadata,
        scale: float,
        out: Tensor,
    ) -> Tensor: ...


MLA_OPS: dict[str, Any] = {"mla_cache": MLACache, "mla_attention": MLAAttention}
# Optional: what a caller composes of the others where no backend has it.
MLA_FUSED_OPS: dict[str, Any] = {"mla_prefill": MLAPrefill}

"""The operation of Gated DeltaNet layers (Qwen3-Next, Qwen3.5), stated once.

Layout words as in `contracts`; Hk key heads, Hv = r Hk value heads, Dk and Dv their sizes, K taps
of the convolution, C = 2 Hk Dk + Hv Dv its channels: all queries, all keys, all values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from atom.ops.contracts import AttentionMetadata

L2_EPS = 1e-6  # of the normalisation of queries and keys


@dataclass(slots=True)
class DeltaNetParams:
    """What does not change from step to step. Heads are the rank's own."""

    num_k_heads: int
    num_v_heads: int
    k_dim: int
    v_dim: int
    taps: int
    eps: float  # of the norm of the output
    conv_weight: Tensor  # [K, C] in the activations' dtype, the last tap is the token's own
    rate: Tensor  # [Hv] float32, exp(A_log)
    dt_bias: Tensor  # [Hv] float32
    norm_weight: Tensor  # [Dv] float32

    @property
    def qk_size(self) -> int:
        """Channels of all queries, or of all keys."""
        return self.num_k_heads * self.k_dim

    @property
    def v_size(self) -> int:
        return self.num_v_heads * self.v_dim

    @property
    def channels(self) -> int:
        return 2 * self.qk_size + self.v_size

    @property
    def width(self) -> int:
        """Columns of the projection: q, k, v, z, b, a."""
        return self.channels + self.v_size + 2 * self.num_v_heads


class GatedDeltaNet(Protocol):
    """op `gated_delta_net`. x [T, C + Hv Dv + 2 Hv], as projected -> [T, Hv Dv], into `out` if it
    is given. All in float32 inside.

    Columns of x are q, k, v (C together), z [Hv Dv], b [Hv], a [Hv]. With positions t of one
    sequence, h its value head and h // r the key head of that:

        y_t = silu(sum_j conv_weight[j] x_(t - K + 1 + j)), rounded to x's dtype; x_i = 0, i < 0
        q, k = y's, each divided by sqrt(its squares' sum + 1e-6); q by sqrt(Dk) too
        beta_t = sigmoid(b_t), g_t = exp(-rate softplus(a_t + dt_bias))
        S_t = g_t S_(t-1) (1 - beta_t k_t k_t^T) + beta_t v_t k_t^T    [Dv, Dk], S_(-1) = 0
        out_t = RMSNorm(S_t q_t) norm_weight silu(z_t)

    A sequence keeps two things in its slot `meta.state_slots[s]`: its last K inputs of the
    convolution, `conv_state` [slots, K, C] in x's dtype, of which row p % K holds position p, and
    `state` [slots, Hv, Dv, Dk] float32, S. (K rows, not K - 1: a step of one token then writes a
    row that it does not read, so that nothing of it needs an order.) Both are read as far as
    `seq_lens` less the query lengths says that anything was computed, and written. Slots below 0
    are neither. Rows past `meta.num_tokens` are padding: zero or anything finite.
    """

    def __call__(
        self,
        x: Tensor,
        conv_state: Tensor,
        state: Tensor,
        meta: AttentionMetadata,
        params: DeltaNetParams,
        out: Tensor | None = None,
    ) -> Tensor: ...


DELTA_OPS: dict[str, Any] = {"gated_delta_net": GatedDeltaNet}

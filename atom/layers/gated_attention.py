"""Grouped-query attention whose output is gated: out * sigmoid(gate), gate from the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from atom.layers.attention import Attention
from atom.layers.build import BuildContext
from atom.layers.linear import LinearBase, Part, RowParallelLinear
from atom.layers.norm import RMSNorm
from atom.layers.rotary import RotaryEmbedding
from atom.layers.rows import SampledRows
from atom.layers.weights import CheckpointTensor, WeightSlot, sibling


class GatedQKVLinear(LinearBase):
    """x [T, H] -> [T, q k v gate], the rank's heads of each; a gate is as wide as a query.

    The checkpoint's `q_proj` has, head by head, a query's rows and then its gate's.
    """

    def __init__(
        self,
        build: BuildContext,
        in_features: int,
        head_dim: int,
        num_heads: int,
        num_kv_heads: int,
        bias: bool = False,
    ) -> None:
        q = build.parallel.shard(num_heads, "num_attention_heads")
        kv = build.parallel.shard_heads(num_kv_heads)
        q_rows = slice(q.start * 2 * head_dim, q.stop * 2 * head_dim)
        kv_rows = slice(kv.start * head_dim, kv.stop * head_dim)
        parts = [
            Part("q_proj", 2 * num_heads * head_dim, q_rows),
            Part("k_proj", num_kv_heads * head_dim, kv_rows),
            Part("v_proj", num_kv_heads * head_dim, kv_rows),
            Part("", 0, q_rows),  # the gates, which come with q_proj
        ]
        super().__init__(build, in_features, parts, bias=bias)
        self.num_heads = q.stop - q.start
        self.num_kv_heads = kv.stop - kv.start
        self.head_dim = head_dim

    def slots(self, path: str) -> Iterator[WeightSlot]:
        for index, part in enumerate(self.parts[:3]):
            name = sibling(path, part.name)
            weight = (part.size, self.in_features)
            yield WeightSlot(f"{name}.weight", weight, partial(self._take, "weight", index))
            if self.has_bias:
                yield WeightSlot(f"{name}.bias", (part.size,), partial(self._take, "bias", index))

    def _take(self, leaf: str, index: int, tensor: CheckpointTensor) -> None:
        if index:
            super()._take(leaf, index, tensor)
            return
        rows = tensor.dense(self.parts[0].rows, *(slice(None),) * (len(tensor.shape) - 1))
        pairs = rows.view(self.num_heads, 2, self.head_dim, *rows.shape[1:])
        self._raw[leaf, 0] = pairs[:, 0].flatten(0, 1)
        self._raw[leaf, 3] = pairs[:, 1].flatten(0, 1)


class GatedAttention(nn.Module):
    """What stands in the place of attention: (positions, norm, x, residual) -> (out, residual).

    Queries and keys are normed per head, by weights that are 1 more than stored.
    """

    def __init__(
        self,
        build: BuildContext,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        rope: Mapping[str, Any],
        bias: bool = False,
    ) -> None:
        """`rope`: the keywords of `RotaryEmbedding`."""
        super().__init__()
        self.qkv_proj = GatedQKVLinear(build, hidden_size, head_dim, num_heads, num_kv_heads, bias)
        self.o_proj = RowParallelLinear(build, num_heads * head_dim, hidden_size, bias)
        self.q_norm = RMSNorm(build, head_dim, eps, offset=1.0)
        self.k_norm = RMSNorm(build, head_dim, eps, offset=1.0)
        q, kv = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.attn = Attention(
            build,
            q,
            kv,
            head_dim,
            rotary=RotaryEmbedding(build, head_dim, **rope),
            norms=(self.q_norm, self.k_norm),
        )
        self._gate = build.select("sigmoid_mul", N=q * head_dim)
        self.rows: SampledRows | None = None  # of the last block only
        self._heads = (-1, q + 2 * kv, head_dim)
        self._sizes = ((q + 2 * kv) * head_dim, q * head_dim)

    def forward(
        self, positions: Tensor, norm: RMSNorm, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        projected, residual = self.qkv_proj.after_norm(norm, x, residual)
        qkv, gate = projected.split_with_sizes(self._sizes, 1)
        out = self.attn(qkv.view(self._heads), positions).flatten(1)
        out = self._gate(out, gate)
        if self.rows is not None:
            out, residual = self.rows(out, residual)
        return self.o_proj(out), residual

    __call__ = forward

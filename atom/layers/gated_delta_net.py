"""Gated DeltaNet: linear attention whose memory is a matrix per head, not a cache per token.

Projections in and out are plain products; between them is one operation, `gated_delta_net`, whose
contract has the formulas. Heads are shared out by key head: a rank has its value heads whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from atom.layers.build import BuildContext
from atom.layers.caches import STATE, CacheSpec
from atom.layers.linear import LinearBase, Part, RowParallelLinear
from atom.layers.mixer import Mixer
from atom.layers.norm import RMSNorm
from atom.layers.rows import SampledRows
from atom.layers.weights import ALL, CheckpointTensor, WeightSlot, sibling
from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_delta import DeltaNetParams


class DeltaHeads(NamedTuple):
    """Counts and sizes of the whole layer."""

    num_k: int
    num_v: int
    k_dim: int
    v_dim: int
    taps: int  # of the convolution

    @property
    def qk_size(self) -> int:
        return self.num_k * self.k_dim

    @property
    def v_size(self) -> int:
        return self.num_v * self.v_dim

    @property
    def channels(self) -> int:
        return 2 * self.qk_size + self.v_size

    def shared(self, num_k: int) -> DeltaHeads:
        """With `num_k` of the key heads and their value heads."""
        return self._replace(num_k=num_k, num_v=num_k * (self.num_v // self.num_k))


def _times(heads: slice, size: int) -> slice:
    return slice(heads.start * size, heads.stop * size)


class DeltaShare(NamedTuple):
    """The rank's part of the heads, as rows of the checkpoint's tensors."""

    whole: DeltaHeads
    own: DeltaHeads
    k_heads: slice
    v_heads: slice

    @classmethod
    def of(cls, build: BuildContext, heads: DeltaHeads) -> DeltaShare:
        k = build.parallel.shard(heads.num_k, "linear_num_key_heads")
        v = _times(k, heads.num_v // heads.num_k)
        return cls(heads, heads.shared(k.stop - k.start), k, v)

    @property
    def channels(self) -> tuple[slice, slice, slice]:
        """Rows of q, k and v in a tensor that has all of each, one after the other."""
        q = _times(self.k_heads, self.whole.k_dim)
        v = _times(self.v_heads, self.whole.v_dim)
        size = self.whole.qk_size
        return q, _shifted(q, size), _shifted(v, 2 * size)


def _shifted(rows: slice, by: int) -> slice:
    return slice(rows.start + by, rows.stop + by)


class DeltaProjection(LinearBase):
    """x [T, H] -> [T, q k v z b a], all heads of the rank of each, in that order.

    `grouped`: the checkpoint has `in_proj_qkvz` and `in_proj_ba`, whose rows go by key head;
    otherwise `in_proj_qkv`, `in_proj_z`, `in_proj_b` and `in_proj_a`, which go by part.
    """

    def __init__(
        self, build: BuildContext, in_features: int, share: DeltaShare, grouped: bool
    ) -> None:
        whole, k, v = share.whole, share.k_heads, share.v_heads
        if grouped:
            wide, times = whole.channels + whole.v_size, whole.num_v // whole.num_k
            parts = [
                Part("in_proj_qkvz", wide, _times(k, wide // whole.num_k)),
                Part("in_proj_ba", 2 * whole.num_v, _times(k, 2 * times)),
            ]
        else:
            parts = [
                Part("in_proj_qkv", whole.channels, ALL),
                Part("in_proj_z", whole.v_size, _times(v, whole.v_dim)),
                Part("in_proj_b", whole.num_v, v),
                Part("in_proj_a", whole.num_v, v),
            ]
        super().__init__(build, in_features, parts)
        self._share = share
        self._grouped = grouped

    def _take(self, leaf: str, index: int, tensor: CheckpointTensor) -> None:
        own, name = self._share.own, self.parts[index].name
        if name == "in_proj_qkv":
            rows = torch.cat([tensor.dense(part, ALL) for part in self._share.channels])
        else:
            rows = tensor.dense(self.parts[index].rows, ALL)
        if self._grouped:
            times = own.num_v // own.num_k
            sizes = [own.k_dim] * 2 + [times * own.v_dim] * 2
            sizes = sizes if name == "in_proj_qkvz" else [times] * 2
            pieces = rows.view(own.num_k, sum(sizes), -1).split_with_sizes(sizes, 1)
            rows = torch.cat([piece.flatten(0, 1) for piece in pieces])
        self._raw[leaf, index] = rows


class DeltaMixer(Mixer):
    """inputs [x [T, width]], as projected -> [T, Hv Dv]. Has the weights between the projections:
    the convolution, the rates of decay, and the norm of the output."""

    conv_state: Tensor  # [slots, K, C] in the activations' dtype
    state: Tensor  # [slots, Hv, Dv, Dk] float32

    def __init__(self, build: BuildContext, share: DeltaShare, eps: float) -> None:
        super().__init__(build, share.own.v_size)
        self.build = build
        self.heads = own = share.own
        self._share = share
        self._eps = eps
        self._raw: dict[str, Tensor] = {}
        self._kernel: Any = build.select(
            "gated_delta_net",
            opaque=True,
            Hk=own.num_k,
            Hv=own.num_v,
            Dk=own.k_dim,
            Dv=own.v_dim,
            taps=own.taps,
        )

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        own = self.heads
        return (
            CacheSpec("conv_state", STATE, (own.taps, own.channels), self.build.dtype),
            CacheSpec("state", STATE, (own.num_v, own.v_dim, own.k_dim), torch.float32),
        )

    def run(
        self,
        inputs: list[Tensor],
        positions: Tensor,
        meta: AttentionMetadata,
        out: Tensor | None = None,
    ) -> Tensor:
        result: Tensor = self._kernel(
            inputs[0], self.conv_state, self.state, meta, self.params, out
        )
        return result

    def facts(self) -> dict[str, Any]:
        specs = self.cache_specs()
        heads = {"num_k_heads": self.heads.num_k, "num_v_heads": self.heads.num_v}
        sizes = {"k_dim": self.heads.k_dim, "v_dim": self.heads.v_dim, "taps": self.heads.taps}
        state = sum(spec.row_bytes for spec in specs)
        return {"kind": "delta_net", **heads, **sizes, "state_bytes": state}

    def slots(self, path: str) -> Iterator[WeightSlot]:
        whole = self._share.whole
        shapes = {
            "conv1d.weight": (whole.channels, 1, whole.taps),
            "A_log": (whole.num_v,),
            "dt_bias": (whole.num_v,),
            "norm.weight": (whole.v_dim,),
        }
        for name, shape in shapes.items():
            yield WeightSlot(sibling(path, name), shape, partial(self._take, name))

    def _take(self, name: str, tensor: CheckpointTensor) -> None:
        if name == "conv1d.weight":
            parts = [tensor.dense(rows, ALL, ALL) for rows in self._share.channels]
            weight = torch.cat(parts)[:, 0].t().contiguous()
            self._raw[name] = weight.to(self.build.device, self.build.dtype)
            return
        rows = ALL if name == "norm.weight" else self._share.v_heads
        self._raw[name] = tensor.dense(rows).to(self.build.device, torch.float32)

    def finish(self) -> None:
        own, raw = self.heads, self._raw
        self.params = DeltaNetParams(
            num_k_heads=own.num_k,
            num_v_heads=own.num_v,
            k_dim=own.k_dim,
            v_dim=own.v_dim,
            taps=own.taps,
            eps=self._eps,
            conv_weight=raw["conv1d.weight"],
            rate=raw["A_log"].exp(),
            dt_bias=raw["dt_bias"],
            norm_weight=raw["norm.weight"],
        )

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._raw.values())


class GatedDeltaNet(nn.Module):
    """What stands in the place of attention: (positions, norm, x, residual) -> (out, residual)."""

    def __init__(
        self,
        build: BuildContext,
        *,
        hidden_size: int,
        heads: DeltaHeads,
        eps: float,
        grouped: bool,
    ) -> None:
        super().__init__()
        share = DeltaShare.of(build, heads)
        self.in_proj = DeltaProjection(build, hidden_size, share, grouped)
        self.mixer = DeltaMixer(build, share, eps)
        self.out_proj = RowParallelLinear(build, heads.v_size, hidden_size)
        self.rows: SampledRows | None = None  # of the last block only

    def forward(
        self, positions: Tensor, norm: RMSNorm, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        projected, residual = self.in_proj.after_norm(norm, x, residual)
        out = self.mixer([projected], positions)
        if self.rows is not None:
            out, residual = self.rows(out, residual)
        return self.out_proj(out), residual

    __call__ = forward

"""Hyper-connections: several residual streams, mixed by coefficients that depend on them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.norm import RMSNorm
from atom.layers.weights import CheckpointTensor, Layer, WeightSlot
from atom.ops.contracts_v4 import HyperWeights, Pending


class Streams(NamedTuple):
    """The residual streams [T, N, H], and a layer's output that is still to be added to them."""

    values: Tensor
    pending: Pending | None = None


class HyperConnection(Layer):
    """Streams -> (a layer's normed input [T, H], streams, post, comb) as of op `hyper_mix`.

    The checkpoint's tensors are named after the layer's path: `<path>_fn`, `_base` and `_scale`.
    `head`: before the output head, where the streams only collapse.
    """

    weights: HyperWeights

    def __init__(
        self,
        build: BuildContext,
        norm: RMSNorm,
        streams: int,
        *,
        eps: float,
        iterations: int,
        head: bool = False,
    ) -> None:
        super().__init__()
        self.build = build
        self.eps, self.iterations = eps, iterations
        count = streams if head else streams * (2 + streams)
        self._shapes = {
            "fn": (count, streams * norm.size),
            "base": (count,),
            "scale": (1 if head else 3,),
        }
        self._norm = (norm,)  # in a tuple: a submodule of the layer above
        self._loaded: dict[str, Tensor] = {}
        self._mix = build.select("hyper_mix", N=streams, K=norm.size, M=count)

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        out: tuple[Tensor, Tensor, Tensor | None, Tensor | None] = self._mix(
            streams.values, streams.pending, self.weights
        )
        return out

    __call__ = forward

    def slots(self, path: str) -> Iterator[WeightSlot]:
        for what, shape in self._shapes.items():
            yield WeightSlot(f"{path}_{what}", shape, partial(self._take, what))

    def _take(self, what: str, tensor: CheckpointTensor) -> None:
        value = tensor.dense(*(slice(None),) * len(tensor.shape))
        self._loaded[what] = value.to(self.build.device, torch.float32)

    def finish(self) -> None:
        norm = self._norm[0]
        self.weights = HyperWeights(
            fn=self._loaded.pop("fn"),
            base=self._loaded.pop("base"),
            scale=self._loaded.pop("scale"),
            eps=norm.eps,
            hyper_eps=self.eps,
            iterations=self.iterations,
            norm=norm.weight,
        )

    @property
    def weight_bytes(self) -> int:
        held = self.weights
        return held.fn.nbytes + held.base.nbytes + held.scale.nbytes

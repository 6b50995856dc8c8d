"""Experts in MXFP4, as OpenAI published GPT-OSS: packed where a kernel multiplies from that."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from atom.errors import ModelError
from atom.layers.build import BuildContext, dtype_name
from atom.layers.moe_interleaved import InterleavedExperts, deinterleaved
from atom.layers.weights import ALL, CheckpointTensor, WeightSlot
from atom.ops.contracts import GatedActivation, MXFP4Weight, Routing
from atom.ops.reference.mxfp4 import GROUP, dequantize, pack

logger = logging.getLogger(__name__)


class MXFP4Experts(InterleavedExperts):
    """`InterleavedExperts` of `gate_up_proj_blocks` [E, 2I, K / 32, 16] with `_scales`
    [E, 2I, K / 32], and `down_proj_blocks` [E, K, I / 32, 16] with `_scales`, all bytes.

    Ranks share out whole groups of I, some one more than others.
    """

    def __init__(
        self,
        build: BuildContext,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        routing: Routing,
        act: GatedActivation,
    ) -> None:
        for name, size in (("hidden_size", hidden_size), ("intermediate_size", intermediate_size)):
            if size % GROUP:
                raise ModelError(
                    f"{name} {size} is not a multiple of {GROUP}, the values of a group of MXFP4"
                )
        super().__init__(
            build,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_experts=num_experts,
            top_k=top_k,
            routing=routing,
            act=act,
        )
        _, backend = self._choose("mxfp4")
        self.keeps_packed = build.keep_packed and backend != "reference"
        if not self.keeps_packed:
            _say_dense(dtype_name(build.storage_dtype(torch.bfloat16)))
        self._raw: dict[tuple[str, str], Tensor] = {}

    def _part(self, build: BuildContext, size: int) -> slice:
        groups, parallel = size // GROUP, build.parallel
        if groups < parallel.tp_size:
            raise ModelError(
                f"tensor_parallel_size {parallel.tp_size} is more than the {groups} groups of "
                f"{GROUP} values of intermediate_size {size}: choose a smaller one"
            )
        each, more = divmod(groups, parallel.tp_size)
        first = parallel.tp_rank * each + min(parallel.tp_rank, more)
        return slice(first * GROUP, (first + each + (parallel.tp_rank < more)) * GROUP)

    def slots(self, path: str) -> Iterator[WeightSlot]:
        count, wide, hidden = self.num_experts, self.intermediate_size, self.hidden_size
        sizes = {"gate_up_proj": (2 * wide, hidden), "down_proj": (hidden, wide)}
        for name, (rows, cols) in sizes.items():
            shape = (count, rows, cols // GROUP)
            blocks, scales = f"{path}.{name}_blocks", f"{path}.{name}_scales"
            yield WeightSlot(blocks, (*shape, GROUP // 2), partial(self._take_bytes, name, "data"))
            yield WeightSlot(scales, shape, partial(self._take_bytes, name, "scales"))
        for slot in super().slots(path):
            if slot.name.endswith("_bias"):
                yield slot

    def _take_bytes(self, name: str, what: str, tensor: CheckpointTensor) -> None:
        """One of a pair; with the second, the weight is made and both are let go."""
        groups = slice(self.share.start // GROUP, self.share.stop // GROUP)
        rows, cols = (self._pairs, ALL) if name == "gate_up_proj" else (ALL, groups)
        last = (ALL,) if what == "data" else ()
        self._raw[name, what] = tensor.packed(ALL, rows, cols, *last).to(self.build.device)
        if {(name, "data"), (name, "scales")} <= set(self._raw):
            blocks, scales = self._raw.pop((name, "data")), self._raw.pop((name, "scales"))
            if name == "gate_up_proj":
                blocks, scales = deinterleaved(blocks), deinterleaved(scales)
            self._keep(name, pack(blocks, scales))

    def _keep(self, name: str, weight: MXFP4Weight) -> None:
        if not self.keeps_packed:
            dense = self.build.storage_dtype(torch.bfloat16)
            kinds = ("gate", "up") if name == "gate_up_proj" else ("down",)
            for expert in range(self.num_experts):  # one at a time: they are many
                values = dequantize(weight.data[expert], weight.scales[expert])
                for kind, rows in zip(kinds, values.chunk(len(kinds)), strict=True):
                    self._target(kind, dense)[expert].copy_(rows)
        elif name == "gate_up_proj":
            self.w13 = weight
        else:
            self.w2 = weight


@functools.cache
def _say_dense(dtype: str) -> None:
    """Once: what memory the operator must reckon with."""
    logger.warning(
        "MXFP4 experts are dequantised to %s when they are loaded, which takes %s times their size:"
        " no kernel here multiplies from MXFP4",
        dtype,
        {"float32": 7.5}.get(dtype, 3.8),
    )

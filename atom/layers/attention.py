"""Attention over the paged cache. The runner assigns `k_cache` and `v_cache`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from atom.errors import ModelError
from atom.layers import custom_ops
from atom.layers.build import BuildContext
from atom.layers.caches import FULL, WINDOW, CacheSpec
from atom.layers.context import forward_context
from atom.layers.norm import RMSNorm
from atom.layers.rotary import RotaryEmbedding
from atom.layers.weights import CheckpointTensor, Layer, WeightSlot, sibling
from atom.ops.contracts import AttentionMetadata, AttentionParams

# Where checkpoints keep the scales of a float8 cache, within the attention block, and of what.
SCALES: tuple[tuple[str, str], ...] = (
    ("attn.k_scale", "k"),
    ("attn.v_scale", "v"),
    ("k_scale", "k"),
    ("v_scale", "v"),
    ("k_proj.k_scale", "k"),
    ("v_proj.v_scale", "v"),
    ("k_proj.output_scale", "k"),
    ("v_proj.output_scale", "v"),
    ("kv_scale", "kv"),
)


class Attention(Layer):
    """qkv [T, Hq + 2 Hk, D], as projected -> [T, Hq, D]; k and v go into the cache.

    q and k are normed per head where there are `norms`, and rotated. `window` > 0: only the last
    `window` keys are seen. `sinks`: the checkpoint has a logit per query head that joins the
    softmax's denominator. Heads are the rank's own.
    """

    k_cache: Tensor  # [B, block_size, Hk, D] of kv_dtype
    v_cache: Tensor

    def __init__(
        self,
        build: BuildContext,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        rotary: RotaryEmbedding,
        norms: tuple[RMSNorm, RMSNorm] | None = None,
        window: int = 0,
        sinks: bool = False,
    ) -> None:
        super().__init__()
        self.build = build
        self.sinks: Tensor | None = None  # [Hq] float32
        self._has_sinks = sinks
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.window = window
        self.k_scale = self.v_scale = 1.0
        self.kv_dtype: torch.dtype = build.kv_dtype
        self.block_size = build.block_size
        self._rotary = rotary
        self._norms = norms  # in a tuple: submodules of the layer above, not of this one
        self._split = (num_heads, num_kv_heads, num_kv_heads)
        self._params: AttentionParams | None = None
        self._select(build)
        self._handle = custom_ops.remember(self) if build.traceable else ""

    def _select(self, build: BuildContext) -> None:
        """One kernel for everything, or one for each part. All are behind the custom operator."""
        q, kv, dim, size = self.num_heads, self.num_kv_heads, self.head_dim, build.block_size
        rotated, interleaved = self._rotary.size, int(self._rotary.interleaved)
        choose = partial(build.select, kv=True, opaque=True, Hk=kv, D=dim, bs=size)
        self._fused = build.fused(
            "attention",
            kv=True,
            opaque=True,
            Hq=q,
            Hk=kv,
            D=dim,
            bs=size,
            window=self.window,
            R=rotated,
            interleaved=interleaved,
        )
        if self._fused is None:
            self._write = choose("reshape_and_cache")
            self._attend = choose("paged_attention", Hq=q, window=self.window)

    def slots(self, path: str) -> Iterator[WeightSlot]:
        """Sinks; scales, where the checkpoint has them: without, they are 1."""
        if self._has_sinks:
            heads = self.num_heads * self.build.parallel.tp_size
            yield WeightSlot(sibling(path, "sinks"), (heads,), self._take_sinks)
        for name, scaled in SCALES:
            load = partial(self._take_scale, scaled)
            yield WeightSlot(sibling(path, name), (), load, required=False)

    def _take_sinks(self, tensor: CheckpointTensor) -> None:
        first = self.num_heads * self.build.parallel.tp_rank
        own = tensor.dense(slice(first, first + self.num_heads))
        self.sinks = own.to(self.build.device, torch.float32)

    def _take_scale(self, scaled: str, tensor: CheckpointTensor) -> None:
        value = tensor.read()
        assert isinstance(value, Tensor), "a scale is never packed"
        scale = float(value)
        if not 0 < scale < math.inf:
            raise ModelError(f"{tensor.name} must be a finite number above 0, got {scale}")
        if self.kv_dtype != torch.float8_e4m3fn:
            return  # other caches hold the values themselves
        if "k" in scaled:
            self.k_scale = scale
        if "v" in scaled:
            self.v_scale = scale

    def finish(self) -> None:
        """Nothing to pack."""

    @property
    def weight_bytes(self) -> int:
        return 0 if self.sinks is None else self.sinks.nbytes

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        shape = (self.block_size, self.num_kv_heads, self.head_dim)
        kind = WINDOW if self.window else FULL
        return tuple(
            CacheSpec(name, kind, shape, self.kv_dtype, self.window)
            for name in ("k_cache", "v_cache")
        )

    def forward(self, qkv: Tensor, positions: Tensor) -> Tensor:
        if self._handle:
            out: Tensor = torch.ops.atom.attention(qkv, positions, self.num_heads, self._handle)
            return out
        return self.step(qkv, positions)

    __call__ = forward

    def step(self, qkv: Tensor, positions: Tensor) -> Tensor:
        """What happens behind the custom operator, or without one."""
        context = forward_context()
        if context.around_attention is not None:
            return context.around_attention(self, qkv, positions)
        return self.run(qkv, positions, context.attention)

    def run(
        self, qkv: Tensor, positions: Tensor, meta: AttentionMetadata, out: Tensor | None = None
    ) -> Tensor:
        """Attention itself, into `out` [T, Hq, D] if it is given."""
        if self.window and meta.window is not None:
            meta = meta.window
        if self._fused is not None:
            result: Tensor = self._fused(
                qkv, positions, self.k_cache, self.v_cache, meta, self.params, out
            )
            return result
        result = self._compose(qkv, positions, meta)
        return result if out is None else out.copy_(result)

    def _compose(self, qkv: Tensor, positions: Tensor, meta: AttentionMetadata) -> Tensor:
        q, k, v = qkv.split_with_sizes(self._split, 1)
        if self._norms is not None:
            q, k = self._norms[0](q), self._norms[1](k)
        q, k = self._rotary(q, k, positions)
        scales = (self.k_scale, self.v_scale)
        self._write(k, v, self.k_cache, self.v_cache, meta.slot_mapping, *scales)
        out: Tensor = self._attend(
            q, self.k_cache, self.v_cache, meta, self.scale, self.window, self.sinks, 0.0, *scales
        )
        return out

    @property
    def params(self) -> AttentionParams:
        """Known once the weights are loaded."""
        if self._params is None:
            norms = self._norms
            self._params = AttentionParams(
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                scale=self.scale,
                cos_sin=self._rotary.cos_sin,
                interleaved=self._rotary.interleaved,
                q_norm=None if norms is None else norms[0].weight,
                k_norm=None if norms is None else norms[1].weight,
                norm_eps=0.0 if norms is None else norms[0].eps,
                window=self.window,
                sinks=self.sinks,
                k_scale=self.k_scale,
                v_scale=self.v_scale,
            )
        return self._params

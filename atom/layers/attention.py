"""Attention over the paged cache. The runner assigns `k_cache` and `v_cache`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atom.layers import custom_ops
from atom.layers.build import BuildContext
from atom.layers.context import forward_context


class Attention(nn.Module):
    """q [T, Hq, D], k and v [T, Hk, D] (rotated) -> [T, Hq, D]; k and v go into the cache.

    `window` > 0: only the last `window` keys are seen. Heads are the rank's own.
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
        window: int = 0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.window = window
        self.kv_dtype: torch.dtype = build.kv_dtype
        self._write = build.select(
            "reshape_and_cache",
            kv=True,
            opaque=True,
            Hk=num_kv_heads,
            D=head_dim,
            bs=build.block_size,
        )
        self._attend = build.select(
            "paged_attention",
            kv=True,
            opaque=True,
            Hq=num_heads,
            Hk=num_kv_heads,
            D=head_dim,
            bs=build.block_size,
            window=window,
        )
        self._handle = custom_ops.remember(self) if build.traceable else ""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._handle:
            out: Tensor = torch.ops.atom.attention(q, k, v, self._handle)
            return out
        return self.run(q, k, v)

    __call__ = forward

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What happens behind the custom operator, or without one."""
        meta = forward_context().attention
        self._write(k, v, self.k_cache, self.v_cache, meta.slot_mapping)
        out: Tensor = self._attend(q, self.k_cache, self.v_cache, meta, self.scale, self.window)
        return out

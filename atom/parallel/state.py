"""Where this rank stands among those that share every layer, and what they do together.

Every method is the identity at size 1, so a layer is written once for any size.

The ranks are those of the default process group. It is not held here: its threads end with the last
reference, and a thread of gloo that still lets go of a tensor while the interpreter finishes would
abort the process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from atom.errors import ModelError


@dataclass(frozen=True, slots=True)
class ParallelState:
    tp_rank: int = 0
    tp_size: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.tp_rank < self.tp_size, (self.tp_rank, self.tp_size)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.tp_size > 1:
            dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """[..., N] of each rank -> [..., tp_size * N], in rank order."""
        if self.tp_size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.tp_size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=-1)

    def shard(self, size: int, what: str) -> slice:
        """This rank's equal share of `size` things; `what` names them if they do not divide."""
        if size % self.tp_size:
            raise ModelError(
                f"tensor_parallel_size {self.tp_size} does not divide {what} = {size}: "
                "choose a size that does"
            )
        share = size // self.tp_size
        return slice(self.tp_rank * share, (self.tp_rank + 1) * share)

    def shard_heads(self, num_kv_heads: int) -> slice:
        """This rank's KV heads: an equal share, or one head that several ranks hold a copy of."""
        if num_kv_heads % self.tp_size == 0:
            return self.shard(num_kv_heads, "num_key_value_heads")
        if self.tp_size % num_kv_heads:
            raise ModelError(
                f"tensor_parallel_size {self.tp_size} neither divides nor is a multiple of "
                f"num_key_value_heads = {num_kv_heads}: choose a size that is"
            )
        head = self.tp_rank // (self.tp_size // num_kv_heads)
        return slice(head, head + 1)


SINGLE = ParallelState()

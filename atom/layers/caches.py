"""What a layer keeps between steps, declared by the layer and held by the runner.

| kind | one tensor row per | lives |
|---|---|---|
| `full` | block of `block_size` tokens | as long as its sequence, and in the prefix cache |
| `window` | block of `block_size` tokens | until no later token sees any of the block's |
| `state` | sequence (a slot) | as long as its sequence; copied at some block boundaries |

Latent, index and compressed caches are `full` ones of other shapes. All `full` caches of a model
share one block table, all `window` caches another one; a window's table has the same places
(position // block_size), of which those before the window hold stale ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FULL, WINDOW, STATE = "full", "window", "state"


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """The runner makes a tensor [blocks or slots, *shape] and assigns it to the layer's `name`.

    `window`: tokens that the last one sees, itself included (kind `window` only). A state's content
    is undefined when a sequence begins: a layer takes it for zero where nothing is computed yet.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    window: int = 0

    def __post_init__(self) -> None:
        assert self.kind in (FULL, WINDOW, STATE), self.kind
        assert (self.window > 0) == (self.kind == WINDOW), (self.kind, self.window)

    @property
    def row_bytes(self) -> int:
        """Bytes of one block or slot."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count

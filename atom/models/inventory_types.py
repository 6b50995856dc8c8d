"""What an inventory is made of."""

from __future__ import annotations

import math
from typing import NamedTuple

ALL = 1 << 30  # ways: by as many ranks as there are

# Groups of a report.
EMBEDDING, ATTENTION, MLP, EXPERTS, NORM = "embeddings", "attention", "mlp", "experts", "norms"
COPY = "copies"  # of embedding and head, which a model that holds the originals does not read


class Tensors(NamedTuple):
    """`number` tensors of one shape; `{}` in the name stands for their numbers.

    `ways`: most ranks that share one (1: each rank has it whole). `dtype`: where it is not the
    checkpoint's. `linear`: a matrix [N, K] that quantised checkpoints store quantised.
    """

    name: str
    shape: tuple[int, ...]
    ways: int
    group: str
    number: int = 1
    dtype: str = ""
    linear: bool = False

    @property
    def parameters(self) -> int:
        return self.number * math.prod(self.shape)

    def share(self, ranks: int) -> int:
        """Ranks over which it is spread."""
        return min(ranks, self.ways)


# Kinds of caches, for people; what lives how long is the first word of `CacheNeed.lives`.
TOKEN, WINDOW, SEQUENCE = "token", "window", "sequence"


class CacheNeed(NamedTuple):
    """`values` numbers of one layer for each token, token of the window, or sequence (`lives`).

    One entry for every `ratio` tokens; of a block, the values of at most `kept` tokens (0: all).
    `dtype`: "kv", "model" or "float32".
    """

    name: str
    lives: str
    values: int
    ways: int = 1
    dtype: str = "kv"
    window: int = 0
    ratio: int = 1
    kept: int = 0
    layers: int = 1

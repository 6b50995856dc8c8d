"""What a sampler is told of one row of logits, as 32 bytes that hosts and devices both read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# How a row's token is found. Each kind does all that the ones before it do.
GREEDY, PLAIN, FLOORED, SEARCHED = range(4)  # argmax; a draw; with min_p; with top_k or top_p

ROW = np.dtype(
    [
        ("temperature", "<f4"),
        ("top_p", "<f4"),  # 1: off
        ("min_p", "<f4"),  # 0: off
        ("top_k", "<i4"),  # 0: off
        ("key", "<u8"),  # of the row's seed
        ("position", "<i4"),  # of the token that is drawn
        ("kind", "<i4"),
    ]
)
WORDS = ROW.itemsize // 4


class Kinds(NamedTuple):
    """What there is among some rows, so that what nobody needs is not launched."""

    floored: bool  # a row of that kind
    searched: bool
    open_top_p: bool  # a row with top_p and no top_k
    max_top_k: int


def kinds_of(rows: NDArray[Any]) -> Kinds:
    """rows [L] of `ROW`."""
    kind, top_k = rows["kind"], rows["top_k"]
    searched = kind == SEARCHED
    return Kinds(
        floored=bool((kind == FLOORED).any()),
        searched=bool(searched.any()),
        open_top_p=bool((searched & (top_k == 0)).any()),
        max_top_k=int(top_k.max(initial=0)),
    )

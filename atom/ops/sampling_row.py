"""What a sampler is told of one row of logits, as 32 bytes that hosts and devices both read."""

from __future__ import annotations

import numpy as np

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

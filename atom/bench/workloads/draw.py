"""Randomness that depends on a key alone: a seed, a purpose, a number.

There is no generator with a state: what job 7 draws is the same whether jobs 0 to 6 were made
before or not, in any process, on any Python. The bits are those of SHAKE-128 over the key's text.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DOMAIN = "atom-bench/1"  # raised if ever what a key means changes


def bits(count: int, *key: object) -> bytes:
    """`count` bytes that belong to `key`, whose parts are told apart by their text."""
    text = "/".join((_DOMAIN, *map(str, key)))
    return hashlib.shake_128(text.encode()).digest(count)


def integer(low: int, high: int, *key: object) -> int:
    """A whole number from `low` to `high`, both included."""
    assert low <= high, (low, high)
    if low == high:
        return low
    # 128 bits: the unevenness of the modulo is below 2**-64 for any span in use.
    return low + int.from_bytes(bits(16, *key), "little") % (high - low + 1)


def uniforms(count: int, *key: object) -> NDArray[np.float64]:
    """[count] numbers in the open interval (0, 1)."""
    import numpy as np

    raw = np.frombuffer(bits(8 * count, *key), dtype="<u8")
    # 52 bits and a half: with 53 the largest would round to 1.
    numbers: NDArray[np.float64] = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return numbers


def indices(count: int, size: int, *key: object) -> NDArray[np.int64]:
    """[count] whole numbers in [0, size), drawn with replacement; `size` < 2**31."""
    import numpy as np

    raw = np.frombuffer(bits(4 * count, *key), dtype="<u4").astype(np.uint64)
    numbers: NDArray[np.int64] = ((raw * np.uint64(size)) >> np.uint64(32)).astype(np.int64)
    return numbers


def permutation(size: int, *key: object) -> NDArray[np.int64]:
    """The numbers 0 to size - 1 in an order of the key's own."""
    import numpy as np

    raw = np.frombuffer(bits(8 * size, *key), dtype="<u8")
    return np.argsort(raw, kind="stable").astype(np.int64)

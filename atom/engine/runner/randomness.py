"""Randomness of the sampler: a pure function of a request's seed and a token's position.

Nothing is drawn from a generator, so a token does not depend on which requests share its batch,
on their order, on the schedule or on the device: the hash is computed on the host and only its
result travels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL_1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S24 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(24)
_SCALE = 2.0**-40


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: a bijection of 64 bits in which every input bit matters."""
    x = (x ^ (x >> _S30)) * _MUL_1
    x = (x ^ (x >> _S27)) * _MUL_2
    mixed: NDArray[np.uint64] = x ^ (x >> _S31)
    return mixed


def keys(seeds: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One key per seed [n] int64, negative ones included; neighbouring seeds share nothing."""
    return _mix(seeds.view(np.uint64) + _GOLDEN)


def uniforms(keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] float64 in the open interval (0, 1), one per key and position, in steps of 2**-40.

    40 bits leave room below 1.0: `u * total < total` holds in float64 for every total.
    """
    bits = _mix(keys + (positions.view(np.uint64) + np.uint64(1)) * _GOLDEN) >> _S24
    drawn: NDArray[np.float64] = (bits.astype(np.float64) + 0.5) * _SCALE
    return drawn

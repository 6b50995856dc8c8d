"""Student's quantile and the interval of a share, for every room that states an uncertainty."""

from __future__ import annotations

import math


def t_quantile(p: float, df: float) -> float:
    """Of Student's distribution; of the normal one where `df` is infinite."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(p) if math.isinf(df) else stdtrit(df, p))


def wilson(share: float, count: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a binomial share (E. B. Wilson, 1927). It holds the share."""
    z2 = t_quantile(0.5 + confidence / 2, math.inf) ** 2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = z2 * (share * (1 - share) / count + z2 / (4 * count**2))
    half = math.sqrt(spread) / (1 + z2 / count)
    # Rounding must not exclude a share of exactly 0 or 1.
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)

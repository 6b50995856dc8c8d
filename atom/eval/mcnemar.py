"""The statistics of two evaluations on the same questions: paired tests, intervals, power.

Owns numbers only. Of n questions, `lost` are those that A answered right and B wrong, `won` the
other way round; questions on which both agree say nothing about a difference. Sources: McNemar
(1947); its exact and mid-p forms, Fagerland, Lydersen and Laake (2013); the interval of a
difference of paired shares, Tango (1998); the power of McNemar's test, Miettinen (1968), here by
summing binomial probabilities instead of his approximation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from atom.bench.compare.stats import Estimate
from atom.bench.quantiles import t_quantile

ALPHA = 0.05
POWER = 0.8
_STEPS = 60  # of a bisection: far below the width of a double


class Counts(NamedTuple):
    """How n questions were answered by A and B."""

    both: int  # right in both
    lost: int  # right in A, wrong in B
    won: int  # wrong in A, right in B
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.lost + self.won + self.neither

    @property
    def difference(self) -> float:
        """B's share of right answers less A's."""
        return (self.won - self.lost) / self.n


def exact_p(lost: int, won: int) -> float:
    """Two-sided: how likely a split at least so uneven is where both ways are equally likely."""
    from scipy.special import bdtr

    if lost == won:
        return 1.0
    return min(1.0, 2.0 * float(bdtr(min(lost, won), lost + won, 0.5)))


def mid_p(lost: int, won: int) -> float:
    """`exact_p` with half the probability of what was seen: less conservative, rarely too bold."""
    if lost == won:
        return 1.0
    count = lost + won
    log_seen = (
        math.lgamma(count + 1)
        - math.lgamma(lost + 1)
        - math.lgamma(won + 1)
        - count * math.log(2.0)
    )
    return exact_p(lost, won) - math.exp(log_seen)


def difference_interval(counts: Counts, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval of B's share less A's; sound with few or no discordant pairs."""
    z = t_quantile(0.5 + confidence / 2, math.inf)
    seen = counts.difference
    low = _root(lambda d: _score(counts, d) - z, -1.0, seen)
    high = _root(lambda d: _score(counts, d) + z, seen, 1.0)
    return low, high


def _score(counts: Counts, difference: float) -> float:
    """Standardised distance of what was seen from `difference`; it falls as that grows."""
    n, won, lost = counts.n, counts.won, counts.lost
    distance = won - lost - n * difference
    if abs(distance) < 1e-9 * n:
        return 0.0
    # The likeliest share of lost questions, given the difference: a root of a quadratic.
    linear = -won - lost + (2 * n - won + lost) * difference
    constant = -lost * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    share = max(0.0, (root - linear) / (4 * n))
    variance = n * (2 * share + difference * (1 - difference))
    if variance <= 0:
        return math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero; an end where it does not within."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def power(n: int, discordant: float, difference: float, alpha: float = ALPHA) -> float:
    """How likely the exact test finds a true `difference` (>= 0) of the two shares.

    `discordant`: the share of questions on which the runs disagree, at least `difference`.
    """
    from scipy.stats import binom

    assert 0 <= difference <= discordant <= 1, (difference, discordant)
    counts, weights = _likely(n, discordant)
    critical = _critical(counts, alpha)
    split = 0.5 + difference / discordant / 2 if discordant else 0.5
    found = binom.cdf(critical, counts, split) + binom.cdf(critical, counts, 1 - split)
    return float((weights * found)[critical >= 0].sum())


def smallest_difference(n: int, discordant: float, alpha: float = ALPHA) -> float | None:
    """The least true difference that n questions show in four of five cases; None: none at all.

    `discordant` as it was seen; a difference beyond it makes that many questions discordant.
    """
    if power(n, 1.0, 1.0, alpha) < POWER:
        return None
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if power(n, max(discordant, middle), middle, alpha) < POWER:
            low = middle
        else:
            high = middle
    return high


def _likely(n: int, share: float) -> tuple[Any, Any]:
    """The numbers of discordant questions that may be met, and how likely each is."""
    import numpy as np
    from scipy.stats import binom

    reach = 8 * math.sqrt(n * share * (1 - share)) + 8
    low, high = max(0, math.floor(n * share - reach)), min(n, math.ceil(n * share + reach))
    counts = np.arange(low, high + 1)
    return counts, binom.pmf(counts, n, share)


def _critical(counts: Any, alpha: float) -> Any:
    """The largest smaller side at which the exact test rejects; -1: it never does."""
    from scipy.stats import binom

    found = binom.ppf(alpha / 2, counts, 0.5)
    return found - (2 * binom.cdf(found, counts, 0.5) > alpha)


def paired_mean(differences: Sequence[float]) -> Estimate:
    """The mean difference of questions with a score each, with Student's t; two at least."""
    n = len(differences)
    assert n >= 2, n
    error = statistics.stdev(differences) / math.sqrt(n)
    return Estimate(statistics.fmean(differences), error, n - 1.0)


def smallest_mean(error: float, alpha: float = ALPHA) -> float:
    """The same for a mean whose standard error is known: normal approximation."""
    both = t_quantile(1 - alpha / 2, math.inf) + t_quantile(POWER, math.inf)
    return both * error

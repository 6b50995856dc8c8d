"""From values of samples to scores: lm-eval's aggregation, its standard errors, intervals of 95 %.

Standard errors are lm-eval's. Where it resamples (Efron's bootstrap), perplexity's error comes from
the very same resamples, computed all at once; other such metrics take the first thousand of them.
"""

from __future__ import annotations

import math
import numbers
import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from atom.bench.quantiles import t_quantile, wilson
from atom.eval.types import Score

_CONFIDENCE = 0.95
_CHUNK = 1000  # resamples of one seed, in lm-eval
_SLOW_RESAMPLES = 1000  # of metrics that are computed anew for each
_TEXT_RESAMPLES = 100  # of BLEU and its like, as in lm-eval
_BLOCK = 1 << 20  # random numbers at a time
_TEXT_METRICS = ("bleu", "chrf", "chrfpp", "ter")
_RESAMPLED = ("median", "matthews_corrcoef", "f1_score", "nanmean", *_TEXT_METRICS)


def task_scores(
    task: Any, raw: Mapping[tuple[str, str], Sequence[Any]], iterations: int, notes: list[str]
) -> dict[str, Score]:
    """`raw`: the values of each (metric, filter) over the samples. Names as in "acc,none"."""
    from lm_eval.api.metrics import mean, perplexity, weighted_perplexity

    aggregations, better = task.aggregation(), task.higher_is_better()
    scores = {}
    for (metric, chosen), values in raw.items():
        aggregate = aggregations.get(metric, mean)
        value = aggregate(values)
        name = f"{metric},{chosen}"
        if _number(value) is None:
            notes.append(f"{task.task_name}: {name} is no number ({value}) and was left out")
            continue
        error = standard_error(aggregate, values, iterations)
        share = aggregate is mean and all(v in (0, 1) for v in values)
        if aggregate in (perplexity, weighted_perplexity):
            low, high = _positive_interval(float(value), error)
        else:
            low, high = _interval(float(value), error, len(values) if share else None)
        scores[name] = Score(float(value), error, low, high, better.get(metric) is not False)
    return scores


def group_scores(
    group: Any, tasks: Mapping[str, tuple[Mapping[str, Score], int]]
) -> dict[str, Score]:
    """lm-eval's mean over a group's tasks. `tasks`: scores and number of samples of each."""
    rows = {}
    for name, (scores, count) in tasks.items():
        row: dict[str, Any] = {"sample_len": count}
        for key, score in scores.items():
            row[key] = score.value
            row[_error_key(key)] = "N/A" if score.stderr is None else score.stderr
        rows[name] = row
    found = group.aggregate(rows)
    better = {key: s.higher_is_better for scores, _ in tasks.values() for key, s in scores.items()}
    result = {}
    for key, value in found.items():
        mean = _number(value)
        if "," not in key or key.partition(",")[0].endswith("_stderr") or mean is None:
            continue
        error = _number(found.get(_error_key(key)))
        low, high = _interval(mean, error, None)
        result[key] = Score(mean, error, low, high, better.get(key, True))
    return result


def standard_error(
    aggregate: Callable[[Sequence[Any]], Any], values: Sequence[Any], iterations: int
) -> float | None:
    """Of a metric that aggregates `values` so; None where lm-eval has none either."""
    from lm_eval.api import metrics

    if len(values) < 2 or iterations <= 0:
        return None
    if aggregate is metrics.perplexity:
        return _perplexity_error(values, iterations)
    name = next((n for n in _RESAMPLED if getattr(metrics, n, None) is aggregate), None)
    if name is not None:
        most = _TEXT_RESAMPLES if name in _TEXT_METRICS else _SLOW_RESAMPLES
        return _resampled_error(aggregate, values, min(iterations, most))
    formula = metrics.stderr_for_metric(aggregate, iterations)
    return None if formula is None else _number(formula(values))


def _resampled_error(
    aggregate: Callable[[Sequence[Any]], Any], values: Sequence[Any], iterations: int
) -> float | None:
    generator = random.Random(0)
    rounds = (generator.choices(values, k=len(values)) for _ in range(iterations))
    found = [float(aggregate(sample)) for sample in rounds]
    error = _deviation(found)
    return error if math.isfinite(error) else None


def _perplexity_error(values: Sequence[float], iterations: int) -> float | None:
    """lm-eval's bootstrap of exp(-mean): chunk i draws `random.Random(i).choices` a thousand times.

    numpy's generator with the same seed gives the same doubles.
    """
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    count = min(_CHUNK, iterations)
    rows = max(1, _BLOCK // len(array))

    def chunk(seed: int) -> Any:
        generator = np.random.RandomState([seed])
        means = []
        for start in range(0, count, rows):
            draws = generator.random_sample((min(rows, count - start), len(array)))
            draws *= len(array)
            means.append(array[draws.astype(np.int64)].mean(axis=1))
        return np.concatenate(means)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        means = np.concatenate(list(pool.map(chunk, range(iterations // count))))
    error = float(np.std(np.exp(-means), ddof=1))
    return error if math.isfinite(error) else None


def _deviation(values: Sequence[float]) -> float:
    centre = sum(values) / len(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))


def _interval(
    value: float, error: float | None, count: int | None
) -> tuple[float | None, float | None]:
    """`count`: of the samples of which `value` is a share; None: by the standard error."""
    if count is not None:
        return wilson(value, count, _CONFIDENCE)
    if error is None:
        return None, None
    half = t_quantile(0.5 + _CONFIDENCE / 2, math.inf) * error
    return value - half, value + half


def _positive_interval(value: float, error: float | None) -> tuple[float | None, float | None]:
    """Of exp(mean), symmetric in the exponent, whose error is error / value (delta method).

    None for an error that says nothing any more, as of a few samples of a random model.
    """
    if error is None or value <= 0 or error > value:
        return None, None
    factor = math.exp(t_quantile(0.5 + _CONFIDENCE / 2, math.inf) * error / value)
    return value / factor, value * factor


def _error_key(key: str) -> str:
    metric, _, chosen = key.partition(",")
    return f"{metric}_stderr,{chosen}"


def _number(value: Any) -> float | None:
    """A finite one, of Python's or numpy's."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        return None
    return float(value)

"""From what the client saw to metrics with confidence intervals, and to the result file."""

from atom.bench.metrics.intervals import combine, precision
from atom.bench.metrics.legacy import LegacyFields, legacy
from atom.bench.metrics.options import PERCENTILES, MetricOptions, parse_goodput
from atom.bench.metrics.result import from_result_json, result_json
from atom.bench.metrics.summary import summarize

__all__ = [
    "PERCENTILES",
    "LegacyFields",
    "MetricOptions",
    "combine",
    "from_result_json",
    "legacy",
    "parse_goodput",
    "precision",
    "result_json",
    "summarize",
]

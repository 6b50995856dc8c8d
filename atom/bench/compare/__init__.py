"""Whether two runs differ, whether a run is a regression, and since when a series has changed.

Judges `RunResult`s; it runs nothing and stores nothing.
"""

from atom.bench.compare.comparison import Comparison, MetricComparison, compare, compare_all
from atom.bench.compare.gate import GateFinding, GateReport, gate, gate_all
from atom.bench.compare.trend import ChangePoint, Point, Series, changepoints, series

__all__ = [
    "ChangePoint",
    "Comparison",
    "GateFinding",
    "GateReport",
    "MetricComparison",
    "Point",
    "Series",
    "changepoints",
    "compare",
    "compare_all",
    "gate",
    "gate_all",
    "series",
]

"""What is sent and when: data sets, synthetic prompts of exact lengths, traces, arrivals.

Everything follows from a `WorkloadSpec` and a seed, byte for byte; job i from the seed and i alone.
"""

from __future__ import annotations

from atom.bench.workloads.arrivals import (
    ArrivalSpec,
    arrival_times,
    parse_rate,
    trace_arrivals,
)
from atom.bench.workloads.build import make_workload, needs_tokens
from atom.bench.workloads.lengths import Realised, Spread, bounds, realised
from atom.bench.workloads.spec import DATASETS, PROMPT_SETS, WorkloadSpec, parse_dataset
from atom.bench.workloads.tokens import (
    LocalTokens,
    ServerTokens,
    TokenSource,
    UsageTokens,
    open_tokens,
)

__all__ = [
    "DATASETS",
    "PROMPT_SETS",
    "ArrivalSpec",
    "LocalTokens",
    "Realised",
    "ServerTokens",
    "Spread",
    "TokenSource",
    "UsageTokens",
    "WorkloadSpec",
    "arrival_times",
    "bounds",
    "make_workload",
    "needs_tokens",
    "open_tokens",
    "parse_dataset",
    "parse_rate",
    "realised",
    "trace_arrivals",
]

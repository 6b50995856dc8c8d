"""From a `WorkloadSpec` to the workload."""

from __future__ import annotations

from typing import Protocol

from atom.bench.errors import BenchError
from atom.bench.types import Workload
from atom.bench.workloads.spec import SYNTHETIC, WorkloadSpec
from atom.bench.workloads.tokens import TokenSource


def needs_tokens(spec: WorkloadSpec) -> bool:
    """Whether `make_workload` asks its token source anything."""
    return spec.dataset in SYNTHETIC


class NotedWorkload(Workload, Protocol):
    """A workload with something to say."""

    notes: list[str]  # lines for people: the range of lengths, rows left out


def make_workload(spec: WorkloadSpec, tokens: TokenSource | None, seed: int) -> NotedWorkload:
    """The jobs of `spec` and `seed`; `tokens` may be None where `needs_tokens` says so.

    Raises `BenchError` for a file that cannot be read, or lengths that cannot be made.
    """
    if tokens is None and needs_tokens(spec):
        raise BenchError(f"the data set {spec.dataset} needs a tokenizer; give --tokenizer")
    if spec.dataset in SYNTHETIC:
        from atom.bench.workloads.synthetic import MultiTurnWorkload, RandomWorkload

        assert tokens is not None
        if spec.dataset == "multi-turn":
            return MultiTurnWorkload(spec, tokens, seed)
        return RandomWorkload(spec, tokens, seed)
    raise BenchError(f"the data set {spec.dataset} is not there yet")

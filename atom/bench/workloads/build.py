"""From a `WorkloadSpec` to the workload."""

from __future__ import annotations

from typing import Protocol

from atom.bench.errors import BenchError
from atom.bench.types import Workload
from atom.bench.workloads.spec import SYNTHETIC, WorkloadSpec
from atom.bench.workloads.tokens import TokenSource


def needs_tokens(spec: WorkloadSpec) -> bool:
    """Whether `make_workload` asks its token source anything."""
    return spec.dataset in _COUNTED or spec.path == "sonnet"


# Data sets whose prompts are made to a length, or chosen by it.
_COUNTED = SYNTHETIC | {"sharegpt", "trace"}


class NotedWorkload(Workload, Protocol):
    """A workload with something to say."""

    notes: list[str]  # lines for people: the range of lengths, rows left out


def make_workload(spec: WorkloadSpec, tokens: TokenSource | None, seed: int) -> NotedWorkload:
    """The jobs of `spec` and `seed`; `tokens` may be None where `needs_tokens` says so.

    Raises `BenchError` for a file that cannot be read, or lengths that cannot be made.
    """
    if tokens is None and needs_tokens(spec):
        raise BenchError(f"the data set {spec.dataset} needs a tokenizer; give --tokenizer")
    # Imported here: each data set loads only what it reads with.
    if spec.dataset == "jsonl":
        from atom.bench.workloads.jsonl import jsonl_workload

        return jsonl_workload(spec, seed)
    if not needs_tokens(spec):
        from atom.bench.workloads.bundled import prompt_set

        return prompt_set(spec, seed)
    assert tokens is not None
    return _counted(spec, tokens, seed)


def _counted(spec: WorkloadSpec, tokens: TokenSource, seed: int) -> NotedWorkload:
    if spec.dataset == "prompts":
        from atom.bench.workloads.bundled import SonnetWorkload

        return SonnetWorkload(spec, tokens, seed)
    if spec.dataset == "sharegpt":
        from atom.bench.workloads.sharegpt import ShareGPTWorkload

        return ShareGPTWorkload(spec, tokens, seed)
    if spec.dataset == "trace":
        from atom.bench.workloads.trace import TraceWorkload

        return TraceWorkload(spec, tokens, seed)
    from atom.bench.workloads.synthetic import MultiTurnWorkload, RandomWorkload

    if spec.dataset == "multi-turn":
        return MultiTurnWorkload(spec, tokens, seed)
    return RandomWorkload(spec, tokens, seed)

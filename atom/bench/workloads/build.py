"""From a `WorkloadSpec` to the workload."""

from __future__ import annotations

from atom.bench.errors import BenchError
from atom.bench.types import Workload
from atom.bench.workloads.spec import SYNTHETIC, WorkloadSpec
from atom.bench.workloads.tokens import TokenSource


def needs_tokens(spec: WorkloadSpec) -> bool:
    """Whether `make_workload` asks its token source anything."""
    return spec.dataset in SYNTHETIC


def make_workload(spec: WorkloadSpec, tokens: TokenSource | None, seed: int) -> Workload:
    """The jobs of `spec` and `seed`; `tokens` may be None where `needs_tokens` says so.

    Beyond `types.Workload` it has `notes`: lines for people, such as the range of lengths. Raises
    `BenchError` for a file that cannot be read, or lengths that cannot be made.
    """
    if tokens is None and needs_tokens(spec):
        raise BenchError(f"the data set {spec.dataset} needs a tokenizer; give --tokenizer")
    if spec.dataset in SYNTHETIC:
        from atom.bench.workloads.synthetic import MultiTurnWorkload, RandomWorkload

        assert tokens is not None
        kind = MultiTurnWorkload if spec.dataset == "multi-turn" else RandomWorkload
        return kind(spec, tokens, seed)
    raise BenchError(f"the data set {spec.dataset} is not there yet")

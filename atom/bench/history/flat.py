"""Runs as rows of a table: what CSV and the workbook share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from atom.bench import names
from atom.bench.history.runs import commit_of, load_text, recipe_of, started_at
from atom.bench.types import RunResult

# The order in which people look; the rest follows by name.
HEADLINE = (
    "output_throughput",
    "total_token_throughput",
    "steady_output_throughput",
    "output_throughput_per_user",
    "output_throughput_per_gpu",
    "request_throughput",
    "request_goodput",
    "mean_ttft_ms",
    "median_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
    "mean_itl_ms",
    "mean_e2el_ms",
    "p99_e2el_ms",
    "completed",
    "failed",
    "error_rate",
)


def identity(run: RunResult) -> dict[str, Any]:
    """What a run is and where it comes from, in one row."""
    provenance = run.provenance
    server, hardware = part(provenance, "server"), part(provenance, "hardware")
    gpus = [str(gpu.get("name", "")) for gpu in hardware.get("gpus") or []]
    return {
        "run_id": run.run_id,
        "started_at": started_at(run),
        "kind": run.kind,
        "name": run.name,
        "model": run.model,
        "status": run.status,
        "load": load_text(run.load),
        "concurrency": run.load.get("concurrency"),
        "request_rate": run.load.get("request_rate"),
        "dataset": run.workload.get("dataset"),
        "input_len": run.workload.get("input_len"),
        "output_len": run.workload.get("output_len"),
        "repeats": len(run.repeats),
        "recipe": recipe_of(run),
        "server": server.get("kind"),
        "server_version": server.get("version"),
        "commit": commit_of(run),
        "gpu": ", ".join(dict.fromkeys(gpus)),
        "num_gpus": hardware.get("num_gpus"),
        "cpu": hardware.get("cpu"),
        "driver": provenance.get("driver"),
        "seed": provenance.get("seed"),
        "fingerprint": run.fingerprint,
        "sweep_id": run.sweep_id,
        "command": provenance.get("command"),
    }


def metric_names(runs: Iterable[RunResult]) -> list[str]:
    """Every metric of these runs: headline first, then by name."""
    found = {name for run in runs for name in run.metrics}
    first = [name for name in HEADLINE if name in found]
    return [*first, *sorted(found.difference(first))]


def part(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A tree as (dotted path, value): lists of plain values in one, others by position."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple) and any(isinstance(v, Mapping | list) for v in tree):
        for position, value in enumerate(tree):
            yield from leaves(value, f"{path}.{position}")
    elif isinstance(tree, list | tuple):
        yield path, " ".join(map(str, tree))
    elif tree is not None:
        yield path, tree


def by_series(runs: Sequence[RunResult]) -> list[RunResult]:
    """Runs of one name together, each in the order of measurement."""
    return sorted(runs, key=lambda run: (run.kind, run.name, started_at(run), run.run_id))


def unit_format(name: str) -> str:
    """A spreadsheet's number format for a metric."""
    unit = names.unit(name)
    if unit == "share":
        return "0.00%"
    if "/" in name and not names.is_name(name):  # a score: gsm8k/exact_match,...
        return "0.0000"
    whole = ("completed", "failed", "total_input_tokens", "total_output_tokens")
    return "#,##0" if name in whole else "#,##0.00"

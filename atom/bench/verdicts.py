"""What a run is worth: its status, the objectives it misses, what its reader has to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atom.bench import names
from atom.bench.types import Interval, RequestRecord, RunResult, Workload

CACHED = 0.05  # of the prompt tokens
CACHED_CHAT = 0.5  # where the template's part is shared by all prompts
SHARING = ("multi-turn", "prefix-repetition", "trace")  # data sets whose prompts repeat others


def status(run: RunResult, *, max_error_rate: float, ended: str) -> tuple[str, list[str]]:
    """`RunResult.status`, the worst that holds, and reasons that no table shows.

    `ended` says why the run was broken off; "" for a whole one.
    """
    errors = run.metrics.get("error_rate")
    found: list[tuple[str, str]] = []
    if ended:
        found.append(("interrupted", ended))
    if errors is not None and errors.value > max_error_rate:
        told = f"{errors.value:.1%} of the requests failed, {max_error_rate:.1%} are allowed"
        found.append(("errors", told))
    if any(repeat.health.bound for repeat in run.repeats):
        found.append(("client_bound", ""))
    if missed_objectives(run):
        found.append(("slo_missed", ""))
    return (found[0][0] if found else "ok"), [reason for _, reason in found if reason]


def precision_names(intervals: Mapping[str, Interval]) -> list[str]:
    """What --precision is about: those of them that this run knows."""
    steady = "steady_output_throughput"
    throughput = steady if steady in intervals else "output_throughput"
    wanted = (throughput, "median_ttft_ms", "median_tpot_ms")
    return [name for name in wanted if name in intervals]


def missed_objectives(run: RunResult) -> list[str]:
    """The objectives that the run misses, each in words; one that is unknown is missed."""
    missed = []
    for name, limit in run.slo.items():
        interval = run.metrics.get(name)
        unit = names.unit(name)
        if interval is None:
            missed.append(f"{names.label(name)} is unknown (limit {limit:g} {unit})")
        elif not names.meets(name, interval.value, limit):
            missed.append(f"{names.label(name)} {interval.value:.4g} {unit} (limit {limit:g})")
    return missed


def describe_error(record: RequestRecord) -> str:
    """The cause of one failed request, in a line."""
    status = f" {record.status}" if record.status is not None else ""
    message = f": {record.message}" if record.message else ""
    return f"{record.error}{status}{message}"


def workload_notes(workload: Workload, run: RunResult) -> list[str]:
    """What a reader of the run has to know beside the repeats' own notes."""
    told: Sequence[str] = getattr(workload, "notes", ())
    notes = list(told)
    cached = run.metrics.get("cached_token_share")
    shared = run.workload.get("prefix_len") or workload.name in SHARING
    limit = CACHED_CHAT if workload.endpoint == "chat" else CACHED
    if cached is not None and cached.value > limit and not shared:
        notes.append(
            f"{cached.value:.0%} of the prompt tokens were in the server's prefix cache, though "
            "these prompts are meant to share none: it may have seen them before"
        )
    return notes

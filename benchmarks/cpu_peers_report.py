"""Turns the raw records of cpu_peers.py into Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Record = dict[str, Any]


class Column(NamedTuple):
    title: str
    path: tuple[str, ...]
    digits: int = 0
    best: str = "low"  # which end is good: "low", "high", or "" where no ratio makes sense
    scale: float = 1.0


RUN_COLUMNS = (
    Column("out tok/s", ("output_tok_per_s",), 1, "high"),
    Column("total tok/s", ("total_tok_per_s",), 0, "high"),
    Column("TTFT p50 ms", ("ttft_ms", "p50"), 0),
    Column("TTFT p99 ms", ("ttft_ms", "p99"), 0),
    Column("TPOT p50 ms", ("tpot_ms", "p50"), 1),
    Column("TPOT p99 ms", ("tpot_ms", "p99"), 1),
    Column("ITL p99 ms", ("itl_ms", "p99"), 1),
    Column("e2e p50 ms", ("e2e_ms", "p50"), 0),
    Column("peak RSS MB", ("peak_rss_bytes",), 0, "low", 1e-6),
    Column("other CPU, cores", ("other_cores",), 2, ""),
)
START_COLUMNS = (
    Column("start to first token s", ("start_s",), 2),
    Column("RSS then MB", ("rss_bytes",), 0, "low", 1e-6),
    Column("peak RSS till then MB", ("peak_rss_bytes",), 0, "low", 1e-6),
    Column("other CPU, cores", ("other_cores",), 2, ""),
)


def lookup(record: Record, column: Column) -> float | None:
    value: Any = record
    for key in column.path:
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else float(value) * column.scale


def values_of(records: Iterable[Record], column: Column) -> list[float]:
    return [value for record in records if (value := lookup(record, column)) is not None]


def median_of(records: Iterable[Record], column: Column) -> float | None:
    values = values_of(records, column)
    return statistics.median(values) if values else None


def cell(records: Sequence[Record], column: Column) -> str:
    values = values_of(records, column)
    if not values:
        return "-"
    low, middle, high = (
        f"{value:.{column.digits}f}"
        for value in (min(values), statistics.median(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


def ratio_row(
    label: str,
    ours: Sequence[Record],
    theirs: Sequence[Sequence[Record]],
    columns: Sequence[Column],
) -> list[str]:
    """Our median over the best of their medians, column by column."""
    row = [label, ""]
    for column in columns:
        mine = median_of(ours, column)
        medians = [m for records in theirs if (m := median_of(records, column)) is not None]
        if not column.best or mine is None or not medians:
            row.append("")
            continue
        best = max(medians) if column.best == "high" else min(medians)
        row.append(f"{mine / best:.2f}x" if best else "")
    return row


def table(
    groups: dict[str, list[Record]],
    columns: Sequence[Column],
    subject: str,
    dropped: dict[str, int],
) -> str:
    rows = [["server", "runs", *(column.title for column in columns)]]
    rows.append(["---"] * len(rows[0]))
    for name, records in groups.items():
        runs = f"{len(records)}" + (f" (+{dropped[name]} noisy)" if dropped.get(name) else "")
        rows.append([name, runs, *(cell(records, column) for column in columns)])
    peers = {name: records for name, records in groups.items() if name != subject and records}
    if groups.get(subject) and peers:
        for name, records in peers.items():
            rows.append(ratio_row(f"{subject} / {name}", groups[subject], [records], columns))
        label = f"**{subject} / best peer**"
        rows.append(ratio_row(label, groups[subject], list(peers.values()), columns))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def group(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["server"], []).append(record)
    return groups


def quiet_groups(
    records: list[Record], max_other: float | None
) -> tuple[dict[str, list[Record]], dict[str, int]]:
    """The counted runs of each server, and how many were left out for noise."""
    kept, dropped = {}, {}
    for name, runs in group(records).items():
        kept[name] = [r for r in runs if max_other is None or r["other_cores"] <= max_other]
        dropped[name] = len(runs) - len(kept[name])
    return kept, dropped


def complaints(runs: list[Record]) -> list[str]:
    lines = []
    for run in runs:
        where = f"{run['server']}, {run['workload']}, round {run['round']}"
        asked = run["num_prompts"] * (run["prefix_len"] + run["input_len"])
        if run["failed"]:
            lines.append(f"{where}: {run['failed']} requests failed: {run['errors']}")
        if run["short"]:
            lines.append(f"{where}: {run['short']} answers shorter than asked")
        if not run["failed"] and run["prompt_tokens"] != asked:
            lines.append(f"{where}: {run['prompt_tokens']} prompt tokens counted, {asked} sent")
        if run["counted_by"] != "usage":
            lines.append(f"{where}: no usage in the stream, tokens counted by events")
    return lines


def report(records: list[Record], subject: str, max_other: float | None) -> str:
    runs = [record for record in records if record["kind"] == "run"]
    starts = [record for record in records if record["kind"] == "start"]
    parts = [
        "Median (lowest-highest) over the counted runs. Ratios are of medians: "
        "above 1 is better for tok/s, below 1 for everything else."
    ]
    if max_other is not None:
        parts.append(f"Runs with more than {max_other:g} cores of other work are left out.")
    for workload in dict.fromkeys(run["workload"] for run in runs):
        of_workload = [run for run in runs if run["workload"] == workload]
        one = of_workload[0]
        shape = (
            f"{one['num_prompts']} prompts, {one['prefix_len']} shared + {one['input_len']} own "
            f"tokens in, {one['output_len']} out, concurrency {one['concurrency']}"
        )
        kept, dropped = quiet_groups(of_workload, max_other)
        parts.append(f"### {workload}: {shape}\n\n{table(kept, RUN_COLUMNS, subject, dropped)}")
    if starts:
        kept, dropped = quiet_groups(starts, max_other)
        parts.append(f"### Start\n\n{table(kept, START_COLUMNS, subject, dropped)}")
    notes = complaints(runs)
    notes += [
        f"{record['server']}: {record['kind']}: {record['reason']}"
        for record in records
        if record["kind"] in ("skipped", "failed")
    ]
    if notes:
        parts.append("### Notes\n\n" + "\n".join(f"- {note}" for note in dict.fromkeys(notes)))
    return "\n\n".join(parts)

"""`atom trace parse` without its terminal: which breakdowns there are, their JSON, their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.trace.about import about_table, outside_of_steps
from atom.trace.breakdown import Breakdown, breakdown
from atom.trace.choice import KINDS, pick_rank, shape_text, steps_of, what_there_is
from atom.trace.csvs import write_csvs
from atom.trace.errors import TraceError
from atom.trace.overviews import ranks_table
from atom.trace.tables import Table, headline, tables, us
from atom.trace.types import Analysis, RankModel
from atom.trace.workbook import write_workbook

SCHEMA = 1  # of --json
_EXPECTED = ("prefill", "decode")  # whose absence is said


@dataclass(frozen=True, slots=True)
class Report:
    """What one workbook per kind of step will hold."""

    analysis: Analysis
    model: RankModel
    breakdowns: list[Breakdown]
    sheets: list[list[Table]]  # of each breakdown
    missing: list[str]  # one line for each workbook that there is not, and why


def make_report(
    analysis: Analysis,
    layer: int | None = None,
    which: str | int = "median",
    rank: int | None = None,
) -> Report:
    """Break down every kind of step that the rank has.

    Raises `TraceError` if there is no such rank, step or layer, or no step at all.
    """
    model = pick_rank(analysis, rank)
    kinds, missing = _kinds(model, which)
    found: list[Breakdown] = []
    errors: list[TraceError] = []
    for kind in kinds:
        try:
            found.append(breakdown(model, kind, layer, which))
        except TraceError as error:
            errors.append(error)
            missing.append(f"no {kind}_breakdown.xlsx: {error}")
    if not found:
        raise errors[0]
    sheets = [_sheets(analysis, made, layer, which) for made in found]
    return Report(analysis, model, found, sheets, missing)


def write_report(report: Report, folder: Path, *, with_csv: bool = False) -> list[Path]:
    """Workbooks, and CSV where asked, and the summary; returns the files.

    Raises `TraceError` if one cannot be written.
    """
    from atom.trace.markdown import write_summary

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TraceError(f"{folder} cannot be made: {error.strerror or error}") from error
    files = []
    for made, sheets in zip(report.breakdowns, report.sheets, strict=True):
        path = folder / f"{made.kind}_breakdown.xlsx"
        write_workbook(sheets, path)
        files.append(path)
        if with_csv:
            files += write_csvs(made.kind, sheets, folder)
    return [*files, *write_summary(report.analysis, folder)]


def as_json(report: Report, files: Sequence[Path] = ()) -> dict[str, Any]:
    """The document of --json: the sheets' rows, keys in snake case, times in microseconds."""
    analysis, outside = report.analysis, outside_of_steps(report.model)
    return {
        "schema": SCHEMA,
        "trace": str(report.model.trace.path),
        "capture_trace": str(analysis.capture) if analysis.capture else None,
        "rank": report.model.trace.rank,
        "ranks": [model.trace.rank for model in analysis.ranks],
        "device": report.model.trace.device_name,
        "match_rate": report.model.report.rate,
        "outside_of_steps": {"kernels": outside[0], "sum_us": us(outside[1])},
        "breakdowns": [
            _breakdown_json(made, sheets)
            for made, sheets in zip(report.breakdowns, report.sheets, strict=True)
        ],
        "missing": report.missing,
        "warnings": list(analysis.warnings),
        "files": [str(path) for path in files],
    }


def _breakdown_json(made: Breakdown, sheets: Sequence[Table]) -> dict[str, Any]:
    step, group = made.step, made.group
    return {
        "kind": made.kind,
        "step": {
            "index": step.index,
            "label": step.label,
            "shape": shape_text(step),
            "chosen": made.choice.how,
            "gpu_us": us(step.gpu_ns),
            "busy_us": us(step.busy_ns),
            "sum_us": us(step.sum_ns),
            "cpu_us": us(step.cpu_ns) if step.cpu_start >= 0 else None,
        },
        "layer": made.layer,
        "layer_sum_us": us(made.layer_sum_ns),
        "layer_busy_us": us(made.layer_busy_ns),
        "layer_span_us": us(made.layer_span_ns),
        "averaged_layers": list(group.layers) if group and len(group.layers) > 1 else [],
        "averaged_steps": made.same_steps if made.same_steps > 1 else 0,
        "notes": headline(made) + made.notes,
        "sheets": {
            sheet.name: {"rows": sheet.objects(), "total": sheet.total_object()}
            for sheet in sheets
            if sheet.name != "about"
        },
    }


def _kinds(model: RankModel, which: str | int) -> tuple[list[str], list[str]]:
    """Kinds of step to show, and one line for each expected one that is not there."""
    there = what_there_is(model.steps)
    if isinstance(which, int):
        step = next((step for step in model.steps if step.index == which), None)
        if step is None or step.kind not in KINDS or not len(step.rows):
            raise TraceError(f"--step {which}: no such step with GPU work; {there}")
        return [step.kind], []
    kinds = [kind for kind in KINDS if steps_of(model.steps, kind)]
    if not kinds:
        raise TraceError(f"{model.trace.path}: nothing to break down; {there}")
    absent = [kind for kind in _EXPECTED if kind not in kinds]
    return kinds, [f"no {kind}_breakdown.xlsx: {there}" for kind in absent]


def _sheets(
    analysis: Analysis, made: Breakdown, layer: int | None, which: str | int
) -> list[Table]:
    sheets = tables(made)
    if len(analysis.ranks) > 1:
        sheets.append(ranks_table(_over_ranks(analysis, made, layer, which)))
    return [*sheets, about_table(made, analysis, sheets)]


def _over_ranks(
    analysis: Analysis, made: Breakdown, layer: int | None, which: str | int
) -> list[Breakdown]:
    """The same kind on each rank that has it; the shown one first.

    Where a rank has not that layer (pipeline parallelism) or step, it shows its own default; the
    table says which layer and step each row is of.
    """
    found = [made]
    for model in analysis.ranks:
        if model.trace.rank == made.rank or not steps_of(model.steps, made.kind):
            continue
        for choice in ((layer, which), (None, which), (None, "median")):
            try:
                found.append(breakdown(model, made.kind, *choice))
                break
            except TraceError:
                continue
    return found

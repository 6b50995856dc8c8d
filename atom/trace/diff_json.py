"""A `TraceDiff` as plain data, for `atom trace diff --json`.

Within a group, `rows`, `modules` and `layers` each sum to `span`: `a_ns` and `b_ns` to the
nanosecond, being integers over all steps.
"""

from __future__ import annotations

from typing import Any

from atom.trace.diff import Change, Row, StepDiff, TraceDiff
from atom.trace.kernels import kernel_class
from atom.trace.verdict import fails, sentences

SCHEMA = 1


def as_json(found: TraceDiff, limit: float | None = None) -> dict[str, Any]:
    """`limit`: of --fail-above, as a share."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "verdict": sentences(found),
        "groups": [_group(g) for g in found.groups],
        "only_a": found.only_a,
        "only_b": found.only_b,
        "differences": [{"what": w, "a": a, "b": b} for w, a, b in found.differences],
        "notes": found.notes,
    }
    if limit is not None:
        failed = [{"rank": g.rank, "name": str(g.shape)} for g in fails(found, limit)]
        document["fail_above"] = {"limit": limit, "failed": failed}
    return document


def _group(group: StepDiff) -> dict[str, Any]:
    return {
        "rank": group.rank,
        "name": str(group.shape),
        "kind": group.shape.kind,
        "shape": dict(group.shape.fields),
        "steps": {"a": group.steps_a, "b": group.steps_b},
        "span": {"a_ns": group.span_ns[0], "b_ns": group.span_ns[1], **_change(group.span)},
        "busy": _change(group.busy),
        "cpu": None if group.cpu is None else _change(group.cpu),
        "wait_before_us": {"a": group.wait[0], "b": group.wait[1]},
        "rows": [_row(r) for r in group.rows],
        "modules": [_row(r) for r in group.modules],
        "layers": [_row(r) for r in group.layers],
        "notes": list(group.notes),
    }


def _row(row: Row) -> dict[str, Any]:
    kernel = row.name if row.a_calls + row.b_calls and row.name != row.module else ""
    return {
        "part": row.kind.name.lower(),
        "name": row.name,
        "module": row.module,
        "class": kernel_class(kernel) if kernel else "",
        "change": row.change,
        "was": row.was,
        "a_ns": row.a_ns,
        "b_ns": row.b_ns,
        "a_calls": row.a_calls,
        "b_calls": row.b_calls,
        **_change(row.time),
        "delta_by_layer_us": list(row.layers[1:]),
        "delta_outside_of_layers_us": row.layers[0] if row.layers else 0.0,
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "a_us": change.a_us,
        "b_us": change.b_us,
        "delta_us": change.delta_us,
        "delta_half_us": change.half_us,
        "p": change.p,
        "verdict": change.verdict,
    }

"""The tables that `h200.py` prints: plain text, one line per figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from h200_targets import PEERS, Cell, floor_s, target_of
from roofline import Shape

GIB = 2**30
Done = tuple[str, Shape, dict[str, dict[str, Any]], list[dict[str, Any]], list[Cell]]


def figure_of(cell: Cell, values: dict[str, Any]) -> tuple[float, str]:
    """(the cell's figure, its unit)."""
    match cell.kind:
        case "decode":
            return values["tpot_ms"], "ms"
        case "start":
            return values["total_s"], "s"
        case _:
            return values["total_tok_s"], "tok/s"


def floor_figure(cell: Cell, shape: Shape) -> float | None:
    """The floor in the figure's unit."""
    seconds = floor_s(cell, shape)
    if seconds is None:
        return None
    if cell.kind == "decode":
        return 1e3 * seconds
    return cell.batch * (cell.prompt + (cell.output if cell.output > 1 else 0)) / seconds


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def rows(done: Sequence[Done]) -> list[list[str]]:
    table = []
    for name, shape, results, _, wanted in done:
        for cell in wanted:
            values = results.get(cell.name, {"error": "not run"})
            if "error" in values:
                table.append([name, cell.name, "FAILED", values["error"]])
                continue
            table.append([name, cell.name, *figures(cell, shape, values)])
    return table


def figures(cell: Cell, shape: Shape, values: dict[str, Any]) -> list[str]:
    measured, unit = figure_of(cell, values)
    floor, target = floor_figure(cell, shape), target_of(cell, shape)
    of_floor = "-"
    if floor is not None:
        share = floor / measured if cell.kind == "decode" else measured / floor
        of_floor = f"{share:.0%}"
    ratio, verdict = "-", "-"
    if target is not None:
        faster = target.peer / measured if target.lower_is_better else measured / target.peer
        ratio = f"{faster:.2f}x"
        verdict = "pass" if target.met(measured) else "MISS"
    return [
        f"{number(measured)} {unit}",
        number(floor),
        of_floor,
        number(target.peer if target else None),
        ratio,
        number(target.value if target else None),
        verdict,
        extra(cell, values),
    ]


def extra(cell: Cell, values: dict[str, Any]) -> str:
    """Further figures and the spread of the repeats."""
    notes = []
    if cell.kind == "decode":
        notes.append(f"{number(values['tok_s'])} tok/s")
    if "output_tok_s" in values:
        notes.append(f"out {number(values['output_tok_s'])} tok/s")
        notes.append(f"after the last first token {values['decode_tpot_ms']:.2f} ms/step")
    if values.get("preemptions"):
        notes.append(f"{values['preemptions']} PREEMPTIONS")
    late = sum(values.get("late", {}).get("kernels", {}).values())
    if late:
        notes.append(f"{late} kernels compiled late")
    seconds = values.get("seconds", [])
    if len(seconds) > 1:
        notes.append(f"+-{(max(seconds) - min(seconds)) / 2 / min(seconds):.1%}")
    return ", ".join(notes)


def show(header: list[str], table: list[list[str]]) -> None:
    lines = [header, *table]
    # A short row is a failure: its last cell is a sentence and may run over.
    fitted = [row if len(row) == len(header) else row[:-1] for row in lines]
    widths = [max(len(r[c]) for r in fitted if len(r) > c) for c in range(len(header))]
    for row in lines:
        text = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join(text).rstrip())
    print(flush=True)


def print_tables(done: Sequence[Done]) -> None:
    print(f"\npeer = the better of {PEERS}; x = how much faster than it\n")
    header = ["model", "cell", "measured", "floor", "of floor", "peer", "x", "target", "", "notes"]
    show(header, rows(done))
    long_kv(done)
    starts(done)
    memory(done)


def long_kv(done: Sequence[Done]) -> None:
    table = []
    for name, _, results, _, _ in done:
        plain, fp8 = results.get("long-auto", {}), results.get("long-fp8", {})
        if "median_s" in plain and "median_s" in fp8:
            whole = plain["median_s"] / fp8["median_s"]
            decode = plain["decode_s"] / fp8["decode_s"]
            verdict = "pass" if whole > 1 else "MISS"
            table.append([name, f"{whole:.2f}x", f"{decode:.2f}x", verdict])
    if table:
        show(["fp8 over bf16 KV", "whole call", "decode steps", ""], table)


def starts(done: Sequence[Done]) -> None:
    """Start-up timetables, in seconds."""
    table = []
    for name, _, _, each, _ in done:
        for start in each:
            phases = ", ".join(f"{n} {s:.1f}" for n, s in start["phases_s"].items())
            total = start["import_s"] + start["start_s"]
            state, kv = start["caches"], start["kv_cache_dtype"]
            table.append([name, kv, state, f"{total:.1f}", f"{start['import_s']:.1f}", phases])
    if table:
        show(["start-up, s", "KV", "caches", "total", "import", "phases"], table)


def memory(done: Sequence[Done]) -> None:
    table = []
    for name, _, _, each, _ in done:
        for start in each[:1]:
            parts = start["memory_bytes"].items()
            used = start.get("gpu_used_bytes")
            table.append(
                [
                    name,
                    ", ".join(f"{n} {size / GIB:.2f}" for n, size in parts),
                    "-" if used is None else f"{used / GIB:.2f}",
                    number(start["kv_tokens"]),
                ]
            )
    if table:
        show(["memory, GiB", "parts", "used on the card", "KV tokens"], table)

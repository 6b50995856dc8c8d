"""What `atom profile` prints at its end: the traces, what is in them, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from atom.cli.common import add_row, table
from atom.profile.folder import size_text
from atom.trace.words import duration, percent

if TYPE_CHECKING:
    from rich.console import Console

    from atom.profile.offline import Profile as LocalProfile
    from atom.profile.online import Profile as ServerProfile
    from atom.profile.verdict import Item, Verdict

WIDE = 100  # columns from which the spread of the steps is shown


def print_local(out: Console, made: LocalProfile) -> None:
    """Of the engine in this process."""
    if not made.recordings:
        out.print("nothing was recorded", markup=False)
        return
    _print_steps(out, made)
    for entry, judged in zip(made.document["shapes"], made.verdicts, strict=True):
        _print_tops(out, judged, entry["name"])
    _print_files(out, made)
    for problem in (*made.problems, *(p for v in made.verdicts for p in v.problems)):
        out.print(Text(f"problem: {problem}", style="yellow"))
    if made.interrupted:
        out.print("interrupted: what had been recorded is kept", markup=False)
    device = made.verdicts[0].device if made.verdicts else "gpu"
    print_next(
        out, [str(made.folder)], device, max((v.num_layers for v in made.verdicts), default=0)
    )


def print_server(out: Console, made: ServerProfile) -> None:
    """Of a running server."""
    load = made.document["load"]
    failed = f", {load['failed']} failed" if load["failed"] else ""
    out.print(
        f"{load['answered']} requests answered{failed}; recording slows a server, so atom bench "
        "measures without it",
        markup=False,
    )
    judged = made.verdict
    if judged is not None and judged.steps:
        out.print()
        for line in judged.headlines:
            out.print(line, markup=False)
        _print_tops(out, judged)
    if made.files:
        out.print()
        for file in made.files:
            out.print(Text(f"{size_text(file.stat().st_size):>8}  {file}"), soft_wrap=True)
    for problem in made.problems:
        out.print(Text(f"problem: {problem}", style="yellow"))
    if made.interrupted:
        out.print("interrupted: what had been recorded is kept", markup=False)
    if judged is not None:
        where = [str(made.folder)] if made.folder else [str(file) for file in made.files]
        print_next(out, where, judged.device, judged.num_layers)


def _print_steps(out: Console, made: LocalProfile) -> None:
    cpu = any(v.device == "cpu" for v in made.verdicts)
    spread = ("min", "max") if out.width >= WIDE else ()
    columns = ("step", "steps", "cpu work" if cpu else "gpu work", *spread, "busy")
    rows = table(*columns, "wall", "unrecorded", "named")
    for column in rows.columns:
        column.no_wrap = True
    for column in rows.columns[1:]:
        column.justify = "right"
    for entry, judged in zip(made.document["shapes"], made.verdicts, strict=True):
        add_row(rows, *_step_cells(entry, judged, bool(spread)))
    out.print(rows)
    what = "of operators" if cpu else "of GPU work"
    out.print(
        f"Per step: the median span {what} and the share of it that was busy; wall, the host's "
        "time while recording; unrecorded, the same without the profiler; named, the share of "
        f"{what.removeprefix('of ')} with a module.",
        style="dim",
        markup=False,
    )


def _step_cells(entry: Mapping[str, Any], judged: Verdict, spread: bool) -> list[str]:
    count = str(entry["steps"])
    if entry["steps"] < entry["steps_asked"]:
        count += f" of {entry['steps_asked']}"
    plain = entry["wall_us_per_step_unrecorded"]
    between = [judged.min_us, judged.max_us] if spread else []
    figures = [
        *(_us(us) for us in (judged.median_us, *between)),
        percent(judged.busy_share),
        _us(entry["wall_us_per_step"]),
        "-" if plain is None else _us(plain),
        percent(judged.match_rate),
    ]
    if not judged.steps:  # the trace says nothing; a problem says why
        unknown = len(between) + 2
        figures[:unknown], figures[-1] = ["-"] * unknown, "-"
    return [entry["name"], count, *figures]


def _print_tops(out: Console, judged: Verdict, name: str = "") -> None:
    what = "kernels" if judged.device == "gpu" else "operators"
    for found in judged.tops:
        steps = f"{found.steps} {found.kind} steps" if found.kind else "all work"
        out.print()
        out.print(Text(name or steps, style="bold"))
        _print_items(out, "modules", found.modules)
        _print_items(out, what, found.kernels)


def _print_items(out: Console, what: str, items: list[Item]) -> None:
    rows = table(f"top {what}", "share", "per step")
    rows.columns[1].justify = rows.columns[2].justify = "right"
    for item in items:
        add_row(rows, item.name, percent(item.share), _us(item.us))
    out.print(rows)


def _print_files(out: Console, made: LocalProfile) -> None:
    lines = [
        (entry["name"], size_text(Path(made.folder, file).stat().st_size), file)
        for entry in made.document["shapes"]
        for file in entry["files"]
    ]
    lines += [("graph capture", "", file) for file in made.document["captures"]]
    lines.append(("what was run", "", "profile.json"))
    width = max(len(name) for name, _, _ in lines)
    out.print()
    out.print(Text(f"in {made.folder}", style="bold"), soft_wrap=True)
    for name, size, file in lines:
        # One line, however long: it is to be copied.
        out.print(Text(f"{name:{width}}  {size:>8}  {file}"), soft_wrap=True)


def print_next(out: Console, where: Sequence[str], device: str, layers: int) -> None:
    """The commands that go on from here."""
    path = shlex.join(where) + (" --device cpu" if device == "cpu" else "")
    layer = f" --layer {min(3, layers - 1)}" if layers else ""
    out.print()
    out.print(Text(f"next: atom trace summary {path}"), soft_wrap=True)
    out.print(Text(f"      atom trace parse {path}{layer}"), soft_wrap=True)


def _us(us: float) -> str:
    return duration(us * 1000)

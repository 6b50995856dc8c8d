"""Runs for people in a terminal: the list, and one run whole."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from atom.bench import names
from atom.bench.history.flat import identity, leaves, metric_names, part
from atom.bench.history.runs import commit_of, load_text, shape_text, started_at
from atom.bench.types import RunResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ROOM_FOR_IDS = 105  # columns, from which ids are not cut
LEAST_NAME = 8
SHORTEST_ID = 15  # the date and the time
COMMIT_DIGITS = 8


_OF_REPEATS = {
    "output_throughput": "tok/s",
    "mean_ttft_ms": "ttft",
    "mean_tpot_ms": "tpot",
    "error_rate": "errors",
}


class Column(NamedTuple):
    """`least` is the terminal's width from which on there is room for it."""

    name: str
    value: Callable[[RunResult], str]
    right: bool = False
    least: int = 0


def _metric(run: RunResult, name: str) -> str:
    found = run.metrics.get(name)
    return "" if found is None else number(found.value)


def number(value: float) -> str:
    """Four digits where that is enough: 0.123, 12.34, 123.4, 1,234."""
    size = abs(value)
    digits = 0 if size >= 1000 or float(value).is_integer() else 1 if size >= 100 else 2
    return f"{value:,.{digits if size >= 1 or size == 0 else 4}f}"


def _score(run: RunResult) -> str:
    """The first score of an evaluation."""
    scores = [name for name in metric_names([run]) if not names.is_name(name)]
    return f"{run.metrics[scores[0]].value:.4f}" if scores else ""


def _status(run: RunResult) -> str:
    return "" if run.status == "ok" else run.status


def _columns(runs: Sequence[RunResult]) -> list[Column]:
    found = [
        Column("name", lambda run: run.name),
        Column("load", lambda run: load_text(run.load)),
        Column("in/out", lambda run: shape_text(run.workload), least=94),
        Column("tok/s", lambda run: _metric(run, "output_throughput"), right=True),
        Column("ttft", lambda run: _metric(run, "mean_ttft_ms"), right=True),
        Column("tpot", lambda run: _metric(run, "mean_tpot_ms"), right=True),
        Column("p99 ttft", lambda run: _metric(run, "p99_ttft_ms"), right=True, least=120),
        Column("score", _score, right=True),
        Column("n", lambda run: str(len(run.repeats)), right=True, least=105),
        Column("commit", lambda run: commit_of(run)[:COMMIT_DIGITS], least=105),
        Column("fingerprint", lambda run: run.fingerprint, least=140),
        Column("sweep", lambda run: run.sweep_id, least=170),
        Column("status", _status),
    ]
    return [c for c in found if c.name == "name" or any(c.value(run) for run in runs)]


def run_list(runs: Sequence[RunResult], width: int, all_ids: Sequence[str]) -> Table:
    """A row a run. Where room is short ids are cut as far as they stay unique, then names."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    short = shortest_ids(all_ids) if width < ROOM_FOR_IDS else {}
    columns = [Column("run", lambda run: short.get(run.run_id, run.run_id))]
    columns += [column for column in _columns(runs) if width >= column.least]
    cells = [[column.value(run) for column in columns] for run in runs]
    widths = [max(map(len, (c.name, *values))) for c, values in zip(columns, zip(*cells))]  # noqa: B905
    over = sum(widths) + 2 * (len(widths) - 1) - width
    name = [column.name for column in columns].index("name")
    widths[name] = max(LEAST_NAME, widths[name] - max(0, over))
    for column, room in zip(columns, widths, strict=True):
        justify: Literal["right", "left"] = "right" if column.right else "left"
        table.add_column(column.name, justify=justify, no_wrap=True, min_width=room)
    for run, row in zip(runs, cells, strict=True):
        row[name] = _middle_cut(row[name], widths[name])
        table.add_row(*map(Text, row), style="" if run.status == "ok" else "yellow")
    return table


def print_list(out: Console, runs: Sequence[RunResult], all_ids: Sequence[str]) -> None:
    """The list, and what its columns are."""
    from rich.text import Text

    out.print(run_list(runs, out.width, all_ids))
    out.print(Text("ttft, tpot: means in ms; tok/s: output tokens, whole run", style="dim"))


def _middle_cut(text: str, room: int) -> str:
    """Names of models differ at both ends."""
    if len(text) <= room:
        return text
    tail = (room - 1) // 2
    return f"{text[: room - 1 - tail]}…{text[len(text) - tail :]}"


def shortest_ids(ids: Sequence[str]) -> dict[str, str]:
    """Each id cut to its shortest unique beginning, but not below date and time."""
    ordered = sorted(ids)
    found = {}
    for run_id in ordered:
        at = bisect_left(ordered, run_id)
        beside = [*ordered[max(0, at - 1) : at], *ordered[at + 1 : at + 2]]
        common = max((_common(run_id, other) for other in beside), default=0)
        found[run_id] = run_id[: max(SHORTEST_ID, common + 1)]
    return found


def _common(a: str, b: str) -> int:
    for position, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return position
    return min(len(a), len(b))


def document_row(run: RunResult) -> dict[str, Any]:
    """One entry of `list --json`: who the run is, and its metrics' values."""
    values = {name: run.metrics[name].value for name in metric_names([run])}
    return {**identity(run), "metrics": values}


def print_run(out: Console, run: RunResult) -> None:
    """Everything about a run that fits a terminal."""
    from rich.text import Text

    if run.kind == "bench":
        from atom.bench import report

        report.print_run(out, run)
    else:
        out.print(Text(f"{run.name} · run {run.run_id}", style="bold"))
        out.print(_metric_table(run))
    if len(run.repeats) > 1:
        out.print(_repeat_table(run))
    for title, rows in {"run": _head(run), **_sections(run)}.items():
        if rows:
            _print_pairs(out, title, rows)
    for note in run.notes if run.kind != "bench" else ():  # the report has told them
        out.print(Text(f"note: {note}", style="dim"))
    command = run.provenance.get("command")
    if command:
        out.print(Text("command", style="bold cyan"))
        out.print(Text(f"  {command}"), soft_wrap=True)


def _head(run: RunResult) -> dict[str, str]:
    load = _pairs(run.load, " ")
    told = {k: v for k, v in run.workload.items() if v and "hash" not in k and "sha" not in k}
    workload = _pairs(told, " ")
    rows = {
        "started": started_at(run)[:19].replace("T", " ") + " UTC",
        "model": run.model,
        "status": run.status,
        "load": load,
        "workload": workload,
        "sweep": run.sweep_id,
        "fingerprint": run.fingerprint,
        "slo": ", ".join(f"{k} {v:g}" for k, v in run.slo.items()),
    }
    return {key: value for key, value in rows.items() if value}


def _sections(run: RunResult) -> dict[str, dict[str, str]]:
    return {
        "imported from": {k: str(v) for k, v in part(run.provenance, "source").items()},
        "provenance": {key: text for key, text in _provenance(run.provenance).items() if text},
        "artefacts": {a.get("kind", ""): a.get("path", "") for a in run.artefacts},
    }


def _provenance(tree: Mapping[str, Any]) -> dict[str, str]:
    """A line for each thing that a result depends on; `--json` has all of it."""
    server, hardware, recipe = (part(tree, key) for key in ("server", "hardware", "recipe"))
    own = part(tree, "atom")
    server_known = _words(server.get("kind"), server.get("version"), _commit(server))
    return {
        "server": _words(server_known, f"at {server['base_url']}" if "base_url" in server else ""),
        "settings": _pairs(part(server, "config")),
        "recipe": _words(recipe.get("path"), str(recipe.get("sha256") or "")[:12]),
        "machine": _machine(hardware),
        "driver": str(tree.get("driver") or ""),
        # Of a server on the client's machine it is the same.
        "client on": "" if hardware.get("known") else _machine(part(tree, "client")),
        "client": _words("atom", own.get("version"), _commit(own)) if own else "",
        "packages": _pairs({"python": tree.get("python"), **part(tree, "packages")}, " "),
        "environment": _pairs(part(tree, "environment")),
        "seed": str(tree.get("seed", "")),
        "metadata": _pairs(part(tree, "metadata")),
    }


def _machine(hardware: Mapping[str, Any]) -> str:
    names_ = [str(gpu.get("name", "")) for gpu in hardware.get("gpus") or []]
    gpus = ", ".join(f"{names_.count(name)} x {name}" for name in dict.fromkeys(names_))
    used = hardware.get("num_gpus")
    if gpus and used is not None and used != len(names_):
        gpus += f", {used} of them {hardware.get('num_gpus_from') or 'used'}"
    cpus, memory = hardware.get("usable_cpus"), hardware.get("memory_bytes")
    cpu = f"{cpus:g} CPUs of {hardware['cpu']}" if cpus and "cpu" in hardware else ""
    size = f"{memory / 2**30:.0f} GiB" if memory else ""
    known = ", ".join(filter(None, (gpus, cpu, size)))
    if not known and hardware.get("machine"):
        count = f" with {used} GPUs" if used is not None else ""
        return f"another one{count}, not known ({hardware['machine']})"
    return known


def _commit(place: Mapping[str, Any]) -> str:
    commit = str(place.get("commit") or "")[:12]
    return f"{commit}-dirty" if commit and place.get("dirty") else commit


def _words(*parts: Any) -> str:
    return " ".join(str(p) for p in parts if p)


def _pairs(tree: Mapping[str, Any], sign: str = "=") -> str:
    return ", ".join(f"{k}{sign}{v}" for k, v in leaves(tree) if v not in ("", None))


def print_several(out: Console, runs: Sequence[RunResult], all_ids: Sequence[str]) -> None:
    """Points of a sweep, or runs that one name means: side by side, then what made them."""
    from rich.text import Text

    from atom.bench import report

    if all(run.kind == "bench" and run.sweep_id == runs[0].sweep_id for run in runs):
        report.print_sweep(out, runs)
    print_list(out, runs, all_ids)
    for title, rows in _sections(runs[0]).items():
        if rows and title == "provenance":
            _print_pairs(out, title, rows)
    out.print(Text("atom bench show with one of these ids shows that run whole", style="dim"))


def _print_pairs(out: Console, title: str, rows: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    if title:
        out.print(Text(title, style="bold cyan"))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True, style="dim")
    table.add_column("", overflow="fold")
    for key, value in rows.items():
        table.add_row(Text(f"  {key}"), Text(value))
    out.print(table)


def _metric_table(run: RunResult) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("  metric", "value", "95% from", "to"):
        table.add_column(title, justify="left" if "metric" in title else "right")
    for name in metric_names([run]):
        found = run.metrics[name]
        known = found.low != found.high
        digits = f"{{:,.{4 if 0 <= found.value <= 1 else 2}f}}"
        ends = [digits.format(end) if known else "" for end in (found.low, found.high)]
        row = (f"  {names.label(name)}", digits.format(found.value), *ends)
        table.add_row(*map(Text, row))
    return table


def _repeat_table(run: RunResult) -> Table:
    from rich.table import Table

    there = [name for name in _OF_REPEATS if any(name in r.metrics for r in run.repeats)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("  repeat", "seed", "seconds", *(_OF_REPEATS[name] for name in there)):
        table.add_column(name, justify="right", no_wrap=True)
    for position, repeat in enumerate(run.repeats):
        values = [repeat.metrics.get(name) for name in there]
        shown = ["" if value is None else number(value) for value in values]
        table.add_row(str(position), str(repeat.seed), f"{repeat.duration_s:.1f}", *shown)
    return table

"""Results for people: one run, a sweep with a row per point, a search. Legible at 80 columns.

It prints to the console it is given and decides nothing: every figure comes from the result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from atom.bench import names
from atom.bench.search import SearchReport
from atom.bench.types import RunResult
from atom.bench.words import (
    SHORT,
    aim,
    aim_title,
    amount,
    answer,
    describe_load,
    describe_workload,
    level,
    load_level,
    number,
    short_name,
    width,
)

STATUS = {
    "ok": ("", ""),
    "interrupted": ("interrupted: what was measured until then", "yellow"),
    "client_bound": ("the client was the bottleneck: these figures are not the server's", "red"),
    "errors": ("too many requests failed", "red"),
    "slo_missed": ("an objective was missed", "red"),
}
# A latency row that repeats another one is left out below this relative difference.
SAME = 0.02
# A percentile with fewer requests beyond it moves with each of them.
FEWEST_BEYOND = 5
# A wait in the client below this says nothing.
NOTICEABLE_MS = 1.0


def print_run(console: Console, run: RunResult) -> None:
    """Everything a reader needs of one run: figures, objectives, errors, client, notes."""
    _heading(console, run)
    _throughput(console, run)
    _latencies(console, run)
    _requests(console, run)
    _objectives(console, run)
    _errors(console, run)
    _health(console, run)
    _basis(console, run)
    _notes(console, run)


def print_sweep(console: Console, runs: Sequence[RunResult]) -> None:
    """One row a point, in the order given."""
    assert runs
    first = runs[0]
    console.print(_line(f"{first.name} · {describe_workload(first.workload)}", style="bold"))
    table = _table(console)
    columns = _sweep_columns(runs, console.width)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for run in runs:
        style = STATUS.get(run.status, ("", ""))[1]
        table.add_row(*(Text(column.cell(run)) for column in columns), style=style)
    console.print(table)
    for status in dict.fromkeys(run.status for run in runs):
        words, style = STATUS.get(status, (status, "yellow"))
        loads = ", ".join(load_level(run) for run in runs if run.status == status)
        if words:
            console.print(_line(f"{loads}: {words}", style=style))
    console.print(
        _line("tok/s and req/s in steady state; ± half of the 95% confidence interval", style="dim")
    )


def print_search(console: Console, report: SearchReport, *, integer: bool) -> None:
    """The points of a search by load, and its answer."""
    what = "in flight" if integer else "req/s"
    aims = sorted(report.objectives)
    table = _table(console)
    for title in ("Load", *(aim_title(n, report.objectives[n]) for n in aims), ""):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for point in sorted(report.points, key=lambda p: p.load):
        cells = [level(point.load)]
        for name in aims:
            interval = point.metrics.get(name)
            cells.append(f"{number(interval.value)} {width(interval)}" if interval else "–")
        good = point.verdict == "meets"
        why = "meets" if good else f"misses {short_name(point.limiting)}"
        why += ", within the noise" if abs(point.margin) < 1.96 * point.noise else ""
        table.add_row(*(Text(c) for c in cells), Text(why), style="green" if good else "red")
    console.print(table)
    console.print(_line(answer(report, what), style="bold"))
    console.print(_line(f"{len(report.points)} runs; {report.reason}", style="dim"))


def _line(text: str, style: str = "") -> Text:
    """Plain text: brackets in a model's name are no markup."""
    return Text(text, style=style)


def _table(console: Console) -> Table:
    return Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))


def _value(run: RunResult, name: str) -> float | None:
    interval = run.metrics.get(name)
    return None if interval is None else interval.value


def _heading(console: Console, run: RunResult) -> None:
    console.print(_line(run.name, style="bold"), end="")
    console.print(_line(f" · {describe_load(run.load)} · {describe_workload(run.workload)}"))
    each = run.load.get("num_requests")
    count = f"{len(run.repeats)} × {each} requests" if each else f"{len(run.repeats)} repeats"
    seconds = sum(repeat.duration_s for repeat in run.repeats)
    said = [f"run {run.run_id}", count, f"{number(seconds)} s"]
    if run.name != run.model:
        said.insert(1, run.model)
    console.print(_line(" · ".join(said), style="dim"))
    words, style = STATUS.get(run.status, (run.status, "yellow"))
    if words:
        console.print(_line(words, style=f"bold {style}"))


def _throughput(console: Console, run: RunResult) -> None:
    steady = any(repeat.window_s is not None for repeat in run.repeats)
    table = _table(console)
    table.add_column("Throughput")
    for title in (("steady state", "") if steady else ()) + ("whole run", ""):
        table.add_column(title, justify="right")
    table.add_column("")
    for kind in ("output", "total_token", "request"):
        name = f"{kind}_throughput"
        if name not in run.metrics:
            continue
        cells = [names.PLAIN[name].label]
        for each in ([f"steady_{name}"] if steady else []) + [name]:
            cells += [number(_value(run, each)), width(run.metrics.get(each))]
        table.add_row(*(Text(c) for c in (*cells, names.PLAIN[name].unit)))
    for name in ("output_throughput_per_gpu", "total_token_throughput_per_gpu",
                 "output_throughput_per_user", "request_goodput"):  # fmt: skip
        if name in run.metrics:
            cells = [names.PLAIN[name].label, number(_value(run, name)), width(run.metrics[name])]
            if steady and name in ("output_throughput_per_user", "request_goodput"):
                cells[1:1] = ["", ""]
            elif steady:
                cells += ["", ""]
            table.add_row(*(Text(c) for c in (*cells, names.PLAIN[name].unit)))
    console.print()
    console.print(table)


class _Statistic(NamedTuple):
    key: str
    title: str


def _statistics(run: RunResult) -> list[_Statistic]:
    """mean, median, the percentiles that were asked for, std."""
    percents = set()
    for name in run.metrics:
        statistic, _, what = name.partition("_")
        if what == "ttft_ms" and statistic[0] == "p":
            percents.add(float(statistic[1:]))
    words = ["mean", "median", *(names.percentile_name(p) for p in sorted(percents)), "std"]
    return [_Statistic(word, word) for word in words]


def _shown(run: RunResult) -> list[str]:
    """The latencies worth a row."""
    shown = [w for w in ("ttft", "tpot", "itl", "e2el") if f"mean_{w}_ms" in run.metrics]
    for what, like in (("first_text", "ttft"), ("chunk_gap", "itl")):
        mine, other = _value(run, f"mean_{what}_ms"), _value(run, f"mean_{like}_ms")
        if mine is not None and (other is None or abs(mine - other) > SAME * other):
            shown.insert(shown.index(like) + 1 if like in shown else len(shown), what)
    worst = max((_value(run, n) or 0.0 for n in run.metrics if n.endswith("_client_queue_ms")),
                default=0.0)  # fmt: skip
    if worst >= NOTICEABLE_MS:
        shown.append("client_queue")
    if "mean_server_queue_ms" in run.metrics:
        shown.append("server_queue")
    return shown


def _latencies(console: Console, run: RunResult) -> None:
    """Statistics that do not fit beside each other go into a second table below."""
    shown = _shown(run)
    if not shown:
        return
    waiting = _statistics(run)
    room = console.width - 21 - 9  # the labels, the mean's interval
    per_table = max(room // 9, 2)
    if len(waiting) > per_table:  # std is the least of them, and in the result file
        waiting = waiting[:-1]
    while waiting:
        chunk, waiting = waiting[:per_table], waiting[per_table:]
        table = _table(console)
        table.add_column("Latency, ms", min_width=21, no_wrap=True)
        for statistic in chunk:
            table.add_column(statistic.title, justify="right", min_width=7, no_wrap=True)
            if statistic.key == "mean":
                table.add_column("", min_width=6, no_wrap=True)
        for what in shown:
            cells = [SHORT[what]]
            for statistic in chunk:
                interval = run.metrics.get(names.latency(statistic.key, what))
                cells.append(number(None if interval is None else interval.value))
                if statistic.key == "mean":
                    cells.append(width(interval))
            table.add_row(*(Text(cell) for cell in cells))
        console.print()
        console.print(table)


def _requests(console: Console, run: RunResult) -> None:
    done, failed = _value(run, "completed") or 0, _value(run, "failed") or 0
    said = [f"{done:,.0f} completed, {failed:,.0f} failed"]
    rate = run.metrics.get("error_rate")
    if rate is not None:
        known = f" (95% CI {rate.low:.1%} to {rate.high:.1%})" if rate.low < rate.high else ""
        said.append(f"{rate.value:.1%} errors{known}")
    rows = [("Requests", "; ".join(said))]
    tokens = []
    for key, word in (("input", "in"), ("output", "out")):
        total, mean = _value(run, f"total_{key}_tokens"), _value(run, f"mean_{key}_tokens")
        if total is not None:
            tokens.append(f"{total:,.0f} {word} ({number(mean)} per request)")
    if tokens:
        rows.append(("Tokens", ", ".join(tokens)))
    rows += _plain_rows(run)
    table = _table(console)
    table.show_header = False
    table.add_column(min_width=12, no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(label), Text(text))
    console.print()
    console.print(table)


def _plain_rows(run: RunResult) -> list[tuple[str, str]]:
    rows = []
    per_chunk = _value(run, "tokens_per_chunk")
    if per_chunk is not None and abs(per_chunk - 1) > SAME:
        rows.append(("Per chunk", f"{number(per_chunk)} tokens"))
    cached = _value(run, "cached_token_share")
    if cached is not None:
        rows.append(("Cached", f"{cached:.1%} of the prompt tokens came from the prefix cache"))
    mean, peak = _value(run, "mean_concurrency"), _value(run, "peak_concurrency")
    if mean is not None and peak is not None:
        rows.append(("In flight", f"{number(mean)} on average, {level(peak)} at most"))
    rate, length = _value(run, "acceptance_rate"), _value(run, "accept_length")
    drafts = [f"{rate:.1%} of the draft tokens accepted"] if rate is not None else []
    drafts += [f"{number(length)} tokens per forward pass"] if length is not None else []
    if drafts:
        rows.append(("Speculation", ", ".join(drafts)))
    share = _value(run, "goodput_share")
    if share is not None:
        rows.append(("Goodput", f"{share:.1%} of the requests kept every limit"))
    return rows


def _objectives(console: Console, run: RunResult) -> None:
    if not run.slo:
        return
    table = _table(console)
    for title in ("Objective", "measured", ""):
        table.add_column(title, justify="left" if title == "Objective" else "right", no_wrap=True)
    table.add_column("")
    for name, limit in sorted(run.slo.items()):
        interval = run.metrics.get(name)
        if interval is None:
            table.add_row(Text(aim(name, limit)), "–", "", "not known", style="red")
            continue
        met = names.meets(name, interval.value, limit)
        sure = names.meets(name, interval.low, limit) == names.meets(name, interval.high, limit)
        verdict = ("met" if met else "missed") + ("" if sure else ", within the noise")
        style = "red" if not met else ("green" if sure else "yellow")
        cells = (aim(name, limit), amount(name, interval.value), width(interval), verdict)
        table.add_row(*(Text(c) for c in cells), style=style)
    console.print()
    console.print(table)


def _errors(console: Console, run: RunResult) -> None:
    counts: dict[str, int] = {}
    for repeat in run.repeats:
        for cause, count in repeat.errors.items():
            counts[cause] = counts.get(cause, 0) + count
    if not counts:
        return
    table = _table(console)
    table.add_column("Errors", justify="right")
    table.add_column("cause", overflow="fold")
    for cause, count in sorted(counts.items(), key=lambda item: -item[1]):
        table.add_row(Text(f"{count:,}"), Text(cause), style="red")
    console.print()
    console.print(table)


def _health(console: Console, run: RunResult) -> None:
    health = [repeat.health for repeat in run.repeats]
    bound = [h for h in health if h.bound]
    busiest = max((share for h in health for share in h.cpu_share), default=0.0)
    lag = max((h.lag_p99_ms for h in health), default=0.0)
    workers = max((h.workers for h in health), default=1)
    processes = "1 process" if workers == 1 else f"{workers} processes"
    console.print()
    if workers == 0:  # imported: nobody watched that client
        console.print(_line(f"Client: {health[0].reason}", style="dim"))
    elif bound:
        console.print(_line(f"Client: the bottleneck. {bound[0].reason}", style="bold red"))
    else:
        text = f"{processes}, at most {busiest:.0%} of a core, event-loop lag p99 {number(lag)} ms"
        console.print(_line(f"Client: not the bottleneck ({text})", style="dim"))


def _basis(console: Console, run: RunResult) -> None:
    """What the intervals and the outer percentiles rest on."""
    count = len(run.repeats)
    if count > 1:
        text = f"± is half of the 95% confidence interval over {count} repeats"
    else:
        text = "± is half of a 95% interval; with one repeat it holds the noise within the run only"
    console.print(_line(text, style="dim"))
    done = _value(run, "completed") or 0.0
    percents = [float(s.key[1:]) for s in _statistics(run) if re.fullmatch(r"p[\d.]+", s.key)]
    thin = [p for p in percents if done * (1 - p / 100) < FEWEST_BEYOND]
    if thin and done:
        needed = math.ceil(FEWEST_BEYOND / (1 - thin[0] / 100) - 1e-6)
        said = f"p{thin[0]:g} rests on few of {done:,.0f} requests; {needed:,} make it steadier"
        console.print(_line(f"note: {said}", style="yellow"))


def _notes(console: Console, run: RunResult) -> None:
    """Of repeats that say the same with other figures only the first speaks."""
    for note in run.notes:
        console.print(_line(f"note: {note}", style="yellow"))
    alike: dict[str, list[str]] = {}
    for repeat in run.repeats:
        for note in repeat.notes:
            alike.setdefault(re.sub(r"[\d.,%+-]+", "#", note), []).append(note)
    for notes in alike.values():
        more = ""
        if len(run.repeats) > 1:
            more = f" ({len(notes)} of {len(run.repeats)} repeats)"
        console.print(_line(f"note: {notes[0]}{more}", style="yellow"))


class _Column(NamedTuple):
    title: str
    name: str = ""
    kind: str = "value"

    def cell(self, run: RunResult) -> str:
        if self.kind == "load":
            return load_level(run)
        interval = run.metrics.get(self.name)
        if self.kind == "width":
            return width(interval)
        if self.kind == "share":
            return "–" if interval is None else f"{interval.value:.1%}"
        return number(None if interval is None else interval.value)


def _sweep_columns(runs: Sequence[RunResult], room: int) -> list[_Column]:
    steady = all("steady_output_throughput" in r.metrics for r in runs)
    prefix = "steady_" if steady else ""
    closed = runs[0].load.get("concurrency") is not None
    wanted = [
        _Column("in\nflight" if closed else "offered\nreq/s", kind="load"),
        _Column("req/s", f"{prefix}request_throughput"),
        _Column("output\ntok/s", f"{prefix}output_throughput"),
        _Column("\n±", f"{prefix}output_throughput", "width"),
        _Column("tok/s\n/user", "output_throughput_per_user"),
        _Column("TTFT\nmean", "mean_ttft_ms"),
        _Column("ms\np99", "p99_ttft_ms"),
        _Column("TPOT\nmean", "mean_tpot_ms"),
        _Column("ms\np99", "p99_tpot_ms"),
        _Column("failed", "error_rate", "share"),
    ]
    if room >= 95:
        wanted.insert(4, _Column("total\ntok/s", f"{prefix}total_token_throughput"))
    if room >= 110 and any("output_throughput_per_gpu" in r.metrics for r in runs):
        wanted.insert(6, _Column("tok/s\n/GPU", "output_throughput_per_gpu"))
    if room >= 125:
        wanted[-1:-1] = [_Column("E2E\nmean", "mean_e2el_ms"), _Column("ms\np99", "p99_e2el_ms")]
    return wanted

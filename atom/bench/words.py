"""Figures, loads and objectives in words, for every report and page of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atom.bench import names
from atom.bench.history.runs import data_set
from atom.bench.search import SearchReport
from atom.bench.types import Interval, RunResult

# Shorter than `names.LATENCIES`, so that the figures fit beside them.
SHORT = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
    "first_text": "First visible text",
    "chunk_gap": "Gap between chunks",
    "client_queue": "Wait in the client",
    "server_queue": "Wait in the server",
}
ABBREVIATED = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E"}


def number(value: float | None) -> str:
    """Four significant digits at most, thousands set apart; a dash where it is not known."""
    if value is None:
        return "–"
    size = abs(value)
    if size < 1e-6:
        return "0"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.1f}"
    if size >= 10:
        return f"{value:.2f}"
    if size >= 0.01:
        return f"{value:.3f}"
    return f"{value:.1g}"


def width(interval: Interval | None) -> str:
    """Half the confidence interval, relative: ±1.2%; nothing where there is none (imports)."""
    if interval is None or not interval.value or interval.low == interval.high:
        return ""
    half = (interval.high - interval.low) / 2 / abs(interval.value)
    if half >= 10:
        return ">±999%"
    return f"±{half:.0%}" if half >= 0.0995 else f"±{half:.1%}"


def describe_load(load: Mapping[str, Any]) -> str:
    """`RunResult.load` in words: closed loop, 8 in flight."""
    if load.get("concurrency") is not None:
        return f"closed loop, {load['concurrency']} in flight"
    if load.get("mode") == "trace":
        # `time_scale` multiplies the times: half the times are twice the speed.
        return f"trace replay at {level(1 / float(load.get('time_scale', 1.0)))} times its speed"
    rate = load.get("request_rate")
    if rate in ("inf", None):
        return "open loop, all at once"
    rate = level(rate) if isinstance(rate, (int, float)) else rate
    kind = {"poisson": " (Poisson)", "gamma": " (gamma)", "constant": " (evenly spaced)"}
    return f"open loop, {rate} req/s{kind.get(str(load.get('arrivals')), '')}"


def load_level(run: RunResult) -> str:
    """The load in a word, for a row of a table."""
    if run.load.get("concurrency") is not None:
        return str(run.load["concurrency"])
    rate = run.load.get("request_rate")
    return level(rate) if isinstance(rate, (int, float)) else str(rate or run.load.get("mode", ""))


def describe_workload(workload: Mapping[str, Any]) -> str:
    """`Workload.describe()` in words: random, 1024 in, 128 out."""
    said = [data_set(workload) or "workload"]
    for key, word in (("input_len", "in"), ("output_len", "out")):
        if workload.get(key):
            said.append(f"{workload[key]} {word}")
    if workload.get("prefix_len"):
        said.append(f"{workload['prefix_len']} shared")
    return ", ".join(said)


def short_name(name: str) -> str:
    """`p99_ttft_ms` -> TTFT p99."""
    statistic, _, rest = name.partition("_")
    what = rest.removesuffix("_ms")
    if name.endswith("_ms") and what in SHORT:
        return f"{ABBREVIATED.get(what, SHORT[what])} {statistic}"
    return names.label(name)


def amount(name: str, value: float) -> str:
    """A metric's value without its unit, shares in percent."""
    return f"{value:.1%}" if names.unit(name) == "share" else number(value)


def level(load: float) -> str:
    """A load: 8, 2.5."""
    return f"{load:,.0f}" if load == int(load) else f"{load:.4g}"


def aim(name: str, limit: float) -> str:
    """An objective: TTFT p99 ≤ 500 ms."""
    sign = "≥" if names.better(name) == "higher" else "≤"
    if names.unit(name) == "share":
        return f"{short_name(name)} {sign} {limit * 100:g}%"
    return f"{short_name(name)} {sign} {_plain(limit)} {names.unit(name)}".rstrip()


def _plain(limit: float) -> str:
    return f"{limit:,.0f}" if limit == int(limit) else f"{limit:g}"


def aim_title(name: str, limit: float) -> str:
    short, _, bound = aim(name, limit).rpartition(" ≤ ")
    if not short:
        short, _, bound = aim(name, limit).rpartition(" ≥ ")
        return f"{short}\n≥ {bound}"
    return f"{short}\n≤ {bound}"


def answer(report: SearchReport, what: str) -> str:
    """The search's result in one sentence."""
    aims = ", ".join(aim(n, limit) for n, limit in sorted(report.objectives.items()))
    if report.best is None:
        return f"No load was found that meets {aims}"
    found = f"{level(report.best)} {what} is the highest load found that meets {aims}"
    if report.above is None:
        return found
    return f"{found}; {level(report.above)} misses {short_name(report.limiting)}"

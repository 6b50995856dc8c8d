"""The metrics' names: one vocabulary for results, history, comparison, objectives and dashboard.

A latency is `<statistic>_<what>_ms`: mean, median, std, p90, p99, p99.9 of what `LATENCIES` lists.
The rest is listed in `PLAIN`. The names of the original's `benchmark_serving` are kept where it has
the metric.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from atom.bench.errors import BenchError
from atom.config.fields import nearest

Direction = Literal["higher", "lower", "neither"]

LATENCIES: dict[str, str] = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
    "first_text": "Time to first visible text",
    "chunk_gap": "Gap between streamed chunks",
    "client_queue": "Wait in the client",
    "server_queue": "Wait in the server's queue",
}


class Plain(NamedTuple):
    label: str
    unit: str
    better: Direction


PLAIN: dict[str, Plain] = {
    "request_throughput": Plain("Requests", "req/s", "higher"),
    "output_throughput": Plain("Output tokens", "tok/s", "higher"),
    "total_token_throughput": Plain("Total tokens", "tok/s", "higher"),
    "steady_request_throughput": Plain("Requests, steady state", "req/s", "higher"),
    "steady_output_throughput": Plain("Output tokens, steady state", "tok/s", "higher"),
    "steady_total_token_throughput": Plain("Total tokens, steady state", "tok/s", "higher"),
    "output_throughput_per_gpu": Plain("Output tokens per GPU", "tok/s", "higher"),
    "total_token_throughput_per_gpu": Plain("Total tokens per GPU", "tok/s", "higher"),
    "output_throughput_per_user": Plain("Output tokens per user (1/TPOT)", "tok/s", "higher"),
    "request_goodput": Plain("Goodput", "req/s", "higher"),
    "goodput_share": Plain("Requests within the objectives", "share", "higher"),
    "error_rate": Plain("Failed requests", "share", "lower"),
    "completed": Plain("Completed requests", "", "neither"),
    "failed": Plain("Failed requests", "", "lower"),
    "total_input_tokens": Plain("Input tokens", "tok", "neither"),
    "total_output_tokens": Plain("Output tokens", "tok", "neither"),
    "mean_input_tokens": Plain("Input tokens per request", "tok", "neither"),
    "mean_output_tokens": Plain("Output tokens per request", "tok", "neither"),
    "cached_token_share": Plain("Prompt tokens from the prefix cache", "share", "neither"),
    "tokens_per_chunk": Plain("Tokens per streamed chunk", "tok", "neither"),
    "mean_concurrency": Plain("Requests in flight, time mean", "", "neither"),
    "peak_concurrency": Plain("Requests in flight, most", "", "neither"),
    "acceptance_rate": Plain("Accepted draft tokens", "share", "higher"),
    "accept_length": Plain("Tokens per forward pass", "tok", "higher"),
}

# Scores of evaluations of which less is better: by lm-eval's names, and those of `--agree`.
LOWER_SCORES = frozenset(
    {
        *("bits_per_byte", "brier_score", "byte_perplexity", "perplexity", "ter"),
        *("word_perplexity", "ppl_ratio"),
    }
)

_LATENCY = re.compile(r"(mean|median|std|p\d{1,2}(?:\.\d+)?)_([a-z0-9_]+)_ms")


def is_name(name: str) -> bool:
    match = _LATENCY.fullmatch(name)
    return name in PLAIN or (match is not None and match[2] in LATENCIES)


def latency(statistic: str, what: str) -> str:
    """`latency("p99", "ttft")` -> "p99_ttft_ms"."""
    name = f"{statistic}_{what}_ms"
    assert is_name(name), name
    return name


def percentile_name(percent: float) -> str:
    """99.0 -> "p99", 99.9 -> "p99.9"."""
    return f"p{percent:g}"


def better(name: str) -> Direction:
    """Which way is an improvement. Names that are not ours (accuracy scores): mostly higher."""
    if name in PLAIN:
        return PLAIN[name].better
    score = name.rpartition("/")[2].partition(",")[0]
    lower = _LATENCY.fullmatch(name) or score in LOWER_SCORES or score.endswith("_kl")
    return "lower" if lower else "higher"


def unit(name: str) -> str:
    if name in PLAIN:
        return PLAIN[name].unit
    return "ms" if _LATENCY.fullmatch(name) else ""


def label(name: str) -> str:
    """For people: "Time to first token, p99"."""
    if name in PLAIN:
        return PLAIN[name].label
    match = _LATENCY.fullmatch(name)
    if match is None or match[2] not in LATENCIES:
        return name
    return f"{LATENCIES[match[2]]}, {match[1]}"


def parse_objectives(text: str) -> dict[str, float]:
    """`ttft_p99=500ms,tpot_p99=50ms,output_throughput=1000` -> metric name -> limit.

    A latency is written `ttft_p99`, `ttft` (its p99) or in full; with ms (the default) or s.
    Raises `BenchError` for anything else.
    """
    objectives: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, sign, value = part.partition("=")
        if not sign:
            raise BenchError(f"--slo {part}: write metric=limit, e.g. ttft_p99=500ms")
        name = _objective_name(key.strip())
        if name in objectives:
            raise BenchError(f"--slo gives {name} twice")
        objectives[name] = _limit(part, value.strip(), name)
    if not objectives:
        raise BenchError("--slo is empty; write e.g. ttft_p99=500ms,tpot_p99=50ms")
    return objectives


def _objective_name(key: str) -> str:
    if is_name(key):
        return key
    what, _, statistic = key.rpartition("_")
    if key in LATENCIES:
        what, statistic = key, "p99"
    name = f"{statistic}_{what}_ms"
    if is_name(name):
        return name
    known = [*(f"{w}_p99" for w in LATENCIES), *PLAIN]
    raise BenchError(f"--slo {key}: unknown metric{nearest(key, known)}")


def _limit(part: str, text: str, name: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|%)?", text)
    latency_ms = unit(name) == "ms"
    if match is None or (match[2] in ("ms", "s")) > latency_ms:
        raise BenchError(
            f"--slo {part}: the limit must be a number" + (" with ms or s" if latency_ms else "")
        )
    scale = {"s": 1000.0, "%": 0.01}.get(match[2] or "", 1.0)
    return float(match[1]) * scale


def meets(name: str, value: float, limit: float) -> bool:
    """Whether `value` is on the good side of an objective."""
    return value >= limit if better(name) == "higher" else value <= limit

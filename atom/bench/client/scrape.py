"""What the server counts: its Prometheus page before and after a run, as a few common figures.

Counters are summed over their labels (engines, models); where a server has only gauges, the value
after the run is taken. A figure that cannot be known is absent, never 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from atom.bench.client.errand import Errand
from atom.bench.errors import ServerUnreachable

_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(\S+)(?:\s+-?\d+)?")

# Our name -> names of the counters, any server's (without _total, which newer ones add).
COUNTERS: dict[str, tuple[str, ...]] = {
    "prefix_queries": (
        "atom:prefix_cache_queries",
        "vllm:prefix_cache_queries",
        "vllm:gpu_prefix_cache_queries",
        "sglang:prompt_tokens",
        "atom:prefix_cache_full_tokens",
    ),
    "prefix_hits": (
        "atom:prefix_cache_hits",
        "vllm:prefix_cache_hits",
        "vllm:gpu_prefix_cache_hits",
        "sglang:cached_tokens",
        "atom:prefix_cache_cached_tokens",
    ),
    "preemptions": (
        "atom:num_preemptions",
        "atom:preemptions",
        "vllm:num_preemptions",
        "sglang:num_retracted_requests",
    ),
    "queue_seconds": (
        "atom:request_queue_time_seconds_sum",
        "vllm:request_queue_time_seconds_sum",
        "sglang:queue_time_seconds_sum",
    ),
    "queue_count": (
        "atom:request_queue_time_seconds_count",
        "vllm:request_queue_time_seconds_count",
        "sglang:queue_time_seconds_count",
    ),
    "draft_tokens": ("atom:mtp_draft_tokens", "vllm:spec_decode_num_draft_tokens"),
    "accepted_tokens": ("atom:mtp_accepted_tokens", "vllm:spec_decode_num_accepted_tokens"),
    "drafts": ("atom:mtp_decode_steps", "vllm:spec_decode_num_drafts"),
}
# Gauges of an average over the server's own window, and fields of GET /debug/mtp_stats.
GAUGES: dict[str, tuple[str, ...]] = {
    "acceptance_rate": ("sglang:spec_accept_rate", "atom:mtp_acceptance_rate"),
    "accept_length": ("sglang:spec_accept_length", "atom:mtp_average_tokens_per_forward"),
}
_MTP_FIELDS = {
    "acceptance_rate": "acceptance_rate",
    "accept_length": "average_tokens_per_forward",
}


def parse(text: str) -> dict[str, float]:
    """Prometheus text -> name (without _total) -> sum over labels; gauges of `GAUGES`: mean."""
    means = {name for names in GAUGES.values() for name in names}
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else _LINE.fullmatch(line.strip())
        if match is None:
            continue
        try:
            value = float(match[2])
        except ValueError:
            continue
        if math.isnan(value):
            continue
        name = match[1].removesuffix("_total")
        sums[name] = sums.get(name, 0.0) + value
        counts[name] = counts.get(name, 0) + 1
    return {name: s / counts[name] if name in means else s for name, s in sums.items()}


def server_metrics(
    base_url: str,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    verify_tls: bool = True,
    timeout_s: float = 5.0,
) -> dict[str, float]:
    """The counts and gauges above, as they are now. Empty where the server tells nothing.

    A benchmark does not end because its metrics page is missing: nothing is raised for that.
    """
    errand = Errand(base_url, api_key, headers, verify_tls=verify_tls, timeout_s=timeout_s)
    found: dict[str, float] = {}
    try:
        page = errand.get("/metrics")
        if page.status == 200:
            values = parse(page.body.decode("utf-8", "replace"))
            for key, names in {**COUNTERS, **GAUGES}.items():
                known = next((name for name in names if name in values), None)
                if known is not None:
                    found[key] = values[known]
        if "drafts" not in found and "acceptance_rate" not in found:
            found |= _mtp_stats(errand)
    except ServerUnreachable:
        return found
    return found


def _mtp_stats(errand: Errand) -> dict[str, float]:
    """Upstream ATOM's own page of speculative decoding."""
    answer = errand.get("/debug/mtp_stats")
    stats = answer.json if answer.status == 200 else None
    if not isinstance(stats, dict) or not stats.get("enabled", True):
        return {}
    fields = {ours: stats.get(theirs) for ours, theirs in _MTP_FIELDS.items()}
    return {k: float(v) for k, v in fields.items() if isinstance(v, int | float)}


def delta(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What happened between two scrapes.

    `acceptance_rate` accepted / draft tokens; `accept_length` 1 + accepted tokens / drafts (tokens
    per forward pass); `mean_server_queue_ms`; `prefix_hit_share` of the prompt tokens looked up;
    `preemptions`. A counter that fell (the server was restarted) makes its figure unknown.
    """

    def grown(key: str) -> float | None:
        if key not in before or key not in after or after[key] < before[key]:
            return None
        return after[key] - before[key]

    def ratio(part: str, whole: str) -> float | None:
        over, under = grown(part), grown(whole)
        return None if over is None or not under else over / under

    accepted = ratio("accepted_tokens", "drafts")
    queue_s = ratio("queue_seconds", "queue_count")
    figures = {
        "acceptance_rate": ratio("accepted_tokens", "draft_tokens"),
        "accept_length": None if accepted is None else 1 + accepted,
        "mean_server_queue_ms": None if queue_s is None else queue_s * 1000,
        "prefix_hit_share": ratio("prefix_hits", "prefix_queries"),
        "preemptions": grown("preemptions"),
    }
    for key in GAUGES:
        if figures[key] is None and not grown("drafts"):
            figures[key] = after.get(key)
    return {key: value for key, value in figures.items() if value is not None}

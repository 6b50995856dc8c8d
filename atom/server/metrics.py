"""Prometheus metrics: names, types and meanings are data, and the names are an API.

They follow vLLM's under the prefix `atom:`, so that routers of the Kubernetes ecosystem can read
queue, running, KV use and cache configuration. Counting is plain arithmetic on the event loop;
`prometheus_client` only formats on a scrape. Times are seconds and start when the request arrived.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from atom._version import __version__
from atom.engine.messages import SchedulerStats, Timings

if TYPE_CHECKING:
    from atom.server.state import ServerState

PREFIX = "atom:"
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
_CHOICES = (1.0, 2.0, 4.0, 8.0, 16.0)


class Spec(NamedTuple):
    kind: str  # gauge, counter or histogram
    doc: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# A counter's name gets "_total" when it is shown.
SPECS: dict[str, Spec] = {
    "num_requests_running": Spec("gauge", "Sequences being computed"),
    "num_requests_waiting": Spec("gauge", "Sequences queued in the engine"),
    "kv_cache_usage_perc": Spec("gauge", "Share of KV blocks that sequences hold, 0 to 1"),
    "cache_config_info": Spec(
        "gauge",
        "Constant 1; the labels describe the KV cache",
        (
            "block_size",
            "num_gpu_blocks",
            "cache_dtype",
            "enable_prefix_caching",
            "prefix_caching_reason",
        ),
    ),
    "build_info": Spec("gauge", "Constant 1; the labels say what is served", ("version", "model")),
    "engine_up": Spec("gauge", "1 while the engine serves; 0 when starting, draining or dead"),
    "prefix_cache_queries": Spec("counter", "Prompt tokens looked up in the prefix cache"),
    "prefix_cache_hits": Spec("counter", "Prompt tokens found in the prefix cache"),
    "window_cache_usage_perc": Spec(
        "gauge", "Share of the blocks of window caches that sequences hold, 0 to 1"
    ),
    "state_checkpoints_cached": Spec("gauge", "Recurrent states kept at the ends of prefixes"),
    "state_checkpoint_saves": Spec("counter", "Recurrent states saved for the prefix cache"),
    "state_checkpoint_skips": Spec("counter", "States not saved: every checkpoint was in use"),
    "state_checkpoint_restores": Spec("counter", "Prefix hits that went on from a saved state"),
    "num_preemptions": Spec("counter", "Sequences put back to the queue for lack of KV blocks"),
    "prompt_tokens": Spec("counter", "Prompt tokens of requests whose first token has come"),
    "prompt_tokens_computed": Spec("counter", "Prompt tokens computed, without prefix hits"),
    "generation_tokens": Spec("counter", "Tokens generated"),
    "engine_steps": Spec("counter", "Steps of the engine"),
    "engine_graph_steps": Spec("counter", "Steps whose forward was a replay of captured graphs"),
    "engine_step_host_seconds": Spec("counter", "Time the engine spent planning and collecting"),
    "engine_step_device_seconds": Spec("counter", "Time the engine waited for the device"),
    "request_success": Spec(
        "counter",
        "Sequences that ended: stop, length, abort (client gone, deadline, shutdown) or error",
        ("finished_reason",),
    ),
    "http_requests": Spec("counter", "HTTP answers", ("method", "handler", "status")),
    "client_disconnects": Spec("counter", "Requests whose client went away before the end"),
    "time_to_first_token_seconds": Spec("histogram", "Arrival to first token", (), _SLOW),
    "inter_token_latency_seconds": Spec(
        "histogram", "Between tokens of a sequence; tokens of one chunk share its time", (), _FAST
    ),
    "request_time_per_output_token_seconds": Spec(
        "histogram", "A sequence's mean time per token after the first", (), _FAST
    ),
    "e2e_request_latency_seconds": Spec("histogram", "Arrival to last token", (), _SLOW),
    "request_queue_time_seconds": Spec("histogram", "Queued in the engine", (), _SLOW),
    "request_prefill_time_seconds": Spec("histogram", "First scheduled to first token", (), _SLOW),
    "request_decode_time_seconds": Spec("histogram", "First token to last token", (), _SLOW),
    "request_prompt_tokens": Spec("histogram", "Prompt tokens of a sequence", (), _TOKENS),
    "request_generation_tokens": Spec("histogram", "Tokens generated of a sequence", (), _TOKENS),
    "request_params_n": Spec("histogram", "Choices asked for", (), _CHOICES),
    "request_params_max_tokens": Spec("histogram", "max_tokens, resolved", (), _TOKENS),
}


class Histogram:
    """Counts per bucket. `observe` costs well under a microsecond; one thread uses it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def cumulative(self) -> list[tuple[str, float]]:
        rows: list[tuple[str, float]] = []
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            rows.append(("+Inf" if bound == float("inf") else repr(bound), seen))
        return rows


class Metrics(Collector):
    """The server's own counts, and on a scrape the engine's latest statistics."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._histograms = {
            name: Histogram(spec.buckets)
            for name, spec in SPECS.items()
            if spec.kind == "histogram"
        }
        self._inter_token = self._histograms["inter_token_latency_seconds"]
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.client_disconnects = 0
        self.http_requests: dict[tuple[str, ...], int] = {}
        self.finished = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def on_request(self, n: int, max_tokens: int) -> None:
        self._histograms["request_params_n"].observe(n)
        self._histograms["request_params_max_tokens"].observe(max_tokens)

    def on_first_token(self, ttft_s: float, prompt_tokens: int, new_tokens: int) -> None:
        self._histograms["time_to_first_token_seconds"].observe(ttft_s)
        self.prompt_tokens += prompt_tokens
        self.generation_tokens += new_tokens

    def on_tokens(self, seconds: float, new_tokens: int) -> None:
        """`new_tokens` >= 1 arrived together, `seconds` after the ones before."""
        self._inter_token.observe(seconds / new_tokens, new_tokens)
        self.generation_tokens += new_tokens

    def on_finished(
        self, reason: str, latency_s: float, ttft_s: float, prompt_tokens: int, tokens: int
    ) -> None:
        """Every sequence, however it ended; without a first token, `ttft_s` is not looked at."""
        self.finished[reason] += 1
        self._histograms["e2e_request_latency_seconds"].observe(latency_s)
        self._histograms["request_prompt_tokens"].observe(prompt_tokens)
        self._histograms["request_generation_tokens"].observe(tokens)
        if tokens > 1:
            self._histograms["request_time_per_output_token_seconds"].observe(
                (latency_s - ttft_s) / (tokens - 1)
            )

    def on_timings(self, timings: Timings) -> None:
        self._histograms["request_queue_time_seconds"].observe(timings.queued_s)
        self._histograms["request_prefill_time_seconds"].observe(timings.prefill_s)
        self._histograms["request_decode_time_seconds"].observe(timings.decode_s)

    def on_http(self, method: str, handler: str, status: int) -> None:
        key = (method, handler, str(status))
        self.http_requests[key] = self.http_requests.get(key, 0) + 1

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        scalars = self._scalars(self._state.client.stats)
        labelled = self._labelled()
        for name, spec in SPECS.items():
            if spec.kind == "histogram":
                histogram = self._histograms[name]
                yield HistogramMetricFamily(
                    PREFIX + name,
                    spec.doc,
                    buckets=histogram.cumulative(),
                    sum_value=histogram.total,
                )
                continue
            kind = GaugeMetricFamily if spec.kind == "gauge" else CounterMetricFamily
            family = kind(PREFIX + name, spec.doc, labels=spec.labels)
            rows = labelled[name] if spec.labels else {(): scalars[name]}
            for values, value in rows.items():
                family.add_metric(list(values), value)
            yield family

    def _scalars(self, stats: SchedulerStats) -> dict[str, float]:
        used = stats.num_used_blocks / stats.num_blocks if stats.num_blocks else 0.0
        windows = stats.num_used_window_blocks / max(1, stats.num_window_blocks)
        return {
            "num_requests_running": stats.num_running,
            "num_requests_waiting": stats.num_waiting,
            "kv_cache_usage_perc": used,
            "engine_up": float(self._state.serving),
            "prefix_cache_queries": stats.prefix_cache_queries,
            "prefix_cache_hits": stats.prefix_cache_hits,
            "window_cache_usage_perc": windows,
            "state_checkpoints_cached": stats.num_cached_checkpoints,
            "state_checkpoint_saves": stats.checkpoint_saves,
            "state_checkpoint_skips": stats.checkpoint_skips,
            "state_checkpoint_restores": stats.checkpoint_restores,
            "num_preemptions": stats.preemptions,
            "prompt_tokens": self.prompt_tokens,
            "prompt_tokens_computed": stats.prompt_tokens,
            "generation_tokens": self.generation_tokens,
            "engine_steps": stats.steps,
            "engine_graph_steps": stats.graph_steps,
            "engine_step_host_seconds": stats.step_host_s,
            "engine_step_device_seconds": stats.step_device_s,
            "client_disconnects": self.client_disconnects,
        }

    def _labelled(self) -> dict[str, dict[tuple[str, ...], float]]:
        cache: dict[tuple[str, ...], float] = {}
        info = self._state.engine_info
        if info is not None:
            on = str(info.prefix_caching).lower()
            cache[
                str(info.block_size),
                str(info.num_blocks),
                info.kv_cache_dtype,
                on,
                info.prefix_caching_reason,
            ] = 1.0
        return {
            "cache_config_info": cache,
            "build_info": {(__version__, self._state.names[0]): 1.0},
            "request_success": {(reason,): n for reason, n in self.finished.items()},
            "http_requests": dict(self.http_requests),
        }

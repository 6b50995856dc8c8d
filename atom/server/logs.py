"""What the server says on stderr: one format, the start-up tables, a line per interval of work."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from atom.engine import startup
from atom.engine.messages import EngineInfo, SchedulerStats
from atom.server.state import ServerState

log = logging.getLogger("atom.server")

INTERVAL_S = 10.0


def configure(level: str) -> None:
    """Log atom and uvicorn's warnings to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    for name, at in (("atom", level.upper()), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(at)
        logger.propagate = False


def startup_report(
    info: EngineInfo, phases_s: Mapping[str, float], sampling_defaults: str
) -> list[str]:
    """Lines for the log: what is served, where the time went and where the memory is."""
    cache = "on" if info.prefix_caching else f"off ({info.prefix_caching_reason})"
    tokens = info.num_blocks * info.block_size
    lines = [
        f"model {info.model} ({info.architecture}), {info.dtype} on {info.device}, "
        f"context {info.max_model_len}",
        f"KV cache {info.kv_cache_dtype}: {info.num_blocks} blocks of {info.block_size} = "
        f"{tokens} tokens; prefix caching {cache}",
        f"scheduling {info.policy}, overlap {'on' if info.overlap else 'off'}, at most "
        f"{info.max_num_seqs} sequences and {info.max_num_batched_tokens} tokens in a step",
        f"sampling defaults: {sampling_defaults}",
        "start-up: " + ", ".join(f"{name} {s:.2f} s" for name, s in phases_s.items()),
        *startup.report(info),
    ]
    if info.backends:
        chosen = ", ".join(f"{op} {backend}" for op, backend in info.backends.items())
        lines.append(f"operations: {chosen}")
    if info.graphs:
        lines.append(f"graphs: {info.graphs}")
    return lines


@dataclass(frozen=True, slots=True)
class _Totals:
    at: float
    steps: int
    prompt_tokens: int
    generation_tokens: int
    queries: int
    hits: int


class Activity:
    """Says every ten seconds what the engine has done; nothing while it does nothing."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._last = self._totals()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            line = self.line()
            if line is not None:
                log.info("%s", line)

    def line(self) -> str | None:
        """What happened since the last call; None: nothing did."""
        now, last = self._totals(), self._last
        self._last = now
        stats: SchedulerStats = self._state.client.stats
        busy = stats.num_running or stats.num_waiting or now.steps != last.steps
        if not busy:
            return None
        seconds = max(now.at - last.at, 1e-9)
        used = stats.num_used_blocks / stats.num_blocks if stats.num_blocks else 0.0
        queries = now.queries - last.queries
        hits = f"{(now.hits - last.hits) / queries:.1%}" if queries else "-"
        return (
            f"running {stats.num_running}, waiting {stats.num_waiting}, "
            f"prompt {(now.prompt_tokens - last.prompt_tokens) / seconds:.1f} tok/s, "
            f"output {(now.generation_tokens - last.generation_tokens) / seconds:.1f} tok/s, "
            f"KV {used:.1%}, prefix hits {hits}"
        )

    def _totals(self) -> _Totals:
        stats = self._state.client.stats
        return _Totals(
            at=time.monotonic(),
            steps=stats.steps,
            prompt_tokens=stats.prompt_tokens,
            generation_tokens=stats.generation_tokens,
            queries=stats.prefix_cache_queries,
            hits=stats.prefix_cache_hits,
        )

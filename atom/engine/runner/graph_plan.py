"""Which steps get graphs: modes, levels and sizes. Decides only; see `graphs` for the doing.

| mode | decode steps | steps with prompts |
|---|---|---|
| none | eager | eager |
| piecewise | cut at attention | cut at attention |
| full | one graph, tokens included | one graph |
| full_decode_only | one graph, tokens included | eager |
| full_and_piecewise | one graph, tokens included | cut at attention |
"""

from __future__ import annotations

from typing import NamedTuple

from atom.config.schema import Config
from atom.errors import ConfigError

# Close together where few sequences run: there each padded one may cost a mixture of experts the
# weights of some more experts.
DECODE_SIZES = (*range(1, 9), 12, 16, 24, *range(32, 513, 16))
# Tokens of a step with prompts. Few: each is as many graphs as the model has layers.
TOKEN_SIZES = (16, 32, 64, 128, 192, 256, 320, 384, 448, 512)
# Of models whose layers take longer to launch than to compute even then: small or sparse ones.
LONG_SIZES = (640, 768, 896, 1024, 1280, 1536, 1792, 2048)


class GraphPlan(NamedTuple):
    mode: str
    reason: str  # why this mode
    decode_sizes: tuple[int, ...] = ()  # sequences, ascending
    token_sizes: tuple[int, ...] = ()  # tokens of steps that are no such decodes, ascending
    kind: str = ""  # of the graphs of `token_sizes`: "piecewise" or "full"

    def __str__(self) -> str:
        parts = [f"{self.mode} ({self.reason})"]
        if self.decode_sizes:
            parts.append(f"decode steps of {_range(self.decode_sizes)} sequences")
        if self.token_sizes:
            parts.append(f"{self.kind} up to {_range(self.token_sizes)} tokens")
        return ", ".join(parts)


def _range(sizes: tuple[int, ...]) -> str:
    ends = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}..{sizes[-1]}"
    return f"{ends} ({len(sizes)} sizes)"


def plan_graphs(
    config: Config, device: str, uncapturable: str = "", launch_bound: int = 0
) -> GraphPlan:
    """What is captured on `device` ("cpu" or "cuda").

    `uncapturable` says why the model's kernels cannot be, if they cannot; then a mode that was
    asked for by name raises `ConfigError`. `launch_bound`: eager steps of fewer tokens than this
    take longer to launch than to compute.
    """
    asked = config.compile.cudagraph_mode
    if device == "cpu":
        return GraphPlan("none", "graphs are for GPUs")
    mode, reason = _mode_of(config)
    if mode != "none" and uncapturable:
        if asked is not None:
            raise ConfigError(
                f"cudagraph_mode = {asked} cannot be: {uncapturable}; use none, or see atom doctor "
                "for why no other backend serves it"
            )
        return GraphPlan("none", uncapturable)
    if mode == "none":
        return GraphPlan("none", reason)
    decodes, tokens = decode_sizes(config), token_sizes(config, launch_bound)
    match mode:
        case "piecewise":
            both = tuple(sorted({*decodes, *tokens}))
            return GraphPlan(mode, reason, (), both, "piecewise")
        case "full":
            return GraphPlan(mode, reason, decodes, tokens, "full")
        case "full_decode_only":
            return GraphPlan(mode, reason, decodes)
        case _:
            return GraphPlan(mode, reason, decodes, tokens, "piecewise")


def _mode_of(config: Config) -> tuple[str, str]:
    compile_config = config.compile
    if compile_config.enforce_eager:
        return "none", "enforce_eager"
    if compile_config.cudagraph_mode is not None:
        return compile_config.cudagraph_mode, "cudagraph_mode"
    if compile_config.level < 3:
        return "none", f"level {compile_config.level}"
    if config.parallel.tensor_parallel_size > 1:
        # Collectives inside graphs have not run on several GPUs yet: only who asks gets them.
        return "none", "several ranks, and no cudagraph_mode asks for graphs"
    return "full_and_piecewise", "level 3"


def decode_sizes(config: Config) -> tuple[int, ...]:
    """Those asked for, or the usual ones; none above what can run at once, which is itself one."""
    limit = min(config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens)
    asked = config.compile.cudagraph_capture_sizes
    if asked:
        return tuple(sorted({min(size, limit) for size in asked}))
    return tuple(sorted({min(size, limit) for size in DECODE_SIZES}))


def token_sizes(config: Config, launch_bound: int) -> tuple[int, ...]:
    limit = config.scheduler.max_num_batched_tokens
    sizes = (*TOKEN_SIZES, *(size for size in LONG_SIZES if size <= launch_bound))
    return tuple(sorted({min(size, limit) for size in sizes}))

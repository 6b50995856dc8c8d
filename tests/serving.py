"""Drive a real runner through `EngineCore`, several engines over one loaded model if need be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atom.config.schema import (
    CompileConfig,
    Config,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from atom.engine.core import EngineCore
from atom.engine.messages import GenerateRequest, TokenChunk, TokenLogprobs
from atom.engine.runner.model_runner import ModelRunner
from atom.engine.sampling_params import SamplingParams
from atom.models.source import resolve_source


def make_config(
    model: Path | None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    max_model_len: int | None = None,
    level: int = 3,
    num_threads: int = 1,
    block_size: int = 16,
    num_blocks: int = 512,
    overlap: bool = False,
    caching: bool = True,
    **scheduler: Any,
) -> Config:
    scheduler.setdefault("max_num_seqs", 32)
    return Config(
        model=ModelConfig(
            model=None if model is None else str(model), dtype=dtype, max_model_len=max_model_len
        ),
        engine=EngineConfig(
            device=device,
            kv_cache_block_size=block_size,
            num_kvcache_blocks=num_blocks,
            overlap=overlap,
            enable_prefix_caching=caching,
            num_threads=num_threads if device == "cpu" else 0,
        ),
        scheduler=SchedulerConfig(**scheduler),
        compile=CompileConfig(level=level),
    )


def make_runner(config: Config) -> ModelRunner:
    return ModelRunner(config, resolve_source(config.model))


class Shared:
    """A loaded runner as seen by one more engine, perhaps with fewer blocks."""

    def __init__(self, runner: ModelRunner, num_blocks: int) -> None:
        assert num_blocks <= runner.num_blocks
        self._runner = runner
        self.num_blocks = num_blocks
        self.cache_layout = dataclasses.replace(runner.cache_layout, num_blocks=num_blocks)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


@dataclass
class Result:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None
    num_cached_tokens: int = 0

    def take(self, chunk: TokenChunk) -> None:
        assert self.finish_reason is None
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs or []
        self.prompt_logprobs = chunk.prompt_logprobs or self.prompt_logprobs
        self.num_cached_tokens = max(self.num_cached_tokens, chunk.num_cached_tokens)
        self.finish_reason = chunk.finish_reason


def generate(
    core: EngineCore, prompts: Iterable[list[int]], sampling: SamplingParams | list[SamplingParams]
) -> list[Result]:
    """Submit all at once, run until nothing is left, check that nothing leaked."""
    prompts = list(prompts)
    params = sampling if isinstance(sampling, list) else [sampling] * len(prompts)
    results = {str(i): Result() for i in range(len(prompts))}
    for i, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
        core.add(GenerateRequest(str(i), prompt, p))
    while core.has_work:
        for chunk in core.step():
            assert chunk.error is None, chunk.error
            results[chunk.request_id].take(chunk)
    core.check_invariants()
    assert core.scheduler.blocks.num_used == 0
    assert all(r.finish_reason for r in results.values())
    return list(results.values())


def greedy(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **more)

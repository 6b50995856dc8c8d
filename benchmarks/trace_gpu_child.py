"""One engine for `trace_gpu.py`: the same prefill and decode steps, recorded.

Run as a process of its own, so that device memory and compiled code are fresh. Writes the traces
where it is told, and a line of JSON with their paths, the tokens and what ran to `--out`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from h200 import setting


class Engine:
    """An engine whose steps are made one at a time."""

    def __init__(self, model: Path, settings: dict[str, Any]) -> None:
        from atom.engine.llm import LLM

        started = time.monotonic()
        self.llm = LLM(str(model), **settings)
        self.start_s = time.monotonic() - started
        self.core = self.llm.core
        self.runner = self.core._runner  # a benchmark may look inside
        self._count = 0

    def add(self, prompts: list[list[int]], output: int) -> None:
        from atom.engine.messages import GenerateRequest
        from atom.engine.sampling_params import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        for prompt in prompts:
            self._count += 1
            self.core.add(GenerateRequest(f"t{self._count}", prompt, sampling))

    def step(self) -> list[int]:
        """One step; the tokens that it gave."""
        return [token for chunk in self.core.step() for token in chunk.token_ids]

    def drain(self) -> list[int]:
        tokens = []
        while self.core.has_work:
            tokens += self.step()
        return tokens

    def prompts(self, seed: int, count: int, length: int) -> list[list[int]]:
        """The same for every engine."""
        choose = random.Random(seed).choices
        return [choose(range(self.core.info.vocab_size), k=length) for _ in range(count)]

    def recorded(self, stamp: str, steps: int) -> tuple[list[str], list[int]]:
        self.runner.start_profile(stamp)
        tokens: list[int] = []
        for _ in range(steps):
            tokens += self.step()
        tokens += [token for chunk in self.core.settle() for token in chunk.token_ids]
        return self.runner.stop_profile()(), tokens


def run(engine: Engine, args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"traces": {}, "tokens": {}}
    for seed in (1, 2):  # the first compiles, and is not kept
        for length in args.prompts:
            prompts = engine.prompts(100 * seed + length, 1, length)
            engine.add(prompts, 2)
            stamp = f"prefill_{length}"
            if seed == 1:
                engine.drain()
                continue
            result["traces"][stamp], tokens = engine.recorded(stamp, 1)
            result["tokens"][stamp] = tokens + engine.drain()
        engine.add(engine.prompts(seed, args.batch, args.context), 16 + 3 * args.steps)
        for _ in range(8):  # all prompts and some decode steps
            engine.step()
        if seed == 2:
            seconds = [_timed(engine) for _ in range(args.steps)]
            result["step_ms"] = 1e3 * statistics.median(seconds)
            stamp = f"decode_{args.batch}"
            result["traces"][stamp], tokens = engine.recorded(stamp, args.steps)
            result["tokens"][stamp] = tokens
        engine.drain()
    return result


def _timed(engine: Engine) -> float:
    started = time.perf_counter()
    engine.step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, nargs="+", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--token-sizes", type=int, nargs="+", required=True)
    parser.add_argument("--set", nargs="*", type=setting, default=[])
    args = parser.parse_args()
    from atom.engine.runner import graph_plan

    # Fewer graphs of tokens than a server captures: these are enough, and the start is short.
    graph_plan.TOKEN_SIZES, graph_plan.LONG_SIZES = tuple(args.token_sizes), ()  # type: ignore[assignment]
    engine = Engine(args.model, dict(args.set))
    result = run(engine, args)
    runner = engine.runner
    result |= {"start_s": engine.start_s, "mode": runner.mode, "graphs": runner.graphs}
    result["counts"] = dict(runner.graph_counts)
    engine.llm.close()
    args.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

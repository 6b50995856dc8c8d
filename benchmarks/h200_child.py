"""One engine's share of `h200.py`: starts it, runs cells, writes a line of JSON for each.

A process of its own per model and KV dtype, so that all memory comes back and a crash costs only
what it ran. Lines go to the file descriptor of `--out`: {"event": "start" | "cell" | "error"}.
A failed cell ends the process: what an error leaves of a device is not to be trusted, and the
parent starts another for the cells that remain.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
import traceback
from typing import Any

from h200_targets import Cell
from late import Late


class Bench:
    """An engine and a source of prompts that no earlier prompt shares a block with."""

    def __init__(self, model: str, settings: dict[str, Any], spawned: float) -> None:
        """`spawned`: when this process was asked for, by the machine's monotonic clock."""
        import atom.engine.runner.tp  # noqa: F401  brings torch, which LLM would import
        from atom.engine.llm import LLM

        self.import_s = time.monotonic() - spawned
        started = time.monotonic()
        self.llm = LLM(model, **settings)
        self.start_s = time.monotonic() - started
        self.info = self.llm.core.info
        self._random = random.Random(20_261_121)
        self._late = Late()

    def prompts(self, count: int, length: int) -> list[list[int]]:
        vocab = self.info.vocab_size
        return [self._random.choices(range(vocab), k=length) for _ in range(count)]

    def generate(self, batch: int, length: int, output: int) -> dict[str, float]:
        """Seconds of one call, and of what follows the last prompt's first token."""
        from atom.engine.sampling_params import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        prompts = self.prompts(batch, length)
        steps = self.llm.core.stats().steps
        started = time.perf_counter()
        results = self.llm.generate(prompts, sampling)
        seconds = time.perf_counter() - started
        stats = self.llm.core.stats()
        for result in results:
            assert len(result.outputs[0].token_ids) == output, "the engine lost tokens"
            assert result.num_cached_tokens == 0, "a prefix was reused"
        decode = max(r.latency_s for r in results) - max(r.ttft_s for r in results)
        return {
            "seconds": seconds,
            "decode_s": decode,
            "steps": stats.steps - steps,
            "preemptions": stats.preemptions,
        }

    # -- cells --------------------------------------------------------------------------------

    def decode(self, cell: Cell) -> dict[str, Any]:
        self.generate(cell.batch, cell.prompt, 4)  # warm-up of both kinds of step
        self.generate(cell.batch, cell.prompt, cell.output)
        long = [
            self.generate(cell.batch, cell.prompt, cell.output)["seconds"]
            for _ in range(cell.repeats)
        ]
        short = [self.generate(cell.batch, cell.prompt, 1)["seconds"] for _ in range(cell.repeats)]
        tpot = (statistics.median(long) - statistics.median(short)) / (cell.output - 1)
        return {
            "tpot_ms": 1e3 * tpot,
            "tok_s": cell.batch / tpot,
            "seconds": long,
            "seconds_of_one_token": short,
        }

    def work(self, cell: Cell) -> dict[str, Any]:
        """Throughput, prefill, long context: whole calls."""
        # What runs a step of these lengths for the first time; throughput is its own warm-up, as
        # the first of several.
        if cell.kind == "prefill":
            self.generate(cell.batch, cell.prompt, 1)
        elif cell.kind == "long":
            self.generate(max(1, cell.batch // 8), cell.prompt, min(cell.output, 4))
        runs = [self.generate(cell.batch, cell.prompt, cell.output) for _ in range(cell.repeats)]
        seconds = [run["seconds"] for run in runs]
        median = statistics.median_low(seconds)
        prompt = cell.batch * cell.prompt
        answer = {
            "seconds": seconds,
            "median_s": median,
            "total_tok_s": (prompt + cell.batch * (cell.output if cell.output > 1 else 0)) / median,
            "steps": runs[-1]["steps"],
            "preemptions": runs[-1]["preemptions"],
        }
        if cell.output > 1:
            answer["output_tok_s"] = cell.batch * cell.output / median
            decode = statistics.median_low(run["decode_s"] for run in runs)
            answer["decode_s"] = decode
            answer["decode_tpot_ms"] = 1e3 * decode / (cell.output - 1)
        return answer

    def run(self, cell: Cell) -> dict[str, Any]:
        self._late.take()
        answer = self.decode(cell) if cell.kind == "decode" else self.work(cell)
        return {**answer, "late": self._late.take()}

    def about(self) -> dict[str, Any]:
        import torch

        info = self.info
        answer: dict[str, Any] = {
            "import_s": self.import_s,
            "start_s": self.start_s,
            "phases_s": info.startup_s,
            "memory_bytes": info.memory_bytes,
            "kv_cache_dtype": info.kv_cache_dtype,
            "kv_tokens": info.num_blocks * info.block_size,
            "backends": info.backends,
            "dtype": info.dtype,
            "overlap": info.overlap,
            "torch": torch.__version__,
        }
        if torch.cuda.is_available() and info.device != "cpu":
            free, total = torch.cuda.mem_get_info()
            answer |= {"gpu": torch.cuda.get_device_name(), "gpu_used_bytes": total - free}
        return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--cells", type=json.loads, required=True)
    parser.add_argument("--out", type=int, required=True)
    parser.add_argument("--spawned", type=float, required=True)
    args = parser.parse_args()
    out = os.fdopen(args.out, "w", buffering=1)

    def say(**event: Any) -> None:
        out.write(json.dumps(event) + "\n")

    name = "start"
    try:
        bench = Bench(args.model, args.settings, args.spawned)
        say(event="start", **bench.about())
        for fields in args.cells:
            cell = Cell(**fields)
            name = cell.name
            if cell.kind != "start":
                say(event="cell", name=name, **bench.run(cell))
        bench.llm.close()
    except BaseException as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        say(event="error", name=name, error=f"{type(error).__name__}: {lines[0]}"[:400])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

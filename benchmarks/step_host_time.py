"""Host time of a decode step with many running sequences: schedule, inputs, collect.

    python benchmarks/step_host_time.py [--num-seqs 256] [--steps 400] [--overlap] [--keeps K]

There is no model: tokens are a hash of seed and position. What is measured is what the host adds to
each step of a real one: plan, apply, the real runner's preparation of inputs and sampling
parameters, collect, and encoding the message to the server. `--no-inputs` leaves torch out. Phases
are timed from outside, by wrapping the verbs of scheduler and runner.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from atom.config.schema import Config, EngineConfig, SchedulerConfig
from atom.engine import wire
from atom.engine.core import EngineCore
from atom.engine.messages import CoreOutputs, GenerateRequest
from atom.engine.plan import StepPlan
from atom.engine.runner.fake import FakeOptions, FakeRunner
from atom.engine.sampling_params import SamplingParams

# What the model keeps, for the scheduler; the inputs are those of plain attention all the same.
KEEPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 128},
    "state": {"has_state": True, "num_checkpoints": 512, "checkpoint_interval": 256},
}


class Timed:
    """A callable, and how long each call took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = self._function(*args, **kwargs)
        self.seconds.append(time.perf_counter() - started)
        return result


class InputsRunner(FakeRunner):
    """The fake model behind the real runner's persistent inputs."""

    def __init__(self, config: Config, options: FakeOptions) -> None:
        import torch

        from atom.engine.runner.inputs import InputBatch
        from atom.engine.runner.sampling_rows import SamplingRows
        from atom.engine.runner.upload import Upload

        super().__init__(config, options)
        torch.set_num_threads(1)
        self._torch, self._upload = torch, Upload
        self._torch_device = torch.device("cpu")
        rows, size = config.scheduler.max_num_seqs, config.engine.block_size
        kept = self.cache_layout
        self._batch = InputBatch(
            rows,
            self.max_model_len,
            size,
            self._torch_device,
            has_window=kept.window > 0,
            has_state=kept.has_state,
        )
        self._sampling = SamplingRows(rows, self.vocab_size)

    def launch(self, plan: StepPlan) -> Any:
        started = time.perf_counter()
        upload = self._upload(self._torch_device)
        for new in plan.new_rows:
            self._sampling.enter(new)
        staged = self._batch.stage(plan, upload)
        self._sampling.stage(staged.sample_rows, staged.sample_positions, upload)
        upload.send()
        self._batch.gather(staged)
        prepared = time.perf_counter()
        handle = super().launch(plan)
        tokens = self._torch.from_numpy(handle.wait().token_ids)
        put = time.perf_counter()
        self._batch.put_tokens(staged, tokens)
        self.prepare_s.append(prepared - started + time.perf_counter() - put)
        return handle

    @cached_property
    def prepare_s(self) -> list[float]:
        return []


def make_core(
    num_seqs: int,
    prompt_len: int,
    steps: int,
    overlap: bool,
    policy: str,
    inputs: bool,
    keeps: str = "plain",
) -> EngineCore:
    blocks = num_seqs * (-(-(2 * prompt_len + steps + 64) // 16))
    config = Config(
        engine=EngineConfig(num_kvcache_blocks=blocks, overlap=overlap),
        scheduler=SchedulerConfig(
            policy=policy,
            max_num_seqs=num_seqs,
            max_num_batched_tokens=num_seqs * prompt_len * 2,
            max_prefill_chunk=num_seqs * prompt_len * 2,
        ),
    )
    options = FakeOptions(verify=False, vocab_size=50_000, max_model_len=8192, **KEEPS[keeps])
    runner = (InputsRunner if inputs else FakeRunner)(config, options)
    core = EngineCore(config, runner)
    rng = random.Random(0)
    sampling = SamplingParams(max_tokens=steps + 40, ignore_eos=True)
    for i in range(num_seqs):
        # Lengths differ, so that sequences do not all fill their block in the same step.
        length = prompt_len // 2 + rng.randrange(prompt_len)
        prompt = [rng.randrange(50_000) for _ in range(length)]
        core.add(GenerateRequest(f"cmpl-{i:032x}", prompt, sampling))
    return core


def measure(core: EngineCore, num_seqs: int, steps: int) -> dict[str, list[float]]:
    while core.scheduler.num_running < num_seqs:
        core.step()
    for _ in range(8):
        core.step()
    scheduler, runner = core.scheduler, core._runner  # a benchmark may look inside
    timed = {
        "plan": Timed(scheduler.plan),
        "apply": Timed(scheduler.apply),
        "launch": Timed(runner.launch),
        "collect": Timed(scheduler.collect),
    }
    scheduler.plan, scheduler.apply = timed["plan"], timed["apply"]  # type: ignore[method-assign]
    scheduler.collect = timed["collect"]  # type: ignore[method-assign]
    runner.launch = timed["launch"]  # type: ignore[method-assign]
    whole, encoding = Timed(core.step), Timed(wire.encode)
    gc.collect()
    gc.freeze()
    prepare = getattr(runner, "prepare_s", [0.0] * steps)
    prepare.clear()
    for _ in range(steps):
        chunks = whole()
        encoding(CoreOutputs(chunks))
        assert len(chunks) == num_seqs
    seconds = {name: t.seconds for name, t in timed.items()}
    prepare = prepare or [0.0] * steps
    launch = seconds.pop("launch")
    host = [w - f + p for w, f, p in zip(whole.seconds, launch, prepare, strict=True)]
    return {
        **seconds,
        "inputs": prepare,
        "schedule + inputs + collect": host,
        "encode message": encoding.seconds,
    }


def summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median_us": 1e6 * statistics.median(ordered),
        "p10_us": 1e6 * ordered[len(ordered) // 10],
        "p99_us": 1e6 * ordered[len(ordered) * 99 // 100],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--policy", default="prefill_first", choices=("prefill_first", "mixed"))
    parser.add_argument("--keeps", default="plain", choices=tuple(KEEPS))
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--no-inputs", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    inputs = not args.no_inputs
    core = make_core(
        args.num_seqs, args.prompt_len, args.steps, args.overlap, args.policy, inputs, args.keeps
    )
    results = {n: summary(s) for n, s in measure(core, args.num_seqs, args.steps).items()}
    if args.json:
        print(json.dumps({"machine": platform.machine(), **vars(args), "phases": results}))
        return
    print(f"{args.num_seqs} sequences, {args.steps} decode steps, overlap={args.overlap}")
    print(f"{'phase':32}{'median us':>12}{'p10 us':>10}{'p99 us':>10}")
    for name, row in results.items():
        print(f"{name:32}{row['median_us']:12.1f}{row['p10_us']:10.1f}{row['p99_us']:10.1f}")


if __name__ == "__main__":
    main()

"""What ending a prompt's chunk for a checkpoint of recurrent state costs, and when it pays.

    python benchmarks/checkpoint_minimum.py [--step-tokens 128] [--block-size 16]

There is no model. A step costs as much as `--step-tokens` tokens, whatever is in it, and a token of
a prompt costs one; requests come one at a time, so nothing shares a step with the rest of a prompt,
which is the worst case for a cut. Of the prompts a share has come before. Printed is the cost with
checkpoints over the cost without them, by length of the prompt and that share; below 1 they pay.
"""

from __future__ import annotations

import argparse
import random

from atom.config.schema import Config, EngineConfig
from atom.engine.core import EngineCore
from atom.engine.messages import GenerateRequest
from atom.engine.plan import StepPlan
from atom.engine.runner.fake import FakeOptions, FakeRunner
from atom.engine.sampling_params import SamplingParams

SHARES = (0.0, 0.1, 0.25, 0.5)
REQUESTS = 300


class Counting(FakeRunner):
    """Adds up what steps would cost, in tokens."""

    step_tokens = 0
    cost = 0

    def launch(self, plan: StepPlan) -> object:
        self.cost += self.step_tokens + plan.num_tokens
        return super().launch(plan)


def cost(length: int, share: float, checkpoints: int, step_tokens: int, block_size: int) -> float:
    """Of a request, in tokens."""
    config = Config(engine=EngineConfig(kv_cache_block_size=block_size, num_kvcache_blocks=1 << 17))
    options = FakeOptions(
        verify=False, has_state=True, num_checkpoints=checkpoints, max_model_len=1 << 15
    )
    runner = Counting(config, options)
    runner.step_tokens = step_tokens
    core = EngineCore(config, runner)
    state = core.scheduler.state
    state.limits = state.limits._replace(min_checkpoint_tokens=1, max_prompt_step=1 << 15)
    rng = random.Random(0)
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    known: list[list[int]] = []
    for i in range(REQUESTS):
        if known and rng.random() < share:
            prompt = rng.choice(known)
        else:
            prompt = [rng.randrange(1000) for _ in range(length)]
            known.append(prompt)
        core.add(GenerateRequest(str(i), prompt, sampling))
        while core.has_work:
            core.step()
    return runner.cost / REQUESTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step-tokens", type=int, default=128)
    parser.add_argument("--block-size", type=int, default=16)
    args = parser.parse_args()
    step, size = args.step_tokens, args.block_size
    print(f"{'prompt':>8}" + "".join(f"{share:>8.0%}" for share in SHARES) + "  come again")
    for times in (1, 2, 4, 8, 16):
        length = step * times + size // 2
        ratios = [
            cost(length, share, 4 * REQUESTS, step, size) / cost(length, share, 0, step, size)
            for share in SHARES
        ]
        print(f"{length:>8}" + "".join(f"{ratio:>8.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()

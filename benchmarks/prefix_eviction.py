"""How much of the prompts the prefix cache serves when windows or checkpoints are scarce.

    python benchmarks/prefix_eviction.py [--requests 600]

There is no model. Twenty system prompts of 1,000 tokens, some asked for much oftener than others,
each time under another question of 300 tokens; every tenth request is a document of 12,000 tokens
that never comes again. Full blocks are plenty, so what is not served was lost with a window or a
checkpoint. Printed is the share of the system prompts' tokens that was served, with our order of
eviction and with plain least-recently-used.
"""

from __future__ import annotations

import argparse
import random

from atom.config.schema import Config, EngineConfig, SchedulerConfig
from atom.engine.cache_pools import IdPool
from atom.engine.core import EngineCore
from atom.engine.messages import GenerateRequest
from atom.engine.runner.fake import FakeOptions, FakeRunner
from atom.engine.sampling_params import SamplingParams

STEMS, STEM, QUESTION, DOCUMENT = 20, 1000, 300, 12_000


def served(requests: int, options: FakeOptions) -> float:
    """Share of the tokens of system prompts."""
    config = Config(
        engine=EngineConfig(num_kvcache_blocks=1 << 16),
        scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=512),
    )
    core = EngineCore(config, FakeRunner(config, options))
    rng = random.Random(0)
    stems = [[rng.randrange(1000) for _ in range(STEM)] for _ in range(STEMS)]
    weights = [1 / (rank + 1) for rank in range(STEMS)]
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    total = 0
    for i in range(requests):
        stem = rng.choices(stems, weights)[0] if i % 10 else []
        total += len(stem)
        tail = QUESTION if stem else DOCUMENT
        prompt = [*stem, *(rng.randrange(1000) for _ in range(tail))]
        core.add(GenerateRequest(str(i), prompt, sampling))
        while core.has_work:
            core.step()
    return core.stats().prefix_cache_hits / total


class PlainLru:
    """Within it, nothing is evicted before what was used longer ago."""

    def __enter__(self) -> None:
        self.kept = IdPool.let_go, IdPool.demote, IdPool.pin, IdPool.want
        let_go, pin = IdPool.let_go, IdPool.pin

        def plain_pin(pool: IdPool, id_: int) -> None:
            pin(pool, id_)
            pool._wanted[id_] = False

        IdPool.pin = plain_pin  # type: ignore[method-assign]
        IdPool.let_go = lambda pool, id_, passed=False: let_go(pool, id_)  # type: ignore[method-assign]
        IdPool.demote = IdPool.want = lambda pool, id_: None  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        IdPool.let_go, IdPool.demote, IdPool.pin, IdPool.want = self.kept  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=600)
    requests = parser.parse_args().requests
    common = {"verify": False, "max_model_len": 1 << 15}
    cases = {
        f"windows of 128, {spare} spare blocks": FakeOptions(
            window=128, spare_window_blocks=spare, **common
        )
        for spare in (100, 200, 400, 800)
    } | {
        f"{count} checkpoints, one each 1,024 tokens": FakeOptions(
            has_state=True, num_checkpoints=count, checkpoint_interval=1024, **common
        )
        for count in (10, 20, 40, 80)
    }
    print(f"{'':44}{'ours':>8}{'LRU':>8}")
    for name, options in cases.items():
        ours = served(requests, options)
        with PlainLru():
            plain = served(requests, options)
        print(f"{name:44}{ours:>8.0%}{plain:>8.0%}")


if __name__ == "__main__":
    main()

"""Real models with windows and recurrent state: what the prefix cache gives changes no token."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hub import hub_checkpoint
from serving import Shared, generate, greedy, make_config, make_runner

from atom.engine.core import EngineCore

NEW = 10
LENGTHS = (100, 100, 75, 40)  # of a common head
CACHED = {"gpt_oss": [0, 96, 64, 32], "qwen3_next": [0, 96, 0, 0]}
SCHEDULE: dict[str, Any] = {
    "max_model_len": 192,
    "max_num_seqs": 3,
    "max_num_batched_tokens": 48,
    "num_blocks": 64,
    "level": 0,
}


@pytest.mark.parametrize("family", CACHED)
def test_reused_prefixes_change_no_token(family: str) -> None:
    path = hub_checkpoint(family)
    runner = make_runner(make_config(path, **SCHEDULE))
    rng = random.Random(1)
    head = [rng.randrange(runner.vocab_size) for _ in range(max(LENGTHS))]
    prompts = [[*head[:n], *rng.choices(range(runner.vocab_size), k=7)] for n in LENGTHS]
    cold = EngineCore(make_config(path, caching=False, **SCHEDULE), runner)
    expected = [generate(cold, [prompt], greedy(NEW))[0].token_ids for prompt in prompts]

    core = EngineCore(make_config(path, **SCHEDULE), runner)
    one_by_one = [generate(core, [prompt], greedy(NEW))[0] for prompt in prompts]
    assert [result.token_ids for result in one_by_one] == expected
    assert [result.num_cached_tokens for result in one_by_one] == CACHED[family]
    again = [generate(core, [prompt], greedy(NEW))[0] for prompt in prompts]
    assert [result.token_ids for result in again] == expected
    for num_blocks in (64, 12):  # all at once; then with blocks for little more than one
        config = make_config(path, overlap=True, **SCHEDULE)
        crowded = EngineCore(config, Shared(runner, num_blocks))
        results = generate(crowded, prompts * 2, greedy(NEW))
        assert [result.token_ids for result in results] == expected * 2

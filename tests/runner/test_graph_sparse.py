"""Sparse attention under graphs: a choice passes from one replayed piece to the next."""

from __future__ import annotations

import pytest
from runner.fake_graphs import with_graphs
from runner.test_graph_families import poisoned, settings
from serving import generate, greedy, make_runner
from tiny import random_prompt

from atom.engine.core import EngineCore
from atom.engine.runner import graph_plan

# As in `test_graph_families`, without experts. Of GLM's four blocks the third shares the second's
# choice.
SHARING = {"num_hidden_layers": 4, "index_topk_freq": 2}
CASES = [("deepseek_v32", "full", {}), ("glm_moe_dsa", "full_and_piecewise", SHARING)]


@pytest.mark.parametrize(("family", "mode", "more"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_tokens_equal_eager_ones(
    family: str, mode: str, more: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts on both sides of the 16 keys that are chosen."""
    model = {"first_k_dense_replace": 99, **more}
    monkeypatch.setattr(graph_plan, "TOKEN_SIZES", (8, 24))
    prompts, params = [random_prompt(n, seed=n) for n in (5, 41)], [greedy(14), greedy(9)]
    eager = poisoned(make_runner(settings(family, "none", model)))
    plain = generate(EngineCore(settings(family, "none", model), eager), prompts, params)
    config = settings(family, mode, model, overlap=True, policy="mixed", max_num_batched_tokens=24)
    runner = poisoned(with_graphs(config, monkeypatch))
    again = generate(EngineCore(config, runner), prompts, params)
    assert [r.token_ids for r in again] == [r.token_ids for r in plain]
    kinds = {name.partition(" ")[0] for name in runner.graph_counts}
    assert kinds >= {"decode", mode.rpartition("_")[2]}

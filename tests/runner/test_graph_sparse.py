"""Sparse attention under graphs: a choice passes from one replayed piece to the next."""

from __future__ import annotations

import pytest
from runner.fake_graphs import with_graphs
from runner.test_graph_families import DENSE, poisoned, settings
from serving import generate, greedy, make_runner
from tiny import random_prompt

from atom.engine.core import EngineCore
from atom.engine.runner import graph_plan


@pytest.mark.parametrize("mode", ["full", "full_and_piecewise"])
def test_tokens_equal_eager_ones(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four blocks, the third of which shares the second's choice; contexts on both sides of the 16
    keys that are chosen."""
    sharing = {"first_k_dense_replace": 99, "num_hidden_layers": 4, "index_topk_freq": 2}
    monkeypatch.setitem(DENSE, "glm_moe_dsa", sharing)
    monkeypatch.setattr(graph_plan, "TOKEN_SIZES", (8,))
    prompts, params = [random_prompt(n, seed=n) for n in (5, 41)], [greedy(14), greedy(9)]
    eager = poisoned(make_runner(settings("glm_moe_dsa", "none")))
    plain = generate(EngineCore(settings("glm_moe_dsa", "none"), eager), prompts, params)
    config = settings("glm_moe_dsa", mode, overlap=True, policy="mixed", max_num_batched_tokens=24)
    runner = poisoned(with_graphs(config, monkeypatch))
    again = generate(EngineCore(config, runner), prompts, params)
    assert [r.token_ids for r in again] == [r.token_ids for r in plain]
    kinds = {name.partition(" ")[0] for name in runner.graph_counts}
    assert kinds >= {"decode", mode.rpartition("_")[2]}

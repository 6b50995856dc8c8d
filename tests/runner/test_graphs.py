"""Graph modes on recorded CPU operations: the tokens of eager steps, and the replays they say."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from runner.fake_graphs import FakeRecorder, with_graphs
from serving import Shared, generate, greedy, make_config, make_runner
from tiny import make_config as write_config
from tiny import random_prompt, tiny_checkpoint

from atom.config.schema import Config, ParallelConfig
from atom.engine.core import EngineCore
from atom.engine.runner import graph_plan, graphs
from atom.engine.runner.graph_plan import plan_graphs
from atom.engine.runner.model_runner import ModelRunner
from atom.engine.sampling_params import SamplingParams
from atom.errors import ConfigError
from atom.ops import registry

MODES = ["piecewise", "full", "full_decode_only", "full_and_piecewise"]
SIZES = (1, 2, 4, 6)


def settings(mode: str | None, **more: object) -> Config:
    """Small sizes, the largest below what some steps hold."""
    config = make_config(tiny_checkpoint("llama3"), **{"level": 0, "max_num_seqs": 9, **more})  # type: ignore[arg-type]
    return dataclasses.replace(
        config,
        compile=dataclasses.replace(
            config.compile, cudagraph_mode=mode, cudagraph_capture_sizes=SIZES
        ),
    )


@pytest.fixture(scope="module")
def runners() -> dict[str, ModelRunner]:
    return {}


@pytest.fixture
def runner_of(runners: dict[str, ModelRunner], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(graph_plan, "TOKEN_SIZES", (3, 8, 20))
    monkeypatch.setattr(graph_plan, "LONG_SIZES", ())

    def make(mode: str) -> ModelRunner:
        if mode not in runners:
            config = settings(mode)
            runners[mode] = (
                make_runner(config) if mode == "none" else with_graphs(config, monkeypatch)
            )
        return runners[mode]

    return make


SCHEDULES = [
    {},
    {"overlap": True, "max_num_batched_tokens": 24, "max_prefill_chunk": 7},
    {"policy": "mixed", "max_num_batched_tokens": 20, "max_prefill_chunk": 5, "overlap": True},
    {"num_blocks": 9, "overlap": True, "policy": "mixed", "max_num_batched_tokens": 33},
]


def workload(seed: int) -> tuple[list[list[int]], list[SamplingParams]]:
    rng = random.Random(seed)
    prompts = [random_prompt(rng.randint(1, 45), seed=rng.randrange(99)) for _ in range(9)]
    kinds = [
        greedy(rng.randint(1, 40)),
        SamplingParams(seed=5, max_tokens=22, ignore_eos=True, top_p=0.9, frequency_penalty=0.5),
        greedy(33, repetition_penalty=1.3, min_tokens=5, stop_token_ids=(3,), logit_bias={7: 2.0}),
        greedy(12, logprobs=3, prompt_logprobs=2),
    ]
    plain = [greedy(rng.randint(1, 40)) for _ in prompts]
    mixed = [rng.choice(kinds) for _ in prompts]
    return prompts, plain if seed % 2 else mixed


@pytest.mark.parametrize("schedule", SCHEDULES, ids=range(len(SCHEDULES)))
@pytest.mark.parametrize("mode", MODES)
def test_tokens_equal_eager_ones(mode: str, schedule: dict[str, object], runner_of: object) -> None:
    eager, graphed = runner_of("none"), runner_of(mode)  # type: ignore[operator]
    for seed in (0, 1):
        prompts, params = workload(seed)
        config = settings(mode, **schedule)
        plain = generate(EngineCore(settings("none"), eager), prompts, params)
        core = EngineCore(config, Shared(graphed, config.engine.num_kvcache_blocks))
        for _ in range(2):  # the second time over cached prefixes
            again = generate(core, prompts, params)
            assert [r.token_ids for r in again] == [r.token_ids for r in plain]
            for ours, theirs in zip(again, plain, strict=True):
                assert [r.token_ids for r in ours.logprobs] == [
                    r.token_ids for r in theirs.logprobs
                ]


def counts(runner: ModelRunner, prompt: int, new: int, **more: object) -> dict[str, int]:
    before = dict(runner.graph_counts)
    core = EngineCore(settings(None, **more), runner)
    generate(core, [random_prompt(prompt, seed=1)], greedy(new))
    now = runner.graph_counts
    return {k: n - before.get(k, 0) for k, n in now.items() if n != before.get(k, 0)}


def test_each_mode_replays_what_it_says(runner_of: object) -> None:
    def of(mode: str, prompt: int) -> dict[str, int]:
        return counts(runner_of(mode), prompt, 5, caching=False)  # type: ignore[operator]

    assert of("piecewise", 7) == {"piecewise 8": 1, "piecewise 1": 4}
    assert of("full", 7) == {"full 8": 1, "decode 1": 4}
    assert of("full_decode_only", 7) == {"eager": 1, "decode 1": 4}
    assert of("full_and_piecewise", 7) == {"piecewise 8": 1, "decode 1": 4}
    assert of("full_and_piecewise", 21) == {"eager": 1, "decode 1": 4}  # above the sizes
    assert of("full_and_piecewise", 1) == {"decode 1": 5}  # a prompt of one token is a decode step


def test_batches_pad_up_and_large_ones_are_eager(runner_of: object) -> None:
    runner = runner_of("full_decode_only")  # type: ignore[operator]
    for count, name in ((1, "decode 1"), (3, "decode 4"), (6, "decode 6"), (7, "eager")):
        before = dict(runner.graph_counts)
        core = EngineCore(settings(None, caching=False), runner)
        generate(core, [random_prompt(5, seed=i) for i in range(count)], greedy(9))
        assert runner.graph_counts[name] - before.get(name, 0) >= 8


def test_padding_writes_no_cache(runner_of: object) -> None:
    runner = runner_of("full_and_piecewise")  # type: ignore[operator]
    core = EngineCore(settings(None, caching=False), runner)
    for layer in runner.model.attention_layers():
        layer.k_cache.fill_(7.5)
        layer.v_cache.fill_(7.5)
    generate(core, [random_prompt(9, seed=i) for i in range(3)], greedy(4))
    for layer in runner.model.attention_layers():
        written = (layer.k_cache != 7.5).flatten(2).any(-1)
        # The last token of a sequence is not computed.
        assert int(written.sum()) == 3 * (9 + 3)


def test_a_slot_outlives_steps_that_nobody_waits_for(runner_of: object) -> None:
    """Tensor-parallel workers never do; rank 0 may do so late."""
    runner = runner_of("full_and_piecewise")  # type: ignore[operator]
    core = EngineCore(settings(None, caching=False), runner)
    plans = []

    class Late(Shared):
        def launch(self, plan: object) -> object:
            plans.append(self._runner.launch(plan))  # type: ignore[arg-type]
            return plans[-1]

    core = EngineCore(settings(None, caching=False), Late(runner, 512))
    (result,) = generate(core, [random_prompt(6, seed=3)], greedy(12))
    again = [int(handle.wait().token_ids[0]) for handle in plans]
    assert again == result.token_ids


def test_memory_is_foreseen() -> None:
    from runner.fake_graphs import KERNELS

    from atom.engine.runner.inputs import InputBatch

    batch = InputBatch(8, 64, 16, torch.device("cpu"))

    def forward(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return ids[:, None].float() + positions[:, None]

    def make(plan: graph_plan.GraphPlan) -> graphs.Graphs:
        source = graphs.Source(batch, 64, forward, lambda hidden: hidden.expand(-1, 5), None)
        return graphs.Graphs(plan, source, FakeRecorder(), KERNELS)

    plan = graph_plan.GraphPlan("full_and_piecewise", "", (1, 2, 4), (8, 16), "piecewise")
    # 1000 bytes a graph, by the recorder: 3 of decodes, and 2 that nothing cuts
    grown = make(plan).capture()
    assert make(plan).measure() == graphs._RESERVE + grown


def planned(
    device: str = "cuda", why_not: str = "", **compile_settings: object
) -> graph_plan.GraphPlan:
    config = make_config(None, max_num_seqs=100, max_num_batched_tokens=300)
    compile_config = dataclasses.replace(config.compile, **compile_settings)
    return plan_graphs(dataclasses.replace(config, compile=compile_config), device, why_not)


def test_steps_that_take_long_to_launch_have_larger_graphs() -> None:
    config = make_config(None, max_num_batched_tokens=1500)
    assert plan_graphs(config, "cuda", "", 639).token_sizes[-1] == 512
    assert plan_graphs(config, "cuda", "", 700).token_sizes[-2:] == (512, 640)
    assert plan_graphs(config, "cuda", "", 9999).token_sizes[-2:] == (1280, 1500)


def test_sparse_models_take_longer_to_launch(tmp_path: Path) -> None:
    def tokens(family: str, **more: object) -> int:
        folder = write_config(family, tmp_path / family, **more)
        config = make_config(folder)
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, load_dummy=True)
        )
        return graphs.launch_bound_tokens(make_runner(config).model)

    # Per layer and token, in float32: qkv 256 x 128, o 128 x 128, three of 256 x 128
    per_layer = 4 * 128 * (256 + 128 + 3 * 256)
    assert tokens("llama3") == pytest.approx(0.4e-3 * 450e12 / per_layer, rel=0.02)
    # Two experts of four and a router in the place of the three
    per_layer = 4 * 128 * (256 + 128 + 2 * 3 * 256 + 4)
    assert tokens("mixtral") == pytest.approx(0.4e-3 * 450e12 / per_layer, rel=0.02)


def test_levels_and_modes() -> None:
    assert planned().mode == "full_and_piecewise"
    assert planned().decode_sizes == (*range(1, 9), 12, 16, 24, *range(32, 97, 16), 100)
    assert planned().token_sizes == (16, 32, 64, 128, 192, 256, 300)
    for level in (0, 1, 2):
        assert planned(level=level).mode == "none"
        assert planned(level=level, cudagraph_mode="full").kind == "full"
    assert planned(enforce_eager=True).mode == "none"
    assert planned(device="cpu", cudagraph_mode="full").mode == "none"
    assert planned(cudagraph_mode="full_decode_only").token_sizes == ()
    piecewise = planned(cudagraph_mode="piecewise", cudagraph_capture_sizes=(3, 700))
    assert piecewise.decode_sizes == ()
    assert {3, 100, 300} <= set(piecewise.token_sizes)
    assert planned(cudagraph_capture_sizes=(3, 700)).decode_sizes == (3, 100)


def test_several_ranks_capture_only_when_asked() -> None:
    config = make_config(None)
    config = dataclasses.replace(config, parallel=ParallelConfig(tensor_parallel_size=2))
    plan = plan_graphs(config, "cuda")
    assert (plan.mode, "several ranks" in str(plan)) == ("none", True)
    asked = dataclasses.replace(config.compile, cudagraph_mode="full")
    assert plan_graphs(dataclasses.replace(config, compile=asked), "cuda").kind == "full"


def test_kernels_that_cannot_be_captured() -> None:
    assert planned(why_not="because").mode == "none"
    assert "because" in str(planned(why_not="because"))
    with pytest.raises(ConfigError, match="cudagraph_mode = full cannot be: because"):
        planned(why_not="because", cudagraph_mode="full")


@pytest.mark.parametrize(
    ("family", "served"),
    [
        ("llama3", "paged_attention, reshape_and_cache"),
        ("mixtral", "fused_experts, paged_attention, reshape_and_cache"),
    ],
)
def test_reference_kernels_are_not_captured(
    family: str, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert graphs.uncapturable(make_runner(make_config(tiny_checkpoint("llama3"))).model) == ""
    monkeypatch.setitem(registry.PREFERENCE, "cpu", ("reference",))
    model = make_runner(make_config(tiny_checkpoint(family))).model
    assert f"the reference backend serves {served}," in graphs.uncapturable(model)


def test_a_cpu_runner_says_that_it_has_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="atom.runner"):
        runner = make_runner(settings("full"))
    assert runner.graph_plan.mode == "none"
    assert dict(runner.graph_counts) == {}
    assert "cudagraph_mode has no effect" in caplog.text
    assert "cudagraph_capture_sizes has no effect" in caplog.text
    assert "graphs: none (graphs are for GPUs)" in caplog.text

"""Innermost intervals against brute force; names of modules from paths and from classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import TraceBuilder

from atom.trace.launches import correlate
from atom.trace.reader import read_trace
from atom.trace.scopes import Intervals, find_scopes, scope_of, split_scope
from atom.trace.types import RankTrace

pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 25)), max_size=30)


def columns(spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    start = np.array([start for start, _ in spans], dtype=np.int64)
    return start, start + np.array([length for _, length in spans], dtype=np.int64)


def latest_open(start: np.ndarray, end: np.ndarray, moment: int) -> list[int]:
    """All answers that are right: of those open, the latest begun, and of these the shortest."""
    open_ = [i for i in range(len(start)) if start[i] <= moment < end[i]]
    best = max(((start[i], -end[i]) for i in open_), default=None)
    return [i for i in open_ if (start[i], -end[i]) == best]


@given(pairs, st.lists(st.integers(-2, 70), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_the_innermost_interval(spans: list[tuple[int, int]], moments: list[int]) -> None:
    start, end = columns(spans)
    found = Intervals(start, end).at(np.array(moments, dtype=np.int64))
    for moment, index in zip(moments, found.tolist(), strict=True):
        right = latest_open(start, end, moment)
        assert index in (right or [-1])


@given(pairs)
@settings(max_examples=300, deadline=None)
def test_parents(spans: list[tuple[int, int]]) -> None:
    start, end = columns(spans)
    intervals = Intervals(start, end)
    place = {index: number for number, index in enumerate(intervals.order.tolist())}
    for index, parent in enumerate(intervals.parents().tolist()):
        earlier = [i for i in range(len(spans)) if place[i] < place[index]]
        open_ = [i for i in earlier if end[i] > start[index]]
        assert parent == max(open_, key=place.__getitem__, default=-1)


def test_many_siblings_do_not_take_quadratic_time() -> None:
    # A million operators in a row, each ending later than the one before, under one parent.
    start = np.arange(0, 3_000_000, 3, dtype=np.int64)
    end = start + 2
    start, end = np.append(start, 0), np.append(end, 4_000_000)
    found = Intervals(start, end).parents()
    assert (found[:-1] == len(start) - 1).all()
    assert found[-1] == -1


@pytest.mark.parametrize(
    ("scope", "layer", "module"),
    [
        ("model.layers.3.self_attn.qkv_proj", 3, "self_attn.qkv_proj"),
        ("layers.12.mlp", 12, "mlp"),
        ("model.layers.3", 3, "layer"),
        ("transformer.h.7.attn.c_attn", 7, "attn.c_attn"),
        ("model.language_model.layers.5.mlp.gate", 5, "mlp.gate"),
        ("model.layers.0.mlp.experts.17.up_proj", 0, "mlp.experts.17.up_proj"),
        ("visual.blocks.3.attn.qkv", -1, "visual.blocks.attn.qkv"),
        ("model.embed_tokens", -1, "embed_tokens"),
        ("model.norm", -1, "norm"),
        ("model", -1, "model"),
        ("lm_head", -1, "lm_head"),
        ("sample", -1, "sample"),
        (
            "model.layers.3.input_layernorm+model.layers.3.self_attn.qkv_proj",
            3,
            "input_layernorm+self_attn.qkv_proj",
        ),
        (
            "model.layers.3.mlp.down_proj+model.layers.4.input_layernorm",
            3,
            "mlp.down_proj+input_layernorm",
        ),
        ("model.layers.35.mlp.down_proj+model.norm", 35, "mlp.down_proj+norm"),
        ("model.embed_tokens+model.layers.0.input_layernorm", -1, "embed_tokens+input_layernorm"),
    ],
)
def test_a_scope_is_taken_apart(scope: str, layer: int, module: str) -> None:
    assert split_scope(scope) == (layer, module)


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("model.layers.3.mlp", "model.layers.3.mlp"),
        ("prepare", "prepare"),
        ("gpu_model_runner: sample", "sample"),
        ("gpu_model_runner: preprocess", "prepare"),
        # Round the whole forward, or not of the model at all.
        ("gpu_model_runner: forward", ""),
        ("decode[bs=4 tok=4]", ""),
        ("capture_graph_bs_4", ""),
        ("warm_up", ""),
        ("record", ""),
        ("ProfilerStep#12", ""),
        ("nccl:all_reduce", ""),
        ("## Call CompiledFxGraph abc ##", ""),
        ("Torch-Compiled Region: 0/0", ""),
    ],
)
def test_which_annotations_are_scopes(name: str, scope: str) -> None:
    assert scope_of(name) == scope


def names_of_kernels(trace: RankTrace) -> dict[str, str]:
    scopes, launches = find_scopes(trace), correlate(trace)
    return {
        trace.strings[int(name)]: scopes.names[int(scope)] if scope >= 0 else ""
        for name, scope in zip(trace.gpu.name, scopes.runtime[launches.row], strict=True)
    }


def made(builder: TraceBuilder, folder: Path) -> RankTrace:
    return read_trace(builder.write(folder / "made.pt.trace.json"))


def test_paths_nest_and_the_innermost_counts(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.step("decode[bs=1 tok=1]"):
        with run.scope("model.layers.2.self_attn"):
            run.kernel("of attention")
            with run.scope("model.layers.2.self_attn.qkv_proj"), run.op("aten::mm"):
                run.kernel("of qkv")
            with run.scope("rope_cache"):
                run.kernel("of rope")
            with run.scope("self_attn"), run.annotation("nccl:all_reduce"):
                run.kernel("of all-reduce")
            with run.scope("lm_head"):
                run.kernel("of head")
        run.kernel("of nothing")
    assert names_of_kernels(made(run, tmp_path)) == {
        "of attention": "model.layers.2.self_attn",
        "of qkv": "model.layers.2.self_attn.qkv_proj",
        "of rope": "model.layers.2.self_attn.rope_cache",
        "of all-reduce": "model.layers.2.self_attn",
        "of head": "lm_head",
        "of nothing": "",
    }


def test_scopes_of_another_thread_do_not_count(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.scope("model.layers.0.mlp"):
        with run.thread(99):
            run.kernel("elsewhere")
        run.kernel("here")
    assert names_of_kernels(made(run, tmp_path)) == {"elsewhere": "", "here": "model.layers.0.mlp"}


def qwen(run: TraceBuilder, layers: int) -> None:
    """Qwen3's modules as the profiler numbers them: four norms a layer, one rotary for all."""
    with run.nn_module("Qwen3ForCausalLM_0"):
        with run.nn_module("Qwen3Model_0"):
            with run.nn_module("Embedding_0"):
                run.kernel("embed")
            for layer in range(layers):
                with run.nn_module(f"Qwen3DecoderLayer_{layer}"):
                    with run.nn_module(f"RMSNorm_{4 * layer}"):
                        run.kernel(f"input norm {layer}")
                    with run.nn_module(f"Qwen3Attention_{layer}"):
                        with run.nn_module(f"Linear_{2 * layer}"):
                            run.kernel(f"qkv {layer}")
                        with run.nn_module(f"RMSNorm_{4 * layer + 1}"):
                            run.kernel(f"q norm {layer}")
                        with run.nn_module(f"RMSNorm_{4 * layer + 2}"):
                            run.kernel(f"k norm {layer}")
                        with run.nn_module("RotaryEmbedding_0"):
                            run.kernel(f"rope {layer}")
                    with run.nn_module(f"RMSNorm_{4 * layer + 3}"):
                        run.kernel(f"post norm {layer}")
                    run.kernel(f"residual {layer}")
            with run.nn_module(f"RMSNorm_{4 * layers}"):
                run.kernel("final norm")
        with run.nn_module(f"Linear_{2 * layers}"):
            run.kernel("head")
    with run.nn_module("Sampler_0"):
        run.kernel("sample")


def test_modules_without_paths_get_names_that_are_equal_in_every_layer(tmp_path: Path) -> None:
    run = TraceBuilder()
    for _ in range(2):
        qwen(run, layers=3)
    names = names_of_kernels(made(run, tmp_path))
    for layer in range(3):
        got = {
            kernel.removesuffix(f" {layer}"): split_scope(name)
            for kernel, name in names.items()
            if kernel.endswith(f" {layer}")
        }
        assert got == {
            "input norm": (layer, "RMSNorm.0"),
            "qkv": (layer, "Qwen3Attention.Linear"),
            "q norm": (layer, "Qwen3Attention.RMSNorm.0"),
            "k norm": (layer, "Qwen3Attention.RMSNorm.1"),
            "rope": (layer, "Qwen3Attention.RotaryEmbedding"),
            "post norm": (layer, "RMSNorm.1"),
            "residual": (layer, "layer"),
        }
    outside = ("embed", "final norm", "head", "sample")
    assert [split_scope(names[kernel]) for kernel in outside] == [
        (-1, "Embedding"),
        (-1, "RMSNorm"),
        (-1, "Linear"),
        (-1, "Sampler"),
    ]


def test_layers_of_several_classes_count_through(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.nn_module("HybridModel_0"):
        for layer, kind in enumerate(["Mamba", "Mamba", "Attention", "Mamba", "Attention"]):
            number = ["Mamba", "Mamba", "Attention", "Mamba", "Attention"][:layer].count(kind)
            with run.nn_module(f"{kind}Layer_{number}"), run.nn_module(f"Mixer_{layer}"):
                run.kernel(str(layer))
    names = names_of_kernels(made(run, tmp_path))
    assert {kernel: split_scope(name)[0] for kernel, name in names.items()} == {
        str(layer): layer for layer in range(5)
    }


def test_experts_are_not_taken_for_layers(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.nn_module("MixtralModel_0"):
        for layer in range(2):
            with run.nn_module(f"MixtralDecoderLayer_{layer}"), run.nn_module(f"MoE_{layer}"):
                for expert in range(8):
                    number = 8 * layer + expert
                    with run.nn_module(f"Expert_{number}"), run.nn_module(f"Linear_{number}"):
                        run.kernel(f"{layer} {expert}")
    names = names_of_kernels(made(run, tmp_path))
    assert len(names) == 16
    for kernel, name in names.items():
        layer, expert = map(int, kernel.split())
        assert split_scope(name) == (layer, f"MoE.Expert.{expert}.Linear")


def test_paths_win_over_classes(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.nn_module("QKVParallelLinear_9"), run.scope("model.layers.3.self_attn.qkv_proj"):
        run.kernel("a")
    with run.scope("model.layers.3.self_attn.o_proj"), run.nn_module("RowParallelLinear_9"):
        run.kernel("b")
    assert names_of_kernels(made(run, tmp_path)) == {
        "a": "model.layers.3.self_attn.qkv_proj",
        "b": "model.layers.3.self_attn.o_proj",
    }


def test_no_host_events_at_all(tmp_path: Path) -> None:
    run = TraceBuilder()
    run.kernel("lonely", launched=False)
    trace = made(run, tmp_path)
    scopes = find_scopes(trace)
    assert (len(scopes.names), len(scopes.runtime), len(scopes.cpu)) == (0, 0, 0)

"""Layers and forwards guessed from repeating kernels, against programs whose layers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import TraceBuilder

from atom.trace.kernels import kernel_class
from atom.trace.mapping import (
    Replay,
    capture_templates,
    find_forwards,
    find_layers,
    map_blocks,
    map_replays,
)
from atom.trace.mapping.names import Names
from atom.trace.mapping.repeats import find_repeat, runs
from atom.trace.reader import read_trace
from atom.trace.scopes import find_scopes, split_scope
from atom.trace.types import Match

REAL = Path(__file__).parent / "sglang_mi300"

DENSE = [
    "add_rms_norm", "qkv_gemm", "rope_kernel", "flash_attention", "flash_attention_reduce",
    "o_gemm", "add_rms_norm", "gate_up_gemm", "silu_and_mul", "down_gemm",
]  # fmt: skip
EXPERTS = [
    "add_rms_norm", "qkv_gemm", "rope_kernel", "flash_attention", "flash_attention_reduce",
    "o_gemm", "add_rms_norm", "router_gemm", "topk_gating", "moe_sort", "moe_gemm_1", "moe_act",
    "moe_gemm_2", "moe_sum",
]  # fmt: skip
SLIDING = [kernel.replace("flash_attention", "flash_attention_window") for kernel in EXPERTS]
FUSED = ["add_rms_norm", "gemv_rows", "flash_decode", "gemv_rows", "add_rms_norm", "gemv_rows",
         "gemv_rows"]  # fmt: skip
PARALLEL = ["layer_norm", "qkv_gemm", "flash_attention", "o_gemm", "up_gemm", "gelu", "down_gemm"]


def forward(*layers: list[str]) -> tuple[list[str], list[int]]:
    """Kernels and their layers; the first norm adds no residual, as is usual."""
    names, truth = ["prepare", "embedding"], [-1, -1]
    for number, layer in enumerate(layers):
        first = ["rms_norm"] if number == 0 and layer[0] == "add_rms_norm" else layer[:1]
        names += first + layer[1:]
        truth += [number] * len(layer)
    names += ["add_rms_norm", "lm_head_gemm", "argmax"]
    return names, [*truth, -1, -1, -1]


def found(names: list[str]):
    numbers = Names()
    name = np.array([numbers.number(n) for n in names], np.int32)
    return find_layers(name, [kernel_class(n) for n in names], numbers)


@pytest.mark.parametrize(
    ("layers", "kinds"),
    [
        ([DENSE] * 28, 2),  # the first norm makes the first layer a kind of its own
        ([DENSE] * 4, 2),
        ([FUSED] * 28, 2),
        ([PARALLEL] * 12, 1),
        ([EXPERTS] * 9, 2),
        ([SLIDING, EXPERTS] * 9, 3),
        ([SLIDING, SLIDING, SLIDING, SLIDING, SLIDING, EXPERTS] * 4, 3),
        ([DENSE, DENSE, DENSE] + [EXPERTS] * 20, 3),
    ],
)
def test_layers_are_those_of_the_model(layers, kinds):
    names, truth = forward(*layers)
    blocks = found(names)
    assert blocks is not None
    assert blocks.num_layers == len(layers)
    assert blocks.kinds == kinds
    assert blocks.layer.tolist() == truth
    assert blocks.part[:2] == ["before_layers"] * 2
    assert blocks.part[-3:] == ["after_layers"] * 3
    start = truth.index(1)
    assert blocks.part[start] == "norm.0"
    assert blocks.part[start + 1] == "gemm.0"


@pytest.mark.parametrize("layers", [[DENSE] * 12, [SLIDING, EXPERTS] * 6, [FUSED] * 12])
@pytest.mark.parametrize("at", [30, 33, 36, 41])
@pytest.mark.parametrize("extra", [False, True])
def test_one_kernel_more_or_less_shifts_no_layer(layers, at, extra):
    names, truth = forward(*layers)
    if extra:
        names, truth = (
            [*names[:at], "memcpy_kernel", *names[at:]],
            [*truth[:at], truth[at], *truth[at:]],
        )
    elif names[at].startswith("flash"):
        return  # a layer is told by its attention: without it, it is none
    else:
        names, truth = names[:at] + names[at + 1 :], truth[:at] + truth[at + 1 :]
    blocks = found(names)
    assert blocks is not None
    assert blocks.num_layers == len(layers)
    wrong = (blocks.layer != truth) & (blocks.layer >= 0)
    if extra:
        wrong[at] = False  # whose it is, nothing tells
    assert not wrong.any()
    assert (blocks.layer == truth).mean() > 0.97
    assert blocks.exact < 1


def test_what_repeats_less_than_three_times_is_no_layer():
    assert found(["a", "b", "c", "d"]) is None
    assert found([]) is None
    names, _ = forward(DENSE, EXPERTS)
    assert found(names) is None


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=9),
    st.integers(3, 7),
    st.lists(st.integers(6, 9), max_size=6),
    st.lists(st.integers(6, 9), max_size=6),
)
def test_a_repeat_is_found_with_its_shortest_period(block, times, before, after):
    x = np.array(before + block * times + after, np.int32)
    repeat = find_repeat(x, np.ones(len(x), bool))
    whole = [d for d in range(1, len(block) + 1) if len(block) % d == 0]
    shortest = next(d for d in whole if block[d:] + block[:d] == block)
    assert repeat is not None
    longest = int((repeat.end - repeat.start).max())
    planted = shortest * (len(block) // shortest) * times
    # A part of the block that repeats in itself may cover nearly as much, never more; what stands
    # before or behind may repeat by chance and cover more than was planted.
    assert repeat.period <= shortest or repeat.covered > planted
    assert repeat.covered >= 0.95 * planted
    assert longest >= 3 * repeat.period
    for start, end in zip(repeat.start.tolist(), repeat.end.tolist(), strict=True):
        for at in range(start, end - repeat.period):
            assert x[at] == x[at + repeat.period]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=6, max_size=40), st.integers(1, 4), st.integers(2, 4))
def test_runs_are_maximal(values, period, least):
    x = np.array(values, np.int32)
    if period >= len(x):
        return
    low, high = runs(x, period, least)
    holds = [
        (a, b)
        for a in range(len(x))
        for b in range(a + least * period, len(x) + 1)
        if all(x[i] == x[i + period] for i in range(a, b - period))
    ]
    maximal = [
        (a, b)
        for a, b in holds
        if not any((c, d) != (a, b) and c <= a and b <= d for c, d in holds)
    ]
    assert sorted(zip(low.tolist(), high.tolist(), strict=True)) == sorted(maximal)


def test_forwards_of_prefill_and_decode_are_cut_at_the_longest_pause(tmp_path: Path):
    made = TraceBuilder()
    truth: list[int] = []
    kinds = [DENSE, FUSED, FUSED, DENSE, FUSED]
    for number, layer in enumerate(kinds):
        names, _ = forward(*[layer] * 6)
        for name in names:
            made.kernel(name)
            truth.append(number)
        made.advance(500)
    trace = read_trace(made.write(tmp_path / "run.json"))
    steps = find_forwards(trace)
    assert [len(step.rows) for step in steps] == [truth.count(n) for n in range(len(kinds))]
    assert np.concatenate([step.rows for step in steps]).tolist() == list(range(len(truth)))
    mapped = map_blocks(trace, [step.rows for step in steps])
    assert mapped.num_layers == 6
    assert (mapped.layer.max(), (mapped.layer < 0).sum()) == (5, 5 * len(kinds))
    assert mapped.notes[0].startswith("no scopes: 6 layers guessed")


def test_a_forward_that_lacks_a_kernel_stays_one(tmp_path: Path):
    made = TraceBuilder()
    names, _ = forward(*[DENSE] * 10)
    for names_of_step in (names, names[:55] + names[56:], names):
        for name in names_of_step:
            made.kernel(name)
        made.advance(500)
    trace = read_trace(made.write(tmp_path / "run.json"))
    assert [len(step.rows) for step in find_forwards(trace)] == [105, 104, 105]


def test_nothing_repeats_gives_no_forwards_and_no_layers(tmp_path: Path):
    made = TraceBuilder()
    for number in range(20):
        made.kernel(f"kernel_{'abcdefghijklmnopqrstuvwxyz'[number]}")
    trace = read_trace(made.write(tmp_path / "run.json"))
    assert find_forwards(trace) == []
    mapped = map_blocks(trace, [np.arange(20)])
    assert mapped.num_layers == 0
    assert (mapped.part < 0).all()
    assert mapped.notes == ("no scopes, and no block of kernels repeats: layers are not known",)


def test_side_streams_do_not_hide_the_layers(tmp_path: Path):
    made = TraceBuilder()
    rng = np.random.default_rng(5)
    for number in range(12):
        for at, name in enumerate(DENSE):
            made.kernel(name, us=3)
            if at == int(rng.integers(0, len(DENSE))):
                made.kernel("nccl_all_reduce", us=float(rng.integers(1, 30)), stream=20)
        assert number >= 0
    trace = read_trace(made.write(tmp_path / "run.json"))
    mapped = map_blocks(trace, [np.arange(len(trace.gpu))])
    main = trace.gpu.stream == 7
    assert mapped.num_layers == 12
    assert mapped.layer[main].tolist() == [n for n in range(12) for _ in DENSE]


def test_a_real_rocm_step_is_mapped_whole_and_its_blocks_are_its_layers():
    run = read_trace(REAL / "qwen3-8b.run.json.gz")
    captured = read_trace(REAL / "qwen3-8b.capture_bs32.json.gz")
    scopes = find_scopes(captured)
    templates = capture_templates(captured, scopes.runtime)
    (launch,) = (i for i in run.runtime.name if "GraphLaunch" in run.strings[i])
    correlation = run.runtime.correlation[run.runtime.name == launch]
    rows = np.flatnonzero(run.gpu.correlation == correlation)
    mapped = map_replays(run, [Replay(0, "decode", 32, (rows,))], templates)
    assert len(rows) == 544
    assert (mapped.match == Match.CAPTURE).all()
    assert not mapped.warnings
    places = [scopes.names[templates[0].place[node]] for node in mapped.node]
    known = [split_scope(place)[0] for place in places]
    blocks = map_blocks(run, [np.arange(len(run.gpu))])
    assert blocks.num_layers == 36
    assert blocks.layer[mapped.row].tolist() == known
    # Any one kernel less: the other 543 keep their modules, but for its equal neighbours.
    for missing in range(0, 544, 37):
        kept = np.delete(rows, missing)
        damaged = map_replays(run, [Replay(0, "decode", 32, (kept,))], templates)
        assert damaged.node.tolist() == np.delete(np.arange(544), missing).tolist()
        assert (damaged.match == Match.ALIGNED).all()
        assert damaged.warnings == {
            0: "incomplete: 543 of the 544 kernels of its graphs are in the file"
        }

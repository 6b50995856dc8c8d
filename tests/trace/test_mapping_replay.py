"""Replayed kernels to captured launches: exact, damaged, on several streams, in pieces."""

from __future__ import annotations

import itertools
from dataclasses import replace as with_fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mapped_programs import LABEL, Program, capture, replay
from synthetic import Graph, Node, TraceBuilder

from atom.trace.mapping import (
    EagerStep,
    Replay,
    capture_templates,
    eager_templates,
    map_replays,
)
from atom.trace.reader import read_trace
from atom.trace.scopes import find_scopes
from atom.trace.types import Match

LAYER = [
    ("input_layernorm", "norm_kernel"),
    ("self_attn.qkv_proj", "nvjet_64x8"),
    ("self_attn.q_norm", "norm_kernel"),
    ("self_attn.k_norm", "norm_kernel"),
    ("self_attn.attn", "attention_kernel"),
    ("self_attn.o_proj", "nvjet_64x8"),
    ("mlp.up", "nvjet_128x8"),
    ("mlp.down", "nvjet_64x8"),
]


def model(layers: int = 3, side: tuple[str, ...] = ()) -> Program:
    """A decoder; modules of `side` run on a second stream."""
    body = [
        (f"model.layers.{n}.{module}", kernel, 8 if module in side else 7)
        for n in range(layers)
        for module, kernel in LAYER
    ]
    return [("embed_tokens", "embedding", 7), *body, ("lm_head", "nvjet_64x8", 7)]


@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
@pytest.mark.parametrize("children", [True, False])
def test_every_kernel_of_every_replay_finds_its_module(tmp_path: Path, vendor, children):
    captured = capture(tmp_path, {LABEL: model()}, vendor=vendor, children=children)
    (template,) = captured.templates
    assert (template.kind, template.size, template.note) == ("decode", 4, "")
    found = replay(tmp_path, captured, [captured.graphs] * 3, vendor=vendor)
    assert found.module == found.truth
    assert found.count == {Match.CAPTURE: 3 * 26}
    assert not found.mapped.warnings
    assert found.mapped.notes == (f"graphs of 3 steps: {LABEL} (26 kernels)",)


def test_rocm_needs_no_warm_up_because_launches_carry_names(tmp_path: Path):
    captured = capture(tmp_path, {LABEL: model()}, vendor="amd", warm_up=False)
    found = replay(tmp_path, captured, [captured.graphs], vendor="amd")
    assert found.module == found.truth
    assert found.count == {Match.CAPTURE: 26}


def test_nvidia_without_warm_up_is_mapped_by_count_and_says_that_names_are_missing(tmp_path):
    captured = capture(tmp_path, {LABEL: model()}, warm_up=False)
    found = replay(tmp_path, captured, [captured.graphs])
    assert found.module == found.truth
    assert found.count == {Match.ALIGNED: 26}
    assert found.mapped.notes[1].startswith(f"{LABEL}: 26 of 26 recorded launches have no kernel")
    # One kernel less, and nothing tells which: the count is no evidence any more.
    short = replay(tmp_path, captured, [[captured.graphs[0].without(9)]])
    assert short.count == {Match.NONE: 25}


def test_graph_nodes_in_the_trace_settle_what_order_leaves_open(tmp_path: Path):
    captured = capture(tmp_path, {LABEL: model()})
    whole = captured.graphs[0]
    damaged = whole.without(4)  # one of two neighbouring norms: by name either could be it
    found = replay(tmp_path, captured, [[whole], [damaged]], graph_nodes=True)
    assert found.module == found.truth
    assert found.count == {Match.GRAPH_NODE: 26 + 25}
    assert found.mapped.warnings == {
        1: "incomplete: 25 of the 26 kernels of its graphs are in the file"
    }
    without = replay(tmp_path, captured, [[whole], [damaged]])
    assert without.module[26 + 3] == ""
    assert not without.wrong


@pytest.mark.parametrize("missing", [1, 2, 5, 8])
def test_a_missing_kernel_costs_no_other_its_module(tmp_path: Path, missing):
    captured = capture(tmp_path, {LABEL: model()})
    found = replay(tmp_path, captured, [[captured.graphs[0].without(missing)]])
    assert found.module == found.truth
    assert found.count == {Match.ALIGNED: 25}
    assert found.mapped.warnings == {
        0: "incomplete: 25 of the 26 kernels of its graphs are in the file"
    }


def test_an_extra_kernel_has_no_module_and_costs_no_other_its_own(tmp_path: Path):
    captured = capture(tmp_path, {LABEL: model()})
    extra = Node("splitk_reduce", 1000)
    found = replay(tmp_path, captured, [[captured.graphs[0].plus(11, extra)]])
    assert found.module[11] == ""
    assert found.module == found.truth
    assert found.count == {Match.NONE: 1, Match.ALIGNED: 26}
    assert not found.mapped.warnings


def test_another_tile_size_at_the_same_place_is_the_same_module(tmp_path: Path):
    captured = capture(tmp_path, {LABEL: model()})
    nodes = tuple(
        with_fields(node, name="nvjet_256x16") if node.name == "nvjet_128x8" else node
        for node in captured.graphs[0].nodes
    )
    found = replay(tmp_path, captured, [[Graph(LABEL, nodes)]], size=6)
    assert found.module == found.truth
    assert found.count == {Match.CAPTURE: 23, Match.ALIGNED: 3}
    assert found.mapped.notes[1:] == (
        "1 step of size 6 mapped by the capture of size 4: modules hold, shapes are the capture's",
        "3 replayed kernels have another name than the captured one at their place",
    )


def test_the_graph_of_the_labels_size_is_taken_where_kernels_are_equal(tmp_path: Path):
    sizes = (1, 4, 8)
    captured = capture(tmp_path, {f"capture_graph_bs_{n}": model() for n in sizes})
    for size, wanted in ((1, 1), (4, 4), (3, 4), (7, 8), (99, 8)):
        found = replay(tmp_path, captured, [captured.graphs[:1]], size=size)
        (used,) = {captured.templates[i].size for i in found.mapped.template.tolist()}
        assert used == wanted
        assert found.module == found.truth


def test_kernels_decide_against_a_label_that_is_wrong(tmp_path: Path):
    other = [(module, kernel + "_other", stream) for module, kernel, stream in model(2)]
    captured = capture(tmp_path, {LABEL: other, "capture_graph_bs_8": model()})
    found = replay(tmp_path, captured, [captured.graphs[1:]], size=4)
    assert found.module == found.truth
    assert found.count == {Match.CAPTURE: 26}


def test_of_several_captures_a_damaged_replay_takes_the_one_with_its_kernels(tmp_path: Path):
    longer = [*model(), ("sample", "topk_kernel", 7), ("sample", "argmax_kernel", 7)]
    captured = capture(tmp_path, {"capture_graph_bs_1": longer, LABEL: model()})
    damaged = captured.graphs[1].without(5)
    for size in (-1, 1, 4):
        found = replay(tmp_path, captured, [[damaged]], size=size)
        assert found.module == found.truth
        assert found.count == {Match.ALIGNED: 25}


def test_pieces_are_one_graph_launch_each_and_layers_keep_apart(tmp_path: Path):
    captured = capture(tmp_path, {"capture_graph_tok_64": model()})
    graph = captured.graphs[0]
    cuts = [0, 5, 13, 21, 26]
    pieces = [Graph("", graph.nodes[a:b]) for a, b in itertools.pairwise(cuts)]
    found = replay(tmp_path, captured, [pieces], kind="prefill", size=64)
    assert found.module == found.truth
    assert found.count == {Match.CAPTURE: 26}
    # A launch whose kernels the file lacks: the equal piece after it must not take its place.
    lost = [pieces[0], Graph("", ()), *pieces[2:]]
    damaged = replay(tmp_path, captured, [lost], kind="prefill", size=64)
    assert not damaged.wrong
    assert damaged.mapped.warnings == {
        0: "incomplete: 1 of 4 graph launches have no GPU work in the file"
    }


def test_two_graphs_in_one_step_are_mapped_each_by_its_own_capture(tmp_path: Path):
    draft = [(f"draft.{module}", f"draft_{kernel}", stream) for module, kernel, stream in model(1)]
    captured = capture(tmp_path, {LABEL: model(), "capture_graph_bs_5": draft})
    target, drafted = captured.graphs
    found = replay(tmp_path, captured, [[drafted, target, drafted]])
    assert found.module == found.truth
    assert found.count == {Match.CAPTURE: 26 + 2 * 10}


def test_a_capture_of_another_model_maps_nothing_and_says_so(tmp_path: Path):
    other = [("x", f"k{at}", 7) for at in range(20)]
    captured = capture(tmp_path, {LABEL: other, "capture_graph_bs_8": model()})
    captured.templates.pop()
    found = replay(tmp_path, captured, [captured.graphs[1:]])
    assert found.count == {Match.NONE: 26}
    assert found.mapped.notes == ("1 of 1 steps with graphs are like none of the 1 captured ones",)


def test_without_any_template_the_way_out_is_named(tmp_path: Path):
    captured = capture(tmp_path, {LABEL: model()})
    captured.templates.clear()
    graph = captured.graphs[0]
    found = replay(tmp_path, captured, [[graph], [graph.without(3)]])
    assert found.count == {Match.NONE: 51}
    assert "--capture-trace" in found.mapped.notes[0]
    assert found.mapped.warnings == {
        1: "incomplete? 25 kernels of graphs, other steps like it have 26"
    }


def test_time_is_bounded_where_every_step_is_damaged_otherwise(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("atom.trace.mapping.replay.ALIGNED_AT_MOST", 30)
    captured = capture(tmp_path, {LABEL: model()})
    graph = captured.graphs[0]
    steps = [[graph.without(2, at)] for at in (5, 9, 13, 9)] + [[graph]]
    found = replay(tmp_path, captured, steps)
    assert not found.wrong
    assert found.count == {Match.NONE: 24, Match.ALIGNED: 3 * 24, Match.CAPTURE: 26}
    assert found.mapped.notes[-1].startswith("1 of 5 steps differ from their capture and were not")


def test_a_step_without_any_kernel_in_the_file_is_called_incomplete(tmp_path: Path):
    captured = capture(tmp_path, {LABEL: model()})
    found = replay(tmp_path, captured, [[Graph("", ())]])
    assert found.mapped.warnings == {
        0: "incomplete: 1 of 1 graph launches have no GPU work in the file"
    }


def test_two_streams_keep_their_own_order(tmp_path: Path):
    program = model(side=("mlp.up",))
    captured = capture(tmp_path, {LABEL: program})
    nodes = tuple(
        with_fields(node, ns=90_000) if node.stream == 8 else node
        for node in captured.graphs[0].nodes
    )
    found = replay(tmp_path, captured, [[Graph(LABEL, nodes)]])
    assert found.names != [node.name for node in nodes], "the streams should have run apart"
    assert found.module == found.truth
    assert found.count == {Match.CAPTURE: 26}


def test_an_eager_step_of_the_run_explains_the_graphs_where_there_is_no_capture(tmp_path: Path):
    made = TraceBuilder()
    program = model()

    def forward(trace: TraceBuilder) -> None:
        for module, kernel, stream in program:
            with trace.scope(module):
                trace.kernel(kernel, stream=stream)

    graph = TraceBuilder().capture(LABEL, forward)
    with made.step("eager_decode[bs=4]"):
        forward(made)
    with made.step("decode[bs=4]"):
        correlation = made.graph_launch(graph)
    trace = read_trace(made.write(tmp_path / "run.json"))
    scopes = find_scopes(trace)
    rows = np.flatnonzero(trace.gpu.correlation == correlation)
    own = np.flatnonzero(trace.gpu.correlation != correlation)
    launch = np.array(
        [np.flatnonzero(trace.runtime.correlation == c)[0] for c in trace.gpu.correlation[own]]
    )
    step = EagerStep("eager_decode[bs=4]", "decode", 4, own, launch)
    templates = eager_templates(trace, scopes.runtime, [step, step])
    assert len(templates) == 1
    mapped = map_replays(trace, [Replay(1, "decode", 4, (rows,))], templates)
    ours = [scopes.names[templates[0].place[node]] for node in mapped.node]
    assert ours == [module for module, _, _ in program]
    assert mapped.notes == (
        "kernels are named by the eager step eager_decode[bs=4], not by a capture",
    )


def test_a_warm_up_that_differs_from_the_recording_names_what_is_the_same(tmp_path: Path):
    made = TraceBuilder()
    program = model(1)
    runs = 0

    def forward(trace: TraceBuilder) -> None:
        nonlocal runs
        runs += 1
        for module, kernel, stream in program:
            with trace.scope(module):
                trace.kernel(kernel, stream=stream)
        if runs == 1:
            trace.kernel("only_once")  # e.g. a library allocates its workspace

    graph = made.capture(LABEL, forward)
    trace = read_trace(made.write(tmp_path / "capture_graph_m.json"))
    captured = capture(tmp_path, {LABEL: program})
    scopes = find_scopes(trace)
    captured = with_fields(captured, trace=trace, scopes=scopes, graphs=[graph])
    captured.templates[:] = capture_templates(trace, scopes.runtime)
    assert len(captured.templates[0]) == 10
    found = replay(tmp_path, captured, [[graph]])
    assert found.module == found.truth
    assert found.count == {Match.CAPTURE: 10}


def test_one_file_per_size_without_annotations_is_a_capture_as_a_whole(tmp_path: Path):
    made = TraceBuilder(vendor="amd")
    graph = TraceBuilder().capture(LABEL, lambda t: t.kernel("a"))
    with made.scope("model.layers.0.mlp"):
        made.kernel("a", executed=False)
        made.kernel("b", executed=False)
    trace = read_trace(made.write(tmp_path / "bs_16_q_1_rank0.json.gz"))
    (template,) = capture_templates(trace, find_scopes(trace).runtime)
    assert (template.size, template.kind, len(template)) == (16, "", 2)
    assert [trace.strings[i] for i in template.name] == ["a", "b"]
    assert graph.nodes[0].name == "a"


def test_a_capture_that_recorded_nothing_gives_the_warm_ups_kernels_and_says_so(tmp_path: Path):
    made = TraceBuilder()
    with made.annotation(LABEL), made.annotation("warm_up"), made.scope("lm_head"):
        made.kernel("a")
    trace = read_trace(made.write(tmp_path / "capture_graph_m.json"))
    (template,) = capture_templates(trace, find_scopes(trace).runtime)
    assert len(template) == 1
    assert "recorded nothing" in template.note


@st.composite
def programs(draw):
    """Layers of few kernels with few names, on one to three streams; what is done to them."""
    streams = draw(st.sampled_from([[7], [7], [7, 8], [7, 8, 9]]))
    kernel = st.tuples(st.sampled_from("ABC"), st.sampled_from(streams))
    layer = draw(st.lists(kernel, min_size=1, max_size=5))
    layers = draw(st.integers(1, 4))
    body = [(f"layers.{n}.m{i}", k, s) for n in range(layers) for i, (k, s) in enumerate(layer)]
    program = [("embed_tokens", "E", 7), *body, ("lm_head", "A", 7)]
    ns = draw(st.lists(st.sampled_from([1000, 7000]), min_size=len(program), max_size=len(program)))
    places = st.integers(0, len(program) - 1)
    change = draw(st.sampled_from(["nothing", "less", "more"]))
    less = draw(st.sets(places, min_size=1, max_size=2)) if change == "less" else set()
    more = draw(st.lists(st.tuples(places, kernel), max_size=2)) if change == "more" else []
    return program, ns, less, more, draw(st.sampled_from(["nvidia", "amd"]))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(programs(), st.booleans())
def test_no_kernel_is_ever_given_a_wrong_module(tmp_path: Path, made, graph_nodes):
    """Kernels are missing, or some are extra: each of the others has its own module or none."""
    program, ns, less, more, vendor = made
    captured = capture(tmp_path, {LABEL: program}, vendor=vendor)
    nodes = captured.graphs[0].nodes
    graph = Graph(LABEL, tuple(with_fields(n, ns=t) for n, t in zip(nodes, ns, strict=True)))
    changed = graph.without(*less)
    for number, (place, (kernel, stream)) in enumerate(more):
        extra = Node(kernel, 3000, ("extra",), stream=stream, node_id=900 + number)
        changed = changed.plus(place, extra)
    found = replay(tmp_path, captured, [[changed]], vendor=vendor, graph_nodes=graph_nodes)
    assert not found.wrong, (found.module, found.truth)
    one_stream = len({stream for _, _, stream in program}) == 1
    if not less and not more and (one_stream or graph_nodes):
        assert found.module == found.truth
        assert found.count.keys() == {Match.GRAPH_NODE if graph_nodes else Match.CAPTURE}
    placed = [
        (t, n)
        for t, n in zip(found.mapped.template.tolist(), found.mapped.node.tolist(), strict=True)
        if n >= 0
    ]
    assert len(placed) == len(set(placed)), "two kernels of one launch"

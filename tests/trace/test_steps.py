"""Steps and their GPU work against what was put into the trace."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import TraceBuilder

from atom.trace.analysis import analyze
from atom.trace.reader import read_trace
from atom.trace.steps import find_steps
from atom.trace.types import RankModel, RankTrace, Step


def made(builder: TraceBuilder, folder: Path) -> RankTrace:
    return read_trace(builder.write(folder / "made.pt.trace.json"))


def names_of(trace: RankTrace, step: Step) -> list[str]:
    return [trace.strings[int(name)] for name in trace.gpu.name[step.rows]]


def union(spans: list[tuple[int, int]]) -> int:
    """By marking every nanosecond's borders: plain, slow, right."""
    edges = sorted({edge for span in spans for edge in span})
    return sum(
        b - a for a, b in pairwise(edges) if any(start <= a and b <= end for start, end in spans)
    )


def check_sums(model: RankModel) -> None:
    """Spans, unions and sums of every step equal a brute-force computation."""
    gpu = model.trace.gpu
    for step in model.steps:
        rows = np.flatnonzero(model.step == step.index)
        assert rows.tolist() == step.rows.tolist()
        spans = [(int(gpu.ts[row]), int(gpu.end[row])) for row in rows]
        assert step.sum_ns == sum(end - start for start, end in spans)
        assert step.busy_ns == union(spans)
        first = min((start for start, _ in spans), default=-1)
        last = max((end for _, end in spans), default=-1)
        assert (step.gpu_start, step.gpu_end) == (first, last)


KINDS = ("prefill", "decode", "dummy_decode", "eager_decode")


@st.composite
def programs(draw: st.DrawFn) -> TraceBuilder:
    """Steps on several threads, streams and devices; some launches and some ends are missing."""
    # A launch that the file lacks is placed by the annotation on its stream, which is certain only
    # where streams run one step at a time.
    lost = draw(st.booleans())
    threads = (1,) if lost else draw(st.sampled_from([(1,), (1, 2)]))
    run = TraceBuilder(
        launch_us=draw(st.sampled_from([0.5, 4.0])),
        latency_us=draw(st.sampled_from([0.0, 2.0, 500.0])),  # the next step is under way
        gap_us=draw(st.sampled_from([0.0, 1.0])),
        vendor=draw(st.sampled_from(["nvidia", "amd"])),
        gpu_annotations=lost,
    )
    graph = run.capture("capture_graph_bs_4", lambda r: [r.kernel("g1", 2), r.kernel("g2", 3)])
    number = 0
    for _ in range(draw(st.integers(1, 5))):
        with run.thread(draw(st.sampled_from(threads))):
            label = f"{draw(st.sampled_from(KINDS))}[bs=1 tok={number}]"
            number += 1
            with run.step(label, end=draw(st.sampled_from(["X", "X", "BE"]))):
                for _ in range(draw(st.integers(0, 6))):
                    what = draw(st.sampled_from(["kernel", "copy", "op", "graph", "draft"]))
                    stream = draw(st.sampled_from([7, 7, 20]))
                    us = draw(st.sampled_from([0.5, 10.0] if lost else [0.0, 0.5, 10.0]))
                    early = 0.0 if lost else draw(st.sampled_from([0.0, 0.4]))
                    if what == "kernel":
                        launched = not lost or draw(st.booleans())
                        run.kernel("k", us, stream=stream, early_us=early, launched=launched)
                    elif what == "copy":
                        run.copy("HtoD", us, stream=stream)
                    elif what == "graph":
                        run.graph_launch(graph, early_us=early)
                    elif what == "op":
                        with run.op("aten::mm"), run.scope("model.layers.1.mlp"):
                            run.kernel("mm", us, stream=stream)
                    elif not label.startswith("dummy"):
                        with run.step(f"draft[{number}/99 bs=1]"):
                            run.kernel("d", us, stream=stream)
                        number += 1
        if draw(st.booleans()):
            run.kernel("between", 1.0)
    return run


@given(programs())
@settings(max_examples=120, deadline=None)
def test_random_programs(tmp_path_factory: pytest.TempPathFactory, run: TraceBuilder) -> None:
    trace = made(run, tmp_path_factory.mktemp("made"))
    model = analyze([trace]).first
    check_sums(model)
    truth = run.truth
    assert len(truth) == len(trace.gpu)
    labels = [step.label for step in model.steps]
    by_time = [step.gpu_start for step in model.steps if step.gpu_start >= 0]
    assert by_time == sorted(by_time)
    made_up = ("capture", "forward ", "graph launch ")
    assert sorted(each for each in labels if not each.startswith(made_up)) == sorted(run.steps)
    for row, true in enumerate(truth):
        index = int(model.step[row])
        found = labels[index] if index >= 0 else ""
        if not found.startswith(made_up):
            assert found == (run.steps[true.step] if true.step >= 0 else "")


def test_a_launch_missing_in_the_file_goes_by_the_annotation_on_its_stream(tmp_path: Path) -> None:
    run = TraceBuilder()
    for number in range(3):
        with run.step(f"decode[bs=1 tok={number}]"):
            run.kernel("known")
            run.kernel("lost", launched=False)
            run.kernel("other stream", stream=9)
            run.kernel("lost there", stream=9, launched=False)
            run.kernel("known")
        run.wait()
    run.kernel("nobody's", launched=False)
    trace = made(run, tmp_path)
    steps = find_steps(trace)
    assert [sorted(names_of(trace, step)) for step in steps] == [
        ["known", "known", "lost", "lost there", "other stream"]
    ] * 3
    assert [step.found_by for step in steps] == ["label"] * 3


def test_only_the_device_has_labels(tmp_path: Path) -> None:
    run = TraceBuilder()
    for number in range(2):
        with run.step(f"decode[bs=1 tok={number}]"):
            for stream in (7, 9):
                run.kernel("k", 5.0, stream=stream, launched=False)
        run.wait()
    document = run.document()
    kept = [
        event
        for event in document["traceEvents"]
        if event.get("cat") in ("kernel", "gpu_user_annotation")
    ]
    path = tmp_path / "device.pt.trace.json"
    path.write_text(json.dumps({**document, "traceEvents": kept}))
    trace = read_trace(path)
    steps = find_steps(trace)
    assert [step.label for step in steps] == run.steps
    assert [len(step.rows) for step in steps] == [2, 2]
    assert [step.cpu_start for step in steps] == [-1, -1]


def test_an_unlabelled_thread_beside_a_labelled_one(tmp_path: Path) -> None:
    # What a helper thread launches, copies of its own say, is no step's: nothing ties it to one.
    run = TraceBuilder(gpu_annotations=False)
    with run.step("decode[bs=1 tok=1]"):
        run.kernel("mine", 50.0)
        with run.thread(99):
            run.copy("DtoH", stream=20)
    trace = made(run, tmp_path)
    assert names_of(trace, find_steps(trace)[0]) == ["mine"]


def test_work_that_runs_during_the_next_step_is_the_launching_step_s(tmp_path: Path) -> None:
    run = TraceBuilder(latency_us=10_000.0)
    for number in range(3):
        with run.step(f"decode[bs=1 tok={number}]"):
            run.kernel(f"k{number}", 5.0)
    trace = made(run, tmp_path)
    steps = find_steps(trace)
    assert [names_of(trace, step) for step in steps] == [["k0"], ["k1"], ["k2"]]
    assert all(step.gpu_start > step.cpu_end for step in steps)


def test_one_label_within_another_is_one_step(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.annotation("execute_context_0(0)_generation_4(4)"):
        run.kernel("beside")
        with run.annotation("step[DECODE bs=4]"):
            run.kernel("a")
            run.kernel("b")
    trace = made(run, tmp_path)
    (step,) = find_steps(trace)
    assert (step.kind, step.label) == ("decode", "step[DECODE bs=4]")
    assert step.fields == {"mode": "DECODE", "bs": 4, "tok": 4, "d": 4}
    # The outer one, of another engine, also holds what belongs to the next forward.
    assert names_of(trace, step) == ["a", "b"]


def test_one_engine_s_label_within_its_own_takes_all(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.annotation("prefill[bs=2 tok=64]"):
        run.kernel("a")
        with run.annotation("prefill[bs=1 tok=32 ctx=32]"):
            run.kernel("b")
    trace = made(run, tmp_path)
    (step,) = find_steps(trace)
    assert step.fields == {"bs": 2, "tok": 64, "ctx": 32}
    assert names_of(trace, step) == ["a", "b"]


def test_a_draft_within_a_decode_is_a_step_of_its_own(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.annotation("decode[bs=4 tok=8 spec=1]"):
        run.kernel("target")
        with run.annotation("draft[1/1 bs=4]"):
            run.kernel("draft")
        run.kernel("after")
    trace = made(run, tmp_path)
    steps = find_steps(trace)
    assert [(step.kind, names_of(trace, step)) for step in steps] == [
        ("decode", ["target", "after"]),
        ("draft", ["draft"]),
    ]


def test_what_a_warm_up_holds_never_counts(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.annotation("dummy_decode[bs=4 tok=4]"), run.annotation("decode[bs=4 tok=4]"):
        run.kernel("warm")
    with run.annotation("decode[bs=4 tok=4]"):
        run.kernel("real")
    trace = made(run, tmp_path)
    assert [(step.kind, step.counts) for step in find_steps(trace)] == [
        ("dummy", False),
        ("decode", True),
    ]


def test_an_end_that_is_missing(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.step("decode[bs=1 tok=0]"):
        run.kernel("a")
    run.advance(50.0)
    with run.step("decode[bs=1 tok=1]", end="none"):
        run.kernel("b")
    trace = made(run, tmp_path)
    assert [names_of(trace, step) for step in find_steps(trace)] == [["a"], ["b"]]


def test_a_step_without_gpu_work_says_so(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.step("decode[bs=1 tok=0]"):
        run.kernel("a")
    with run.step("decode[bs=1 tok=1]"):
        run.kernel("cut off", executed=False)
    steps = find_steps(made(run, tmp_path))
    assert [step.warning for step in steps] == ["", "no GPU work of it is in the file"]
    assert (steps[1].gpu_start, steps[1].gpu_ns, steps[1].busy_ns) == (-1, 0, 0)


def test_graph_launches_without_their_kernels_are_incomplete(tmp_path: Path) -> None:
    run = TraceBuilder()
    graph = run.capture("capture_graph_bs_1", lambda r: r.kernel("k"), warm_up=False)
    with run.step("decode[bs=1 tok=0]"):
        run.graph_launch(graph)
        run.graph_launch(graph.without(0))
    (_, step) = sorted(find_steps(made(run, tmp_path)), key=lambda step: step.cpu_start)
    assert step.graph_launches == 2
    assert step.warning == "incomplete: 1 of 2 graph launches have no GPU work"


def test_a_driver_s_launch_within_the_runtime_s_is_one_graph_launch(tmp_path: Path) -> None:
    run = TraceBuilder()
    graph = run.capture("capture_graph_bs_1", lambda r: r.kernel("k"), warm_up=False)
    with run.step("decode[bs=1 tok=0]"):
        run.graph_launch(graph)
    document = run.document()
    (outer,) = [e for e in document["traceEvents"] if "GraphLaunch" in e["name"]]
    inner = {**outer, "cat": "cuda_driver", "name": "cuGraphLaunch", "ts": outer["ts"] + 0.5}
    inner |= {"dur": outer["dur"] - 1, "args": {"correlation": 9999}}
    run.raw(inner)
    step = next(s for s in find_steps(made(run, tmp_path)) if s.kind == "decode")
    assert (step.graph_launches, step.warning, len(step.rows)) == (1, "", 1)


# Without labels.


def layers(run: TraceBuilder, count: int = 3) -> None:
    for layer in range(count):
        with run.nn_module(f"DecoderLayer_{layer}"), run.nn_module(f"Mlp_{layer}"):
            run.kernel(f"layer {layer}")


def test_by_the_module_that_holds_the_layers(tmp_path: Path) -> None:
    run = TraceBuilder()
    for _ in range(3):
        with run.nn_module("Model_0"):
            layers(run)
        with run.nn_module("Sampler_0"):
            run.kernel("sample")
        run.advance(100.0)
    run.kernel("nobody's")
    trace = made(run, tmp_path)
    steps = find_steps(trace)
    assert [step.label for step in steps] == ["Model 0", "Model 1", "Model 2"]
    assert {(step.kind, step.found_by) for step in steps} == {("step", "module")}
    for step in steps:
        assert names_of(trace, step) == ["layer 0", "layer 1", "layer 2", "sample"]


def test_by_layers_that_stand_alone(tmp_path: Path) -> None:
    run = TraceBuilder()
    for _ in range(3):
        with run.scope("prepare"):
            run.copy("HtoD")
        for layer in range(2):
            for module in ("self_attn", "mlp"):
                with run.scope(f"model.layers.{layer}.{module}"):
                    run.kernel(f"{layer} {module}")
        with run.scope("lm_head"):
            run.kernel("head")
    trace = made(run, tmp_path)
    steps = find_steps(trace)
    assert [step.found_by for step in steps] == ["module"] * 3
    for step in steps:
        assert names_of(trace, step) == [
            "Memcpy HtoD (Pinned -> Device)",
            "0 self_attn",
            "0 mlp",
            "1 self_attn",
            "1 mlp",
            "head",
        ]


def test_by_graph_launches_whole_and_in_pieces(tmp_path: Path) -> None:
    run, count = TraceBuilder(), 4
    whole = TraceBuilder().capture(
        "capture_graph_bs_4", lambda r: [r.kernel(f"attention_{i}") for i in range(6)]
    )
    first, middle, last = (
        TraceBuilder().capture(f"capture_graph_tok_{i}", lambda r, i=i: r.kernel(f"gemm_{i}"))
        for i in range(3)
    )
    expected = []
    for number in range(6):
        run.kernel("sampling of the step before")
        if number % 3 == 2:
            run.graph_launch(whole)
            expected.append([f"attention_{i}" for i in range(6)])
            continue
        want = ["gemm_0"]
        run.graph_launch(first)
        for _ in range(count):
            run.kernel("attention, launched by itself")
            run.graph_launch(middle)
            want += ["attention, launched by itself", "gemm_1"]
        run.graph_launch(last)
        expected.append([*want, "gemm_2"])
    trace = made(run, tmp_path)
    steps = find_steps(trace)
    assert [names_of(trace, step) for step in steps] == expected
    assert {step.found_by for step in steps} == {"graph"}


BLOCK = (
    "rms_norm_kernel", "gemm_qkv", "flash_fwd_kernel", "gemm_o",
    "rms_norm_kernel", "gemm_up", "silu_and_mul_kernel", "gemm_down",
)  # fmt: skip


def test_by_blocks_of_kernels(tmp_path: Path) -> None:
    run = TraceBuilder(gpu_annotations=False)
    for _ in range(4):
        run.kernel("embedding_kernel")
        for _ in range(8):
            for name in BLOCK:
                run.kernel(name, 3.0)
        run.kernel("argmax_kernel")
        run.wait()
        run.advance(200.0)
    model = analyze([made(run, tmp_path)]).first
    check_sums(model)
    assert [(step.found_by, len(step.rows)) for step in model.steps] == [("blocks", 66)] * 4
    assert (model.num_layers, model.layers_by) == (8, "blocks")
    assert all(step.cpu_start >= 0 for step in model.steps)

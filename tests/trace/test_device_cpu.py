"""CPU-only profiles: operators' own time as the work of a device, against brute force."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import TraceBuilder
from torch.profiler import ProfilerActivity, profile, record_function

from atom.trace.analysis import load
from atom.trace.device_cpu import OUTSIDE, own_times
from atom.trace.reader import read_trace
from atom.trace.types import Analysis, CpuEvents, CpuKind


def cpu_model(folder: Path, build: Callable[[TraceBuilder], None]) -> Analysis:
    run = TraceBuilder(device_name="")
    build(run)
    return load([run.write(folder / "m.pt.trace.json")], device="cpu")


def test_operators_own_time_is_the_device_s(tmp_path: Path) -> None:
    def build(run: TraceBuilder) -> None:
        with run.step("decode[bs=1 tok=1 d=1]"):
            run.advance(50.0)
            with run.scope("model.layers.0.mlp.up_proj", us=2.0):
                with run.op("aten::linear", us=3.0):
                    run.advance(1.0)
                    with run.op("aten::addmm", us=10.0):
                        pass
                run.advance(4.0)
            with run.op("aten::add", us=1.0):
                pass

    model = cpu_model(tmp_path, build).first
    assert model.trace.device_name == "CPU"
    gpu = model.trace.gpu
    found = [
        (model.kernel_name(row), int(gpu.dur[row]) // 1000, model.module_name(row))
        for row in range(len(gpu))
    ]
    assert found == [
        (OUTSIDE, 8, "mlp.up_proj"),
        ("aten::linear", 7, "mlp.up_proj"),
        ("aten::addmm", 20, "mlp.up_proj"),
        ("aten::add", 2, ""),
    ]
    (step,) = model.steps
    assert (step.busy_ns, step.sum_ns, step.gpu_ns) == (37_000, 37_000, 37_000)
    assert (model.num_layers, model.layers_by) == (1, "scope")


@st.composite
def nests(draw: st.DrawFn) -> TraceBuilder:
    run = TraceBuilder(device_name="")

    def body(depth: int) -> None:
        for _ in range(draw(st.integers(0, 3))):
            run.advance(draw(st.sampled_from([0.0, 0.001, 5.0])))
            us = draw(st.sampled_from([0.0, 0.001, 2.0]))
            what = draw(st.sampled_from(["op", "scope", "plumbing", "thread"]))
            if what == "op":
                with run.op("aten::mm", us=us):
                    if depth < 4:
                        body(depth + 1)
            elif what == "scope":
                with run.scope(f"model.layers.{depth}.mlp", us=us):
                    if depth < 4:
                        body(depth + 1)
            elif what == "plumbing":
                with run.annotation("ProfilerStep#1", us=us):
                    body(4)
            elif depth == 0:
                with run.thread(99):
                    body(3)

    body(0)
    with run.op("aten::mm", us=1.0):
        pass
    return run


@given(nests())
@settings(max_examples=100, deadline=None)
def test_own_times_fill_what_is_covered(
    tmp_path_factory: pytest.TempPathFactory, run: TraceBuilder
) -> None:
    trace = read_trace(run.write(tmp_path_factory.mktemp("cpu") / "m.json"))
    cpu = trace.cpu
    plumbing = np.array([s.startswith("ProfilerStep") for s in trace.strings])[cpu.name]
    rows = np.flatnonzero(~plumbing & np.isin(cpu.kind, (CpuKind.OP, CpuKind.ANNOTATION)))
    start, own = own_times(trace, rows)
    for track in np.unique(cpu.track).tolist():
        mine = np.flatnonzero(cpu.track[rows] == track)
        spans = [(int(cpu.ts[r]), int(cpu.ts[r] + cpu.dur[r])) for r in rows[mine]]
        edges = sorted({edge for span in spans for edge in span})
        covered = sum(b - a for a, b in pairwise(edges) if any(s <= a and b <= e for s, e in spans))
        assert own[mine].sum() == covered
        # No two overlap, and none lies where nothing was.
        placed = sorted((int(s), int(s + o)) for s, o in zip(start[mine], own[mine], strict=True))
        assert all(first[1] <= then[0] for first, then in pairwise(placed))
        for begin, end in placed:
            inside = sum(
                b - a
                for a, b in pairwise(sorted({begin, end, *edges}))
                if begin <= a and b <= end and any(s <= a and b <= e for s, e in spans)
            )
            assert inside == end - begin
    # By hand: each row's time without that of the rows whose innermost surrounding row it is.
    for number, row in enumerate(rows.tolist()):
        span = (int(cpu.ts[row]), int(cpu.ts[row] + cpu.dur[row]))
        inner = {
            moment
            for other in rows.tolist()
            if other != row and cpu.track[other] == cpu.track[row] and _later(cpu, other, row)
            for moment in _pieces(cpu, other, span)
        }
        assert own[number] == span[1] - span[0] - _length(inner)


def _later(cpu: CpuEvents, other: int, row: int) -> bool:
    """Whether it begins within `row`, or with it and is the inner one."""
    ts, dur = cpu.ts, cpu.dur
    key = [(int(ts[r]), -int(ts[r] + dur[r]), r) for r in (other, row)]
    return key[0] > key[1] and ts[other] < ts[row] + dur[row]


def _pieces(cpu: CpuEvents, other: int, span: tuple[int, int]) -> list[tuple[int, int]]:
    ts, dur = cpu.ts, cpu.dur
    return [(max(span[0], int(ts[other])), min(span[1], int(ts[other] + dur[other])))]


def _length(spans: set[tuple[int, int]]) -> int:
    edges = sorted({edge for span in spans for edge in span})
    return sum(b - a for a, b in pairwise(edges) if any(s <= a and b <= e for s, e in spans))


def test_a_real_profile_of_the_cpu(tmp_path: Path) -> None:
    a = torch.randn(64, 64)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(3):
            with record_function("decode[bs=1 tok=1 d=1]"):
                for layer in range(2):
                    with record_function(f"model.layers.{layer}.mlp.up_proj"):
                        a @ a
    path = tmp_path / "m.pt.trace.json"
    recorded.export_chrome_trace(str(path))
    model = load([path], device="cpu").first
    assert [(step.kind, step.found_by) for step in model.steps] == [("decode", "label")] * 3
    assert model.num_layers == 2
    # Equal to the file's own figure: all that lies in no other operator or scope.
    events = json.loads(path.read_text())["traceEvents"]
    scopes = [e for e in events if e["name"].startswith("model.") and e["ph"] == "X"]
    total = sum(round(event["dur"] * 1000) for event in scopes)
    assert sum(step.sum_ns for step in model.steps) == total
    products = [r for r in range(len(model.op)) if model.kernel_name(r) == "aten::mm"]
    assert {model.module_name(row) for row in products} == {"mlp.up_proj"}
    assert len(products) == 6

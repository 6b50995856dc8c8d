"""What is read of a capture's trace: launches that are recorded, their names, pieces, sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from mapped_programs import LABEL, Captured, capture, replay
from synthetic import Graph, Node, TraceBuilder

from atom.trace.mapping import Template, capture_templates
from atom.trace.mapping.launches import launch_kinds, parse_capture, parse_capture_file
from atom.trace.reader import read_trace
from atom.trace.scopes import find_scopes
from atom.trace.types import GpuKind


def call(made: TraceBuilder, name: str, us: float = 1.0, correlation: int = 900_000) -> None:
    """A call of the runtime that puts nothing on the device."""
    made.raw(
        {"ph": "X", "cat": "cuda_runtime", "name": name, "pid": 1723, "tid": 1723,
         "ts": (made.origin_ns + made.now) / 1000, "dur": us, "args": {"correlation": correlation}}
    )  # fmt: skip
    made.advance(us)


def templates(made: TraceBuilder, folder: Path) -> list[Template]:
    trace = read_trace(made.write(folder / "capture_graph_m.json.gz"))
    return capture_templates(trace, find_scopes(trace).runtime)


def names(template: Template) -> list[str]:
    return [template.source.strings[i] if i >= 0 else "" for i in template.name.tolist()]


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("capture_graph_bs_32", "decode", 32),
        ("capture_graph_tok_64", "piecewise", 64),
        ("capture_32_DECODE", "decode", 32),
        ("capture_8192_PIECEWISE", "piecewise", 8192),
        ("capture_16_FULL", "", 16),
    ],
)
def test_labels_of_captures(name, kind, size):
    assert parse_capture(name) == (kind, size)


def test_other_annotations_are_no_captures():
    assert parse_capture("decode[bs=32]") is None
    assert parse_capture("model.layers.3.mlp") is None
    assert parse_capture_file("bs_16_q_1_rank0") == 16
    assert parse_capture_file("trace") == -1


def test_pieces_are_told_by_where_a_stream_begins_to_be_captured(tmp_path: Path):
    """Attention runs between the pieces, one piece is empty, a launch lies outside of all."""
    made = TraceBuilder(vendor="amd")
    with made.annotation("capture_64_PIECEWISE"):
        made.kernel("lost", executed=False)  # ran, but the file lacks its kernel
        for piece in (["a", "b"], [], ["c"]):
            call(made, "hipStreamBeginCapture")
            for kernel in piece:
                made.kernel(kernel, executed=False)
            call(made, "hipStreamEndCapture")
            made.kernel("attention")
    (template,) = templates(made, tmp_path)
    assert names(template) == ["a", "b", "c"]
    assert template.piece.tolist() == [0, 0, 2]
    assert (template.kind, template.size) == ("piecewise", 64)


def test_a_piece_captured_without_a_kernel_is_no_missing_work(tmp_path: Path):
    made = TraceBuilder(vendor="amd")
    with made.annotation("capture_64_PIECEWISE"):
        for piece in (["a", "b"], [], ["c"]):
            call(made, "hipStreamBeginCapture")
            for kernel in piece:
                with made.scope(f"model.layers.0.{kernel}"):
                    made.kernel(kernel, executed=False)
            call(made, "hipStreamEndCapture")
    trace = read_trace(made.write(tmp_path / "capture_graph_m.json.gz"))
    scopes = find_scopes(trace)
    captured = Captured(trace, scopes, [], capture_templates(trace, scopes.runtime))
    nodes = [Node(k, 1000, (f"model.layers.0.{k}",)) for k in "abc"]
    graphs = [Graph("", tuple(nodes[:2])), Graph("", ()), Graph("", tuple(nodes[2:]))]
    found = replay(tmp_path, captured, [graphs], vendor="amd", kind="prefill", size=64)
    assert found.module == found.truth
    assert not found.mapped.warnings


def test_without_those_calls_what_ran_is_told_by_its_kernel(tmp_path: Path):
    made = TraceBuilder(vendor="amd")
    with made.annotation("capture_64_PIECEWISE"):
        for kernel in ("a", "b"):
            made.kernel(kernel, executed=False)
            made.kernel("attention")
    (template,) = templates(made, tmp_path)
    assert names(template) == ["a", "b"]


def test_copies_and_fills_are_recorded_too(tmp_path: Path):
    def body(made: TraceBuilder) -> None:
        made.copy("DtoD")
        made.fill()
        made.kernel("a", driver=True)

    made = TraceBuilder()
    made.capture(LABEL, body)
    (template,) = templates(made, tmp_path)
    assert names(template) == ["Memcpy DtoD (Device -> Device)", "Memset (Device)", "a"]
    assert template.gpu_kind.tolist() == [GpuKind.MEMCPY, GpuKind.MEMSET, GpuKind.KERNEL]
    assert template.stream.tolist() == [7, 7, 7]


def test_a_drivers_call_within_a_runtimes_is_the_same_launch(tmp_path: Path):
    made = TraceBuilder(vendor="amd", launch_us=8.0)
    with made.annotation(LABEL):
        for number, kernel in enumerate(("a", "b")):
            start = made.now
            made.kernel(kernel, executed=False)
            made.raw(
                {"ph": "X", "cat": "cuda_driver", "name": "hipModuleLaunchKernel", "pid": 1723,
                 "tid": 1723, "ts": (made.origin_ns + start) / 1000 + 2, "dur": 3,
                 "args": {"correlation": 800_000 + number}}
            )  # fmt: skip
    (template,) = templates(made, tmp_path)
    assert names(template) == ["a", "b"]


def test_calls_that_put_nothing_on_the_device_are_no_launches(tmp_path: Path):
    made = TraceBuilder()
    for name in (
        "cudaGraphLaunch", "cudaStreamIsCapturing", "cudaLaunchHostFunc", "cudaMallocAsync",
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor", "cudaFuncGetAttributes",
        "cudaLaunchKernel", "cuLaunchKernelEx", "cudaLaunchKernelExC_v11060",
        "cudaLaunchCooperativeKernel", "hipExtModuleLaunchKernel", "hipMemcpyWithStream",
        "cudaMemsetAsync",
    ):  # fmt: skip
        call(made, name)
    trace = read_trace(made.write(tmp_path / "m.json"))
    kinds = launch_kinds(trace).tolist()
    assert kinds == [255] * 6 + [GpuKind.KERNEL] * 5 + [GpuKind.MEMCPY, GpuKind.MEMSET]


def test_several_captures_of_one_file_and_their_places(tmp_path: Path):
    programs = {
        f"capture_graph_bs_{n}": [("model.layers.0.mlp", f"k{n}", 7), ("lm_head", "k", 7)]
        for n in (1, 2, 4)
    }
    captured = capture(tmp_path, programs)
    assert [t.size for t in captured.templates] == [1, 2, 4]
    for template in captured.templates:
        places = [captured.scopes.names[i] for i in template.place]
        assert places == ["model.layers.0.mlp", "lm_head"]
        ops = [template.source.strings[template.source.runtime.name[i]] for i in template.launch]
        assert ops == ["cudaLaunchKernel"] * 2


def test_a_file_without_launches_has_no_templates(tmp_path: Path):
    made = TraceBuilder()
    with made.annotation(LABEL):
        made.advance(1)
    assert templates(made, tmp_path) == []

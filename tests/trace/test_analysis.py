"""From files to an Analysis: modules of every kernel, captures found, files of a rank joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import Graph, TraceBuilder

from atom.trace.analysis import analyze, load
from atom.trace.captures import captures_for
from atom.trace.errors import TraceError
from atom.trace.reader import read_trace
from atom.trace.types import Match, RankModel

LAYERS = 4
STAMP = "20261121_120000_000"


def forward(run: TraceBuilder) -> None:
    """A small model of our engine: a fused norm and projection, attention, an MLP."""
    with run.scope("model.embed_tokens"), run.op("aten::embedding", [[4]]):
        run.kernel("embed_kernel")
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        with run.scope(f"{at}.input_layernorm+{at}.self_attn.qkv_proj"):
            run.kernel("skinny")
        with run.scope(f"{at}.self_attn.attn"):
            run.kernel("decode_kernel", 3.0)
            run.kernel("decode_reduce")
        with run.scope(f"{at}.mlp.down_proj"), run.op("aten::mm", [[4, 8], [8, 6]]):
            run.kernel("skinny", 2.0)
    with run.scope("lm_head"):
        run.kernel("gemv_rows", 5.0)


def graphed(folder: Path, *, steps: int = 3, stamp: str = STAMP, rank: int = 0) -> Graph:
    """A run of decode graphs below `folder`/rank_N, and their capture beside it."""
    capture = TraceBuilder(rank=rank, atom={"model": "tiny", "capture": True})
    graph = capture.capture("capture_graph_bs_4", forward)
    name = f"tiny_ts_{stamp}.pt.trace.json.gz"
    capture.write(folder / f"rank_{rank}" / f"capture_graph_{name}")
    run = TraceBuilder(rank=rank, atom={"model": "tiny"})
    for number in range(steps):
        with run.step(f"decode[bs=3 tok=3 d=3 sk={number} graph=4]"):
            with run.scope("prepare"):
                run.copy("HtoD")
            run.graph_launch(graph)
            with run.scope("sample"):
                run.kernel("argmax_kernel")
        run.advance(20.0)
    run.write(folder / f"rank_{rank}" / name)
    return graph


def modules_of(model: RankModel) -> list[tuple[str, int, str]]:
    return [
        (model.kernel_name(row), int(model.layer[row]), model.module_name(row))
        for row in range(len(model.trace.gpu))
    ]


def expected() -> list[tuple[str, int, str]]:
    found = [("embed_kernel", -1, "embed_tokens")]
    for layer in range(LAYERS):
        found += [
            ("skinny", layer, "input_layernorm+self_attn.qkv_proj"),
            ("decode_kernel", layer, "self_attn.attn"),
            ("decode_reduce", layer, "self_attn.attn"),
            ("skinny", layer, "mlp.down_proj"),
        ]
    return [*found, ("gemv_rows", -1, "lm_head")]


STEP = [
    ("Memcpy HtoD (Pinned -> Device)", -1, "prepare"),
    *expected(),
    ("argmax_kernel", -1, "sample"),
]


def test_a_replayed_step_has_the_modules_of_its_capture(tmp_path: Path) -> None:
    graphed(tmp_path)
    analysis = load([tmp_path])
    model = analysis.first
    assert modules_of(model) == STEP * 3
    assert (model.num_layers, model.layers_by) == (LAYERS, "capture")
    assert analysis.capture is not None
    assert analysis.capture.name.startswith("capture_graph_tiny")
    assert model.report.rate == 1.0
    assert model.report.rows[Match.LAUNCH] == 3 * 2
    assert model.report.rows[Match.CAPTURE] == 3 * (len(STEP) - 2)
    assert sum(model.report.ns.values()) == model.trace.gpu.dur.sum()
    assert analysis.warnings == ()


def test_the_operator_and_its_shapes_come_with_the_module(tmp_path: Path) -> None:
    graphed(tmp_path, steps=1)
    model = load([tmp_path]).first
    strings = model.trace.strings
    found = [
        (strings[model.op[row]], strings[model.op_args[row]])
        for row in range(len(model.op))
        if model.module_name(row) == "mlp.down_proj"
    ]
    assert found == [("aten::mm", '{"Input Dims":[[4,8],[8,6]]}')] * LAYERS
    without = [row for row in range(len(model.op)) if model.module_name(row) == "lm_head"]
    assert [int(model.op[row]) for row in without] == [-1]


def test_an_eager_step_and_a_replayed_one_agree(tmp_path: Path) -> None:
    graphed(tmp_path / "graphed", steps=1)
    run = TraceBuilder()
    with run.step("decode[bs=3 tok=3 d=3 sk=0]"):
        with run.scope("prepare"):
            run.copy("HtoD")
        forward(run)
        with run.scope("sample"):
            run.kernel("argmax_kernel")
    run.write(tmp_path / "eager" / "tiny.pt.trace.json")
    eager, replayed = load([tmp_path / "eager"]).first, load([tmp_path / "graphed"]).first
    assert modules_of(eager) == modules_of(replayed) == STEP
    assert eager.report.rows[Match.LAUNCH] == len(STEP)
    assert eager.layers_by == "scope"


def test_an_eager_step_of_the_run_stands_in_for_a_capture(tmp_path: Path) -> None:
    run = TraceBuilder()
    graph = TraceBuilder().capture("capture_graph_bs_4", forward)
    with run.step("decode[bs=4 tok=4 d=4 sk=1]"):
        forward(run)
    run.advance(50.0)
    with run.step("decode[bs=4 tok=4 d=4 sk=2 graph=4]"):
        run.graph_launch(graph)
    run.write(tmp_path / "m.pt.trace.json")
    model = load([tmp_path]).first
    assert modules_of(model) == expected() * 2
    assert model.report.rows[Match.CAPTURE] == len(expected())
    assert any("eager step" in note for note in model.report.notes)


def test_without_a_capture_the_report_says_that_layers_are_a_guess(tmp_path: Path) -> None:
    graphed(tmp_path)
    next((tmp_path / "rank_0").glob("capture_graph_*")).unlink()
    analysis = load([tmp_path])
    model = analysis.first
    assert analysis.capture is None
    assert model.report.rows[Match.CAPTURE] == 0
    assert model.report.rows[Match.BLOCKS] > 0
    assert (model.num_layers, model.layers_by) == (LAYERS, "blocks")
    assert any("guess" in note for note in model.report.notes)
    # What has a scope of its own keeps it.
    assert modules_of(model)[0] == STEP[0]


def test_a_real_step_of_another_engine_on_rocm() -> None:
    analysis = load([Path(__file__).parent / "sglang_mi300" / "qwen3-8b.run.json.gz"])
    model = analysis.first
    assert analysis.capture is not None
    assert analysis.capture.name == "qwen3-8b.capture_bs32.json.gz"
    (step,) = model.steps
    assert (step.kind, step.fields["bs"], step.graph_launches) == ("decode", 32, 1)
    assert step.gpu_ns == 10_366_887  # the CPU's span is 45 times as long
    assert step.cpu_ns == 465_248_054
    assert model.report.rows[Match.CAPTURE] == 544
    assert model.report.rows[Match.NONE] == len(step.rows) - 544  # launched beside the graph
    assert (model.num_layers, model.layers_by) == (36, "capture")
    signatures = {
        tuple(model.module_name(row) for row in np.flatnonzero(model.layer == layer))
        for layer in range(1, 36)
    }
    (signature,) = signatures
    assert len(signature) == 15
    assert {name.split(".")[0] for name in signature} == {"RMSNorm", "Qwen3Attention", "Qwen2MLP"}


# Which capture.


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return [folder / name for name in names]


def test_the_newest_capture_before_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "rank_1"
    (run, _, right, _) = touch(
        folder,
        "tiny_ts_20260102_000000_000.pt.trace.json.gz",
        "capture_graph_tiny_ts_20260101_000000_000.pt.trace.json.gz",
        "capture_graph_tiny_ts_20260101_120000_000.pt.trace.json.gz",
        "capture_graph_tiny_ts_20260103_000000_000.pt.trace.json.gz",  # of a later start
    )
    assert captures_for(run, 1, [4]) == [right]


def test_another_model_s_capture_is_not_taken(tmp_path: Path) -> None:
    (run, _) = touch(
        tmp_path,
        "tiny_ts_20260102_000000_000.pt.trace.json.gz",
        "capture_graph_large_ts_20260101_000000_000.pt.trace.json.gz",
    )
    assert captures_for(run, 0, [4]) == []


def test_a_capture_in_the_rank_s_folder_beside_or_in_rank_0(tmp_path: Path) -> None:
    (run,) = touch(tmp_path / "run", "tiny_ts_20260102_000000_000.pt.trace.json.gz")
    name = "capture_graph_tiny_ts_20260101_000000_000.pt.trace.json.gz"
    (other,) = touch(tmp_path / "rank_0", name)
    assert captures_for(run, 3, []) == [other]
    (own,) = touch(tmp_path / "rank_3", name)
    assert captures_for(run, 3, []) == [own]


def test_a_relative_path_is_answered_by_a_relative_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "rank_0", "m_ts_20260102_000000_000.pt.trace.json")
    name = "capture_graph_m_ts_20260101_000000_000.pt.trace.json"
    touch(tmp_path / "rank_0", name)
    monkeypatch.chdir(tmp_path / "rank_0")
    assert captures_for(Path("m_ts_20260102_000000_000.pt.trace.json"), 0, []) == [Path(name)]


def test_one_file_per_size(tmp_path: Path) -> None:
    (run,) = touch(tmp_path / "rank_1", "m_ts_20260102_000000_000.pt.trace.json.gz")
    names = [f"bs_{bs}_q_1_rank{rank}.json.gz" for bs in (8, 16, 32) for rank in (0, 1)]
    files = touch(tmp_path / "capture_traces", *names)
    assert captures_for(run, 1, [16]) == [files[3]]
    assert captures_for(run, 1, [7, 64]) == [files[1], files[5]]  # the next larger; the largest
    assert captures_for(run, 1, []) == [files[1], files[3], files[5]]


def test_a_capture_among_the_paths_is_no_run(tmp_path: Path) -> None:
    graphed(tmp_path / "a")
    files = sorted((tmp_path / "a" / "rank_0").glob("*.json.gz"))
    assert len(files) == 2
    model = load(files).first
    assert modules_of(model) == STEP * 3


def test_a_capture_given_replaces_the_one_beside(tmp_path: Path) -> None:
    graphed(tmp_path)
    wrong = TraceBuilder()
    wrong.capture("capture_graph_bs_4", lambda run: run.kernel("something else"))
    path = wrong.write(tmp_path / "other" / "x.json")
    analysis = load([tmp_path / "rank_0"], capture=path)
    assert analysis.capture == path
    assert analysis.first.report.rows[Match.CAPTURE] == 0


def test_no_capture_is_read_if_no_graph_was_launched(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.step("decode[bs=1 tok=1]"):
        forward(run)
    run.write(tmp_path / f"tiny_ts_{STAMP}.pt.trace.json")
    touch(tmp_path, f"capture_graph_tiny_ts_{STAMP}.pt.trace.json")  # no trace at all
    analysis = load([tmp_path])
    assert (analysis.capture, analysis.warnings) == (None, ())


# Several files.


def test_ranks_in_their_order(tmp_path: Path) -> None:
    for rank in (1, 0):
        graphed(tmp_path, rank=rank, steps=1 + rank)
    analysis = load([tmp_path])
    assert [model.trace.rank for model in analysis.ranks] == [0, 1]
    assert [len(model.steps) for model in analysis.ranks] == [1, 2]
    assert [model.report.rate for model in analysis.ranks] == [1.0, 1.0]


def test_a_process_without_gpu_work_beside_the_ranks(tmp_path: Path) -> None:
    graphed(tmp_path)
    front = TraceBuilder(rank=7)
    with front.op("aten::add"):
        pass
    front.write(tmp_path / "front" / "async_llm.pt.trace.json")
    analysis = load([tmp_path])
    assert [model.trace.rank for model in analysis.ranks] == [0]
    (warning,) = analysis.warnings
    assert "no GPU events" in warning
    assert "1 cpu_op" in warning


def shape_file(folder: Path, label: str, stamp: str, kernels: int, origin_ns: int) -> Path:
    run = TraceBuilder(atom={"model": "tiny"}, origin_ns=origin_ns)
    with run.step(label), run.scope("model.layers.0.mlp"), run.op("aten::mm", [[kernels, 1]]):
        for number in range(kernels):
            run.kernel(f"k{number}", 2.0)
    return run.write(folder / "rank_0" / f"tiny_ts_{stamp}.pt.trace.json")


def test_files_of_one_rank_are_parts_of_one_profile(tmp_path: Path) -> None:
    second = 10**9
    later = shape_file(tmp_path, "decode[bs=1 tok=1 d=1]", "2", 3, 500 * second)
    first = shape_file(tmp_path, "prefill[bs=1 tok=9]", "1", 5, 100 * second)
    analysis = load([tmp_path])
    (model,) = analysis.ranks
    assert [(step.kind, len(step.rows)) for step in model.steps] == [("prefill", 5), ("decode", 3)]
    assert model.report.rate == 1.0
    strings = model.trace.strings
    assert [strings[model.op_args[row]] for row in (0, 7)] == [
        '{"Input Dims":[[5,1]]}',
        '{"Input Dims":[[3,1]]}',
    ]
    # Nothing was recorded between the files, so there is no time between them.
    gap = model.steps[1].cpu_start - model.steps[0].gpu_end
    assert 0 <= gap < 100_000
    assert analysis.extra["files"] == [str(first), str(later)]
    assert [part["path"] for part in model.trace.other["parts"]] == [str(first), str(later)]
    one = [load([path]).first for path in (first, later)]
    assert sum(step.sum_ns for step in model.steps) == sum(m.steps[0].sum_ns for m in one)
    assert [s.gpu_ns for s in model.steps] == [m.steps[0].gpu_ns for m in one]


def test_files_of_different_models_are_not_one_profile(tmp_path: Path) -> None:
    for model in ("one", "two"):
        run = TraceBuilder(atom={"model": model})
        run.kernel("k")
        run.write(tmp_path / f"{model}.pt.trace.json")
    with pytest.raises(TraceError, match=r"of different models \(one, two\)"):
        load([tmp_path])


def test_two_profiles_are_not_one(tmp_path: Path) -> None:
    for place, name in enumerate("ab"):
        shape_file(tmp_path / name, "decode[bs=1 tok=1]", "1", 3, (place + 1) * 10**12)
    with pytest.raises(TraceError, match=r"both of rank 0.*atom trace diff"):
        load([tmp_path])


def test_files_of_the_same_time_are_different_ranks(tmp_path: Path) -> None:
    for place, name in enumerate(("dp0_tp0", "dp1_tp0")):
        shape_file(tmp_path / name, "decode[bs=1 tok=1]", "1", 3 + place, 10**12 + place)
    analysis = load([tmp_path])
    assert [model.trace.rank for model in analysis.ranks] == [0, 1]
    assert [len(model.steps[0].rows) for model in analysis.ranks] == [3, 4]
    assert "taken for different ranks" in analysis.warnings[0]


def test_two_processes_in_one_file_are_pointed_out(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.step("decode[bs=1 tok=1]"):
        run.kernel("k")
    launch = next(e for e in run.document()["traceEvents"] if e["name"] == "cudaLaunchKernel")
    run.raw({**launch, "pid": 99})
    path = run.write(tmp_path / "m.pt.trace.json")
    (warning,) = load([path]).warnings
    assert "different processes share their ids" in warning


def test_analyze_takes_what_it_gets(tmp_path: Path) -> None:
    run = TraceBuilder()
    run.kernel("k")
    trace = read_trace(run.write(tmp_path / "m.json"))
    (model,) = analyze([trace]).ranks
    assert (model.steps, model.report.total, model.report.rate) == ([], 0, 0.0)

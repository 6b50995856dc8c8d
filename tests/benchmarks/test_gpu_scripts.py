"""What the GPU benchmarks make of a trace, of the published figures and of a failing engine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_trace  # noqa: E402
import greedy_agreement  # noqa: E402
import h200_targets  # noqa: E402
from roofline import Shape  # noqa: E402


def kernel(name: str, start: float, duration: float, launched_by: int) -> dict[str, Any]:
    args = {"correlation": launched_by}
    return {"ph": "X", "cat": "kernel", "name": name, "ts": start, "dur": duration, "args": args}


def launch(correlation: int, at: float) -> dict[str, Any]:
    args = {"correlation": correlation}
    return {"ph": "X", "cat": "cuda_runtime", "name": "run", "ts": at, "dur": 1, "args": args}


def mark(start: float, duration: float) -> dict[str, Any]:
    kind = "user_annotation"
    return {"ph": "X", "cat": kind, "name": gpu_trace.STEP, "ts": start, "dur": duration}


def test_busy_idle_and_gaps_of_a_trace() -> None:
    events = [
        mark(0, 10),
        mark(50, 12),
        launch(1, 2),
        launch(2, 8),
        launch(3, 55),
        launch(4, 60),
        launch(5, 300),  # outside of any step
        kernel("void gemm<float, 3>(int)", 20, 30, 1),
        kernel("attention", 45, 25, 2),  # overlaps the one before by 5
        kernel("void gemm<float, 3>(int)", 90, 30, 3),  # 20 after the step before
        kernel("attention", 124, 26, 4),  # 4 within the step
        kernel("stranger", 400, 99, 5),
        {"ph": "i", "name": "instant"},
    ]
    report = gpu_trace.read(events)
    assert report.steps == 2
    assert report.window == (150 - 20) / 2
    assert report.busy == (50 + 56) / 2
    assert report.idle_between == 20 / 2
    assert report.idle_within == 4 / 2
    assert report.host == 11
    assert report.window == report.busy + report.idle_between + report.idle_within
    assert report.kernels[0] == ("void gemm<float, 3>(int)", 1.0, 30.0, 30.0)
    assert report.kernels[1] == ("attention", 1.0, 23.0, 25.5)  # not what it waited
    assert sum(kernel.own for kernel in report.kernels) == report.busy
    assert report.gaps[0] == ("[next step] attention -> gemm", 0.5, 10.0)
    assert gpu_trace.short("void gemm<float, 3>(int)") == "gemm"


def test_a_trace_without_a_gpu_says_so() -> None:
    with pytest.raises(SystemExit, match="no work of a GPU"):
        gpu_trace.read([mark(0, 1)])


def shape(name: str) -> Shape:
    return Shape.read(BENCHMARKS / "configs" / name)


@pytest.mark.parametrize(
    ("name", "floors_ms"),
    [
        ("llama-3.1-8b", (3.39, 3.57, 4.12)),
        ("qwen3-0.6b", (0.27, 0.43, 0.91)),
        ("qwen3-30b-a3b", (1.38, 12.12, 14.19)),
    ],
)
def test_decode_floors_are_the_published_ones(name: str, floors_ms: tuple[float, ...]) -> None:
    for batch, floor in zip((1, 32, 128), floors_ms, strict=True):
        assert 1e3 * shape(name).decode_s(batch, 192) == pytest.approx(floor, abs=0.006)


def test_prefill_floor_of_an_8b() -> None:
    """42,861 tokens per second are 621 TFLOP/s."""
    flop = shape("llama-3.1-8b").prefill_flop(32, 2048)
    assert flop / (32 * 2048) * 42_861 == pytest.approx(621e12, rel=0.01)


def test_targets() -> None:
    llama, rows = shape("llama-3.1-8b"), h200_targets.cells(False, False, True)
    aims = {row.name: h200_targets.target_of(row, llama) for row in rows}
    assert aims["decode-1"] is not None
    assert aims["decode-1"].value == pytest.approx(3.99, abs=0.01)  # 85 % of the roofline
    assert aims["decode-1"].met(3.9)
    assert not aims["decode-1"].met(4.1)
    assert aims["throughput"] is not None
    assert aims["throughput"].value == pytest.approx(1.1 * 35_865)
    assert not aims["throughput"].met(39_000)
    assert aims["long-fp8"] is None


def run(tmp_path: Path, config: dict[str, Any], *args: str) -> tuple[str, dict[str, Any]]:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out.json"
    command = [sys.executable, str(BENCHMARKS / "h200.py"), "--models", str(model)]
    command += ["--device", "cpu", "--quick", "--json", str(out), "--log", str(tmp_path / "log")]
    done = subprocess.run([*command, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def test_the_table_runs_on_a_cpu(tmp_path: Path) -> None:
    text, found = run(tmp_path, TINY, "--only", "decode-2", "throughput", "start")
    cells = found["models"][0]["cells"]
    assert set(cells) == {"decode-2", "throughput", "start"}
    assert math.isfinite(cells["decode-2"]["tpot_ms"])  # a difference of times: of either sign
    assert cells["throughput"]["preemptions"] == 0
    assert cells["start"]["total_s"] > 0
    assert len(found["models"][0]["starts"]) == 2
    assert "FAILED" not in text
    assert found["machine"]["python"]


def test_a_cell_that_fails_does_not_take_the_others_along(tmp_path: Path) -> None:
    text, found = run(
        tmp_path, TINY, "--only", "prefill", "throughput", "--set", "max_model_len=60"
    )
    cells = found["models"][0]["cells"]
    assert "more than the context of 60" in cells["prefill"]["error"]
    assert cells["throughput"]["total_tok_s"] > 0
    assert "model  prefill" in text
    assert "FAILED" in text


def test_agreement_of_two_texts() -> None:
    ours = greedy_agreement.Answer([[1], [2]], [[5, 6, 7, 8], [5, 6, 7, 8]])
    theirs = greedy_agreement.Answer([[1], [2]], [[5, 6, 9, 8], [5, 6, 7, 8]])
    same = greedy_agreement.Verdict(1, -2.0)
    other = greedy_agreement.Verdict(3, 0.25)
    row = greedy_agreement.compare(ours, theirs, [[same, same, other, same], [same] * 4])
    assert row["equal_texts"] == 1
    assert row["tokens_before_parting"] == 6 / 8
    assert row["first_parting"] == 2
    assert row["same_choice"] == 7 / 8
    assert row["gap_worst"] == 0.25

"""The verdict: figures of the trace, and a problem for what is not the shape asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import TraceBuilder

from atom.profile import verdict
from atom.profile.shapes import Shape

SHAPE = Shape("decode", 2, 40)


def written(path: Path, labels: list[str]) -> Path:
    builder = TraceBuilder()
    for label in labels:
        with builder.step(label), builder.annotation("model.layers.0.mlp.down_proj"):
            builder.kernel("gemm_kernel", us=10.0)
            builder.kernel("silu_kernel", us=30.0)
        builder.wait()
    return builder.write(path)


def decode(seen: int, batch: int = 2) -> str:
    return f"decode[bs={batch} tok={batch} d={batch} sk={batch * seen}]"


def test_the_figures(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json.gz", [decode(40), decode(41), decode(42)])
    found = verdict.judge([file], "gpu", SHAPE, 3)
    assert (found.problems, found.steps, found.match_rate) == ([], 3, 1.0)
    assert 40.0 <= found.min_us <= found.median_us <= found.max_us
    (tops,) = found.tops
    assert (tops.kind, tops.steps) == ("decode", 3)
    assert [(k.name, k.us, k.share) for k in tops.kernels] == [
        ("silu_kernel", 30.0, 0.75),
        ("gemm_kernel", 10.0, 0.25),
    ]
    assert [m.name for m in tops.modules] == ["mlp.down_proj"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([decode(40), decode(41)], "rank 0: 3 steps were recorded, the labels name 2"),
        (
            [decode(40), decode(40), decode(42)],
            "rank 0: step 1 is decode[bs=2 tok=2 d=2 sk=80], not kind decode, bs 2, tok 2, sk 82",
        ),
        (
            [decode(40), decode(41), decode(42, batch=3)],
            "rank 0: step 2 is decode[bs=3 tok=3 d=3 sk=126], not kind decode, bs 2, tok 2, sk 84",
        ),
    ],
)
def test_other_steps_than_asked_for_are_a_problem(
    tmp_path: Path, labels: list[str], said: str
) -> None:
    found = verdict.judge([written(tmp_path / "a.json.gz", labels)], "gpu", SHAPE, 3)
    assert found.problems == [said]


def test_a_prefill_is_told_from_a_decode(tmp_path: Path) -> None:
    label = "prefill[bs=2 tok=16 ctx=[8,8] sk=16 sqsk=128 sqsq=128]"
    file = written(tmp_path / "a.json.gz", [label])
    assert verdict.judge([file], "gpu", Shape("prefill", 2, 8), 1).problems == []
    assert verdict.judge([file], "gpu", Shape("decode", 2, 8), 1).problems != []


def test_a_trace_that_says_nothing_is_a_problem_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"traceEvents": []}')
    found = verdict.judge([path], "gpu", SHAPE, 3)
    assert found.steps == 0
    assert len(found.problems) == 1
    assert str(path) in found.problems[0]


def test_without_a_gpu_the_hosts_work_counts(tmp_path: Path) -> None:
    builder = TraceBuilder()
    with builder.step(decode(40)), builder.op("aten::mm", us=20.0):
        builder.advance(20.0)
    file = builder.write(tmp_path / "a.json.gz")
    found, analysis = verdict.read([file], "auto")
    assert analysis is not None
    assert (found.device, found.steps) == ("cpu", 1)
    assert "no GPU events in the traces; the figures are of the host's work" in found.problems

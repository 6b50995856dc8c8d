"""Real profiles, of a CPU: a module that was made slow is named first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_helpers import atom
from synthetic import TraceBuilder
from torch.profiler import ProfilerActivity, profile, record_function

from atom.trace.analysis import load
from atom.trace.diff import diff
from atom.trace.verdict import HOST, trace_verdict

LAYERS = 3


def record(path: Path, planted: int = 0) -> Path:
    """Six steps of a small model; `planted`: further products in mlp.down_proj of layer 1."""
    x, small = torch.randn(16, 64), torch.randn(64, 64)
    large = torch.randn(192, 192)

    def step() -> None:
        for layer in range(LAYERS):
            with record_function(f"model.layers.{layer}.self_attn.o_proj"):
                torch.mm(x, small)
            with record_function(f"model.layers.{layer}.mlp.down_proj"):
                torch.mm(x, small)
                for _ in range(planted if layer == 1 else 0):
                    torch.mm(large, large)

    step()
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        for _ in range(6):
            with record_function("decode[bs=16 tok=16 d=16 sk=160]"):
                step()
    path.parent.mkdir()
    prof.export_chrome_trace(str(path))
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("cpu")
    return record(root / "a" / "m.json"), record(root / "b" / "m.json", planted=60)


def test_the_slow_module_is_first(recorded: tuple[Path, Path]) -> None:
    a, b = (load([path], device="cpu") for path in recorded)
    (group,) = diff(a, b).groups
    first = group.rows[0]
    assert (first.module, first.name) == ("mlp.down_proj", "aten::mm")
    assert (first.a_calls / group.steps_a, first.b_calls / group.steps_b) == (LAYERS, LAYERS + 60)
    assert max(range(LAYERS), key=lambda i: first.layers[i + 1]) == 1
    for side, total in zip(("a_ns", "b_ns"), group.span_ns, strict=True):
        assert sum(getattr(row, side) for row in group.rows) == total


def test_on_the_command_line_and_for_the_benchmark(
    recorded: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ran = atom(capsys, "trace", "diff", *map(str, recorded), "--device", "cpu")
    assert ran.code == 0, ran.err
    # Whether the difference is beyond the noise is this machine's affair; the order of rows is not.
    first, *lines = ran.out.splitlines()
    assert first.startswith("decode bs=16: ")
    tables = [at for at, line in enumerate(lines) if line.lstrip().startswith("change ")]
    top = lines[tables[0] + 1].split()
    assert {"mlp.down_proj", "aten::mm", "3>63"} <= set(top)
    refused = atom(capsys, "trace", "diff", *map(str, recorded))
    assert refused.code == 2
    assert "--device cpu" in refused.err
    lines = trace_verdict([recorded[0]], [recorded[1]])
    assert (lines[0], lines[-1]) == (first, HOST)


def test_a_gpu_is_not_compared_with_a_host(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    """Although both traces have operators of a host."""
    run = TraceBuilder()
    with run.step("decode[bs=16 tok=16 d=16 sk=160]"), run.op("aten::mm"):
        run.kernel("k")
    gpu = run.write(tmp_path / "m.pt.trace.json")
    for pair in ((gpu, recorded[1]), (recorded[1], gpu)):
        (line,) = trace_verdict(*([path] for path in pair))
        assert line.startswith(f"traces are not compared: {recorded[1]}: no GPU events")

"""What compile levels compute, on one rank and on two, and which of them runs where."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import CPU, Interpreter, interpreter, load_traceable, logits_of
from harness import free_port
from serving import make_config, make_runner
from tiny import FAMILIES, make_tiny, random_prompt, tiny_checkpoint

from atom.engine.compiler import compiler
from atom.engine.compiler.errors import CannotCompile
from atom.engine.runner import compilation
from atom.errors import ConfigError
from atom.ops.cpu import build

__all__ = ["interpreter"]  # a fixture
HERE = Path(__file__).parent


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_dynamo_sees_through_every_family(family: str, tmp_path: Path) -> None:
    """One whole graph for any number of tokens, which is what levels 1 and 2 need."""
    path = make_tiny(family, tmp_path, num_hidden_layers=2 if family == "qwen3_moe" else 1)
    model, ids = load_traceable(path), random_prompt(41)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True, dynamic=True)
    want = logits_of(model, model.forward, ids, [23, 9])
    torch.testing.assert_close(logits_of(model, forward, ids, [23, 9]), want, rtol=0, atol=2e-5)
    assert counters["unique_graphs"] == before + 1


def test_two_ranks(tmp_path: Path) -> None:
    """Sums over ranks are part of what is traced."""
    names = ("llama3", "qwen3", "mixtral")
    paths = [str(make_tiny(name, tmp_path / name, num_hidden_layers=1)) for name in names]
    port = str(free_port())
    script = str(HERE / "compile_rank.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", port, *paths],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)


def _run_once(store: Path, model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "compile_once.py"), str(store), str(model)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_compile_each_piece_once(tmp_path: Path) -> None:
    """Really compiled. Both find the store empty; a third one finds everything there."""
    model, store = make_tiny("llama3", tmp_path / "model"), tmp_path / "store"

    def answers(*processes: subprocess.Popen[str]) -> list[tuple[bool, int, int]]:
        found = []
        for process in processes:
            out, _ = process.communicate(timeout=240)
            assert process.returncode == 0
            *facts, difference = json.loads(out.splitlines()[-1])
            assert difference < 2e-5
            found.append(tuple(facts))
        return found

    first, second = answers(_run_once(store, model), _run_once(store, model))
    assert first[1] + second[1] == first[2] == 3
    assert answers(_run_once(store, model)) == [(False, 0, 3)]


def _config(level: int, **compile_options: Any) -> Any:
    config = make_config(tiny_checkpoint("llama3"), level=level)
    changed = dataclasses.replace(config.compile, **compile_options)
    return dataclasses.replace(config, compile=changed)


def test_who_must_be_traceable(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert [compilation.needs_tracing(_config(n), cuda) for n in range(4)] == [False, *[True] * 3]
    assert not compilation.needs_tracing(_config(3, enforce_eager=True), cuda)

    def without(name: str) -> None:
        def fail() -> None:
            raise build.CannotBuild("not here")

        monkeypatch.setattr(build, name, fail)

    without("library_path")
    monkeypatch.setattr(build, "compiler", lambda: "c++")
    assert compilation.needs_tracing(_config(3), CPU)
    without("compiler")
    assert not compilation.needs_tracing(_config(3), CPU)
    assert compilation.needs_tracing(_config(2), CPU)


def test_level_3_without_native_kernels_is_pieces(
    interpreter: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compilation, "_why_no_pieces", lambda device: None)
    runner = make_runner(_config(3))
    assert runner.mode == "compiled in pieces"
    assert len(interpreter.graphs) == 3
    assert list(runner.startup_s) == ["load", "kv_cache", "compile", "warm_up"]


@pytest.mark.parametrize("kind", [CannotCompile, ConfigError, OSError])
def test_a_forward_that_cannot_be_compiled_runs_eagerly(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For want of a way to cut it, or of a place for the cache."""

    def refuse(*_: object) -> None:
        raise kind("of the weather")

    monkeypatch.setattr(compiler, "compile_forward", refuse)
    monkeypatch.setattr(compilation, "_why_no_pieces", lambda device: None)
    runner = make_runner(_config(3))
    assert runner.mode == "eager"
    assert "of the weather; it runs eagerly" in caplog.text

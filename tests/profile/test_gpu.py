"""`atom profile` on a GPU: steps of graphs and eager ones, overlapped, and nothing else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import atom
from tiny import tiny_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

ENGINE = ("--device", "cuda", "--num-kvcache-blocks", "512", "--max-num-seqs", "16")
SHAPES = ("--prefill", "2x64", "--decode", "3@100", "--steps", "6")


def events(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file) as opened:
        found: list[dict[str, Any]] = json.load(opened)["traceEvents"]
    return found


@pytest.mark.parametrize("mode", ["none", "full_decode_only", "piecewise", "full"])
def test_all_work_of_the_recorded_steps_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    model = str(tiny_checkpoint("qwen3"))
    argv = ("profile", model, *ENGINE, *SHAPES, "--cudagraph-mode", mode)
    ran = atom(capsys, *argv, "-o", str(tmp_path / "out"), "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["engine"]["overlap"]
    assert bool(said["captures"]) == (mode != "none")
    for entry in said["shapes"]:
        assert entry["trace"]["device"] == "gpu"
        assert entry["trace"]["steps"] == 6
        assert entry["trace"]["match_rate"] == 1.0, entry["trace"]
        assert entry["trace"]["problems"] == []
        (file,) = entry["files"]
        found = events(tmp_path / "out" / file)
        # The device was idle before: nothing runs whose launch is not in the file.
        launched = {e["args"]["correlation"] for e in found
                    if e.get("cat") in ("cuda_runtime", "cuda_driver")}  # fmt: skip
        work = [e for e in found if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
        assert work
        assert {e["args"]["correlation"] for e in work} <= launched


def test_two_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    model = str(tiny_checkpoint("llama3"))
    argv = ("profile", model, *ENGINE, *SHAPES, "-tp", "2")
    ran = atom(capsys, *argv, "-o", str(tmp_path), "--json")
    assert ran.code == 0, ran.err
    for entry in json.loads(ran.out)["shapes"]:
        assert len(entry["files"]) == 2
        assert entry["trace"]["problems"] == []

"""A machine without a C++ compiler serves, too: torch's operations, and the same tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_tiny

PROGRAM = """
import json, sys
from atom import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", max_num_seqs=2)
sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
print(json.dumps(llm.generate([[5, 9, 200, 31, 7]], sampling)[0].outputs[0].token_ids))
print(llm.core.info.backends["rms_norm"])
"""


def run(folder: Path, **environment: str) -> tuple[list[int], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    tokens, backend = done.stdout.strip().splitlines()
    return json.loads(tokens), backend


@pytest.mark.parametrize(
    "without",
    [{"ATOM_NATIVE": "0"}, {"CXX": "no-such-compiler"}],
    ids=["switched off", "no compiler"],
)
def test_serves_without_native_kernels(tmp_path: Path, without: dict[str, str]) -> None:
    folder = make_tiny("llama3", tmp_path / "model")
    tokens, backend = run(folder, **without)
    assert backend == "reference"
    assert tokens == run(folder)[0]  # with native kernels, where this machine has them

"""Every kernel of `signatures/` compiles for an H200 and for an MI300X, whatever runs the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "compile_all.py"
MODULES = sorted(path.stem for path in (SCRIPT.parent / "signatures").glob("*.py"))
SLOW = [
    path.stem
    for path in sorted((SCRIPT.parent / "signatures").glob("*.py"))
    if "SLOW_SIGNATURES" in path.read_text()
]


def failures(*arguments: str) -> list[str]:
    """Compiled in a process of its own: this one may run kernels under the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert rows, "nothing was compiled"
    return [
        f"{row['module']}.{row['kernel']} {row['constants']} for {row['target']}: {row['error']}"
        for row in rows
        if row["error"]
    ]


@pytest.mark.parametrize("module", MODULES)
def test_compiles(module: str) -> None:
    failed = failures(module)
    assert not failed, "\n".join(failed)


@pytest.mark.slow
@pytest.mark.parametrize("module", SLOW)
def test_the_larger_set_compiles(module: str) -> None:
    failed = failures("--slow", module)
    assert not failed, "\n".join(failed)

"""Every published family shared out over two processes computes what one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import free_port
from hub import hub_checkpoint
from safetensors.torch import load_file
from test_families import BLOCK_SIZES, SUPPORTED, assert_near, reference

RANK = Path(__file__).parent / "families_rank.py"


def test_two_ranks(tmp_path: Path) -> None:
    jobs = [f"{hub_checkpoint(name)}:{BLOCK_SIZES.get(name, 8)}" for name in SUPPORTED]
    command = [sys.executable, str(RANK)]
    tail = ["2", str(free_port()), str(tmp_path), *jobs]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), *tail],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    for rank in range(2):
        found = load_file(str(tmp_path / f"{rank}.safetensors"))
        for number, name in enumerate(SUPPORTED):
            prompt, after, want = reference(name)
            got = found[str(number)]
            assert_near(got, want)
            assert got[len(prompt) - 1 : -1].argmax(-1).tolist() == after, name

"""Memory on a real GPU: the share is kept under load, and running out is explained."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from serving import generate, greedy, make_config, make_runner
from tiny import random_prompt, tiny_checkpoint

from atom.config.schema import Config
from atom.engine.core import EngineCore
from atom.engine.runner import oom
from atom.errors import AtomError, OutOfMemory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

MIB = 2**20


def sized(share: float, **settings: Any) -> Config:
    """A tiny model whose KV pool takes all that the share leaves."""
    config = make_config(tiny_checkpoint("llama3"), device="cuda", num_blocks=-1, **settings)
    engine = dataclasses.replace(config.engine, gpu_memory_utilization=share)
    scheduler = dataclasses.replace(config.scheduler, max_num_seqs=20_000)
    return dataclasses.replace(config, engine=engine, scheduler=scheduler)


def used() -> int:
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


@pytest.fixture
def hog() -> Iterator[list[torch.Tensor]]:
    """What a test puts here is given back."""
    held: list[torch.Tensor] = []
    yield held
    held.clear()
    torch.cuda.empty_cache()


def test_the_share_is_kept_under_load() -> None:
    total = torch.cuda.mem_get_info()[1]
    share = (used() + 6 * 2**30) / total
    runner = make_runner(sized(share, max_num_batched_tokens=2048))
    assert used() <= share * total
    core = EngineCore(runner.config, runner)
    prompts = [random_prompt(100 + i % 50, seed=i) for i in range(64)]
    generate(core, prompts, greedy(8, logprobs=5))
    assert used() <= share * total
    kept = runner.memory_bytes
    assert kept["kv_cache"] > 3 * 2**30  # and it is not for a lack of trying
    runner.shutdown()


def test_memory_of_another_process_is_left_alone() -> None:
    hold = (
        "import torch, sys; x = torch.empty(4 << 30, dtype=torch.uint8, device='cuda'); "
        "torch.cuda.synchronize(); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"held\n"
        total = torch.cuda.mem_get_info()[1]
        share = (used() + 2 * 2**30) / total
        runner = make_runner(sized(share, max_num_batched_tokens=512))
        assert used() <= share * total
        assert runner.memory_bytes["other"] > 4 << 30
        runner.shutdown()
    finally:
        other.stdin.close()
        other.wait()


def test_no_room_says_what_took_it() -> None:
    with pytest.raises(AtomError, match="no memory is left for the KV cache"):
        make_runner(sized(0.0005, max_num_batched_tokens=512))


def test_a_real_shortage_is_explained_and_can_be_tried_again(hog: list[torch.Tensor]) -> None:
    config = make_config(tiny_checkpoint("llama3"), device="cuda", num_blocks=64)
    runner = make_runner(config)
    core = EngineCore(config, runner)
    expected = generate(core, [[5, 6, 7]], greedy(4))
    free = torch.cuda.mem_get_info()[0]
    explainer = runner._oom
    with pytest.raises(OutOfMemory) as caught, explainer.during("load"):
        hog.append(torch.empty(free + 2**30, dtype=torch.uint8, device="cuda"))
    told = str(caught.value)
    assert told.startswith("out of memory loading the weights (")
    assert "wanted" in told
    assert "free" in told
    assert "\n" not in told
    large = sized(0.9, max_num_batched_tokens=16384)
    engine = dataclasses.replace(large.engine, num_kvcache_blocks=64)
    large = dataclasses.replace(large, engine=engine)
    hog.append(torch.empty(free - 64 * MIB, dtype=torch.uint8, device="cuda"))
    with pytest.raises(OutOfMemory) as caught:
        make_runner(large)
    assert re.match(r"out of memory .* MiB wanted, .* MiB of .* GiB free", str(caught.value))
    assert "max_num_seqs 20000 -> 10000 frees about" in str(caught.value)
    hog.clear()
    torch.cuda.empty_cache()
    again = generate(core, [[5, 6, 7]], greedy(4))
    assert again[0].token_ids == expected[0].token_ids
    assert oom.is_shortage(torch.OutOfMemoryError(""))

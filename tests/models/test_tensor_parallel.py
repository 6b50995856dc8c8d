"""Two or four processes that share every layer compute what one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import PagedModel, free_port
from safetensors.torch import load_file
from test_parity import load
from tiny import make_config, make_tiny, random_prompt, tiny_checkpoint
from tiny_gguf import make_tiny_gguf
from torch import Tensor

from atom.config.schema import Config, ModelConfig
from atom.errors import ModelError
from atom.models.loader import load_model
from atom.models.source import resolve_source
from atom.parallel.state import ParallelState

RANK = Path(__file__).parent / "tp_rank.py"


def run_ranks(size: int, port: int, out: Path, jobs: list[str]) -> list[dict[str, Tensor]]:
    command = [sys.executable, str(RANK)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(port), str(out), *jobs],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(outputs)
    return [load_file(out / f"{rank}.safetensors") for rank in range(size)]


def test_two_ranks(tmp_path: Path) -> None:
    """Every family; biases, a vocabulary that does not divide, GGUF, dummy weights."""
    biased = make_tiny("llama2", tmp_path / "b", attention_bias=True, mlp_bias=True, vocab_size=509)
    # K = 96 over two ranks is 48 columns: not whole blocks, so those weights become dense.
    narrow = {"hidden_size": 96, "intermediate_size": 320, "num_key_value_heads": 2}
    gguf, _ = make_tiny_gguf("llama2", tmp_path / "g", {"attn_v": "Q4_1"}, **narrow)
    aligned, _ = make_tiny_gguf("llama2", tmp_path / "a", {"attn_v": "Q4_1"})
    names = ["llama3", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral"]
    paths = [*(tiny_checkpoint(name) for name in names), biased, gguf, aligned]
    jobs = [*map(str, paths), f"{paths[0]}=dummy"]
    ranks = run_ranks(2, free_port(), tmp_path, jobs)
    for number, path in enumerate(paths):
        want = PagedModel(load(path)).logits(random_prompt(40), [17, 1, 9])
        for rank in ranks:
            got = rank[str(number)]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4, msg=lambda m: f"{path}: {m}")  # noqa: B023
    config = Config(model=ModelConfig(model=str(paths[0]), dtype="float32", load_dummy=True))
    source = resolve_source(config.model)
    whole = load_model(source, config, torch.device("cpu"), torch.float32)
    want = PagedModel(whole).logits(random_prompt(40), [17, 1, 9])
    for rank in ranks:
        torch.testing.assert_close(rank[str(len(paths))], want, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_more_ranks_than_kv_heads(tmp_path: Path) -> None:
    """Four ranks, two KV heads: each head is held by two ranks."""
    path = tiny_checkpoint("llama3")
    want = PagedModel(load(path)).logits(random_prompt(40), [17, 1, 9])
    for rank in run_ranks(4, free_port(), tmp_path, [str(path)]):
        torch.testing.assert_close(rank["0"], want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "family", "overrides", "message"),
    [
        (3, "llama3", {}, "num_attention_heads = 4"),
        (2, "llama3", {"num_key_value_heads": 1, "intermediate_size": 255}, "gate_proj"),
        (4, "mixtral", {"intermediate_size": 202}, "intermediate size = 202"),
        (6, "llama3", {"num_attention_heads": 12, "head_dim": 8, "num_key_value_heads": 4}, "4"),
    ],
)
def test_sizes_that_do_not_divide(
    size: int, family: str, overrides: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = make_config(family, tmp_path, **overrides)
    config = Config(model=ModelConfig(model=str(path), load_dummy=True))
    parallel = ParallelState(0, size)
    with pytest.raises(ModelError, match=f"tensor_parallel_size {size} .*{message}"):
        load_model(
            resolve_source(config.model),
            config,
            torch.device("cpu"),
            torch.float32,
            parallel=parallel,
        )

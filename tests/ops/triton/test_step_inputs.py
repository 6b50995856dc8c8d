"""A decode step's tensors against plain Python, and argmax against a definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atom.ops.triton.sampling import argmax
from atom.ops.triton.step_inputs import finish_decode, prepare_decode, put_tokens

UNTOUCHED = -77


def outputs(count: int, columns: int, device: str) -> dict[str, Tensor]:
    wide = {
        name: torch.full((count,), UNTOUCHED, device=device)
        for name in ("input_ids", "positions", "slot_mapping")
    }
    lengths = torch.full((count,), UNTOUCHED, dtype=torch.int32, device=device)
    table = torch.full((count, columns), UNTOUCHED, dtype=torch.int32, device=device)
    return {**wide, "seq_lens": lengths, "step_table": table}


@pytest.mark.parametrize(("count", "block_size", "columns"), [(1, 1, 40), (7, 16, 5), (3, 4, 1100)])
def test_prepare_decode(count: int, block_size: int, columns: int, device: str) -> None:
    num_rows, width = 9, columns * block_size
    pool = torch.randint(0, 1 << 30, (num_rows, width + 3), dtype=torch.int32)[:, :width]
    table = torch.randint(0, 1 << 26, (num_rows, columns), dtype=torch.int32)
    rows = torch.randperm(num_rows)[:count].to(torch.int32)
    computed = torch.randint(0, width, (count,), dtype=torch.int32)
    computed[0] = width - 1
    if count > 2:
        rows[1], computed[2] = -1, 0
    got = outputs(count, columns, device)
    prepare_decode(
        rows.to(device), computed.to(device), pool.to(device), table.to(device), block_size, **got
    )
    for s in range(count):
        row, position = int(rows[s]), int(computed[s])
        line = [int(got[n][s]) for n in ("input_ids", "positions", "slot_mapping", "seq_lens")]
        copied = 0
        if row < 0:
            assert line == [0, 0, -1, 0]
        else:
            slot = int(table[row, position // block_size]) * block_size + position % block_size
            assert line == [int(pool[row, position]), position, slot, position + 1]
            copied = math.ceil((position + 1) / block_size)
            assert torch.equal(got["step_table"][s, :copied].cpu(), table[row, :copied])
        assert bool((got["step_table"][s, copied:] == UNTOUCHED).all())


@pytest.mark.parametrize(("block_size", "columns"), [(1, 40), (16, 5), (4, 1100)])
def test_blocks_that_begin(block_size: int, columns: int, device: str) -> None:
    """As if the table had been edited before; and it has been, after."""
    width = columns * block_size
    pool = torch.randint(0, 1 << 30, (9, width), dtype=torch.int32, device=device)
    table = torch.randint(0, 1 << 26, (9, columns), dtype=torch.int32)
    rows = torch.tensor([4, -1, 7, 0, 2], dtype=torch.int32)
    computed = torch.tensor([width - 1, 3, 0, width // 2, 5 % width], dtype=torch.int32)
    new_blocks = torch.tensor([11, 12, 0, -1, 14], dtype=torch.int32)
    edited, device_table = table.clone(), table.to(device)
    for s in (0, 2, 4):
        edited[rows[s], computed[s] // block_size] = new_blocks[s]
    rows, computed = rows.to(device), computed.to(device)
    want, got = outputs(5, columns, device), outputs(5, columns, device)
    prepare_decode(rows, computed, pool, edited.to(device), block_size, **want)
    new_blocks = new_blocks.to(device)
    prepare_decode(rows, computed, pool, device_table, block_size, **got, new_blocks=new_blocks)
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
    assert torch.equal(device_table.cpu(), edited)


@pytest.mark.parametrize(("count", "vocab"), [(1, 9000), (3, 40), (300, 10)])
def test_finish_decode(count: int, vocab: int, device: str) -> None:
    """argmax, put_tokens, and a copy in the row that is asked for."""
    logits = torch.randn(count, vocab, device=device)
    rows = torch.randperm(400)[:count].to(torch.int32)
    rows[1:2] = -1
    rows = rows.to(device)
    computed = torch.randint(0, 11, (count,), dtype=torch.int32, device=device)
    pool = torch.randint(0, 99, (400, 12), dtype=torch.int32, device=device)
    landing = torch.full((3, count + 2), UNTOUCHED, device=device)
    want, filled, tokens = pool.clone(), landing.clone(), argmax(logits)
    put_tokens(tokens, rows, computed, want)
    filled[2, :count] = tokens
    finish_decode(logits, rows, computed, pool, torch.tensor([2], device=device), landing)
    assert torch.equal(pool, want)
    assert torch.equal(landing, filled)


@pytest.mark.parametrize("count", [1, 5, 300])
def test_put_tokens(count: int, device: str) -> None:
    pool = torch.randint(0, 99, (400, 12), dtype=torch.int32, device=device)
    rows = torch.randperm(400)[:count].to(torch.int32)
    rows[:: max(2, count // 3)][1:] = -1
    computed = torch.randint(0, 11, (count,), dtype=torch.int32)
    tokens = torch.randint(0, 1 << 30, (count,))
    want = pool.clone()
    for s in range(count):
        if rows[s] >= 0:
            want[rows[s], computed[s] + 1] = int(tokens[s])
    put_tokens(tokens.to(device), rows.to(device), computed.to(device), pool)
    assert torch.equal(pool, want)


def slow_argmax(row: list[float]) -> int:
    numbers = [(value, -i) for i, value in enumerate(row) if value == value]
    return -max(numbers)[1] if numbers else 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_argmax(dtype: torch.dtype, device: str, on_gpu: bool) -> None:
    sizes = [(1, 1), (1, 5000), (2, 2048), (3, 300), (40, 50)]
    if on_gpu:
        sizes += [(1, 128256), (7, 151936), (512, 32000)]
    for count, vocab in sizes:
        wide = torch.randn(count, vocab + 5, device=device).mul_(3).to(dtype)
        logits = wide[:, :vocab]
        logits[0, vocab // 2] = logits[-1, vocab // 3] = float("nan")
        if vocab > 9:
            logits[-1] = logits[-1].round()  # ties: the first
            logits[0, 1] = logits[0, vocab - 1] = float("inf")
        want = [slow_argmax(row) for row in logits.tolist()]
        assert argmax(logits).tolist() == want, (count, vocab)


@pytest.mark.parametrize("vocab", [10, 5000])
def test_argmax_of_what_is_hardly_a_row(vocab: int, device: str) -> None:
    rows = torch.full((6, vocab), float("-inf"), device=device)
    rows[0] = float("nan")
    rows[1, 0] = float("nan")  # minus infinity is a number
    rows[2, 3], rows[2, 5] = -0.0, 0.0
    rows[3, 7] = -3e38
    rows[4] = -0.0
    assert argmax(rows).tolist() == [0, 1, 3, 7, 0, 0]
    assert argmax(rows[:0]).shape == (0,)

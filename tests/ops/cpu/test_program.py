"""Recorded programs: the same results as the model run operation by operation."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import make_metadata
from tiny import make_tiny
from torch import Tensor

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.layers.context import ForwardContext, set_forward_context
from atom.models.loader import load_model
from atom.models.source import resolve_source
from atom.ops.contracts import AttentionMetadata
from atom.ops.cpu.arena import Arena
from atom.ops.cpu.build import CannotBuild

try:
    from atom.ops.cpu import native
    from atom.ops.cpu.program import CannotRecord, Program

    native.load()
except CannotBuild as reason:
    pytest.skip(f"no native kernels: {reason}", allow_module_level=True)

BLOCKS, BLOCK_SIZE = 40, 16


class Recorded:
    """A tiny model, its caches, and its program."""

    def __init__(self, folder: Path, kv: str = "bf16") -> None:
        config = Config(
            model=ModelConfig(model=str(folder)), engine=EngineConfig(kv_cache_dtype=kv)
        )
        source = resolve_source(config.model)
        self.model: Any = load_model(source, config, torch.device("cpu"), torch.float32)
        for layer in self.model.attention_layers():
            shape = (BLOCKS, BLOCK_SIZE, layer.num_kv_heads, layer.head_dim)
            layer.k_cache = torch.full(shape, float("nan"), dtype=layer.kv_dtype)
            layer.v_cache = torch.full(shape, float("nan"), dtype=layer.kv_dtype)
        self.program = Program.record(
            self.forward, self.model.compute_logits, max_tokens=96, max_seqs=8
        )

    def forward(self, ids: Tensor, positions: Tensor, meta: AttentionMetadata) -> Tensor:
        with set_forward_context(ForwardContext(meta)):
            hidden: Tensor = self.model.forward(ids, positions)
        return hidden

    @torch.inference_mode()
    def both(
        self,
        chunks: list[tuple[list[int], int, int]],
        every_row: bool,
        window_chunks: list[tuple[list[int], int, int]] | None = None,
    ) -> list[Tensor]:
        """Logits by the program and by the model, of the same step."""
        meta = make_metadata(chunks, BLOCK_SIZE)
        if window_chunks is not None:
            meta.window = make_metadata(window_chunks, BLOCK_SIZE)
        ids = torch.arange(meta.num_tokens) % 90
        positions = torch.cat([torch.arange(done, done + new) for _, done, new in chunks])
        index = None if every_row else meta.cu_seqlens_q[1:].long() - 1
        got = self.program.run(ids, positions, meta, index).clone()
        hidden = self.forward(ids, positions, meta)
        return [got, self.model.compute_logits(hidden if index is None else hidden[index])]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("tiny") / "llama3"
    return Recorded(make_tiny("llama3", folder))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_program_equals_the_model(recorded: Recorded, threads: int) -> None:
    native.set_num_threads(threads)
    try:
        tables = [[3, 1], [2, 5], [7, 6]]
        steps = [
            ([(tables[0], 0, 20), (tables[1], 0, 7)], False),
            ([(tables[0], 20, 1), (tables[1], 7, 1), (tables[2], 0, 1)], True),
            ([(tables[0], 21, 1), (tables[2], 1, 13), (tables[1], 8, 4)], False),
            ([(tables[0], 22, 1)], True),
        ]
        for chunks, every_row in steps:
            got, want = recorded.both(chunks, every_row)
            assert torch.isfinite(want).all()
            assert torch.equal(got, want)
    finally:
        native.set_num_threads(0)


def test_step_without_samples_only_fills_the_cache(recorded: Recorded) -> None:
    table = [9, 10]
    meta = make_metadata([(table, 0, 5)], BLOCK_SIZE)
    none = torch.zeros(0, dtype=torch.int64)
    logits = recorded.program.run(torch.arange(5), torch.arange(5), meta, none)
    assert logits.shape[0] == 0
    layer = recorded.model.attention_layers()[0]
    assert torch.isfinite(layer.k_cache[9, :5].float()).all()


def test_logits_of_a_step_may_be_taken_in_parts(recorded: Recorded) -> None:
    """Any rows of the last step, in any order and as often as wanted."""
    program = recorded.program
    meta = make_metadata([([11, 12], 0, 20)], BLOCK_SIZE)
    ids, positions = torch.arange(20), torch.arange(20)

    def rows(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64)

    whole = [program.run(ids, positions, meta, rows(*range(i, i + 4))).clone() for i in (0, 8, 16)]
    program.run_hidden(ids, positions, meta)
    for start, want in ((16, whole[2]), (0, whole[0]), (8, whole[1]), (0, whole[0])):
        assert torch.equal(program.logits(rows(*range(start, start + 4))), want)
    assert torch.equal(program.logits(rows(19, 0)), torch.stack([whole[2][3], whole[0][0]]))
    one = make_metadata([([11, 12], 20, 1), ([13], 0, 1)], BLOCK_SIZE)
    program.run_hidden(torch.tensor([5, 6]), torch.tensor([20, 0]), one)
    every = program.logits(None).clone()
    assert torch.equal(every, program.run(torch.tensor([5, 6]), torch.tensor([20, 0]), one, None))


def test_what_fits(recorded: Recorded) -> None:
    assert recorded.program.fits(96, 8)
    assert not recorded.program.fits(97, 1)
    assert not recorded.program.fits(9, 9)


def test_times_name_every_operation(recorded: Recorded) -> None:
    times = recorded.program.times(lambda: recorded.both([([20], 0, 3)], False))
    assert len(times) == recorded.program.num_nodes
    assert {"linear", "paged_attention", "rms_norm"} <= {name for name, _ in times}
    assert all(ns >= 0 for _, ns in times)


@pytest.mark.parametrize("family", ["llama2", "qwen3"])
def test_other_families_are_recorded(tmp_path: Path, family: str) -> None:
    got, want = Recorded(make_tiny(family, tmp_path / family), kv="fp32").both([([1], 0, 9)], False)
    assert torch.equal(got, want)


def test_layers_with_windows_have_tables_of_their_own(tmp_path: Path) -> None:
    options = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    recorded = Recorded(make_tiny("qwen3", tmp_path, **options))
    full, window = [[3, 4], [5]], [[20, 21], [22]]
    for done, new in (((0, 0), (9, 5)), ((9, 5), (1, 1)), ((10, 6), (12, 4))):

        def chunks(tables: list[list[int]]) -> list[tuple[list[int], int, int]]:
            return list(zip(tables, done, new, strict=True))  # noqa: B023

        got, want = recorded.both(chunks(full), False, chunks(window))
        assert torch.equal(got, want)
        assert torch.isfinite(got).all()
    first, *others = recorded.model.attention_layers()
    for layer, used in ((first, [3, 4, 5]), *((layer, [20, 21, 22]) for layer in others)):
        written = layer.k_cache.float().isfinite().flatten(1).any(1)
        assert written.nonzero().flatten().tolist() == used


def test_torch_operation_is_refused_by_name() -> None:
    def forward(ids: Tensor, positions: Tensor, meta: AttentionMetadata) -> Tensor:
        return torch.zeros(4, 4) + 1

    with pytest.raises(CannotRecord, match=r"aten\.\w+\.\w+ is not a native operation"):
        Program.record(forward, lambda hidden: hidden, max_tokens=4, max_seqs=2)


def test_arena_shares_memory_of_what_is_gone() -> None:
    arena = Arena()
    first = arena.empty((4, 8), torch.float32)
    address, view = first.data_ptr(), first[1:].view(-1)
    del first
    gc.collect()
    second = arena.empty((4, 8), torch.float32)
    assert second.data_ptr() != address, "a view still lives there"
    del view
    gc.collect()
    third = arena.empty((8, 4), torch.float32)
    assert third.data_ptr() == address
    assert second.data_ptr() % 64 == 0
    assert third.data_ptr() % 64 == 0

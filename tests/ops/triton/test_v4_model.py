"""DeepSeek V4's attention by its own kernels against transformers: the last steps of a prompt of
129 tokens, over caches that the reference has filled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import PagedModel
from hub import hub_checkpoint
from test_families import assert_near, load, reference

from atom.ops import registry
from atom.ops.triton import kernels

FAMILY = "deepseek_v4"
BEFORE = 123  # tokens; the first long entry is complete at 128, short ones are more than are chosen


def with_kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model with this backend's V4 attention, and nothing else of its."""
    assert kernels.v4_write
    table = registry._state.table
    # Not those between attention and experts: interpreted, Sinkhorn's iterations take seconds.
    for op in ("v4_write", "v4_compress", "v4_choose", "v4_attention"):
        chosen = replace(table[op, "triton"], backend="cpu")
        monkeypatch.setitem(table, (op, "cpu"), chosen)
    return load(hub_checkpoint(FAMILY), 128)


def test_last_steps(monkeypatch: pytest.MonkeyPatch, on_gpu: bool) -> None:
    if on_gpu:
        pytest.skip("test_families_gpu runs the whole model")
    prompt, _, want = reference(FAMILY)
    paged = PagedModel(load(hub_checkpoint(FAMILY), 128), 128)
    paged.step({"a": prompt[:BEFORE], "b": prompt[:30]})
    model = with_kernels(monkeypatch)
    for layer, spec in paged.specs:
        at = paged.model.cache_layers().index(layer)
        setattr(model.cache_layers()[at], spec.name, getattr(layer, spec.name))
    paged.model = model
    got = paged.step({"a": prompt[BEFORE:126], "b": prompt[30:32]}, num_padding=1)
    assert_near(got["a"], want[BEFORE:126])
    assert_near(got["b"], want[30:32])
    for position in range(126, 129):
        got = paged.step({"a": [prompt[position]]})
        assert_near(got["a"], want[position : position + 1])

"""The embedded model's greedy text on a GPU: the CPU's, up to bfloat16 rounding."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import greedy_agreement

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture(scope="module")
def found(embedded_gguf: Path) -> dict[str, dict[str, Any]]:
    variants = ["cpu:float32", "cuda:float32", "cuda:bfloat16", "cuda:bfloat16:fp8"]
    return greedy_agreement.run(str(embedded_gguf), variants, 48)


def test_float32_chooses_alike(found: dict[str, dict[str, Any]]) -> None:
    row = found["cuda:float32 against cpu:float32"]
    assert row["same_choice"] > 0.998
    assert row["gap_worst"] < 1e-3  # only where two tokens are level


def test_bfloat16_chooses_alike_up_to_rounding(found: dict[str, dict[str, Any]]) -> None:
    row = found["cuda:bfloat16 against cpu:float32"]
    assert row["same_choice"] > 0.97
    assert row["gap_worst"] < 0.5


def test_an_fp8_cache_changes_few_choices(found: dict[str, dict[str, Any]]) -> None:
    row = found["cuda:bfloat16:fp8 against cuda:bfloat16"]
    assert row["same_choice"] > 0.9

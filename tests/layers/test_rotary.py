"""Tables of rotary angles against transformers, and what may not be asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from atom.errors import ModelError
from atom.layers.build import BuildContext
from atom.layers.rotary import RotaryEmbedding, cos_sin_table, rope_frequencies

SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096},
    {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    },
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.707,
    },
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 0.9,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
@pytest.mark.parametrize(("theta", "dim"), [(10000.0, 128), (500000.0, 64)])
def test_frequencies(scaling: dict[str, Any], theta: float, dim: int) -> None:
    config = LlamaConfig(
        hidden_size=4 * dim,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": theta, **scaling},
    )
    want, want_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    got, factor = rope_frequencies(theta, dim, scaling)
    assert factor == pytest.approx(want_factor)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_plain_table() -> None:
    build = BuildContext(max_positions=10)
    table = cos_sin_table(build, 100.0, 4, None)
    assert table.shape == (10, 4)
    assert table.dtype == torch.float32
    angles = [7 * 100.0 ** (-2 * c / 4) for c in range(2)]
    want = [*(torch.tensor(angles).cos()), *(torch.tensor(angles).sin())]
    torch.testing.assert_close(table[7], torch.stack(want))
    assert cos_sin_table(build, 100.0, 4, None) is table, "layers share it"
    assert cos_sin_table(build, 200.0, 4, None) is not table


def test_the_attention_factor_scales_the_table() -> None:
    scaling = {**SCALINGS[2], "attention_factor": 2.0}
    table = cos_sin_table(BuildContext(max_positions=3), 1e4, 8, scaling)
    assert table[0].tolist() == [2.0] * 4 + [0.0] * 4


def test_partial_factor_leaves_the_other_channels_alone() -> None:
    rotary = RotaryEmbedding(
        BuildContext(max_positions=50), 8, base=1e4, partial_factor=0.5, trained_length=50
    )
    q, k = torch.randn(3, 2, 8), torch.randn(3, 1, 8)
    before = q.clone()
    rotary(q, k, torch.tensor([4, 30, 49]))
    assert rotary.cos_sin.shape == (50, 4)
    assert torch.equal(q[..., 4:], before[..., 4:])
    assert not torch.allclose(q[..., :4], before[..., :4])


def test_unknown_and_incomplete_scalings() -> None:
    with pytest.raises(ModelError, match="type 'longrope' is not supported: default, linear"):
        rope_frequencies(1e4, 64, {"type": "longrope"})
    with pytest.raises(ModelError, match="llama3 lacks 'low_freq_factor'"):
        rope_frequencies(1e4, 64, {"rope_type": "llama3", "factor": 2.0})

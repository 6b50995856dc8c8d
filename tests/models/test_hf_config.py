from __future__ import annotations

import json
from pathlib import Path

import pytest

from atom.errors import ModelError
from atom.models.hf_config import HFConfig, token_ids

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def config(**more: object) -> HFConfig:
    return HFConfig({**BASE, **more})


def test_both_spellings_of_rope_agree() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0}
    old = config(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    older = config(rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    new = config(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    for one in (old, older, new):
        assert one.rope_theta == 5e5
        assert one.rope_scaling == {"rope_type": "llama3", **scaling}


def test_rope_that_is_not_scaled() -> None:
    assert config().rope_theta == 10000.0
    assert config().rope_scaling is None
    assert config(rope_scaling=None).rope_scaling is None
    plain = config(rope_parameters={"rope_type": "default", "rope_theta": 1000000})
    assert plain.rope_scaling is None
    assert plain.rope_theta == 1e6


def test_partial_rotary_factor() -> None:
    assert config().partial_rotary_factor == 1.0
    assert config(partial_rotary_factor=0.5).partial_rotary_factor == 0.5
    new = config(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.25})
    assert new.partial_rotary_factor == 0.25
    assert new.rope_scaling is None


def test_heads() -> None:
    assert config().head_dim == 16
    assert config(head_dim=None).head_dim == 16
    assert config(head_dim=32).head_dim == 32
    assert config().num_key_value_heads == 4
    assert config(num_key_value_heads=None).num_key_value_heads == 4
    assert config(num_key_value_heads=2).num_key_value_heads == 2
    with pytest.raises(ModelError, match="hidden_size 65 is not a multiple"):
        _ = config(hidden_size=65).head_dim


def test_dtype() -> None:
    assert config().dtype is None
    assert config(torch_dtype="bfloat16").dtype == "bfloat16"
    assert config(dtype="torch.float16").dtype == "float16"


def test_text_config_hides_the_outer_keys() -> None:
    nested = HFConfig(
        {
            "architectures": ["Outer"],
            "tie_word_embeddings": False,
            "text_config": {"vocab_size": 7, "tie_word_embeddings": True, "dtype": "bfloat16"},
        }
    )
    assert nested.architecture == "Outer"
    assert nested.vocab_size == 7
    assert nested.tie_word_embeddings is True
    assert nested.dtype == "bfloat16"


def test_a_missing_key_is_named_with_its_file() -> None:
    with pytest.raises(ModelError, match=r"some/config\.json does not say rms_norm_eps"):
        _ = HFConfig(BASE, "some/config.json").rms_norm_eps
    assert config().get("rms_norm_eps", 1.0) == 1.0
    assert "rms_norm_eps" not in config()
    assert config(rms_norm_eps=1e-5).rms_norm_eps == 1e-5


@pytest.mark.parametrize("value", [0, -1, "12", 1.5, True, None, [1]])
def test_sizes_must_be_positive_integers(value: object) -> None:
    with pytest.raises(ModelError, match="vocab_size must be a positive integer"):
        _ = config(vocab_size=value).vocab_size


@pytest.mark.parametrize("names", [None, [], "Llama", [3]])
def test_architecture_must_be_named(names: object) -> None:
    with pytest.raises(ModelError, match="architecture"):
        _ = config(architectures=names).architecture


def test_it_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        config().vocab_size = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        config().anything = 3


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": 1', "\udcff", "[" * 100_000])
def test_what_is_not_a_json_object_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError) as caught:
        HFConfig.from_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_from_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(BASE))
    assert HFConfig.from_file(path).vocab_size == 100
    with pytest.raises(ModelError, match="cannot read"):
        HFConfig.from_file(tmp_path / "none.json")


def test_token_ids() -> None:
    assert token_ids(None) == ()
    assert token_ids(3) == (3,)
    assert token_ids([3, 0]) == (3, 0)
    assert token_ids([True, -1, "x"]) == ()

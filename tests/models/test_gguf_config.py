from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf_files import embedding, llama_metadata, write_gguf

from atom.errors import ModelError
from atom.models.gguf import GGUFFile
from atom.models.gguf_config import config_from_gguf, generation_config_from_gguf
from atom.models.hf_config import HFConfig


def read(
    tmp_path: Path, tensors: dict[str, Any] | None = None, arch: str = "llama", **more: Any
) -> HFConfig:
    metadata = {k.replace("llama.", arch + ".", 1): v for k, v in llama_metadata().items()}
    path = tmp_path / "m.gguf"
    write_gguf(path, {**metadata, **more}, {**embedding(), **(tensors or {})}, arch)
    return config_from_gguf(GGUFFile(path))


def ones(*shape: int) -> tuple[np.ndarray, Q]:
    return np.ones(shape, np.float32), Q.F32


def test_llama(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.architecture == "LlamaForCausalLM"
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (64, 96, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 16)
    assert (config.vocab_size, config.max_position_embeddings) == (300, 128)
    assert config.rms_norm_eps == pytest.approx(1e-5)
    assert config.rope_theta == 10000.0
    assert config.rope_scaling is None
    assert config.tie_word_embeddings is True
    assert config.attention_bias is False
    assert config.mlp_bias is False


def test_what_the_tensors_say(tmp_path: Path) -> None:
    tensors = {
        "output.weight": ones(300, 64),
        "blk.0.attn_q.bias": ones(64),
        "blk.0.ffn_up.bias": ones(96),
    }
    config = read(tmp_path, tensors)
    assert config.tie_word_embeddings is False
    assert config.attention_bias is True
    assert config.mlp_bias is True


def test_mixtral_is_a_llama_with_experts(tmp_path: Path) -> None:
    config = read(tmp_path, **{"llama.expert_count": 8, "llama.expert_used_count": 2})
    assert config.architecture == "MixtralForCausalLM"
    assert (config.num_local_experts, config.num_experts_per_tok) == (8, 2)


def test_qwen3_moe(tmp_path: Path) -> None:
    more = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 48}
    more |= {"attention.key_length": 32, "attention.value_length": 32}
    config = read(tmp_path, arch="qwen3moe", **{f"qwen3moe.{k}": v for k, v in more.items()})
    assert config.architecture == "Qwen3MoeForCausalLM"
    assert (config.num_experts, config.num_experts_per_tok) == (8, 2)
    assert (config.moe_intermediate_size, config.head_dim) == (48, 32)
    assert config.norm_topk_prob is True


@pytest.mark.parametrize("theta", [500000.0, 10000.0])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognised(tmp_path: Path, theta: float, factor: float) -> None:
    """The factors as the published formula makes them, written out for each frequency."""
    factors = []
    for i in range(8):
        wavelength = 2 * math.pi * theta ** (2 * i / 16)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    table = {"rope_freqs.weight": (np.array(factors, np.float32), Q.F32)}
    more = {"llama.rope.freq_base": theta}
    config = read(tmp_path, table, **more)
    assert config.rope_theta == theta
    assert config.rope_scaling == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors[2] *= 1.5
    table = {"rope_freqs.weight": (np.array(factors, np.float32), Q.F32)}
    with pytest.raises(ModelError, match="not Llama 3's scaling"):
        read(tmp_path, table, **more)


def test_other_scalings(tmp_path: Path) -> None:
    prefix = "llama.rope.scaling."
    linear = read(tmp_path, **{prefix + "type": "linear", prefix + "factor": 4.0})
    assert linear.rope_scaling == {"rope_type": "linear", "factor": 4.0}
    more = {"type": "yarn", "factor": 2.0, "original_context_length": 64, "attn_factor": 1.5}
    yarn = read(tmp_path, **{prefix + k: v for k, v in more.items()})
    assert yarn.rope_scaling == {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.5,
    }
    with pytest.raises(ModelError, match="rope scaling 'su' is not supported"):
        read(tmp_path, **{prefix + "type": "su"})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"llama.block_count": 0}, r"llama\.block_count must be a positive integer, got 0"),
        ({"llama.embedding_length": "x"}, "embedding_length"),
        ({"llama.feed_forward_length": [1, 2]}, "feed_forward_length"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "epsilon must be a positive number"),
        ({"llama.attention.value_length": 8}, "different size"),
        ({"split.count": 3}, "one of 3 parts"),
    ],
)
def test_bad_metadata_is_named(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        read(tmp_path, **more)
    assert "\n" not in str(caught.value)


def test_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'gemma3' is not supported; atom reads llama, qwen2"):
        read(tmp_path, arch="gemma3")


def test_generation_defaults(tmp_path: Path) -> None:
    more = {
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 9,
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 20,
    }
    path = write_gguf(tmp_path / "m.gguf", llama_metadata(**more), embedding())
    assert generation_config_from_gguf(GGUFFile(path)) == {
        "eos_token_id": [2, 9],
        "temperature": 0.5,
        "top_k": 20,
    }


def test_embedded_model_reads_as_transformers_reads_it(embedded_gguf: Path) -> None:
    from transformers import AutoConfig

    ours = config_from_gguf(GGUFFile(embedded_gguf))
    theirs = AutoConfig.from_pretrained(
        str(embedded_gguf.parent), gguf_file=embedded_gguf.name
    ).to_dict()
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "bos_token_id",
    ):
        assert getattr(ours, name) == theirs[name], name
    assert ours.head_dim == 64
    assert HFConfig(theirs).rope_theta == ours.rope_theta == 100000.0
    assert ours.eos_token_id == [2]

"""Tiny random checkpoints of each family, made by transformers, and what transformers says of them.

Every parameter is random, norms and biases too: transformers' own initialisation has ones and
zeros there and would hide an engine that skips them. Values depend on the seed and the parameter's
name only.
"""

from __future__ import annotations

import functools
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCAB = 512
BOS, EOS, PAD = 256, 257, 258
SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_QWEN3 = {
    **_COMMON,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 3,
}
_LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
# family -> (architecture, hub-style config)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": (
        "LlamaForCausalLM",
        {**_COMMON, "model_type": "llama", "num_key_value_heads": 4, "rope_theta": 10000.0},
    ),
    "llama3": (
        "LlamaForCausalLM",
        {**_COMMON, "model_type": "llama", "rope_theta": 5e5, "rope_scaling": _LLAMA3_ROPE},
    ),
    "mistral": (
        "MistralForCausalLM",
        {**_COMMON, "model_type": "mistral", "rope_theta": 1e4, "sliding_window": 12},
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        {
            **_COMMON,
            "model_type": "qwen2",
            "rope_theta": 1e6,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 3,
        },
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        {**_QWEN3, "model_type": "qwen3", "tie_word_embeddings": True},
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {
            **_QWEN3,
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 128,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [1],
        },
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {
            **_COMMON,
            "model_type": "mixtral",
            "rope_theta": 1e6,
            "sliding_window": None,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
}


def _randomize(model: Any, seed: int) -> None:
    """Values are bfloat16's, so that a checkpoint stored in bfloat16 holds the same model."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        value = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            value *= 0.1
        elif parameter.ndim == 1:
            value = 1.0 + 0.2 * value
        elif "embed_tokens" not in name or model.config.tie_word_embeddings:
            head = "lm_head" in name or "embed_tokens" in name
            spread = 3.0 if head else 2.0 if "gate.weight" in name else 1.0
            value *= spread * parameter.shape[-1] ** -0.5
        with torch.no_grad():
            parameter.copy_(value.to(torch.bfloat16))


def write_tokenizer(out: Path) -> None:
    """Byte-level: ids 0..255 are bytes in the order of GPT-2's alphabet, then the specials."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[1],
        "pad_token": SPECIALS[2],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def make_config(family: str, out_dir: Path | str, **overrides: Any) -> Path:
    """Only `config.json` of a family, hub style, for dummy weights."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    architecture, config = FAMILIES[family]
    hub = {"architectures": [architecture], "torch_dtype": "float32", **config, **overrides}
    (out / "config.json").write_text(json.dumps(hub, indent=2))
    return out


def make_tiny(
    family: str,
    out_dir: Path | str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shard_size: str = "400KB",
    **overrides: Any,
) -> Path:
    """A checkpoint of `family` in `out_dir`: config, generation config, tokenizer, shards.

    `overrides` replace keys of the config. The shards have an index unless `shard_size` is large.
    """
    import transformers

    out = make_config(family, out_dir, torch_dtype=dtype, **overrides)
    hub_config = (out / "config.json").read_text()
    config = transformers.AutoConfig.from_pretrained(out)
    config.dtype = torch.float32
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    _randomize(model, seed)
    model.tie_weights()
    model.to(getattr(torch, dtype)).save_pretrained(out, max_shard_size=shard_size)
    (out / "config.json").write_text(hub_config)  # the style of published checkpoints
    (out / "generation_config.json").write_text(
        json.dumps({"bos_token_id": BOS, "eos_token_id": [EOS], "pad_token_id": PAD})
    )
    write_tokenizer(out)
    return out


@functools.cache
def tiny_checkpoint(family: str) -> Path:
    """`make_tiny(family)` with defaults, made once per process; do not write there."""
    folder = tempfile.TemporaryDirectory(prefix=f"atom-tiny-{family}-")
    _folders.append(folder)
    return make_tiny(family, folder.name)


_folders: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def reference_model(path: Path) -> Any:
    """transformers' own model of a checkpoint, float32, eager attention."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def reference_logits(path: Path, ids: list[int]) -> Tensor:
    """[T, vocab] float32 of a whole sequence by transformers, without a cache."""
    with torch.no_grad():
        logits: Tensor = reference_model(path)(torch.tensor([ids]), use_cache=False).logits
    return logits[0]


def reference_greedy(path: Path, prompt: list[int], count: int) -> list[int]:
    """`count` greedy tokens after `prompt` by transformers, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(reference_logits(path, ids)[-1].argmax()))
    return ids[len(prompt) :]


def random_prompt(length: int, seed: int = 0) -> list[int]:
    """BOS and random bytes."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(0, 256, (length,), generator=generator).tolist()
    return [BOS, *ids[1:]]

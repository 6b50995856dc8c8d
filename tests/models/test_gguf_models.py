"""GGUF files: tiny ones of every kind and the embedded one, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_reference import transformers_llama
from harness import PagedModel
from test_parity import assert_close, load
from tiny import random_prompt
from tiny_gguf import make_tiny_gguf
from torch import Tensor

from atom.layers.linear import ConcatLinear
from atom.models.gguf import GGUFFile
from atom.models.gguf_names import module_name

FAMILIES = ["llama2", "qwen2", "qwen3", "qwen3_moe", "mixtral"]
# A GGUF cannot say which layers of Qwen3-MoE are dense: all have experts.
OVERRIDES = {"llama2": {"num_key_value_heads": 2}, "qwen3_moe": {"mlp_only_layers": []}}
# The two halves of fused projections get different types, so that they are packed apart.
MIXED = {
    "attn_q.": "Q4_1",
    "attn_k": "Q4_1",
    "attn_v": "Q8_0",
    "ffn_gate.": "F16",
    "ffn_up": "Q5_0",
    "ffn_down": "BF16",
    "token_embd": "Q4_0",
    "output.": "F32",
}


def transformers_logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("qtypes", [{}, MIXED], ids=["Q8_0", "mixed"])
def test_tiny(family: str, qtypes: dict[str, str], tmp_path: Path) -> None:
    path, reference = make_tiny_gguf(family, tmp_path, qtypes, **OVERRIDES.get(family, {}))
    ids = random_prompt(50)
    want = transformers_logits(reference, ids)
    assert_close(PagedModel(load(path)).logits(ids, [17, 1, 9]), want)
    # Kernels on packed weights may round activations, so only roughly here.
    packed = PagedModel(load(path, dtype="auto")).logits(ids, [17, 1, 9])
    similarity = torch.nn.functional.cosine_similarity(packed, want, dim=-1)
    assert float(similarity.mean()) > 0.99
    assert float(similarity.min()) > (0.8 if "moe" in family or family == "mixtral" else 0.98)


def test_parts_of_unequal_types_are_packed_apart(tmp_path: Path) -> None:
    path, _ = make_tiny_gguf("llama2", tmp_path, MIXED)
    attn = load(path, dtype="auto").model.layers[0].self_attn
    assert isinstance(attn.qkv_proj.weight, ConcatLinear)
    sizes = [piece.out_features for piece in attn.qkv_proj.weight.pieces]
    assert sizes == [256, 128], "q and k share a pack, v has its own"
    assert not isinstance(attn.o_proj.weight, ConcatLinear)


def test_old_files_hold_one_tensor_per_expert() -> None:
    assert module_name("blk.3.ffn_gate.7.weight") == "model.layers.3.mlp.experts.7.gate_proj.weight"
    assert module_name("blk.3.ffn_gate.weight") == "model.layers.3.mlp.gate_proj.weight"
    assert module_name("blk.3.ffn_gate_inp.weight") == "model.layers.3.mlp.gate.weight"
    assert module_name("blk.3.attn_unheard_of.weight") is None


def test_biases_of_a_llama_file_are_put_back_in_order(tmp_path: Path) -> None:
    path, reference = make_tiny_gguf("llama2", tmp_path, {}, attention_bias=True)
    ids = random_prompt(40)
    assert_close(PagedModel(load(path)).logits(ids, [40]), transformers_logits(reference, ids))


@pytest.mark.slow
def test_embedded_model(embedded_gguf: Path) -> None:
    reference = transformers_llama(GGUFFile(embedded_gguf))
    ids = [int(i) for i in torch.randint(0, 49152, (96,), generator=torch.manual_seed(0))]
    want = transformers_logits(reference, ids)
    model = load(embedded_gguf)
    got = PagedModel(model).logits(ids, [33, 1, 1, 16])
    torch.testing.assert_close(got, want, rtol=0, atol=5e-4)  # logits reach 40 here
    prompt = [1, 9690, 198, 504, 3575, 282, 4649, 314]  # the capital of France is
    tokens = PagedModel(model).greedy(prompt, 12)
    ids = prompt + tokens
    assert transformers_logits(reference, ids).argmax(-1)[len(prompt) - 1 : -1].tolist() == tokens
    packed = PagedModel(load(embedded_gguf, dtype="auto")).logits(ids, [33])
    exact = transformers_logits(reference, ids)
    similarity = torch.nn.functional.cosine_similarity(packed, exact, dim=-1)
    assert float(similarity.mean()) > 0.9995
    assert float(similarity.min()) > 0.997

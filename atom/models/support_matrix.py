"""What each family of models can do here, and the test that says so.

Writes docs/reference/support.md: `python -m atom.models.support_matrix [FILE]`.

"yes" is a claim with a test behind it, and a test checks that these exist. "no" is refused when a
server starts, with the reason given here. Everything else is "untested".
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

YES, NO, UNTESTED, NONE = "yes", "no", "untested", "-"


class Family(NamedTuple):
    """`name` is what tests call a tiny model of it. `sets`: which tests have it."""

    title: str
    architectures: tuple[str, ...]
    name: str
    sets: str  # words of `_TESTS`


# Feature -> what a column means.
FEATURES: dict[str, str] = {
    "prefix cache": "equal beginnings of prompts are computed once, windows and states included",
    "chunked prefill": "prompts in pieces, among decodes",
    "TP": "tensor parallelism: two ranks compute what one does",
    "fp8 KV": "keys and values, or latents, in 8 bits (recurrent states stay float32)",
    "graphs": "decode steps, and pieces of prompts, are replayed",
    "compile": "compile level 3: in pieces around what mixes tokens",
    "MTP weights": "multi-token-prediction layers are loaded and give transformers' logits; "
    "nothing drafts with them in this version",
    "GGUF": "GGUF files of this family are read",
    "quantised": "quantised safetensors are read",
}
FAMILIES: tuple[Family, ...] = (
    Family("DeepSeek V2", ("DeepseekV2ForCausalLM",), "deepseek_v2_group", "hub compiled"),
    Family(
        "DeepSeek V3, R1, Kimi-K2",
        ("DeepseekV3ForCausalLM",),
        "deepseek_v3",
        "hub compiled mtp",
    ),
    Family(
        "DeepSeek V3.2",
        ("DeepseekV32ForCausalLM",),
        "deepseek_v32",
        "hub compiled mtp",
    ),
    Family("DeepSeek V4", ("DeepseekV4ForCausalLM",), "deepseek_v4", "hub compiled mtp_v4"),
    Family("GLM-4.5", ("Glm4MoeForCausalLM",), "glm4_moe", "hub compiled mtp"),
    Family("GLM-5", ("GlmMoeDsaForCausalLM",), "glm_moe_dsa", "hub compiled mtp"),
    Family("GPT-OSS", ("GptOssForCausalLM",), "gpt_oss", "hub compiled mxfp4"),
    Family("Kimi-K2.5", ("KimiK25ForConditionalGeneration",), "kimi_k25", "hub compiled"),
    Family("Llama 2, 3", ("LlamaForCausalLM",), "llama2", "hub pieces gguf"),
    Family("MiniMax-M2", ("MiniMaxM2ForCausalLM",), "minimax_m2", "hub compiled"),
    Family("Mistral", ("MistralForCausalLM",), "mistral", "parity pieces"),
    Family("Mixtral", ("MixtralForCausalLM",), "mixtral", "hub pieces gguf"),
    Family("Qwen2, Qwen2.5", ("Qwen2ForCausalLM",), "qwen2", "parity pieces gguf"),
    Family("Qwen3", ("Qwen3ForCausalLM",), "qwen3", "hub pieces gguf"),
    Family("Qwen3-MoE", ("Qwen3MoeForCausalLM",), "qwen3_moe", "hub pieces gguf"),
    Family("Qwen3-Next", ("Qwen3NextForCausalLM",), "qwen3_next", "hub compiled mtp_qwen"),
    Family(
        "Qwen3.5",
        ("Qwen3_5ForConditionalGeneration",),
        "qwen3_5",
        "hub compiled mtp_qwen",
    ),
    Family(
        "Qwen3.5-MoE",
        ("Qwen3_5MoeForConditionalGeneration",),
        "qwen3_5_moe",
        "hub compiled mtp_qwen",
    ),
)

# Word -> feature -> the test behind a "yes"; {} is the family's name.
_TESTS: dict[str, dict[str, str]] = {
    "hub": {
        "prefix cache": "tests/models/test_families_engine.py::test_chunks_mixtures_and_reuse[{}]",
        "chunked prefill": "tests/models/test_families.py::test_logits_in_any_chunks[{}]",
        "TP": "tests/models/test_families_tp.py::test_two_ranks",
        "fp8 KV": "tests/models/test_support.py::test_a_float8_cache[{}]",
        "graphs": "tests/runner/test_graph_families.py::test_tokens_equal_eager_ones[{}-full]",
    },
    "parity": {
        "prefix cache": "tests/models/test_support.py::test_a_prefix_is_reused[{}]",
        "fp8 KV": "tests/models/test_support.py::test_a_float8_cache_of_plain_attention[{}]",
        "chunked prefill": "tests/models/test_parity.py::test_logits_in_any_chunks[{}]",
        "TP": "tests/models/test_tensor_parallel.py::test_two_ranks",
        "graphs": "tests/runner/test_graph_families.py::test_tokens_equal_eager_ones[{}-full]",
    },
    "pieces": {"compile": "tests/runner/test_compile_pieces.py::test_logits_equal_eager_ones[{}]"},
    "compiled": {
        "compile": "tests/runner/test_compile_families.py::test_logits_equal_eager_ones[{}]"
    },
    "mtp": {"MTP weights": "tests/models/test_mtp.py::test_mtp_logits[{}]"},
    "mtp_qwen": {"MTP weights": "tests/models/test_qwen_hybrid.py::test_mtp_logits[{}]"},
    "mtp_v4": {"MTP weights": "tests/models/test_deepseek_v4.py::test_mtp_logits"},
    "gguf": {"GGUF": "tests/models/test_gguf_models.py::test_tiny[{}]"},
    "mxfp4": {
        "quantised": "tests/models/test_mxfp4.py::"
        "test_packed_experts_are_what_transformers_unpacks"
    },
}  # fmt: skip
# Feature -> what is true of families of which no test says "yes".
_OTHERWISE: dict[str, tuple[str, str]] = {
    "MTP weights": (NONE, "no published checkpoint has such layers"),
    "GGUF": (NO, "atom reads GGUF files of Llama, Mixtral, Qwen2, Qwen3 and Qwen3-MoE"),
    "quantised": (
        NO,
        "FP8, INT4, AWQ and GPTQ safetensors are not supported yet; GPT-OSS's MXFP4 experts are",
    ),
}


# (name, feature) -> where the rule does not hold.
_EXCEPTIONS = {("mistral", "GGUF"): (UNTESTED, "")}  # its files say llama, and are read as such


class Cell(NamedTuple):
    """`why` is a test's id for a yes, else the reason."""

    word: str
    why: str


def cell(family: Family, feature: str) -> Cell:
    for word in family.sets.split():
        if test := _TESTS[word].get(feature):
            return Cell(YES, test.format(family.name))
    otherwise = _OTHERWISE.get(feature, (UNTESTED, ""))
    return Cell(*_EXCEPTIONS.get((family.name, feature), otherwise))


def page() -> str:
    """The text of docs/reference/support.md."""
    parts = [
        "# Supported models",
        "Generated by `python -m atom.models.support_matrix`; do not edit.\n",
        "A **yes** is backed by a test, whose name is below; a **no** is refused at start-up, with "
        "the reason below; **untested** may work, and nothing here says so. `-`: there is nothing "
        "to support. Tests compare with transformers in float32 on tiny models of each family, "
        "`pytest -m gpu` does so on a GPU (`tests/models/test_families_gpu.py`).\n",
        _table(
            ("family", *FEATURES),
            ((f.title, *(cell(f, name).word for name in FEATURES)) for f in FAMILIES),
        ),
        "## What the columns mean\n",
        _table(("column", "meaning"), FEATURES.items()),
        "## Architectures\n",
        "As `architectures` in config.json names them; vision towers are not read.\n",
        _table(
            ("family", "architecture"),
            ((f.title, ", ".join(f"`{a}`" for a in f.architectures)) for f in FAMILIES),
        ),
        "## Behind each no\n",
        _table(("column", "reason"), ((n, why) for n, (_, why) in _OTHERWISE.items())),
        "## Behind each yes\n",
    ]
    parts += [line for name in FEATURES for line in _tests_of(name)]
    return "\n".join(parts) + "\n"


def _tests_of(feature: str) -> Iterable[str]:
    """One line for each test of a column, with the families that it is about."""
    found: dict[str, list[str]] = {}
    for family in FAMILIES:
        word, why = cell(family, feature)
        if word == YES:
            test, _, case = why.partition("[")
            found.setdefault(test, []).append(case.rstrip("]"))
    for test, cases in found.items():
        said = ", ".join(case for case in cases if case)
        yield f"- {feature}: `{test}`" + (f" ({said})" if said else "")


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference/support.md")
    target.write_text(page(), encoding="utf-8")

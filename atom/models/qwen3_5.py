"""Qwen3.5, dense or with experts: the language model of a multimodal one, built as Qwen3-Next.

Text has one position per token: the three axes of its rotary embedding are equal.
"""

from __future__ import annotations

from atom.models.qwen3_next import Qwen3NextForCausalLM


class Qwen3_5ForConditionalGeneration(Qwen3NextForCausalLM):
    weight_map = (("model.language_model.", "model."),)
    skipped_weights = ("model.visual.",)
    grouped = False


class Qwen3_5MoeForConditionalGeneration(Qwen3_5ForConditionalGeneration):
    pass

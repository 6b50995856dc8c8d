"""The language model of Kimi-K2.5: a DeepSeek V3 inside a multimodal checkpoint.

Kimi-K2 itself names `DeepseekV3ForCausalLM` and is served by it.
"""

from __future__ import annotations

from atom.models.deepseek_v2 import DeepseekV3ForCausalLM


class KimiK25ForConditionalGeneration(DeepseekV3ForCausalLM):
    weight_map = (("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."))
    skipped_weights = ("vision_tower.", "mm_projector.")

"""Floors: the fewest bytes and operations of a piece of work over what one H200 was measured to do.

Decode: bytes of the weights that a step touches, and of the keys and values that it reads. Prefill:
floating-point operations of the products and of causal attention. Experts: those that an even
routing touches in expectation. The ceilings were measured on the card, not taken from a datasheet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ_BYTES_PER_S = 4.43e12  # float32 sum over 4 GiB
BF16_FLOP_PER_S = 786e12  # 8192^3, random data


@dataclass(frozen=True)
class Shape:
    """A decoder with attention and dense or expert MLPs, from its config.json."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    experts: int
    top_k: int
    expert_inner: int

    @classmethod
    def read(cls, folder: Path) -> Shape:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            inner=config["intermediate_size"],
            vocab=config["vocab_size"],
            experts=config.get("num_experts") or config.get("num_local_experts") or 0,
            top_k=config.get("num_experts_per_tok") or 0,
            expert_inner=config.get("moe_intermediate_size") or config["intermediate_size"],
        )

    # -- parameters ---------------------------------------------------------------------------

    @property
    def attention(self) -> int:
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def head(self) -> int:
        return self.vocab * self.hidden

    @property
    def expert(self) -> int:
        return 3 * self.hidden * self.expert_inner

    def experts_touched(self, tokens: int) -> float:
        """Distinct experts that `tokens` tokens reach in one layer, in expectation."""
        return self.experts * (1 - (1 - self.top_k / self.experts) ** tokens)

    def mlp_touched(self, tokens: int) -> float:
        if not self.experts:
            return 3 * self.hidden * self.inner
        return self.experts_touched(tokens) * self.expert + self.experts * self.hidden

    @property
    def mlp_active(self) -> int:
        """Parameters of an MLP that one token is multiplied with."""
        if not self.experts:
            return 3 * self.hidden * self.inner
        return self.top_k * self.expert + self.experts * self.hidden

    def kv_bytes_per_token(self, itemsize: int = 2) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * itemsize

    # -- seconds ------------------------------------------------------------------------------

    def decode_bytes(self, batch: int, context: float, kv_itemsize: int = 2) -> float:
        """What one step of `batch` sequences of `context` tokens reads; weights are bfloat16."""
        weights = self.layers * (self.attention + self.mlp_touched(batch)) + self.head
        return 2 * weights + batch * context * self.kv_bytes_per_token(kv_itemsize)

    def decode_s(self, batch: int, context: float, kv_itemsize: int = 2) -> float:
        return self.decode_bytes(batch, context, kv_itemsize) / READ_BYTES_PER_S

    def prefill_flop(self, prompts: int, length: int) -> float:
        products = 2 * self.layers * (self.attention + self.mlp_active) * prompts * length
        attention = 2 * self.layers * self.heads * self.head_dim * prompts * length**2
        return products + attention + 2 * self.head * prompts

    def prefill_s(self, prompts: int, length: int) -> float:
        return self.prefill_flop(prompts, length) / BF16_FLOP_PER_S

    def offline_s(self, prompts: int, length: int, output: int, kv_itemsize: int = 2) -> float:
        """Every prompt, then `output - 1` steps of all of them together."""
        steps = max(0, output - 1)
        decode = self.decode_s(prompts, length + output / 2, kv_itemsize)
        return self.prefill_s(prompts, length) + steps * decode

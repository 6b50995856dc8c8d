"""What DeepSeek V4's config says of each block, in the published spelling and in transformers'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atom.errors import ModelError
from atom.layers.moe import FusedMoE
from atom.layers.norm import RMSNorm
from atom.layers.rotary import cos_sin_table
from atom.layers.v4_hyper import HyperConnection
from atom.layers.v4_moe import ClampedMLP, V4MoE
from atom.ops.contracts import GatedActivation, Routing

if TYPE_CHECKING:
    from torch import Tensor

    from atom.layers.build import BuildContext
    from atom.models.hf_config import HFConfig

WINDOW_ONLY = "sliding_attention"
OVERLAPPING = "compressed_sparse_attention"
KINDS = {WINDOW_ONLY: 0, OVERLAPPING: 4, "heavily_compressed_attention": 128}


class V4Config:
    """A view of the config. Blocks after the last are those of multi-token prediction."""

    def __init__(self, hf: HFConfig) -> None:
        self.hf = hf
        self.kinds = self._kinds()
        rates = KINDS | (hf.get("compress_rates") or {})
        self.ratios = [int(rates[kind]) for kind in self.kinds]
        self.num_streams = hf.positive_int("hc_mult")
        self.swiglu_limit = float(hf.get("swiglu_limit", 10.0) or 0.0)
        if not self.swiglu_limit > 0:
            raise ModelError(f"{hf.where}: swiglu_limit must be above 0, got {hf.swiglu_limit!r}")
        self.rope_size = self._rope_size()
        hf.positive_int("sliding_window")
        if (scoring := hf.get("scoring_func", "sqrtsoftplus")) != "sqrtsoftplus":
            raise ModelError(
                f"{hf.where}: scoring_func {scoring!r} is not supported; supported: sqrtsoftplus"
            )

    def _kinds(self) -> list[str]:
        """The kind of attention of each block."""
        hf, count = self.hf, self.hf.positive_int("num_hidden_layers")
        kinds = hf.get("layer_types")
        if kinds is None:
            by_ratio = {ratio: kind for kind, ratio in KINDS.items()}
            kinds = [by_ratio.get(ratio, str(ratio)) for ratio in hf.compress_ratios]
        kinds = list(kinds)[:count]
        if len(kinds) < count or (unknown := set(kinds) - set(KINDS)):
            said = ", ".join(sorted(unknown)) if len(kinds) == count else f"{len(kinds)} of {count}"
            raise ModelError(
                f"{hf.where}: compress_ratios (or layer_types) says {said}; supported, for every "
                f"block: {', '.join(f'{r} ({kind})' for kind, r in KINDS.items())}"
            )
        return kinds

    def _rope_size(self) -> int:
        hf = self.hf
        if "qk_rope_head_dim" in hf:
            return hf.positive_int("qk_rope_head_dim")
        return int(hf.head_dim * hf.partial_rotary_factor)

    def kind(self, index: int) -> str:
        return self.kinds[index] if index < len(self.kinds) else WINDOW_ONLY

    def is_hashed(self, index: int) -> bool:
        """Whether the token's id chooses the block's experts."""
        kinds = self.hf.get("mlp_layer_types")
        if kinds is not None:
            return index < len(kinds) and kinds[index] == "hash_moe"
        return index < int(self.hf.get("num_hash_layers", 3))

    def rope(self, build: BuildContext, compressed: bool) -> Tensor:
        """Blocks with a window only turn by `rope_theta`; the others by their own theta, stretched,
        and without the factor that YaRN would scale cosines with."""
        hf = self.hf
        if not compressed:
            return cos_sin_table(build, float(hf.rope_theta), self.rope_size, None)
        nested = (hf.get("rope_parameters") or {}).get("compress")
        theta = hf.compress_rope_theta if nested is None else nested["rope_theta"]
        scaling = hf.rope_scaling if nested is None else dict(nested)
        if scaling is not None:
            scaling = {**scaling, "attention_factor": scaling.get("attention_factor") or 1.0}
        return cos_sin_table(build, float(theta), self.rope_size, scaling)

    def attention(self, build: BuildContext, index: int) -> dict[str, Any]:
        """Arguments of `V4Attention`."""
        hf, kind = self.hf, self.kind(index)
        indexed = kind == OVERLAPPING
        return {
            "hidden_size": hf.hidden_size,
            "num_heads": hf.num_attention_heads,
            "head_dim": hf.head_dim,
            "q_rank": hf.positive_int("q_lora_rank"),
            "o_rank": hf.positive_int("o_lora_rank"),
            "o_groups": hf.positive_int("o_groups"),
            "window": hf.positive_int("sliding_window"),
            "eps": hf.rms_norm_eps,
            "cos_sin": self.rope(build, kind != WINDOW_ONLY),
            "ratio": 0 if kind == WINDOW_ONLY else self.ratios[index],
            "index_heads": hf.positive_int("index_n_heads") if indexed else 0,
            "index_dim": hf.positive_int("index_head_dim") if indexed else 0,
            "index_topk": hf.positive_int("index_topk") if indexed else 0,
        }

    def moe(self, build: BuildContext, index: int) -> V4MoE:
        hf, limit = self.hf, self.swiglu_limit
        size = hf.positive_int("moe_intermediate_size")
        experts = FusedMoE(
            build,
            hidden_size=hf.hidden_size,
            intermediate_size=size,
            num_experts=hf.positive_int("n_routed_experts"),
            top_k=hf.positive_int("num_experts_per_tok"),
            routing=Routing(
                scoring="sqrt_softplus", renormalize=True, scale=float(hf.routed_scaling_factor)
            ),
            act=GatedActivation("silu", limit),
        )
        wide = size * hf.positive_int("n_shared_experts")
        shared = ClampedMLP(build, hf.hidden_size, wide, limit)
        return V4MoE(build, experts, shared, hf.vocab_size if self.is_hashed(index) else 0)

    def hyper(self, build: BuildContext, *, head: bool = False) -> tuple[HyperConnection, RMSNorm]:
        """What mixes the streams before a layer or the head, and the norm of the layer's input."""
        hf = self.hf
        norm = RMSNorm(build, hf.hidden_size, hf.rms_norm_eps)
        mix = HyperConnection(
            build,
            norm,
            self.num_streams,
            eps=float(hf.hc_eps),
            iterations=hf.positive_int("hc_sinkhorn_iters"),
            head=head,
        )
        return mix, norm

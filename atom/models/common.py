"""The decoder that most families share: pre-norm blocks of attention and a feed-forward layer.

A family is a subclass of `CausalLM` that says how one block is made, and which names differ.
Hidden states are [T, H]; the residual stream is kept apart and added inside the norms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from atom.errors import ModelError
from atom.layers.activation import SiluAndMul
from atom.layers.attention import Attention
from atom.layers.build import BuildContext
from atom.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from atom.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from atom.layers.mixer import Mixer
from atom.layers.norm import RMSNorm
from atom.layers.projection_norm import ProjectionNorm
from atom.layers.rotary import RotaryEmbedding
from atom.layers.rows import SampledRows
from atom.layers.weights import Layer

if TYPE_CHECKING:
    from atom.models.hf_config import HFConfig


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions; optional biases, q/k norms (per head, or with
    `whole_norm` over all heads at once) and sinks. `rotary_factor`: share of a head's channels that
    is rotated, where the config's own key does not say it."""

    def __init__(
        self,
        config: HFConfig,
        build: BuildContext,
        *,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm: bool = False,
        whole_norm: bool = False,
        sinks: bool = False,
        window: int = 0,
        rotary_factor: float | None = None,
    ) -> None:
        super().__init__()
        heads, dim = config.num_attention_heads, config.head_dim
        self.qkv_proj = QKVParallelLinear(
            build, config.hidden_size, dim, heads, config.num_key_value_heads, qkv_bias
        )
        self.o_proj = RowParallelLinear(build, heads * dim, config.hidden_size, o_bias)
        if qk_norm:
            self.q_norm = RMSNorm(build, dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(build, dim, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(
            build,
            dim,
            base=config.rope_theta,
            scaling=config.rope_scaling,
            partial_factor=rotary_factor or config.partial_rotary_factor,
            trained_length=config.max_position_embeddings,
        )
        q_heads, kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.attn = Attention(
            build,
            q_heads,
            kv_heads,
            dim,
            rotary=self.rotary,
            norms=(self.q_norm, self.k_norm) if qk_norm else None,
            window=window,
            sinks=sinks,
        )
        self.whole_norm: ProjectionNorm | None = None
        if whole_norm:
            self.whole_norm = ProjectionNorm(
                build, heads, config.num_key_value_heads, dim, config.rms_norm_eps
            )
        self.rows: SampledRows | None = None  # of the last block only
        self._heads = (-1, q_heads + 2 * kv_heads, dim)
        self._flat = (-1, q_heads * dim)

    def forward(
        self, positions: Tensor, norm: RMSNorm, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        qkv, residual = self.qkv_proj.after_norm(norm, x, residual)
        if self.whole_norm is not None:
            qkv = self.whole_norm(qkv)
        out = self.attn(qkv.view(self._heads), positions).view(self._flat)
        if self.rows is not None:
            out, residual = self.rows(out, residual)
        return self.o_proj(out), residual

    __call__ = forward


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(
        self,
        config: HFConfig,
        build: BuildContext,
        size: int,
        bias: bool = False,
        reduce: bool = True,
    ) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            build, config.hidden_size, {"gate_proj": size, "up_proj": size}, bias
        )
        self.down_proj = RowParallelLinear(build, size, config.hidden_size, bias, reduce)
        local = size // build.parallel.tp_size
        self.act = SiluAndMul(build, local)

    def forward(self, norm: RMSNorm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden, residual = self.gate_up_proj.after_norm_gated(norm, self.act, x, residual)
        return self.down_proj(hidden), residual

    __call__ = forward


class MLP(GatedMLP):
    """x [T, K] -> [T, K]: a gated MLP that gets its input normed, as an expert that all tokens
    share. Without `reduce`, the rank's part of the sum."""

    def __init__(
        self, config: HFConfig, build: BuildContext, size: int, *, reduce: bool = True
    ) -> None:
        super().__init__(config, build, size, reduce=reduce)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.down_proj(self.act(self.gate_up_proj(x)))

    __call__ = forward  # type: ignore[assignment]


class DecoderLayer(nn.Module):
    """One block. The first one gets no residual: its input is the residual.

    Each half takes the norm before it, so that a backend may fuse the norm with what follows.
    `attn` is a module (positions, norm, x, residual) -> (out, residual), and hangs here under
    `attn_name`; `norm_offset` as of `RMSNorm`.
    """

    def __init__(
        self,
        config: HFConfig,
        build: BuildContext,
        attn: nn.Module,
        mlp: nn.Module,
        *,
        attn_name: str = "self_attn",
        norm_offset: float = 0.0,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(build, size, eps, norm_offset)
        self.add_module(attn_name, attn)
        self._attn_name = attn_name
        self.post_attention_layernorm = RMSNorm(build, size, eps, norm_offset)
        self.mlp = mlp
        self.rows: SampledRows | None = None  # where attention does not select them itself

    def select_rows(self, rows: SampledRows) -> None:
        """Compute only the rows that are sampled, from this block's attention on."""
        attn = getattr(self, self._attn_name)
        if hasattr(attn, "rows"):
            attn.rows = rows
        else:
            self.rows = rows

    def forward(
        self, positions: Tensor, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        attn = getattr(self, self._attn_name)
        x, residual = attn(positions, self.input_layernorm, x, residual)
        assert residual is not None
        if self.rows is not None:
            x, residual = self.rows(x, residual)
        out: tuple[Tensor, Tensor] = self.mlp(self.post_attention_layernorm, x, residual)
        return out

    __call__ = forward


class Decoder(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(
        self,
        config: HFConfig,
        build: BuildContext,
        layers: list[DecoderLayer],
        tied: bool,
        norm_offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(
            build, config.vocab_size, config.hidden_size, tied
        )
        self.layers = nn.ModuleList(layers)
        if build.selects_rows:
            layers[-1].select_rows(SampledRows(build))
        self.norm = RMSNorm(build, config.hidden_size, config.rms_norm_eps, norm_offset)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        x, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            x, residual = layer(positions, x, residual)
        assert residual is not None, "a decoder has layers"
        return self.norm.add(x, residual)[0]

    __call__ = forward


class CausalLM(nn.Module):
    """A language model. Subclasses give `make_layer`."""

    # (checkpoint's spelling, ours), applied to every tensor name as a replacement, in this order.
    weight_map: tuple[tuple[str, str], ...] = ()
    # Tensors of some checkpoints that hold nothing to be loaded, by the end of their name.
    ignored_weights: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)
    # Parts of a checkpoint that this model leaves out on purpose, by the beginning of their names:
    # towers of other modalities.
    skipped_weights: ClassVar[tuple[str, ...]] = ()
    # Methods of `quantization_config` whose weights this model reads.
    quantisations: ClassVar[tuple[str, ...]] = ()
    # Weights of RMS norms are this much more than the checkpoint says.
    norm_offset: ClassVar[float] = 0.0

    def __init__(self, config: HFConfig, build: BuildContext) -> None:
        super().__init__()
        check_config(config)
        self.selects_rows = build.selects_rows
        self.mtp_prefixes = () if build.mtp else self.mtp_weights(config)
        tied = config.tie_word_embeddings
        layers = [self.make_layer(config, build, i) for i in range(config.num_hidden_layers)]
        self.model = Decoder(config, build, layers, tied, self.norm_offset)
        self.lm_head = ParallelLMHead(
            build,
            config.vocab_size,
            config.hidden_size,
            tied_to=self.model.embed_tokens if tied else None,
        )
        self.mtp = self.make_mtp(config, build) if build.mtp else None

    def make_layer(self, config: HFConfig, build: BuildContext, index: int) -> DecoderLayer:
        raise NotImplementedError

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """input_ids, positions [T] int64 -> hidden [T, H], within a forward context; [L, H] where
        that names L rows and the model was built to select them."""
        return self.model(input_ids, positions)

    __call__ = forward

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[L, H] -> [L, vocab_size] float32, the whole vocabulary on every rank."""
        return self.lm_head(hidden)

    @classmethod
    def mtp_weights(cls, config: HFConfig) -> tuple[str, ...]:
        """Beginnings of the names of multi-token-prediction tensors, in the checkpoint's own
        spelling; they are skipped unless they are asked for."""
        return ()

    def make_mtp(self, config: HFConfig, build: BuildContext) -> nn.Module:
        """The layer that those weights are for, called last: see `atom.models.mtp`."""
        raise ModelError(f"{config.where}: {config.architecture} has no MTP layer: load it without")

    @classmethod
    def block_multiple(cls, config: HFConfig) -> int:
        """Tokens of a KV block must be a multiple of this."""
        return 1

    def attention_layers(self) -> list[Attention]:
        """Plain attention, in order of depth."""
        return [module for module in self.modules() if isinstance(module, Attention)]

    def cache_layers(self) -> list[Attention | Mixer]:
        """In order of depth; the runner gives each its caches."""
        return [module for module in self.modules() if isinstance(module, (Attention, Mixer))]

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights hold on the device."""
        return sum(m.weight_bytes for m in self.modules() if isinstance(m, Layer))


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def check_config(config: HFConfig) -> None:
    """What every family needs, before anything is built; raises `ModelError`."""
    for name in SIZES:
        config.positive_int(name)
    eps, window = config.rms_norm_eps, config.get("sliding_window")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ModelError(f"{config.where}: rms_norm_eps must be between 0 and 1, got {eps!r}")
    if window is not None and (not isinstance(window, int) or window < 0):
        raise ModelError(f"{config.where}: sliding_window must be a count, got {window!r}")
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise ModelError(f"{config.where}: hidden_act {act!r} is not supported; supported: silu")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise ModelError(
            f"{config.where}: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )


def layer_window(config: HFConfig, index: int) -> int:
    """Keys that block `index` sees; 0: all. `layer_types` decides where the config has it."""
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    if not window or (kinds and kinds[index] != "sliding_attention"):
        return 0
    return int(window)

"""Random parameters for tiny checkpoints, and their tensors under published names, for `hub`.

Values depend on the seed and the parameter's name only, and are bfloat16's.
"""

from __future__ import annotations

import math
import re
import zlib

# save_pretrained undoes transformers' load-time renames imperfectly for these: finish the job.
HUB_RENAMES = {
    "deepseek_v4": [
        (r"^model\.", ""),
        (r"^embed_tokens\.", "embed."),
        (r"^hc_head\.hc_", "hc_head_"),
        (r"\.attn\.norm\.", ".attn.kv_norm."),
    ],
    "kimi_k25": [
        (r"^language_model\.model\.blocks\.", "language_model.model.layers."),
        (r"^model\.mm_projector\.", "mm_projector."),
        (r"^vision_tower\.encoder\.patch_embed\.", "vision_tower.patch_embed."),
    ],
}
V4_LAYER_NAMES = [  # transformers name of a decoder layer's parameter -> DeepSeek's own
    (r"^self_attn\.", "attn."),
    (r"^mlp\.", "ffn."),
    (r"^input_layernorm\.", "attn_norm."),
    (r"^post_attention_layernorm\.", "ffn_norm."),
    (r"^(attn|ffn)_hc\.(\w+)$", r"hc_\1_\2"),
    (r"\.sinks$", ".attn_sink"),
    (r"\.q_a_proj\.", ".wq_a."),
    (r"\.q_b_proj\.", ".wq_b."),
    (r"\.kv_proj\.", ".wkv."),
    (r"\.q_a_norm\.", ".q_norm."),
    (r"\.o_a_proj\.", ".wo_a."),
    (r"\.o_b_proj\.", ".wo_b."),
    (r"\.gate\.e_score_correction_bias$", ".gate.bias"),
    (r"\.shared_experts\.gate_proj\.", ".shared_experts.w1."),
    (r"\.shared_experts\.up_proj\.", ".shared_experts.w3."),
    (r"\.shared_experts\.down_proj\.", ".shared_experts.w2."),
]
# Published with the experts of one layer stacked in one tensor (the MTP layer's are not).
FUSED_EXPERTS = {"qwen3_5_moe"}

# Tensors that published checkpoints keep in float32 whatever the rest is stored in.
KEEP_F32 = re.compile(
    r"e_score_correction_bias|\.gate\.bias$|A_log|attn_sink|hc_|\.ape$|linear_attn\.norm\.weight"
)


def generator(torch, name: str, seed: int):
    return torch.Generator().manual_seed(
        (zlib.crc32(name.encode()) ^ (seed * 2654435761)) & 0x7FFFFFFF
    )


def randomize(torch, module, prefix: str, seed: int, n_experts: int, tied: bool = False) -> None:
    """Fill every parameter and persistent buffer of `module` in place."""
    nonpersistent = {
        (f"{mn}." if mn else "") + bn
        for mn, m in module.named_modules()
        for bn in m._non_persistent_buffers_set
    }
    named = list(module.named_parameters()) + [
        (n, b) for n, b in module.named_buffers() if n not in nonpersistent
    ]
    for name, p in named:
        g = generator(torch, prefix + name, seed)
        shape = tuple(p.shape)

        def normal(std, mean=0.0, shape=shape, g=g):
            return torch.randn(shape, generator=g) * std + mean

        leaf = name.rsplit(".", 1)[-1]
        if not p.is_floating_point():  # DeepSeek V4's token-to-expert table
            rows = torch.rand((shape[0], n_experts), generator=g).argsort(dim=-1)[:, : shape[1]]
            value = rows.to(p.dtype)
        elif (
            leaf == "A_log"
        ):  # slow decay, so that the recurrent state matters over the whole prompt
            value = torch.log(torch.rand(shape, generator=g) * 0.9 + 0.05)
        elif leaf == "dt_bias":
            value = normal(0.5, -1.0)
        elif leaf == "sinks":
            value = normal(1.0)
        elif leaf == "e_score_correction_bias":
            value = normal(0.15)
        elif leaf in ("scale", "hc_scale"):
            value = normal(0.1, 0.5)
        elif leaf in ("base", "hc_base", "position_bias"):
            value = normal(0.5)
        elif leaf.endswith("bias"):
            value = normal(0.1)
        elif p.ndim == 1:  # norms: ones, or zeros where the class computes (1 + w)
            base = 0.0 if float(p.detach().float().abs().max()) == 0.0 else 1.0
            value = normal(0.2, base)
        elif "conv1d" in name:
            value = normal(shape[-1] ** -0.5)
        elif "embed_tokens" in name:
            value = normal(3.0 * shape[-1] ** -0.5 if tied else 1.0)
        elif "lm_head" in name:
            value = normal(3.0 * shape[-1] ** -0.5)
        elif name.endswith(("mlp.gate.weight", "mlp.router.weight")):
            value = normal(2.0 * shape[-1] ** -0.5)
        else:
            fan_in = math.prod(shape[1:]) if p.ndim > 3 else shape[-1]
            if (
                p.ndim == 3
                and "experts" in name
                and leaf.endswith("_proj")
                and "GptOss" in type(module).__name__
            ):
                fan_in = shape[-2]  # GPT-OSS experts are stored [E, in, out]
            value = normal(fan_in**-0.5)
        with torch.no_grad():
            p.copy_(value.to(torch.bfloat16).to(p.dtype) if p.is_floating_point() else value)


def rename(name: str, rules) -> str:
    for pattern, repl in rules:
        name = re.sub(pattern, repl, name)
    return name


def split_experts(name, v, w=("gate_proj", "up_proj", "down_proj")):
    """Stacked [E, 2I, H] / [E, H, I] experts as one tensor per expert; anything else unchanged."""
    stem, _, leaf = name.rpartition(".")
    if stem.endswith("experts") and leaf == "gate_up_proj":
        half = v.shape[1] // 2
        for e in range(v.shape[0]):
            yield f"{stem}.{e}.{w[0]}.weight", v[e, :half]
            yield f"{stem}.{e}.{w[1]}.weight", v[e, half:]
    elif stem.endswith("experts") and leaf == "down_proj":
        for e in range(v.shape[0]):
            yield f"{stem}.{e}.{w[2]}.weight", v[e]
    else:
        yield name, v


def fuse_experts(torch, tensors: dict) -> dict:
    out, groups = {}, {}
    for name, v in tensors.items():
        m = re.match(r"^(model\..*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$", name)
        if m:
            groups.setdefault(m[1], {})[(int(m[2]), m[3])] = v
        else:
            out[name] = v
    for stem, g in groups.items():
        n = 1 + max(e for e, _ in g)
        out[stem + ".gate_up_proj"] = torch.stack(
            [torch.cat([g[e, "gate"], g[e, "up"]]) for e in range(n)]
        )
        out[stem + ".down_proj"] = torch.stack([g[e, "down"] for e in range(n)])
    return out

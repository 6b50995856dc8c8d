"""Multi-token-prediction layers for tiny checkpoints, of the family's own decoder layer."""

from __future__ import annotations

import copy

from hub_weights import V4_LAYER_NAMES, randomize, rename, split_experts


class Mtp:
    """One multi-token-prediction layer, built from the target's own decoder layer.

    Input at slot i: the target's hidden state at position i (after its final norm), and the
    embedding of token i + 1. Output at slot i: logits for token i + 2. The rotary position of slot
    i is i (shifting all gives the same result). Embedding and head are the target's.
    """

    def __init__(self, torch, model, style: str):
        self.torch, self.style = torch, style
        base = model.model.language_model if hasattr(model.model, "language_model") else model.model
        self.base, self.head, self.cfg = base, model.lm_head, base.config
        layer_cls = type(base.layers[-1])
        cfg = copy.deepcopy(base.config)
        self.idx = len(base.layers)
        cfg.num_hidden_layers = self.idx + 1
        if getattr(cfg, "layer_types", None):
            kind = {"qwen": "full_attention", "v4": "sliding_attention"}.get(
                style, cfg.layer_types[-1]
            )
            cfg.layer_types = [*list(cfg.layer_types), kind]
        if getattr(cfg, "mlp_layer_types", None):
            cfg.mlp_layer_types = [*list(cfg.mlp_layer_types), "moe" if style == "v4" else "sparse"]
        if getattr(cfg, "indexer_types", None):
            cfg.indexer_types = [*list(cfg.indexer_types), "full"]
        norm_cls = type(base.norm)
        h, eps = cfg.hidden_size, cfg.rms_norm_eps
        self.layer = layer_cls(cfg, self.idx).eval().float()
        self.enorm, self.hnorm, self.norm = (norm_cls(h, eps=eps).eval().float() for _ in range(3))
        self.parts = ["layer", "enorm", "hnorm", "norm"]
        if style == "v4":
            self.e_proj, self.h_proj = (torch.nn.Linear(h, h, bias=False) for _ in range(2))
            self.hc_head = type(base.hc_head)(cfg).eval().float()
            self.parts += ["e_proj", "h_proj", "hc_head"]
        else:
            self.proj = torch.nn.Linear(2 * h, h, bias=False)
            self.parts += ["proj"]

    def randomize(self, seed: int, n_experts: int) -> None:
        for part in self.parts:
            randomize(self.torch, getattr(self, part), f"mtp.{part}.", seed, n_experts)

    def state_dict(self) -> dict:
        """Hub names, one tensor per expert."""
        names = {k: k for k in self.parts if k not in ("layer", "hc_head")}
        w = ("gate_proj", "up_proj", "down_proj")
        if self.style == "qwen":
            pre = "mtp.layers.0."
            names = {
                "enorm": "mtp.pre_fc_norm_embedding",
                "hnorm": "mtp.pre_fc_norm_hidden",
                "norm": "mtp.norm",
                "proj": "mtp.fc",
            }
        elif self.style == "v4":
            pre, w = "mtp.0.", ("w1", "w3", "w2")
            names = {k: pre + k for k in names}
        else:
            pre = f"model.layers.{self.idx}."
            names = {
                "enorm": pre + "enorm",
                "hnorm": pre + "hnorm",
                "norm": pre + "shared_head.norm",
                "proj": pre + "eh_proj",
            }
        out = {f"{names[k]}.weight": getattr(self, k).weight.detach() for k in names}
        for k, v in self.layer.state_dict().items():
            if self.style == "v4":
                k = rename(k, V4_LAYER_NAMES)
            for name, part in split_experts(pre + k, v.detach(), w):
                out[name] = part
        if (
            self.style == "nextn"
        ):  # published NextN layers carry copies of the embedding and the head
            out[pre + "embed_tokens.weight"] = self.base.embed_tokens.weight.detach()
            out[pre + "shared_head.head.weight"] = self.head.weight.detach()
        if self.style == "v4":
            for k, v in self.hc_head.state_dict().items():
                out[f"{pre}hc_head_{k.removeprefix('hc_')}"] = v.detach()
        return out

    def logits(self, hidden, ids):
        """`hidden`: [1, T, H] after the final norm; for V4 [1, T, hc, H], the streams before the
        head's collapse."""
        torch = self.torch
        prev, nxt = hidden[:, :-1], ids[:, 1:]
        embeds = self.enorm(self.base.embed_tokens(nxt))
        t = nxt.shape[1]
        pos = torch.arange(t).unsqueeze(0)
        dist = pos[0][:, None] - pos[0][None, :]
        blocked = dist < 0
        kw: dict = {"position_ids": pos, "past_key_values": None}
        if self.style == "v4":
            x = self.e_proj(embeds).unsqueeze(2) + self.h_proj(self.hnorm(prev))
            blocked |= dist >= self.cfg.sliding_window
            kw["position_embeddings"] = {
                k: self.base.rotary_emb(embeds, position_ids=pos, layer_type=k)
                for k in ("main", "compress")
            }
            kw["input_ids"] = nxt
        else:
            x = self.proj(torch.cat([embeds, self.hnorm(prev)], dim=-1))
            mrope = "mrope_section" in (getattr(self.cfg, "rope_parameters", None) or {})
            kw["position_embeddings"] = self.base.rotary_emb(
                x, pos[None].expand(3, 1, t) if mrope else pos
            )
        mask = torch.zeros(t, t).masked_fill(blocked, torch.finfo(torch.float32).min)
        out = self.layer(x, attention_mask=mask[None, None], **kw)
        out = out[0] if isinstance(out, tuple) else out
        if self.style == "v4":
            out = self.hc_head(out)
        return self.head(self.norm(out))

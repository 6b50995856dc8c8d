"""Tiny random checkpoints of every family as a hub would hold them, with what transformers says.

A checkpoint's folder has `reference.safetensors`: `input_ids` [T], `greedy_ids` [N] and, of both
one after the other, `logits` [T + N, V] and, where the family has such a layer, `mtp_logits`
[T + N - 1, V]: row i predicts token i + 2 from the target at i and the embedding of token i + 1.
All are float32, of exactly the stored values. Every parameter is random: transformers' own
initialisation has ones and zeros that would hide an engine that skips them.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from hub_mtp import Mtp
from hub_weights import (
    FUSED_EXPERTS,
    HUB_RENAMES,
    KEEP_F32,
    fuse_experts,
    generator,
    randomize,
    rename,
)
from safetensors.torch import load_file, save_file
from tiny import BOS, EOS, PAD, write_tokenizer

_DATA = json.loads(Path(__file__).with_name("hub_families.json").read_text())
# name -> {config_class, model_class (of transformers), mtp (style or None), config (hub style)}
FAMILIES: dict[str, dict[str, Any]] = _DATA


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    text: dict[str, Any] = config.get("text_config", config)
    return text


def write_weights(torch, out: Path, tensors: dict, dtype: str, shards: int) -> None:
    from safetensors.torch import save_file

    target = getattr(torch, dtype)
    final = {}
    for name in sorted(tensors):
        v = tensors[name]
        if v.is_floating_point():
            v = v.to(torch.float32 if KEEP_F32.search(name) else target)
        final[name] = v.contiguous().clone()
    names = list(final)
    shards = max(1, min(shards, len(names)))
    weight_map, total = {}, 0
    for s in range(shards):
        part = names[s::shards]
        file = (
            f"model-{s + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        )
        save_file({n: final[n] for n in part}, str(out / file), metadata={"format": "pt"})
        for n in part:
            weight_map[n] = file
            total += final[n].numel() * final[n].element_size()
    if shards > 1:
        (out / "model.safetensors.index.json").write_text(
            json.dumps(
                {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
                indent=2,
            )
            + "\n"
        )


def hf_kwargs(cfg: dict) -> dict:
    drop = {"architectures", "model_type", "torch_dtype", "dtype", "auto_map"}
    kw = {k: copy.deepcopy(v) for k, v in cfg.items() if k not in drop}
    if "rotary_dim" in kw:  # transformers 5.17 does not read MiniMax's rotary_dim
        kw["partial_rotary_factor"] = kw["rotary_dim"] / kw["head_dim"]
    if "text_config" in kw:  # nested dicts keep their model_type, that is how the class is found
        kw["text_config"] = {
            k: v
            for k, v in kw["text_config"].items()
            if k not in ("torch_dtype", "dtype", "architectures")
        }
    return kw


def make_hub(
    name: str,
    out: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 2,
    new_tokens: int = 32,
    split: bool = False,
    **overrides: Any,
) -> Path:
    """A checkpoint of family `name` with its reference in `out`. `overrides` replace keys of the
    text model's config; `split`: one tensor an expert where the family stacks them."""
    import transformers

    family = FAMILIES[name]
    mtp_style, cfg = family["mtp"], copy.deepcopy(family["config"])
    text_config(cfg).update(overrides)
    tcfg = text_config(cfg)
    experts = (
        tcfg.get("n_routed_experts") or tcfg.get("num_experts") or tcfg.get("num_local_experts")
    )
    config = getattr(transformers, family["config_class"])(**hf_kwargs(cfg))
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = (
        getattr(transformers, family["model_class"])
        ._from_config(config, dtype=torch.float32)
        .eval()
    )
    randomize(torch, model, "", seed, experts or 1, tied=bool(cfg.get("tie_word_embeddings")))
    model.tie_weights()
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(out / ".hf"))
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted((out / ".hf").glob("*.safetensors")):
        tensors.update(load_file(str(file)))
    shutil.rmtree(out / ".hf")
    if name in HUB_RENAMES:
        tensors = {rename(k, HUB_RENAMES[name]): v for k, v in tensors.items()}
    if name in FUSED_EXPERTS and not split:
        tensors = fuse_experts(torch, tensors)
    mtp = None
    if mtp_style:
        mtp = Mtp(torch, model, mtp_style)
        mtp.randomize(seed, experts or 1)
        tensors.update(mtp.state_dict())
    write_weights(torch, out, tensors, dtype, shards)
    for held in (cfg, text_config(cfg)):
        for key in ("torch_dtype", "dtype"):
            if key in held:
                held[key] = dtype
    (out / "config.json").write_text(json.dumps(cfg, indent=2))
    generation = {"bos_token_id": BOS, "eos_token_id": [EOS], "pad_token_id": PAD}
    (out / "generation_config.json").write_text(json.dumps(generation))
    write_tokenizer(out)
    save_file(_reference(name, model, mtp, seed, new_tokens), str(out / "reference.safetensors"))
    return out


def _reference(name: str, model: Any, mtp: Any, seed: int, new_tokens: int) -> dict[str, Any]:
    length = 280 if name == "deepseek_v4" else 80
    ids = torch.randint(0, 256, (1, length), generator=generator(torch, "prompt", seed))
    ids[0, 0] = BOS
    streams: list[Any] = []
    with torch.no_grad():
        full = model.generate(
            ids,
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=PAD,
            attention_mask=torch.ones_like(ids),
            use_mtp=False,
        )
        hook = None
        if mtp is not None and mtp.style == "v4":
            hook = model.model.hc_head.register_forward_pre_hook(lambda _, a: streams.append(a[0]))
        result = model(input_ids=full, output_hidden_states=True, use_cache=False)
        if hook is not None:
            hook.remove()
        reference = {
            "input_ids": ids[0].contiguous(),
            "greedy_ids": full[0, length:].contiguous(),
            "logits": result.logits[0].float().contiguous(),
        }
        if mtp is not None:
            hidden = streams[0] if streams else result.hidden_states[-1]
            reference["mtp_logits"] = mtp.logits(hidden, full)[0].float().contiguous()
    return reference


_folders: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def hub_checkpoint(name: str, **overrides: Any) -> Path:
    """`make_hub(name)`, made once per process; do not write there."""
    folder = tempfile.TemporaryDirectory(prefix=f"atom-hub-{name}-")
    _folders.append(folder)
    return make_hub(name, Path(folder.name), **overrides)


@functools.cache
def hub_reference(path: Path) -> dict[str, torch.Tensor]:
    return load_file(str(path / "reference.safetensors"))

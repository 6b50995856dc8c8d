"""GPT-OSS with experts in MXFP4, and the same model with dense experts of the same values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from hub import hub_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

EXPERTS = ("gate_up_proj", "down_proj")


def mxfp4_pair(out: Path, **overrides: Any) -> tuple[Path, Path]:
    """(packed, dense) checkpoints: of every expert's codes all sixteen occur."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    source = hub_checkpoint("gpt_oss", **overrides)
    tensors: dict[str, Tensor] = {}
    for file in sorted(source.glob("model*.safetensors")):
        tensors |= load_file(file)
    packed, dense = dict(tensors), dict(tensors)
    generator = torch.Generator().manual_seed(0)
    for name in [n for n in tensors if n.endswith(EXPERTS)]:
        experts, width, rows = tensors[name].shape  # input-major
        shape = (experts, rows, width // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(119, 124, shape, dtype=torch.uint8, generator=generator)
        del packed[name]
        packed[f"{name}_blocks"], packed[f"{name}_scales"] = blocks, scales
        converted = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert converted.shape == tensors[name].shape
        dense[name] = converted.contiguous()
    config = json.loads((source / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": "mxfp4"}}
    folders = out / "packed", out / "dense"
    for folder, weights, said in zip(folders, (packed, dense), (quantised, config), strict=True):
        ignored = shutil.ignore_patterns("*.safetensors*", "config.json")
        shutil.copytree(source, folder, ignore=ignored)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(said))
    return folders

"""Small GGUF files for tests, written by the format's own package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

LLAMA = {"hidden": 64, "ffn": 96, "layers": 2, "heads": 4, "kv_heads": 2, "context": 128}


def write_gguf(
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType]],
    arch: str = "llama",
) -> Path:
    """`tensors`: name -> (bytes [..., row_bytes] uint8 or floats, type)."""
    writer = gguf.GGUFWriter(str(path), arch)
    for key, value in metadata.items():
        add_value(writer, key, value)
    for name, (data, qtype) in tensors.items():
        plain = qtype in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
        writer.add_tensor(name, data, raw_dtype=None if plain else qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def llama_metadata(**more: Any) -> dict[str, Any]:
    return {
        "llama.block_count": LLAMA["layers"],
        "llama.context_length": LLAMA["context"],
        "llama.embedding_length": LLAMA["hidden"],
        "llama.feed_forward_length": LLAMA["ffn"],
        "llama.attention.head_count": LLAMA["heads"],
        "llama.attention.head_count_kv": LLAMA["kv_heads"],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        **more,
    }


def embedding(rows: int = 300) -> dict[str, tuple[np.ndarray, GGMLQuantizationType]]:
    values = np.arange(rows * LLAMA["hidden"], dtype=np.float32).reshape(rows, -1)
    return {"token_embd.weight": (values, GGMLQuantizationType.F32)}

"""What decides compiled code besides the graph: versions, device, our own source, settings."""

from __future__ import annotations

import hashlib
import platform
import sys
from functools import cache
from pathlib import Path

import torch

import atom
from atom._version import __version__
from atom.engine.compiler.inductor import settings_digest
from atom.ops.cpu.build import cpu_features

# Whose source may change what is traced; how a graph becomes code is this package's alone.
TRACED = ("ops", "layers", "models", "parallel", "engine/compiler")
COMPILING = ("engine/compiler",)


def digest(device: torch.device, max_tokens: int) -> str:
    """Of what decides the code of a piece, its graph apart."""
    facts = [
        __version__,
        torch.__version__,
        torch.version.git_version,
        sys.version,
        platform.machine(),
        str(max_tokens),
        *_device_facts(device),
        settings_digest(),
        source_digest(COMPILING),
    ]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def _device_facts(device: torch.device) -> list[str]:
    if device.type == "cpu":
        return ["cpu", *sorted(cpu_features())]
    import triton

    properties = torch.cuda.get_device_properties(device)
    return [
        str(device),
        properties.name,
        f"{properties.major}.{properties.minor}",
        str(properties.multi_processor_count),
        str(torch.version.cuda or torch.version.hip),
        str(triton.__version__),
    ]


@cache
def source_digest(folders: tuple[str, ...] = TRACED) -> str:
    root = Path(atom.__file__).parent
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()

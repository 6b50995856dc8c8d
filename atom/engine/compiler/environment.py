"""What decides compiled code besides the graph: versions, the device, our own source.

Inductor's settings do as well. They are added where a piece is looked up (`inductor`): a forward
without compiled pieces starts without importing the compiler, which takes seconds.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from functools import cache
from pathlib import Path

import torch

import atom
from atom._version import __version__
from atom.ops.cpu.build import cpu_features

# Whose source may change what is traced; how a graph becomes code is this package's alone.
TRACED = (
    "ops",
    "layers",
    "models",
    "parallel",
    "engine/compiler",
    "engine/marks.py",
    "engine/module_marks.py",
)
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
        source_digest(COMPILING),
    ]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def _device_facts(device: torch.device) -> list[str]:
    if device.type == "cpu":
        # Inductor writes the number of threads into its loops.
        used = (torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads()))
        return ["cpu", *sorted(cpu_features()), *used]
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
        for path in sorted((root / folder).rglob("*.py")) or [root / folder]:
            found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()

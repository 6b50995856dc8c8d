"""atom: from a recipe file to a measured, profiled, verified deployment of a language model.

Importing this package imports neither torch nor the engine; `atom.LLM` does, on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atom._version import __version__

if TYPE_CHECKING:
    from atom.engine.llm import LLM
    from atom.engine.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__"]

_LAZY = {"LLM": "atom.engine.llm", "SamplingParams": "atom.engine.sampling_params"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'atom' has no attribute {name!r}")

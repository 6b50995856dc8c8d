"""What the commands share: where they print, how a target is read."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from atom.config import Resolved, resolve_with_sources
from atom.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """A rich console for people. Piped output is not cut at 80 columns."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else max(120, int(os.environ.get("COLUMNS", "0") or 0))
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=not stream.isatty())


def print_json(value: Any) -> None:
    """One JSON document on stdout, for scripts."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def resolve_target(
    target: str | None, flags: Mapping[str, Any], env: Mapping[str, str] = os.environ
) -> Resolved:
    """RECIPE (*.toml), a model, or nothing, under the environment and the flags."""
    from pathlib import Path

    flags = dict(flags)
    recipe = None
    if target is not None and target.endswith(".toml"):
        recipe = Path(target)
    elif target is not None:
        if "model" in flags:
            raise ConfigError(f"two models: {target} and --model {flags['model']}; give one")
        flags["model"] = target
    return resolve_with_sources(recipe, env, flags)

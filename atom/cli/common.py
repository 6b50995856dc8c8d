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
    from rich.table import Table


# Wide enough that nothing is cut or wrapped where a script may read it.
PIPE_COLUMNS = 4096


def console(*, stderr: bool = False) -> Console:
    """A rich console for people; piped, it keeps one row in one line."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else PIPE_COLUMNS, highlight=False)


def table(*columns: str, headers: bool = True) -> Table:
    """Aligned columns without rules; what is too long is folded, never cut."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, show_header=headers, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def add_row(to: Table, *cells: str, style: str = "") -> None:
    """A row of plain text: brackets in a path or a model's name are no markup."""
    from rich.text import Text

    to.add_row(*(Text(cell) for cell in cells), style=style)


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

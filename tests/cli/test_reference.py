"""docs/reference/commands.md is what the commands say."""

from __future__ import annotations

import re
from pathlib import Path

from atom.cli import bench, trace
from atom.cli.main import COMMANDS
from atom.cli.reference import PAGE, page

DOCS = Path(__file__).parents[2] / "docs" / "reference"


def test_the_page_is_up_to_date() -> None:
    written = (DOCS / PAGE).read_text(encoding="utf-8")
    assert written == page(), "run python -m atom.cli.reference"


def test_every_command_and_subcommand_is_on_it() -> None:
    titles = set(re.findall(r"^## atom (.+)$", page(), re.MULTILINE))
    assert {name.split()[0] for name in titles} == set(COMMANDS)
    assert {f"bench {name}" for name in bench.SUBCOMMANDS} <= titles
    assert {f"trace {name}" for name in trace.SUBCOMMANDS} <= titles


def test_settings_are_left_to_their_own_page_and_other_flags_are_not() -> None:
    text = page()
    serve = text.partition("## atom serve")[2].partition("## ")[0]
    assert "--max-model-len" not in serve
    summary = text.partition("## atom trace summary")[2].partition("## ")[0]
    assert "--device auto" in summary

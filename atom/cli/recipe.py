"""`atom recipe check | show | schema`."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from atom.cli.common import add_row, console, print_json, resolve_target, table
from atom.cli.flags import CONTEXT, SettingsCommand, with_settings
from atom.config import Resolved, ResolvedTool, resolve, resolve_tool
from atom.config.fields import (
    NAMED_TABLES,
    TOOLS,
    Setting,
    settings,
    table_settings,
    tool_settings,
    value_of,
)
from atom.config.json_schema import json_schema
from atom.config.resolve import DEFAULT
from atom.config.schema import SECTIONS
from atom.config.serial import public_tree
from atom.errors import AtomError, ConfigError

app = typer.Typer(
    context_settings=CONTEXT,
    add_completion=False,
    no_args_is_help=True,
    help="Check and show recipes; list every setting.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.")],
    as_json: Json = False,
) -> None:
    """Validate recipes; exit code 2 if any is wrong. The environment has no say."""
    readers = {tool: importlib.import_module(f"atom.{tool}.settings").read for tool in TOOLS}
    problems: dict[str, str | None] = {}
    for path in recipes:
        try:
            resolve(path)
            for tool, read in readers.items():
                read(resolve_tool(tool, path))
            problems[str(path)] = None
        except AtomError as error:
            problems[str(path)] = str(error)
    if as_json:
        print_json([{"recipe": p, "ok": e is None, "error": e} for p, e in problems.items()])
    else:
        for path_text, problem in problems.items():
            if problem is None:
                typer.echo(f"{path_text}: ok")
            else:
                sys.stderr.write(f"atom: error: {problem}\n")
    if any(problems.values()):
        raise typer.Exit(ConfigError.exit_code)


@app.command(cls=SettingsCommand)
@with_settings(*SECTIONS)
def show(
    target: Annotated[
        str | None, typer.Argument(metavar="RECIPE|MODEL", help="As for atom serve.")
    ] = None,
    as_json: Json = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Print every resolved setting and where it came from; of the tools', what is not default."""
    resolved = resolve_target(target, flags)
    recipe = Path(target) if target is not None and target.endswith(".toml") else None
    tools = [resolve_tool(tool, recipe, os.environ) for tool in TOOLS]
    if as_json:
        print_json({**_with_sources(resolved), **{t.tool: _tool_with_sources(t) for t in tools}})
        return
    rows = table("setting", "value", "from")
    for setting in settings().values():
        value = setting.show(value_of(resolved.config, setting))
        source = resolved.sources.get(setting.name, DEFAULT)
        style = "dim" if source is DEFAULT else ""
        add_row(rows, setting.key, value, str(source), style=style)
    for tool in tools:
        for name, setting in tool_settings(tool.tool).items():
            if name in tool.sources:
                value = setting.show(value_of(tool.config, setting))
                add_row(rows, setting.key, value, str(tool.sources[name]))
        for table_name, held in tool.tables.items():
            for name, setting in table_settings(tool.tool).items():
                if (where := tool.sources.get(f"{table_name}.{name}")) is not None:
                    key = f"{tool.tool}.{table_name}.{name}"
                    add_row(rows, key, setting.show(getattr(held, name)), str(where))
    console().print(rows)


def _tool_with_sources(tool: ResolvedTool) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, setting in tool_settings(tool.tool).items():
        value = value_of(tool.config, setting)
        shown[name] = _told("***" if setting.secret and value else value, tool, name)
    for table_name, held in tool.tables.items():
        shown[table_name] = {
            name: _told(getattr(held, name), tool, f"{table_name}.{name}")
            for name in table_settings(tool.tool)
        }
    return shown


def _told(value: Any, tool: ResolvedTool, name: str) -> dict[str, Any]:
    source = tool.sources.get(name, DEFAULT)
    return {"value": value, "source": source.kind, "where": source.where or None}


def _with_sources(resolved: Resolved) -> dict[str, Any]:
    tree = public_tree(resolved.config)
    return {
        section: {
            name: {
                "value": value,
                "source": resolved.sources.get(name, DEFAULT).kind,
                "where": resolved.sources.get(name, DEFAULT).where or None,
            }
            for name, value in keys.items()
        }
        for section, keys in tree.items()
    }


@app.command()
def schema(as_json: Json = False) -> None:
    """List every key of a recipe; with --json as a JSON Schema."""
    if as_json:
        print_json(json_schema())
        return
    tables = [(s, [x for x in settings().values() if x.section == s]) for s in SECTIONS]
    for tool in TOOLS:
        tables.append((tool, list(tool_settings(tool).values())))
        if tool in NAMED_TABLES:
            title = f"{tool}.{NAMED_TABLES[tool][0]}"
            tables.append((title, list(table_settings(tool).values())))
    for section, keys in tables:
        rows = table("key", "type", "default", "meaning")
        for setting in keys:
            add_row(rows, *_row(setting))
        out = console()
        out.print(f"\n[bold cyan]\\[{section}][/bold cyan]")
        out.print(rows)


def _row(setting: Setting) -> tuple[str, str, str, str]:
    limits = f" ({setting.limits})" if setting.limits else ""
    return (
        setting.name,
        setting.type_name.replace(" | ", "|") + limits,
        setting.show(setting.default),
        setting.doc,
    )

"""`atom recipe check | show | schema`."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.cli import recipe_plan as plans
from atom.cli.common import add_row, console, print_json, resolve_target, table
from atom.cli.flags import CONTEXT, SettingsCommand, with_settings
from atom.config import Resolved, ResolvedTool, resolve, resolve_tool
from atom.config.fields import (
    NAMED_TABLES,
    RECIPE_ONLY,
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

if TYPE_CHECKING:
    from atom.engine.deployment import DeploymentPlan, Target

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
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Plan for this kind of GPU, not the recipe's.")
    ] = None,
    gpu_memory_gb: Annotated[
        float | None,
        typer.Option("--gpu-memory-gb", help="Plan for GPUs of so many GiB.", min=0.001),
    ] = None,
) -> None:
    """Validate recipes and plan their memory; exit code 2 if one is wrong or does not fit.

    The environment has no say. A recipe whose checkpoint this version cannot load is planned all
    the same, and said to be so.
    """
    target = None
    if gpu is not None or gpu_memory_gb is not None:
        target = plans.make_target(gpu, gpu_memory_gb, "--gpu")
    checked = [_check(path, target) for path in recipes]
    if as_json:
        print_json([found.as_json() for found in checked])
    else:
        for found in checked:
            found.print()
    if not all(found.good for found in checked):
        raise typer.Exit(ConfigError.exit_code)


@dataclass(frozen=True, slots=True)
class Checked:
    """`error`: the recipe is wrong. `no_plan`: why its memory could not be planned."""

    path: Path
    error: str | None = None
    no_plan: str | None = None
    plan: DeploymentPlan | None = None

    @property
    def good(self) -> bool:
        return self.error is None and (self.plan is None or not self.plan.problem)

    def as_json(self) -> dict[str, Any]:
        return {
            "recipe": str(self.path),
            "ok": self.good,
            "error": self.error,
            "no_plan": self.no_plan,
            "plan": None if self.plan is None else plans.as_json(self.plan),
        }

    def print(self) -> None:
        if self.error is not None:
            sys.stderr.write(f"atom: error: {self.error}\n")
        elif self.plan is None:
            typer.echo(f"{self.path}: valid; no plan: {self.no_plan}")
        else:
            typer.echo(f"{self.path}: {plans.verdict(self.plan)}")
            for what, figures in plans.lines(self.plan):
                typer.echo(f"  {what:<8} {figures}")


def _check(path: Path, target: Target | None) -> Checked:
    try:
        resolve(path)
        for tool in TOOLS:
            if tool not in RECIPE_ONLY:
                read = importlib.import_module(f"atom.{tool}.settings").read
                read(resolve_tool(tool, path))
        target = target or plans.recipe_target(path)
    except AtomError as error:
        return Checked(path, error=str(error))
    try:
        model = plans.config_of(path)
    except AtomError as error:  # it is not here, and cannot be asked for
        return Checked(path, no_plan=str(error))
    try:
        return Checked(path, plan=plans.plan_recipe(path, *model, target))
    except AtomError as error:
        return Checked(path, error=f"{path}: {error}")


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

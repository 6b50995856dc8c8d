"""Command-line flags from the schema: one per setting, with its sentence, limits and default.

Flags accept kebab-case and snake_case. Values stay text here; `atom.config.resolve` gives them
types, so that a flag, a variable and a recipe fail with the same words.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from atom.config.fields import Setting, settings, tool_settings

MIN_TABLE_COLUMNS = 116


def context_for(table: Iterable[Setting]) -> dict[str, Any]:
    """Click's context settings of a command whose flags are these settings.

    --max_num_seqs means --max-num-seqs, --block-size means --kv-cache-block-size: further long
    spellings are kept out of the help's narrow first column.
    """
    aliases = {
        alias[2:]: setting.flag[2:]
        for setting in table
        for alias in setting.aliases
        if alias.startswith("--")
    }

    def normalize(name: str) -> str:
        name = name.replace("_", "-")
        return aliases.get(name, name)

    return {"token_normalize_func": normalize, "help_option_names": ["-h", "--help"]}


# Give it to every command that has no settings but the server's.
CONTEXT = context_for(settings().values())


class SettingsCommand(TyperCommand):
    """A command with many long flags: on a narrow terminal the table would cut their names."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if shutil.get_terminal_size().columns < MIN_TABLE_COLUMNS:
            self.rich_markup_mode = None
        super().format_help(ctx, formatter)


def collects(
    parameters: Sequence[inspect.Parameter], into: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options; it receives those that were given as the dict `into`."""
    names = [p.name for p in parameters]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(function, eval_str=True).parameters.values()
            if p.name != into
        ]

        def command(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            kept = {name: value for name, value in given.items() if value not in (None, [], ())}
            function(**values, **{into: kept})

        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]
        return command

    return decorate


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of these sections; it receives those given as `flags`, by name."""
    chosen = [s for s in settings().values() if s.section in names]
    return collects([_parameter(s) for s in chosen], into="flags")


def with_tool(tool: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `with_settings`, for all settings of a tool."""
    return collects([_parameter(s) for s in tool_settings(tool).values()], into="flags")


def option_parameter(
    name: str,
    annotation: Any,
    spellings: Sequence[str],
    *,
    help: str,
    metavar: str | None,
    panel: str,
    completion: Callable[[str], list[str]] | None = None,
) -> inspect.Parameter:
    """An option that is None when it is not given."""
    option = typer.Option(
        *spellings,
        help=help,
        metavar=metavar,
        show_default=False,  # the help text says it, with the limits
        rich_help_panel=panel,
        autocompletion=completion,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, option],
    )


def _parameter(setting: Setting) -> inspect.Parameter:
    if setting.kind is bool:
        annotation: Any = bool | None
        names = [f"{setting.flag}/--no-{setting.flag[2:]}"]
    else:
        annotation = list[str] | None if setting.many else str | None
        names = [setting.flag]
    short = [alias for alias in setting.aliases if not alias.startswith("--")]
    return option_parameter(
        setting.name,
        annotation,
        [*names, *short],
        help=_help(setting),
        metavar=None if setting.kind is bool else _metavar(setting),
        panel=f"{setting.group}: {setting.title}",
        completion=_completion(setting),
    )


def _help(setting: Setting) -> str:
    many = "; repeat it or separate by commas" if setting.many else ""
    default = "" if setting.default is None else setting.show(setting.default)
    facts = [", ".join(setting.choices)] if setting.choices else []
    facts += [f"default {default}"] if default else []
    facts += [setting.limits] if setting.limits else []
    also = "".join(f"; also {a}" for a in setting.aliases if a.startswith("--"))
    return f"{setting.doc}{many}{also}" + (f" ({'; '.join(facts)})" if facts else "")


def _metavar(setting: Setting) -> str:
    return "CHOICE" if setting.choices else {int: "INT", float: "NUMBER", str: "TEXT"}[setting.kind]


def _completion(setting: Setting) -> Callable[[str], list[str]] | None:
    if not setting.choices:
        return None

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in setting.choices if choice.startswith(incomplete)]

    return complete

"""Command-line flags from the schema: one per setting, with its sentence, limits and default.

Flags accept kebab-case and snake_case. Values stay text here; `atom.config.resolve` gives them
types, so that a flag, a variable and a recipe fail with the same words.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from atom.config.fields import Setting, sections, settings

# Lets --max_num_seqs mean --max-num-seqs; give it to every command.
CONTEXT = {
    "token_normalize_func": lambda name: name.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
}


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of these sections; it receives those given as `flags`, by name."""
    chosen = [s for s in settings().values() if s.section in names]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.name != "flags"
        ]

        def command(**values: Any) -> None:
            given = {s.name: values.pop(s.name) for s in chosen}
            function(**values, flags={k: v for k, v in given.items() if v not in (None, [], ())})

        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in [*own, *(_parameter(s) for s in chosen)]
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(setting: Setting) -> inspect.Parameter:
    if setting.kind is bool:
        annotation: Any = bool | None
        names = [f"{setting.flag}/--no-{setting.flag[2:]}"]
    else:
        annotation = list[str] | None if setting.many else str | None
        names = [setting.flag]
    option = typer.Option(
        *names,
        *setting.aliases,
        help=_help(setting),
        metavar=None if setting.kind is bool else _metavar(setting),
        show_default=False,  # the help text says it, with the limits
        rich_help_panel=_panel(setting.section),
        autocompletion=_completion(setting),
    )
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, option],
    )


def _panel(section: str) -> str:
    doc = (sections()[section].__doc__ or section).splitlines()[0].rstrip(".")
    return f"{section}: {doc}"


def _help(setting: Setting) -> str:
    many = "; repeat it or separate by commas" if setting.many else ""
    default = setting.show(setting.default)
    facts = [", ".join(setting.choices)] if setting.choices else []
    facts += [f"default {default}"] if default else []
    facts += [setting.limits] if setting.limits else []
    return f"{setting.doc}{many}" + (f" ({'; '.join(facts)})" if facts else "")


def _metavar(setting: Setting) -> str:
    return "CHOICE" if setting.choices else {int: "INT", float: "NUMBER", str: "TEXT"}[setting.kind]


def _completion(setting: Setting) -> Callable[[str], list[str]] | None:
    if not setting.choices:
        return None

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in setting.choices if choice.startswith(incomplete)]

    return complete

"""Goes on with an evaluation that was broken off: which one, and with what it was asked for.

The header of a journal holds the settings that change a score, and the command's own flags, so that
`atom eval --resume` needs nothing else. Keys and headers of requests are never in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from atom.config.fields import tool_settings
from atom.eval.errors import EvalError
from atom.eval.journal import Header, Journal, Unfinished, find_unfinished

COMMAND = "command"  # key of a header's settings: not a setting, but how they were given


def command_of(
    tasks: Sequence[str], recipe: Path | None, flags: Mapping[str, Any]
) -> dict[str, Any]:
    """What the command line said, for a later one that says less."""
    known = tool_settings("eval")
    kept = {name: value for name, value in flags.items() if not known[name].secret}
    return {
        "tasks": list(tasks),
        "recipe": None if recipe is None else str(recipe.absolute()),
        "flags": kept,
    }


class Command(msgspec.Struct):
    """See `command_of`."""

    tasks: list[str]
    recipe: str | None
    flags: dict[str, Any]


def last_command(folder: Path) -> Command:
    """Of the newest evaluation in `folder` that was broken off; raises `EvalError`."""
    one = _newest(folder, None)
    try:
        return msgspec.convert(one.header.settings.get(COMMAND), Command)
    except msgspec.ValidationError:
        raise EvalError(
            f"{one.path} does not tell how it was started: name its tasks "
            f"({' '.join(one.header.tasks)}) beside --resume"
        ) from None


def reopen(folder: Path, header: Header) -> Journal:
    """The newest journal of the header's tasks; `EvalError` where it was asked otherwise."""
    one = _newest(folder, header.tasks)
    different = comparable(one.header).differences(comparable(header))
    if different:
        raise EvalError(
            f"the evaluation {one.header.run_id} was asked otherwise: {'; '.join(different)}; "
            "resume it with its own settings (atom eval --resume), or leave --resume out"
        )
    return Journal.open(one.path)


def comparable(header: Header) -> Header:
    """The header without what changes no score."""
    kept = {key: value for key, value in header.settings.items() if key != COMMAND}
    return msgspec.structs.replace(header, settings=kept)


def same(folder: Path, header: Header) -> Unfinished | None:
    """An unfinished evaluation that --resume would go on with."""
    wanted = comparable(header).digest
    for one in find_unfinished(folder):
        if not one.busy and one.answers and comparable(one.header).digest == wanted:
            return one
    return None


def _newest(folder: Path, tasks: Sequence[str] | None) -> Unfinished:
    found = [
        one for one in find_unfinished(folder) if tasks is None or one.header.tasks == list(tasks)
    ]
    free = [one for one in found if not one.busy]
    if free:
        return free[0]
    of = f" of {', '.join(tasks)}" if tasks else ""
    if found:
        raise EvalError(f"the unfinished evaluation{of} is still running: {found[0].path}")
    raise EvalError(
        f"nothing to resume: no unfinished evaluation{of} is in {folder}; leave --resume out"
    )

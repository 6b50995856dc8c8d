"""Conditions on runs as SQL, and moments as people write them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from pathlib import PurePath
from typing import Any

from atom.bench.errors import BenchError
from atom.bench.history.runs import parse_moment, utc_text

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def condition(
    *,
    kind: str | None,
    name: str | None,
    model: str | None,
    fingerprint: str | None,
    commit: str | None,
    recipe: str | None,
    sweep_id: str | None,
    since: datetime | str | None,
) -> tuple[str, list[Any]]:
    """ " WHERE ..." (or nothing) for the table `runs`, and its values."""
    parts: list[str] = []
    values: list[Any] = []

    def add(part: str, *given: Any) -> None:
        parts.append(part)
        values.extend(given)

    equal = {"kind": kind, "name": name, "fingerprint": fingerprint, "sweep_id": sweep_id}
    for column, value in equal.items():
        if value is not None:
            add(f"{column} = ?", value)
    if model is not None:  # by the whole name or what follows the last slash
        add("(model = ? OR substr(model, -length(?) - 1) = '/' || ?)", model, model, model)
    if commit is not None:
        add("""("commit" <> '' AND substr("commit", 1, length(?)) = ?)""", commit, commit)
    if recipe is not None:
        name = PurePath(recipe).stem if recipe.endswith(".toml") else recipe
        digits = recipe if re.fullmatch(r"[0-9a-f]{7,64}", recipe) else ""
        by_hash = "(? <> '' AND substr(recipe_sha256, 1, length(?)) = ?)"
        add(f"(recipe = ? OR {by_hash})", name, digits, digits, digits)
    if since is not None:
        add("started_at >= ?", utc_text(moment(since)))
    return (" WHERE " + " AND ".join(parts) if parts else ""), values


def moment(since: datetime | str) -> datetime:
    """A moment as given: itself, ISO 8601, or how long ago (90m, 12h, 7d, 2w)."""
    if isinstance(since, datetime):
        return since if since.tzinfo else since.replace(tzinfo=timezone.utc)
    match = _AGO.fullmatch(since.strip())
    if match is not None:
        ago = timedelta(**{_UNITS[match[2]]: float(match[1])})
        return datetime.now(timezone.utc) - ago
    found = parse_moment(since.strip())
    if found is None:
        raise BenchError(f"--since {since}: write a date (2026-11-21) or how long ago (7d, 12h)")
    return found

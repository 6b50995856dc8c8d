"""The result file: the original's flat fields on top, everything else under "atom"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from atom.bench.errors import BenchError
from atom.bench.types import RunResult

FORMAT = 1  # of the "atom" part; raised when a reader of the old one would misread the new one
PART = "atom"


def result_json(run: RunResult) -> dict[str, Any]:
    """What `--json` prints and the result file holds: plain dicts, lists, numbers and text."""
    assert PART not in run.legacy
    rest = msgspec.to_builtins(run)
    legacy = rest.pop("legacy")
    return {**legacy, PART: {"format": FORMAT, **rest}}


def from_result_json(document: Mapping[str, Any]) -> RunResult:
    """The run that `result_json` wrote; raises `BenchError` for anything else."""
    part = document.get(PART)
    if not isinstance(part, Mapping):
        raise BenchError('not a result of atom bench: it has no "atom" part')
    found = part.get("format")
    if found != FORMAT:
        raise BenchError(f"a result of format {found}; this atom reads format {FORMAT}")
    legacy = {key: value for key, value in document.items() if key != PART}
    fields = {key: value for key, value in part.items() if key != "format"}
    try:
        # Not strict: the history writes the numbers that JSON has not as "inf", "-inf" and "nan".
        return msgspec.convert({**fields, "legacy": legacy}, RunResult, strict=False)
    except msgspec.ValidationError as error:
        raise BenchError(f"a damaged result of atom bench: {error}") from error

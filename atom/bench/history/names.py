"""What people call runs: last, last~1, an id or its beginning, a sweep, a recipe, a commit, a file.

A text is tried as these in this order, and the first that fits decides. An invocation is one run,
or all points of one sweep, which were measured together and are named together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atom.bench.history.errors import HistoryError
from atom.bench.history.runs import started_at
from atom.bench.types import RunResult

if TYPE_CHECKING:
    from atom.bench.history.store import History

_LAST = re.compile(r"last(?:~(\d+))?")
_FILE_ENDINGS = (".json", ".jsonl", ".js")
_MIN_COMMIT = 6
RECENT_INVOCATIONS = 20


def resolve(history: History, text: str) -> list[RunResult]:
    """The runs that `text` names, in the order of measurement; raises `HistoryError` for none.

    - `last`, `last~2`: the newest invocation, or the one two before it.
    - a result file (its path): the runs in it, which are not added to the history.
    - a run's id or its beginning; a sweep's: all its points.
    - a recipe's name (or a run's name): the newest invocation of it.
    - a commit (6 digits or more): of each experiment at that commit (fingerprint) the newest run.
    """
    ways: Sequence[Callable[[History, str], list[RunResult]]] = (
        _last,
        _file,
        _id,
        _sweep,
        _recipe,
        _commit,
    )
    for way in ways if text else ():
        found = way(history, text)
        if found:
            return found
    raise HistoryError(
        f"{text}: no run, sweep, recipe or commit of {history.path}, and no file; "
        "atom bench list shows the runs that there are"
    )


def _last(history: History, text: str) -> list[RunResult]:
    match = _LAST.fullmatch(text)
    if match is None:
        return []
    back = int(match[1] or 0)
    found = invocations(history, back + 1)
    if len(found) <= back:
        raise HistoryError(f"{text}: there are {len(found)} invocations in {history.path}")
    return found[back]


def invocations(history: History, count: int) -> list[list[RunResult]]:
    """The newest invocations, newest first; the runs of each oldest first."""
    window = max(RECENT_INVOCATIONS, count)
    while True:
        runs = history.find(limit=window)
        keys: dict[str, None] = {run.sweep_id or run.run_id: None for run in runs}
        # The oldest group of a full window may go on beyond it.
        if len(runs) < window or len(keys) > count:
            break
        window *= 4
    return [_whole(history, key, runs) for key in list(keys)[:count]]


def _whole(history: History, key: str, runs: Sequence[RunResult]) -> list[RunResult]:
    single = [run for run in runs if not run.sweep_id and run.run_id == key]
    return single or in_order(history.find(sweep_id=key))


def in_order(runs: Sequence[RunResult]) -> list[RunResult]:
    return sorted(runs, key=lambda run: (started_at(run), run.run_id))


def _file(history: History, text: str) -> list[RunResult]:
    path = Path(text).expanduser()
    looks = text.endswith(_FILE_ENDINGS) or "/" in text
    if not looks or text.endswith(".toml"):
        return []
    if not path.exists():
        if text.endswith(_FILE_ENDINGS):
            raise HistoryError(f"{text}: no such file")
        return []
    from atom.bench.history.importers import read_results

    return [loaded.run for loaded in read_results(path)]


def _id(history: History, text: str) -> list[RunResult]:
    return [history.get(text)] if history.ids(text) else []


def _sweep(history: History, text: str) -> list[RunResult]:
    found = history.sweep_ids(text)
    if text not in found and len(found) > 1:
        raise HistoryError(f"{text} begins several sweeps: {', '.join(found[-5:])}; write more")
    return in_order(history.find(sweep_id=text if text in found else found[0])) if found else []


def _recipe(history: History, text: str) -> list[RunResult]:
    newest = history.find(recipe=text, limit=1) or history.find(name=text, limit=1)
    if not newest:
        return []
    (run,) = newest
    return in_order(history.find(sweep_id=run.sweep_id)) if run.sweep_id else [run]


def _commit(history: History, text: str) -> list[RunResult]:
    if re.fullmatch(rf"[0-9a-f]{{{_MIN_COMMIT},40}}", text) is None:
        return []
    newest: dict[str, RunResult] = {}
    for run in history.find(commit=text):
        newest.setdefault(run.fingerprint, run)
    return in_order(list(newest.values()))

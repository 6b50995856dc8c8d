"""Whether two evaluations asked the same: what of their settings differs, what was not tested."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from atom.bench import names
from atom.bench.compare.facts import Difference, run_facts
from atom.bench.compare.stats import share_difference
from atom.bench.history.flat import leaves
from atom.bench.history.runs import recipe_of
from atom.bench.types import RunResult
from atom.eval.pairs import Pairs

# Facts of a task that come from what was asked, which the pairs themselves show, or from the data.
_SHOWN_BY_PAIRS = frozenset(
    {"prompt_hash", "task_hash", "samples", "main_metric", "members", "kind"}
)
_NOT_SETTINGS = frozenset({"dataset", "tasks", "seeds", "bundled"})
NEAR_LENGTH = 0.01  # share of answers cut at the token limit that is no reason to doubt


def differences(a: RunResult, b: RunResult) -> list[Difference]:
    """What the runs do not have in common of model, server and settings; equal facts are left out.

    A setting that one of the runs does not tell (an imported one) is not called a difference.
    """
    found = []
    sides = [dict(_described(run)) for run in (a, b)]
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        left, right = (side.get(key, "") for side in sides)
        if left and right and left != right:
            found.append(Difference(key, left, right))
    return found


def _described(run: RunResult) -> Iterator[tuple[str, str]]:
    known = run_facts(run)
    yield "model", run.model
    yield "server", known.server
    yield "commit", known.commit
    yield "recipe", recipe_of(run)
    for part, key in (("recipe", "sha256"), ("server", "config")):
        place = run.provenance.get(part)
        value = place.get(key) if isinstance(place, Mapping) else None
        if isinstance(value, Mapping):  # settings, known of a server that we started
            yield from ((f"server: {name}", str(v)) for name, v in leaves(value))
        elif value:
            yield f"{part} text", str(value)[:12]
    for key, value in leaves({k: v for k, v in run.workload.items() if k not in _NOT_SETTINGS}):
        yield key, str(value)
    for task, facts in _tasks(run).items():
        kept = {k: v for k, v in facts.items() if k not in _SHOWN_BY_PAIRS | _NOT_SETTINGS}
        for key, value in leaves(kept):
            yield f"{task}: {key}", f"{value:g}" if isinstance(value, float) else str(value)


def _tasks(run: RunResult) -> dict[str, Mapping[str, Any]]:
    told = run.workload.get("tasks")
    tasks = told if isinstance(told, Mapping) else {}
    return {str(task): facts for task, facts in tasks.items() if isinstance(facts, Mapping)}


def notes_on(a: RunResult, b: RunResult, parts: Mapping[str, Pairs]) -> list[str]:
    """What speaks against taking the verdicts at their word, besides the tasks' own notes."""
    notes = []
    for letter, run in (("A", a), ("B", b)):
        if run.status == "interrupted":
            notes.append(f"{letter} was interrupted: it is not whole")
    for task, pairs in parts.items():
        for letter, cut in (
            ("A", sum(p.a.finish_reason == "length" for p in pairs.pairs)),
            ("B", sum(p.b.finish_reason == "length" for p in pairs.pairs)),
        ):
            if cut > NEAR_LENGTH * len(pairs.pairs):
                notes.append(
                    f"{task}: {cut:,} of {len(pairs.pairs):,} answers of {letter} were cut at the "
                    "token limit"
                )
    return notes


def untested(a: RunResult, b: RunResult, tested: Collection[str], only: Sequence[str]) -> list[str]:
    """Scores in both runs that have no paired samples: the two figures, and what can be said."""
    found = []
    for name in a.metrics:
        task, _, metric = name.rpartition("/")
        if names.is_name(name) or not task or task in tested or name not in b.metrics:
            continue
        if not only or task in only:
            found.append(f"{task} {metric}: {_unpaired(a, b, task, name)}")
    return found


def _unpaired(a: RunResult, b: RunResult, task: str, name: str) -> str:
    left, right = a.metrics[name].value, b.metrics[name].value
    figures = f"{left:.4f} in A, {right:.4f} in B"
    counts = [_tasks(run).get(task, {}).get("samples") for run in (a, b)]
    if not all(isinstance(n, int) and n > 0 for n in counts) or not (
        0 <= left <= 1 and 0 <= right <= 1
    ):
        return f"{figures}; without samples there is no test"
    n, m = counts[0], counts[1]
    assert isinstance(n, int)
    assert isinstance(m, int)
    low, high = share_difference(round(left * n), n, round(right * m), m, 0.95)
    return (
        f"{figures}; as if of different questions the difference is {100 * low:+.1f} to "
        f"{100 * high:+.1f} points (95%): samples of both would tell more"
    )

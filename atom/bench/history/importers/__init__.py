"""Result files of others, and our own, as runs: one module for each kind of file.

What a file does not tell stays unknown: no interval is made up, no hardware guessed. A run's id is
made from its moment and the hash of its content, so the same result is the same run each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from atom.bench.errors import BenchError
from atom.bench.history.documents import Loaded, from_document, is_document
from atom.bench.history.importers import github_action, lm_eval, lm_eval_samples, serving
from atom.bench.history.importers.build import Origin
from atom.bench.history.importers.reading import Tree, read_trees

__all__ = ["Loaded", "read_results"]


class Format(NamedTuple):
    """`knows` tells the format by a document's fields; `read` gives its runs."""

    name: str
    knows: Callable[[Any], bool]
    read: Callable[[Any, Origin], Iterator[Loaded]]


def _read_ours(tree: Any, origin: Origin) -> Iterator[Loaded]:
    try:
        yield from_document(tree)
    except BenchError as error:
        raise BenchError(f"{origin.where}: {error}") from None


# What reading a file of the right kind, but with values of the wrong one, ends in.
_ODD = (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError)

FORMATS = (
    Format("atom", is_document, _read_ours),
    Format("github-action-benchmark", github_action.knows, github_action.read),
    Format("lm-eval", lm_eval.knows, lm_eval.read),
    Format("benchmark_serving", serving.knows, serving.read),
)


def read_results(path: Path, *, model: str | None = None) -> list[Loaded]:
    """The runs of a result file, in its order; raises `BenchError` in one line.

    `model` names the model of results that do not say theirs.
    """
    if lm_eval_samples.is_samples(path):
        return _read_samples(path, model)
    found: list[Loaded] = []
    for tree in read_trees(path):
        found.extend(_read(tree, Origin(path=path, line=tree.line, model=model)))
    if not found:
        raise BenchError(f"{path}: holds no result")
    return found


def _read_samples(path: Path, model: str | None) -> list[Loaded]:
    """Samples of lm-eval belong to the results beside them, if those are there."""
    results = lm_eval_samples.results_of(path)
    if results is not None:
        return read_results(results, model=model)
    return [lm_eval_samples.alone(path, Origin(path=path, model=model))]


def _read(tree: Tree, origin: Origin) -> Iterator[Loaded]:
    for candidate in FORMATS:
        if candidate.knows(tree.value):
            try:
                yield from candidate.read(tree.value, origin)
            except _ODD as error:
                what = f"a damaged result of {candidate.name}"
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise BenchError(f"{origin.where}: {what} ({reason})") from error
            return
    raise BenchError(f"{origin.where}: {_what_it_is(tree.value)}; {_known()}")


def _what_it_is(value: Any) -> str:
    if isinstance(value, dict) and {"benchmark", "metric"} <= value.keys():
        return "PyTorch's benchmark format, which lacks the load; import the result JSON beside it"
    if isinstance(value, dict):
        keys = ", ".join(list(value)[:4]) or "nothing"
        return f"not a benchmark result (it has {keys})"
    return f"not a benchmark result (a {type(value).__name__})"


def _known() -> str:
    return (
        "known are results of atom, of benchmark_serving (ATOM, vLLM, SGLang), lm-eval's "
        "results_*.json and samples_*.jsonl, and data.js of github-action-benchmark"
    )

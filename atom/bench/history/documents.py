"""One run as one JSON document: the seeds' fields at the top, the rest under "atom".

It is what `atom bench --json` prints and what is imported again without loss. Samples, where they
are wanted, are under atom.records (a list for each repeat) and atom.evaluations (a list for each
task).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from atom.bench.errors import BenchError
from atom.bench.history import codec
from atom.bench.history.evaluations import Evaluations
from atom.bench.types import RequestRecord, RunResult

PART = "atom"  # of a document; beside it are the original's flat fields
RECORDS = "records"
EVALUATIONS = "evaluations"


class Loaded(NamedTuple):
    """A run as it was read from a file; `records` by repeat, () where the file has none, and the
    samples of an evaluation by task."""

    run: RunResult
    records: Sequence[Sequence[RequestRecord]] = ()
    evaluated: Evaluations = MappingProxyType({})


def to_document(
    run: RunResult,
    records: Sequence[Sequence[RequestRecord]] = (),
    evaluated: Evaluations | None = None,
) -> dict[str, Any]:
    """The result file's content (see `atom.bench.metrics.result`), with samples if given."""
    from atom.bench.metrics.result import FORMAT  # its package imports numpy

    rest = codec.plain_run(run)
    legacy = rest.pop("legacy")
    if records:
        rest[RECORDS] = [codec.plain(list(repeat)) for repeat in records]
    if evaluated:
        rest[EVALUATIONS] = {task: codec.plain(list(s)) for task, s in evaluated.items()}
    return {**legacy, PART: {"format": FORMAT, **rest}}


def is_document(tree: Any) -> bool:
    part = tree.get(PART) if isinstance(tree, Mapping) else None
    return isinstance(part, Mapping) and "run_id" in part


def from_document(tree: Mapping[str, Any]) -> Loaded:
    """The inverse of `to_document`; raises `BenchError`."""
    from atom.bench.metrics.result import from_result_json

    apart = (RECORDS, EVALUATIONS)
    part = {key: value for key, value in tree[PART].items() if key not in apart}
    run = from_result_json({**tree, PART: part})
    try:
        records = [codec.records_from_plain(r) for r in tree[PART].get(RECORDS) or ()]
    except msgspec.ValidationError as error:
        raise BenchError(f"a result of atom bench with damaged samples: {error}") from None
    try:
        samples = msgspec.convert(
            tree[PART].get(EVALUATIONS) or {}, dict[str, list[dict[str, Any]]]
        )
    except msgspec.ValidationError as error:
        raise BenchError(f"a result of atom eval with damaged samples: {error}") from None
    return Loaded(run, records, samples)


def rescue(
    run: RunResult,
    records: Sequence[Sequence[RequestRecord]],
    beside: Path,
    evaluated: Evaluations | None = None,
) -> Path | None:
    """Write the run to a file of its own, where the history could not take it.

    Beside the history, else in the working folder, else in the system's for temporary files; None
    if none of them takes it.
    """
    text = json.dumps(to_document(run, records, evaluated), ensure_ascii=False)
    for folder in (beside, Path.cwd(), Path(tempfile.gettempdir())):
        path = folder / f"atom-run-{run.run_id}.json"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError:
            _remove(path)
            continue
        return path.absolute()
    return None


def _remove(path: Path) -> None:
    """A half-written file is worse than none."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return

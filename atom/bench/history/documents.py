"""One run as one JSON document: the seeds' fields at the top, the rest under "atom".

It is what `atom bench --json` prints and what is imported again without loss. Samples, where they
are wanted, are under atom.records: a list for each repeat.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from atom.bench.errors import BenchError
from atom.bench.history import codec
from atom.bench.types import RequestRecord, RunResult

PART = "atom"  # of a document; beside it are the original's flat fields
RECORDS = "records"


class Loaded(NamedTuple):
    """A run as it was read from a file; `records` by repeat, () where the file has none."""

    run: RunResult
    records: Sequence[Sequence[RequestRecord]] = ()


def to_document(run: RunResult, records: Sequence[Sequence[RequestRecord]] = ()) -> dict[str, Any]:
    """The result file's content (see `atom.bench.metrics.result`), with samples if given."""
    from atom.bench.metrics.result import FORMAT  # its package imports numpy

    rest = codec.plain_run(run)
    legacy = rest.pop("legacy")
    if records:
        rest[RECORDS] = [codec.plain(list(repeat)) for repeat in records]
    return {**legacy, PART: {"format": FORMAT, **rest}}


def is_document(tree: Any) -> bool:
    part = tree.get(PART) if isinstance(tree, Mapping) else None
    return isinstance(part, Mapping) and "run_id" in part


def from_document(tree: Mapping[str, Any]) -> Loaded:
    """The inverse of `to_document`; raises `BenchError`."""
    from atom.bench.metrics.result import from_result_json

    part = {key: value for key, value in tree[PART].items() if key != RECORDS}
    run = from_result_json({**tree, PART: part})
    try:
        records = [codec.records_from_plain(r) for r in tree[PART].get(RECORDS) or ()]
    except msgspec.ValidationError as error:
        raise BenchError(f"a result of atom bench with damaged samples: {error}") from None
    return Loaded(run, records)


def rescue(run: RunResult, records: Sequence[Sequence[RequestRecord]], beside: Path) -> Path | None:
    """Write the run to a file of its own, where the history could not take it.

    Beside the history, else in the working folder, else in the system's for temporary files; None
    if none of them takes it.
    """
    text = json.dumps(to_document(run, records), ensure_ascii=False)
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

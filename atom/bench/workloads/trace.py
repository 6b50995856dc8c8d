"""Replay of a recorded trace: its times, its lengths, and which prompts share a beginning.

The words are random. Where a trace has Mooncake's hash_ids, equal ids stand for equal tokens, so
that a prefix cache has the hits that it would have had.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from atom.bench.errors import BenchError
from atom.bench.types import Endpoint, Job
from atom.bench.workloads.maker import Maker
from atom.bench.workloads.rows import read_source
from atom.bench.workloads.spec import WorkloadSpec
from atom.bench.workloads.tokens import TokenSource
from atom.bench.workloads.trace_files import Recorded, read_trace

if TYPE_CHECKING:
    from atom.bench.workloads.maker import Places

_BLOCKS_KEPT = 4096  # the words of as many blocks stay in memory: 16 MiB at 512 tokens


class TraceWorkload:
    """One job per request of the trace, in order of time; it ends with the trace.

    `Job.arrival_s` counts from the first request that is sent, before time scaling.
    """

    def __init__(self, spec: WorkloadSpec, tokens: TokenSource, seed: int) -> None:
        assert spec.path is not None
        self.name: str = spec.dataset
        self.endpoint: Endpoint = spec.endpoint
        self.spec, self.seed = spec, seed
        self._source = read_source(spec.path)
        self.kind, recorded = read_trace(self._source, spec.block_size)
        self._maker = Maker(tokens, spec.endpoint, spec.prompt_form)
        self.notes = list(self._maker.notes)
        self._rows = self._fitting(recorded)
        self._begin = self._rows[0].time_s
        self.length: int | None = len(self._rows)
        self._block = lru_cache(maxsize=_BLOCKS_KEPT)(self._make_block)

    def arrivals(self) -> list[float]:
        """Seconds from the first request, one per job, before time scaling."""
        return [round(row.time_s - self._begin, 9) for row in self._rows]

    def jobs(self, start: int = 0) -> Iterator[Job]:
        """Jobs from number `start` to the trace's end."""
        return map(self.job, range(start, len(self._rows)))

    def job(self, index: int) -> Job:
        row = self._rows[index]
        turn = self._maker.turn(self._places(row), row.output_len)
        arrival_s = round(row.time_s - self._begin, 9)
        return Job(index=index, turns=[turn], arrival_s=arrival_s, label=f"line {row.line}")

    def _places(self, row: Recorded) -> Places:
        """The words of a prompt. What a template takes is missing at the end, where nothing is
        shared.
        """
        import numpy as np

        own = self._maker.room(row.input_len)
        if row.hash_ids is None:
            return self._maker.places(own, self.seed, "words", row.line)
        blocks = [self._block(hash_id) for hash_id in row.hash_ids]
        return np.concatenate(blocks)[:own]

    def _make_block(self, hash_id: int) -> Places:
        return self._maker.places(self.spec.block_size, self.seed, "block", hash_id)

    def _fitting(self, recorded: Sequence[Recorded]) -> list[Recorded]:
        """The requests as they will be sent; what was changed or left out goes to the notes."""
        least = self._maker.overhead + 1
        if self.spec.max_len is not None:
            self._maker.check_room(self.spec.max_len // 2)
        empty = long = short = 0
        rows = []
        for row in recorded:
            if self.spec.output_len is not None:
                row = row._replace(output_len=self.spec.output_len)
            if not row.output_len or not row.input_len:
                empty += 1
                continue
            if row.input_len < least:
                short += 1
                row = row._replace(input_len=least)
            cut = self._cut(row)
            long += cut is not row
            if cut is not None:
                rows.append(cut)
        done = "cut to fit" if self.spec.too_long == "clip" else "left out: longer than"
        self._note(empty, "left out: without prompt or answer")
        self._note(short, f"shorter than the {least} tokens that are possible; sent with so many")
        self._note(long, f"{done} the context of {self.spec.max_len} tokens")
        if not rows:
            raise BenchError(f"{self.spec.path}: none of its {len(recorded)} requests can be sent")
        return rows

    def _cut(self, row: Recorded) -> Recorded | None:
        """The row itself where it fits, else what `too_long` says: a shorter one, or None."""
        limit = self.spec.max_len
        if limit is None or row.input_len + row.output_len <= limit:
            return row
        if self.spec.too_long == "error":
            raise BenchError(
                f"{self.spec.path}, line {row.line}: {row.input_len} and {row.output_len} tokens "
                f"exceed the model's context of {limit}; leave such requests out or cut them"
            )
        if self.spec.too_long == "skip":
            return None
        output = min(row.output_len, limit // 2)
        return row._replace(input_len=min(row.input_len, limit - output), output_len=output)

    def _note(self, count: int, what: str) -> None:
        if count:
            self.notes.append(f"{count} requests of the trace {what}")

    def describe(self) -> dict[str, Any]:
        """The file, and every parameter that chose from it or changed it."""
        shared = list(itertools.chain.from_iterable(row.hash_ids or () for row in self._rows))
        return {
            "dataset": self.spec.dataset,
            "endpoint": self.endpoint,
            "trace": self.kind,
            "file": self._source.name.rpartition("/")[2],
            "file_hash": self._source.digest,
            "rows": len(self._rows),
            "seed": self.seed,
            "time_scale": self.spec.time_scale,
            "block_size": self.spec.block_size if shared else None,
            "shared_block_share": round(1 - len(set(shared)) / len(shared), 4) if shared else 0.0,
            "output_len": self.spec.output_len,
            "max_len": self.spec.max_len,
            "too_long": self.spec.too_long,
            **self._maker.describe(),
        }

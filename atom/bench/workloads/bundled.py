"""The bundled prompt sets: real questions, and sonnet lines of an exact length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib.resources import as_file, files
from typing import Any

import msgspec

from atom.bench.errors import BenchError
from atom.bench.types import Endpoint, Job, Turn
from atom.bench.workloads import draw
from atom.bench.workloads.lengths import bounds
from atom.bench.workloads.maker import Maker, check_context
from atom.bench.workloads.pool import STARTER
from atom.bench.workloads.rows import Row, RowWorkload, Source, read_source, row_order, user_turn
from atom.bench.workloads.spec import INPUT_LEN, OUTPUT_LEN, WorkloadSpec
from atom.bench.workloads.synthetic import think_time
from atom.bench.workloads.tokens import TokenSource


def prompt_set(spec: WorkloadSpec, seed: int) -> RowWorkload:
    """mt_bench, vicuna or self_instruct, in the seed's order."""
    assert spec.path is not None
    source = _bundled(f"{spec.path}.jsonl")
    raw = [msgspec.json.decode(line) for _, line in source.lines()]
    rows = [_row(spec, seed, place, fields) for place, fields in enumerate(raw)]
    ordered = [rows[place] for place in row_order(spec, len(rows), seed, default=True)]
    file = {
        "prompts": spec.path,
        "file_hash": source.digest,
        "rows": len(rows),
        "seed": seed,
        "shuffle": spec.shuffle is not False,
        "turns": spec.turns,
        "think_time_s": spec.think_time_s,
        "think_time": spec.think_time,
        "output_len": spec.output_len or OUTPUT_LEN,
    }
    return RowWorkload(spec, ordered, file)


def _bundled(name: str) -> Source:
    with as_file(files("atom.bench.workloads") / "data" / name) as path:
        return read_source(path)


def _row(spec: WorkloadSpec, seed: int, place: int, fields: dict[str, Any]) -> Row:
    if "instruction" in fields:
        given = fields["instances"][0]["input"] if fields["instances"] else ""
        texts = ["\n\n".join(filter(None, (fields["instruction"], given)))]
        label = fields["motivation_app"]
    else:
        texts, label = fields["turns"][: spec.turns], fields["category"]
    output = spec.output_len or OUTPUT_LEN
    turns = [
        user_turn(
            spec.endpoint,
            text,
            output,
            later=number > 0,
            delay_s=think_time(spec, seed, place, number) if number else 0.0,
        )
        for number, text in enumerate(texts)
    ]
    return Row(turns, label)


class SonnetWorkload:
    """Lines of Shakespeare in random order, filled up with single words to the exact length."""

    length: int | None = None  # it never ends

    def __init__(self, spec: WorkloadSpec, tokens: TokenSource, seed: int) -> None:
        """Raises `BenchError` where the lines' tokens do not add up with this tokenizer."""
        self.name: str = spec.dataset
        self.endpoint: Endpoint = spec.endpoint
        self.spec, self.seed = spec, seed
        self._source = _bundled("sonnet.txt")
        self.lines = [line for _, line in self._source.lines()]
        self._maker = Maker(tokens, spec.endpoint, "text")
        ratio, convention = spec.range_ratio, spec.length_convention
        self.input_range = bounds(spec.input_len or INPUT_LEN, ratio, convention)
        self.output_range = bounds(spec.output_len or OUTPUT_LEN, ratio, convention)
        self._maker.check_room(self.input_range.low)
        check_context(spec, self.input_range.high, self.output_range.high)
        self._costs = self._line_costs(tokens)
        self.notes = [f"lengths: input {self.input_range}, output {self.output_range} tokens"]

    def _line_costs(self, tokens: TokenSource) -> list[tuple[int, int]]:
        """Tokens that each line adds as the first one behind STARTER, and behind a line break."""
        anchor = f"{STARTER} {self.lines[0]}"
        heads = [f"{STARTER} {line}" for line in self.lines]
        nexts = [f"{anchor}\n{line}" for line in self.lines]
        base, anchored, *counts = tokens.counts([STARTER, anchor, *heads, *nexts])
        half = len(self.lines)
        costs = [(counts[n] - base, counts[half + n] - anchored) for n in range(half)]
        order = draw.permutation(half, "sonnet", "proof").tolist()
        whole = f"{STARTER} " + "\n".join(self.lines[n] for n in order) + " the and"
        expected = base + costs[order[0]][0] + sum(costs[n][1] for n in order[1:]) + 2
        if tokens.counts([whole]) != [expected]:
            raise BenchError(
                "the tokens of sonnet lines do not add up with this model's tokenizer, so that no "
                "length would be exact; use another data set"
            )
        return costs

    def jobs(self, start: int = 0) -> Iterator[Job]:
        """Jobs from number `start` on, without end."""
        return map(self.job, itertools.count(start))

    def job(self, index: int) -> Job:
        length = self.input_range.at(self.seed, "input", index)
        output = self.output_range.at(self.seed, "output", index)
        room = self._maker.room(length)
        text = STARTER
        shortest = min(cost for _, cost in self._costs)
        for place in draw.indices(room // shortest + 1, len(self.lines), self.seed, "line", index):
            first = text == STARTER
            cost = self._costs[place][0 if first else 1]
            if cost > room:
                break
            room -= cost
            text += (" " if first else "\n") + self.lines[place]
        rest = self._maker.text(self._maker.places(room, self.seed, "words", index))
        text += rest.removeprefix(STARTER)
        if self.endpoint == "chat":
            messages = [{"role": "user", "content": text}]
            turn = Turn(messages=messages, max_tokens=output, input_len=length)
        else:
            turn = Turn(prompt=text, max_tokens=output, input_len=length)
        return Job(index=index, turns=[turn])

    def describe(self) -> dict[str, Any]:
        """Every parameter that makes the workload what it is."""
        spec = self.spec
        return {
            "dataset": spec.dataset,
            "prompts": "sonnet",
            "endpoint": spec.endpoint,
            "seed": self.seed,
            "file_hash": self._source.digest,
            "input_len": spec.input_len or INPUT_LEN,
            "output_len": spec.output_len or OUTPUT_LEN,
            "input_range": list(self.input_range),
            "output_range": list(self.output_range),
            "range_ratio": spec.range_ratio,
            "length_convention": spec.length_convention if spec.range_ratio is not None else None,
            **self._maker.describe(),
        }

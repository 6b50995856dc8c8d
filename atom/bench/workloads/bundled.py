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

    def _line_costs(self, tokens: TokenSource) -> tuple[int, list[int]]:
        """Tokens of the line break behind STARTER, and of each line with its own.

        They are counted together with the break because many tokenizers join it to a full stop.
        A text always ends with a word, so that nothing joins a break at its end.
        """
        ending = self._words(9, "sonnet", "ending")
        ends = ["", "\n", *(f"\n{line}\n" for line in self.lines)]
        base, broken, *counts = tokens.counts([STARTER + end + ending for end in ends])
        costs = [count - broken for count in counts]
        order = draw.permutation(len(costs), "sonnet", "proof").tolist()
        whole = "".join(f"{self.lines[place]}\n" for place in order)
        if tokens.counts([f"{STARTER}\n{whole}{ending}"]) != [broken + sum(costs)]:
            raise BenchError(
                "the tokens of sonnet lines do not add up with this model's tokenizer, so that no "
                "length would be exact; use another data set"
            )
        return broken - base, costs

    def _words(self, count: int, *key: object) -> str:
        """So many words, each behind a space."""
        return self._maker.text(self._maker.places(count, *key)).removeprefix(STARTER)

    def jobs(self, start: int = 0) -> Iterator[Job]:
        """Jobs from number `start` on, without end."""
        return map(self.job, itertools.count(start))

    def job(self, index: int) -> Job:
        length = self.input_range.at(self.seed, "input", index)
        output = self.output_range.at(self.seed, "output", index)
        break_cost, costs = self._costs
        room = self._maker.room(length) - break_cost
        parts = [f"{STARTER}\n"]
        most = max(0, room) // min(costs) + 1
        for place in draw.indices(most, len(self.lines), self.seed, "line", index).tolist():
            if costs[place] >= room:  # at least one word must follow
                break
            room -= costs[place]
            parts.append(f"{self.lines[place]}\n")
        if len(parts) == 1:  # too short for a line: words only
            parts, room = [STARTER], room + break_cost
        text = "".join(parts) + self._words(room, self.seed, "words", index)
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

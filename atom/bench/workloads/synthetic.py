"""Workloads that are made, not read: random, prefix-repetition, multi-turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from atom.bench.types import Endpoint, Job, Turn
from atom.bench.workloads import draw
from atom.bench.workloads.lengths import LengthRange, bounds
from atom.bench.workloads.maker import Maker, check_context
from atom.bench.workloads.spec import INPUT_LEN, OUTPUT_LEN, PromptForm, WorkloadSpec
from atom.bench.workloads.tokens import TokenSource

if TYPE_CHECKING:
    from atom.bench.workloads.maker import Places


class _Synthetic:
    """What the synthetic workloads share: lengths, prefix groups, provenance."""

    length: int | None = None  # they never end

    def __init__(self, spec: WorkloadSpec, maker: Maker, seed: int) -> None:
        self.name: str = spec.dataset
        self.endpoint: Endpoint = spec.endpoint
        self.spec, self.seed, self.maker = spec, seed, maker
        length = spec.input_len or INPUT_LEN
        ratio, convention = spec.range_ratio, spec.length_convention
        self.input_range = bounds(length, ratio, convention)
        self.output_range = bounds(spec.output_len or OUTPUT_LEN, ratio, convention)
        maker.check_room(self.input_range.low)
        self._prefix = lru_cache(maxsize=64)(self._make_prefix)
        self.notes = [*maker.notes, self._lengths_note()]

    def jobs(self, start: int = 0) -> Iterator[Job]:
        """Jobs from number `start` on, without end."""
        return map(self.job, itertools.count(start))

    def job(self, index: int) -> Job:
        raise NotImplementedError

    def group(self, index: int) -> int:
        """The prefix group of a job: each once among `num_prefixes` jobs, in random order."""
        round_, place = divmod(index, self.spec.num_prefixes)
        order = _order(self.spec.num_prefixes, self.seed, round_)
        return int(order[place])

    def _make_prefix(self, group: int) -> Places:
        return self.maker.places(self.spec.prefix_len, self.seed, "prefix", group)

    def first_places(self, index: int) -> Places:
        """The words of a job's first prompt: those of its group, then its own."""
        import numpy as np

        own = self.maker.room(self.input_range.at(self.seed, "input", index))
        places = self.maker.places(own, self.seed, "words", index)
        if not self.spec.prefix_len:
            return places
        return np.concatenate((self._prefix(self.group(index)), places))

    def _lengths_note(self) -> str:
        spec = self.spec
        text = f"lengths: input {self.input_range}, output {self.output_range} tokens"
        if spec.prefix_len:
            text += f", {spec.prefix_len} shared ones before each input"
        if spec.range_ratio is not None:
            text += f" (uniform; ratio {spec.range_ratio:g} as {spec.length_convention} means it)"
        return text

    def describe(self) -> dict[str, Any]:
        """Every parameter that makes the workload what it is."""
        spec = self.spec
        return {
            "dataset": spec.dataset,
            "endpoint": spec.endpoint,
            "seed": self.seed,
            "input_len": spec.input_len or INPUT_LEN,
            "output_len": spec.output_len or OUTPUT_LEN,
            "input_range": list(self.input_range),
            "output_range": list(self.output_range),
            "range_ratio": spec.range_ratio,
            "length_convention": spec.length_convention if spec.range_ratio is not None else None,
            "prefix_len": spec.prefix_len,
            "num_prefixes": spec.num_prefixes if spec.prefix_len else 0,
            **self.maker.describe(),
        }


class RandomWorkload(_Synthetic):
    """Independent requests of random words, behind a shared prefix where there is one."""

    def __init__(self, spec: WorkloadSpec, tokens: TokenSource, seed: int) -> None:
        super().__init__(spec, Maker(tokens, spec.endpoint, spec.prompt_form), seed)
        check_context(spec, spec.prefix_len + self.input_range.high, self.output_range.high)

    def job(self, index: int) -> Job:
        output = self.output_range.at(self.seed, "output", index)
        turn = self.maker.turn(self.first_places(index), output)
        label = f"prefix {self.group(index)}" if self.spec.num_prefixes > 1 else ""
        return Job(index=index, turns=[turn], label=label)


class MultiTurnWorkload(_Synthetic):
    """Conversations. The first turn is as long as asked in all; a later one adds a text of that
    many tokens to what was said before, whose length depends on the answers.
    """

    def __init__(self, spec: WorkloadSpec, tokens: TokenSource, seed: int) -> None:
        # Answers come as text, and a later turn is sent behind them.
        form: PromptForm | None = None if spec.endpoint == "chat" else "text"
        super().__init__(spec, Maker(tokens, spec.endpoint, form), seed)
        self.turns_range = LengthRange(spec.turns, spec.turns_max or spec.turns)
        turns = self.turns_range.high
        self.notes.append(
            f"conversations of {self.turns_range} turns; each adds so much to what was said before"
        )
        longest = self.input_range.high * turns + self.output_range.high * (turns - 1)
        # Templates add a few tokens for each turn; they are left to the server to refuse.
        check_context(spec, spec.prefix_len + longest, self.output_range.high)

    def job(self, index: int) -> Job:
        count = self.turns_range.at(self.seed, "turns", index)
        turns = [self._first(index), *(self._later(index, n) for n in range(1, count))]
        label = f"prefix {self.group(index)}" if self.spec.num_prefixes > 1 else ""
        return Job(index=index, turns=turns, label=label)

    def _first(self, index: int) -> Turn:
        output = self.output_range.at(self.seed, "output", index)
        return self.maker.turn(self.first_places(index), output)

    def _later(self, index: int, number: int) -> Turn:
        key = (self.seed, index, number)
        words = self.maker.places(self.input_range.at("input", *key), "words", *key)
        # A leading space instead of the starter: the text goes on behind an answer.
        text = " " + self.maker.text(words).partition(" ")[2]
        output = self.output_range.at("output", *key)
        delay_s = think_time(self.spec, *key)
        if self.endpoint == "chat":
            messages = [{"role": "user", "content": text[1:]}]
            return Turn(messages=messages, max_tokens=output, delay_s=delay_s)
        return Turn(prompt=text, max_tokens=output, delay_s=delay_s)

    def describe(self) -> dict[str, Any]:
        spec = self.spec
        return super().describe() | {
            "turns": list(self.turns_range),
            "think_time_s": spec.think_time_s,
            "think_time": spec.think_time,
        }


def think_time(spec: WorkloadSpec, *key: object) -> float:
    """Seconds between an answer and the next turn."""
    import math

    if not spec.think_time_s or spec.think_time == "constant":
        return spec.think_time_s
    u = float(draw.uniforms(1, "think", *key)[0])
    return round(-math.log1p(-u) * spec.think_time_s, 9)


@lru_cache(maxsize=4)
def _order(size: int, seed: int, round_: int) -> list[int]:
    order: list[int] = draw.permutation(size, seed, "group", round_).tolist()
    return order

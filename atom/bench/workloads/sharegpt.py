"""ShareGPT files: real questions, and answers as long as the recorded ones.

The file is a JSON list (or lines) of {"conversations": [{"from", "value"}]}. As in vLLM, a
conversation is left out when its question or answer has fewer than 4 tokens, its question more than
1024, or both together more than 2048.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from atom.bench.errors import BenchError
from atom.bench.types import Job, Turn
from atom.bench.workloads.rows import (
    Row,
    RowWorkload,
    Source,
    read_source,
    repetition_note,
    row_order,
    user_turn,
)
from atom.bench.workloads.spec import WorkloadSpec
from atom.bench.workloads.synthetic import think_time
from atom.bench.workloads.tokens import TokenSource

FEWEST = 4  # tokens of a question, and of an answer
LONGEST_QUESTION = 1024
LONGEST = 2048  # all together
_AHEAD = 1024  # jobs prepared before the run where their number is not known
_BATCH = 64  # conversations counted at once

_HUMAN = ("human", "user")
_MODEL = ("gpt", "assistant", "chatgpt", "bard", "bing", "model")


class _Said(msgspec.Struct):
    who: str = msgspec.field(name="from")
    value: str


class _Conversation(msgspec.Struct):
    conversations: list[_Said] = []


class _Exchanges(NamedTuple):
    """What was asked and answered in turn."""

    row: int  # in the file, from 0
    pairs: list[tuple[str, str]]


class ShareGPTWorkload(RowWorkload):
    """Job i is the i-th suitable conversation in the seed's order. Tokens are counted as needed,
    those of the first `spec.limit` jobs in advance.
    """

    def __init__(self, spec: WorkloadSpec, tokens: TokenSource, seed: int) -> None:
        assert spec.path is not None
        source = read_source(spec.path)
        found = _read(source)
        order = row_order(spec, len(found), seed, default=True)
        self._waiting = iter([found[place] for place in order])
        self._tokens, self._seed = tokens, seed
        self._seen, self._exhausted = 0, False
        self._fit = LONGEST
        if spec.max_len is not None:
            around = tokens.overhead("chat" if spec.endpoint == "chat" else "text")
            self._fit = min(LONGEST, spec.max_len - around)
        self.spec = spec
        self._ready: list[Row] = []
        self._prepare(spec.limit or _AHEAD)
        if not self._ready:
            raise BenchError(
                f"{spec.path}: in none of its {len(found)} conversations has the first question "
                f"{FEWEST} to {LONGEST_QUESTION} tokens and fits with its answer in {self._fit}"
            )
        super().__init__(spec, self._ready, self._provenance(source, len(found)))
        if not self._exhausted:  # not all rows have been looked at
            self.notes = repetition_note(spec, len(found), spec.shuffle is not False)
        left_out = self._seen - len(self._ready)
        if left_out:
            self.notes.append(f"{left_out} of {self._seen} conversations left out by their length")

    def job(self, index: int) -> Job:
        if index >= len(self._ready):
            self._prepare(index + 1)
        return super().job(index)

    def _provenance(self, source: Source, rows: int) -> dict[str, object]:
        spec = self.spec
        return {
            "file": source.name.rpartition("/")[2],
            "file_hash": source.digest,
            "rows": rows,
            "seed": self._seed,
            "shuffle": spec.shuffle is not False,
            "turns": spec.turns,
            "think_time_s": spec.think_time_s,
            "think_time": spec.think_time,
            "longest": self._fit,
        }

    def _prepare(self, wanted: int) -> None:
        while len(self._ready) < wanted and not self._exhausted:
            batch = list(islice(self._waiting, _BATCH))
            self._exhausted = len(batch) < _BATCH
            self._seen += len(batch)
            cut = [row.pairs[: self.spec.turns] for row in batch]
            counts = iter(self._tokens.counts([t for pairs in cut for pair in pairs for t in pair]))
            for exchanges, pairs in zip(batch, cut, strict=True):
                sizes = [(next(counts), next(counts)) for _ in pairs]
                if turns := self._turns(exchanges, sizes):
                    self._ready.append(Row(turns))

    def _turns(self, exchanges: _Exchanges, sizes: Sequence[tuple[int, int]]) -> list[Turn]:
        """As many exchanges as fit; none where the first does not."""
        turns: list[Turn] = []
        total = 0
        for place, (asked, answered) in enumerate(sizes):
            output = self.spec.output_len or answered
            total += asked + output
            short = asked < FEWEST or output < FEWEST
            if short or asked > LONGEST_QUESTION or total > self._fit:
                break
            later = place > 0
            delay_s = think_time(self.spec, self._seed, exchanges.row, place) if later else 0.0
            question = exchanges.pairs[place][0]
            turn = user_turn(self.spec.endpoint, question, output, later=later, delay_s=delay_s)
            turns.append(turn)
        return turns


def _read(source: Source) -> list[_Exchanges]:
    """All conversations with a question and its answer. Raises `BenchError` naming the place."""
    raw: list[_Conversation] = []
    if source.data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        data = source.data.removeprefix(b"\xef\xbb\xbf")
        try:
            raw = msgspec.json.decode(data, type=list[_Conversation])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BenchError(f"{source.name} is no ShareGPT file: {error}") from error
    else:
        for number, line in source.lines():
            try:
                raw.append(msgspec.json.decode(line, type=_Conversation))
            except msgspec.DecodeError as error:
                raise BenchError(f"{source.name}, line {number}: {error}") from error
    found = [_exchanges(row, conversation) for row, conversation in enumerate(raw)]
    kept = [exchanges for exchanges in found if exchanges.pairs]
    if not kept:
        raise BenchError(
            f"{source.name} is no ShareGPT file: no entry has conversations in which "
            '"from": "human" is followed by "from": "gpt"'
        )
    return kept


def _exchanges(row: int, conversation: _Conversation) -> _Exchanges:
    """From the first question that is answered, as long as they alternate."""
    said = conversation.conversations
    begin = next((i for i, s in enumerate(said) if s.who in _HUMAN and s.value), len(said))
    pairs: list[tuple[str, str]] = []
    for place in range(begin, len(said) - 1, 2):
        question, answer = said[place], said[place + 1]
        if question.who not in _HUMAN or answer.who not in _MODEL or not question.value:
            break
        pairs.append((question.value, answer.value))
    return _Exchanges(row, pairs)

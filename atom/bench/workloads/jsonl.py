"""Own prompts: one JSON object a line.

Each has one of `prompt` (a text), `messages` (chat), `token_ids` (completions) and `turns` (a list
of texts, or of objects with prompt or messages, and max_tokens, delay_s); and optionally
`max_tokens`, `label`, `extra_body`. `text` is read as prompt, `output_tokens` as max_tokens, `id`
as label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from atom.bench.errors import BenchError
from atom.bench.types import Message, Turn
from atom.bench.workloads.rows import Row, RowWorkload, Source, read_source, row_order, user_turn
from atom.bench.workloads.spec import OUTPUT_LEN, WorkloadSpec
from atom.config.fields import nearest

_ALIASES = {"text": "prompt", "output_tokens": "max_tokens", "id": "label"}


class _TurnLine(msgspec.Struct):
    prompt: str | None = None
    messages: list[Message] | None = None
    max_tokens: int | None = None
    delay_s: float = 0.0


class _Line(msgspec.Struct):
    prompt: str | None = None
    messages: list[Message] | None = None
    token_ids: list[int] | None = None
    turns: list[str | _TurnLine] | None = None
    max_tokens: int | None = None
    label: str | int = ""
    extra_body: dict[str, Any] = {}


_KEYS = frozenset(_Line.__struct_fields__)
_CONTENT = ("prompt", "messages", "token_ids", "turns")


def jsonl_workload(spec: WorkloadSpec, seed: int) -> RowWorkload:
    """Raises `BenchError` naming the first line that is wrong."""
    assert spec.path is not None
    source = read_source(spec.path)
    reader = _Reader(spec, source)
    rows = list(reader.rows())
    if not rows:
        raise BenchError(f"{spec.path} has no rows")
    ordered = [rows[place] for place in row_order(spec, len(rows), seed, default=False)]
    file = {
        "file": source.name.rpartition("/")[2],
        "file_hash": source.digest,
        "rows": len(rows),
        "shuffle": bool(spec.shuffle),
    }
    if spec.shuffle:
        file["seed"] = seed
    workload = RowWorkload(spec, ordered, file)
    if reader.ignored:
        workload.notes.append(f"{spec.path}: keys not used: {', '.join(sorted(reader.ignored))}")
    return workload


class _Reader:
    def __init__(self, spec: WorkloadSpec, source: Source) -> None:
        self.spec, self.source = spec, source
        self.ignored: set[str] = set()

    def rows(self) -> Iterator[Row]:
        for number, text in self.source.lines():
            try:
                yield self._row(text)
            except (msgspec.DecodeError, msgspec.ValidationError, BenchError) as error:
                raise BenchError(f"{self.source.name}, line {number}: {error}") from error

    def _row(self, text: str) -> Row:
        raw = msgspec.json.decode(text)
        if not isinstance(raw, dict):
            raise BenchError("not a JSON object")
        line = msgspec.convert(self._keys(raw), _Line)
        given = [key for key in _CONTENT if getattr(line, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise BenchError(f"give one of {', '.join(_CONTENT)}; there is {found}")
        turns = self._turns(line)
        if line.extra_body:
            turns = [msgspec.structs.replace(t, extra_body=line.extra_body) for t in turns]
        return Row(turns, str(line.label))

    def _keys(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Known keys. One that looks like a slip is refused, others are told about once."""
        kept: dict[str, Any] = {}
        for key, value in raw.items():
            name = _ALIASES.get(key, key)
            if name in _KEYS:
                kept.setdefault(name, value)
            elif hint := nearest(key, _KEYS):
                raise BenchError(f"unknown key {key!r}{hint}")
            else:
                self.ignored.add(key)
        return kept

    def _turns(self, line: _Line) -> list[Turn]:
        if line.turns is None:
            return [self._turn(line.prompt, line.messages, line.token_ids, line.max_tokens)]
        if not line.turns:
            raise BenchError("turns is empty")
        turns = []
        for place, turn in enumerate(line.turns):
            turn = _TurnLine(prompt=turn) if isinstance(turn, str) else turn
            if (turn.prompt is None) == (turn.messages is None):
                raise BenchError(f"turns[{place}]: give either prompt or messages")
            if turn.delay_s < 0:
                raise BenchError(f"turns[{place}].delay_s is {turn.delay_s}; it must be at least 0")
            max_tokens = turn.max_tokens if turn.max_tokens is not None else line.max_tokens
            made = self._turn(turn.prompt, turn.messages, None, max_tokens, later=place > 0)
            turns.append(msgspec.structs.replace(made, delay_s=turn.delay_s))
        return turns

    def _turn(
        self,
        prompt: str | None,
        messages: list[Message] | None,
        token_ids: list[int] | None,
        max_tokens: int | None,
        *,
        later: bool = False,
    ) -> Turn:
        chat = self.spec.endpoint == "chat"
        asked = self.spec.output_len or (OUTPUT_LEN if max_tokens is None else max_tokens)
        if asked < 1:
            raise BenchError(f"max_tokens is {asked}; it must be at least 1")
        if prompt is not None:
            if not prompt:
                raise BenchError("prompt is empty")
            return user_turn(self.spec.endpoint, prompt, asked, later=later)
        if messages is not None:
            if not chat:
                raise BenchError("messages go to the chat endpoint; use --endpoint chat")
            if not messages or any("role" not in m or "content" not in m for m in messages):
                raise BenchError("messages must be objects with role and content")
            return Turn(messages=messages, max_tokens=asked)
        assert token_ids is not None
        if chat:
            raise BenchError("token_ids go to the completions endpoint; use --endpoint completions")
        if not token_ids or min(token_ids) < 0:
            raise BenchError("token_ids must be at least one number, none below 0")
        if self.spec.max_len is not None and len(token_ids) + asked > self.spec.max_len:
            raise BenchError(
                f"{len(token_ids)} token_ids and max_tokens {asked} exceed the context of "
                f"{self.spec.max_len}"
            )
        return Turn(prompt=token_ids, max_tokens=asked, input_len=len(token_ids))

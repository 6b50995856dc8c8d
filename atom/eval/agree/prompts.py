"""The texts on which two models are compared: bundled ones of many kinds and lengths, or a file's.

The bundled choice is fixed: equal counts give equal prompts, so that a side kept before stays
comparable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from atom.eval.errors import EvalError
from atom.eval.tasks.bundled import read_rows

DEFAULT_COUNT = 32
MOST = 4096
# Of questions: every eighth is joined with many others, for a text that fills some contexts.
LONG_EVERY = 8
LONG_CHARACTERS = (4_000, 12_000)


class Text(NamedTuple):
    kind: str
    text: str


def bundled(count: int) -> list[Text]:
    """The first `count` of the fixed order: kinds take turns, every eighth text is a long one."""
    sources = [_questions(), _solutions(), _prose(), _instructions()]
    longs = _long()
    made: list[Text] = []
    while len(made) < count:
        if len(made) % LONG_EVERY == LONG_EVERY - 1:
            made.append(next(longs))
            continue
        turn = sources[len(made) % len(sources)]
        made.append(next(turn))
    return made


def from_file(path: Path, count: int | None) -> list[Text]:
    """Texts of a .jsonl (`prompt`, `text` or `question`; or a JSON string a line), else lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise EvalError(f"--prompts {path}: {reason}") from error
    as_json = path.suffix in (".jsonl", ".json")
    found = [
        Text(path.name, _of_line(path, number, line) if as_json else line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise EvalError(f"--prompts {path} has no text: write one prompt a line, or JSON lines")
    return found[:count]


def digest(texts: Sequence[Text]) -> str:
    """Equal for equal texts; eight hex digits."""
    raw = msgspec.json.encode([text.text for text in texts])
    return hashlib.sha256(raw).hexdigest()[:8]


def fitting(
    texts: Sequence[Text], limit: int, tokenize: Callable[[list[str]], list[list[int]]]
) -> tuple[list[tuple[Text, list[int]]], int]:
    """Each text with its tokens, its end cut off where it has more than `limit`; how many were."""
    ids = tokenize([text.text for text in texts])
    kept, cut = list(texts), 0
    for place, tokens in enumerate(ids):
        cut += len(tokens) > limit
        while len(tokens) > limit:
            text = kept[place].text
            text = text[: max(1, int(len(text) * limit / len(tokens)) - 1)]
            kept[place] = kept[place]._replace(text=text)
            tokens = tokenize([text])[0]
            if len(text) == 1 and len(tokens) > limit:
                raise EvalError(f"the context holds {limit} tokens of a prompt: too few for any")
        ids[place] = tokens
    return list(zip(kept, ids, strict=True)), cut


def _of_line(path: Path, number: int, line: str) -> str:
    try:
        row: Any = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise EvalError(f"--prompts {path}:{number} is not JSON: {error}") from error
    if isinstance(row, str) and row:
        return row
    for key in ("prompt", "text", "question"):
        if isinstance(row, dict) and isinstance(row.get(key), str) and row[key]:
            text: str = row[key]
            return text
    raise EvalError(f'--prompts {path}:{number}: write a JSON string or {{"prompt": "..."}}')


def _rows(name: str) -> list[Any]:
    raw = (files("atom.bench.workloads") / "data" / f"{name}.jsonl").read_bytes()
    return [msgspec.json.decode(line) for line in raw.splitlines() if line.strip()]


def _questions() -> Iterator[Text]:
    """MT-bench's first turns, a category after the other."""
    rows = _rows("mt_bench")
    kinds = list(dict.fromkeys(row["category"] for row in rows))
    by_kind = [[row for row in rows if row["category"] == kind] for kind in kinds]
    while True:
        for place in range(max(len(group) for group in by_kind)):
            for kind, group in zip(kinds, by_kind, strict=True):
                if place < len(group):
                    yield Text(kind, group[place]["turns"][0])


def _instructions() -> Iterator[Text]:
    """self-instruct's tasks with their inputs and answers: prose, lists, tables, code."""
    while True:
        yield from (Text("instruction", text) for text in _solved())


def _solved() -> list[str]:
    rows = _rows("self_instruct")
    return [
        "\n\n".join(filter(None, (row["instruction"], one["input"], one["output"])))
        for row in rows
        for one in row["instances"][:1]
    ]


def _solutions() -> Iterator[Text]:
    """gsm8k's questions, each begun with two others and their answers, as a task asks them."""
    while True:
        rows = [f"Question: {r['question']}\nAnswer:" for r in read_rows("gsm8k_test")]
        solved = [f"{q} {r['answer']}" for q, r in zip(rows, read_rows("gsm8k_test"), strict=True)]
        for i in range(0, len(rows) - 2, 3):
            yield Text("gsm8k", "\n\n".join([solved[i], solved[i + 1], rows[i + 2]]))


def _prose() -> Iterator[Text]:
    """Passages of novels: lambada's contexts."""
    while True:
        for row in read_rows("lambada_openai"):
            yield Text("prose", row["context"])


def _long() -> Iterator[Text]:
    """Solved tasks one after another, up to a length; lengths take turns."""
    solved = _solved()
    place = len(solved) // 2
    while True:
        for length in LONG_CHARACTERS:
            text = ""
            while len(text) < length:
                text += solved[place % len(solved)] + "\n\n"
                place += 1
            yield Text("long", text[:length])

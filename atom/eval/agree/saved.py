"""A side's answers as a file: JSON lines, compressed with zstandard.

The first line is a header, then one line for each prompt. A file of another version is refused.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from atom.eval.agree.types import Answers, Continuation, Position, Prompt, Side
from atom.eval.errors import EvalError

FORMAT, VERSION = "atom-agree", 1
SUFFIX = ".jsonl.zst"


class _Header(msgspec.Struct):
    format: str
    version: int
    side: Side
    texts: dict[int, str]
    max_tokens: int
    retokenized: int
    notes: list[str]
    prompts: int


class _Line(msgspec.Struct):
    prompt: Prompt
    output: list[int]
    continued: Continuation | None  # None: nothing was generated
    scored: list[Position]


def is_saved(text: str) -> bool:
    return text.endswith((SUFFIX, ".zst"))


def check_place(path: Path) -> None:
    """Raise now if the file cannot be written, not after minutes of asking."""
    if not is_saved(path.name):
        raise EvalError(f"--save {path}: write a name that ends in {SUFFIX}")
    if not path.parent.is_dir():
        raise EvalError(f"--save {path}: there is no folder {path.parent}")


def save(path: Path, answers: Answers) -> None:
    """Whole or not at all."""
    header = _Header(
        FORMAT,
        VERSION,
        answers.side,
        answers.texts,
        answers.max_tokens,
        answers.retokenized,
        answers.notes,
        len(answers.prompts),
    )
    nothing: list[Continuation | None] = [None] * len(answers.prompts)
    continued = list(answers.continued) or nothing
    rows = zip(answers.prompts, answers.outputs, continued, answers.scored, strict=True)
    lines: list[Any] = [header, *(_Line(*row) for row in rows)]
    raw = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(zstandard.compress(raw))
        part.replace(path)
    except OSError as error:
        raise EvalError(f"--save {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> Answers:
    """Raises `EvalError` for what is not such a file, or not whole."""
    try:
        packed = path.read_bytes()
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as reader:
            first, *rest = reader.read().splitlines()
        header = msgspec.json.decode(first, type=_Header)
        if header.format != FORMAT or header.version != VERSION:
            raise EvalError(
                f"{path} is of version {header.version} of {header.format}, this atom reads "
                f"{FORMAT} {VERSION}; save it again"
            )
        lines = [msgspec.json.decode(line, type=_Line) for line in rest]
    except OSError as error:
        raise EvalError(f"{path}: {error.strerror}") from error
    except (zstandard.ZstdError, msgspec.DecodeError, ValueError) as error:
        raise EvalError(f"{path} holds no answers kept by atom eval --agree --save") from error
    if len(lines) != header.prompts:
        raise EvalError(f"{path} is not whole: {len(lines)} of {header.prompts} prompts")
    return Answers(
        side=header.side,
        prompts=[line.prompt for line in lines],
        outputs=[line.output for line in lines],
        continued=[line.continued for line in lines if line.continued is not None],
        scored=[line.scored for line in lines],
        texts=header.texts,
        max_tokens=header.max_tokens,
        retokenized=header.retokenized,
        notes=header.notes,
    )

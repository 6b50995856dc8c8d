"""The shapes of steps that can be recorded: how they are written, and whether they can run here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from atom.engine.admission import Capacity
from atom.profile.errors import ProfileError

Kind = Literal["prefill", "decode"]

CONTEXT = 1024  # tokens that a decode's sequences hold where nothing is said
# What is recorded where nothing is asked for: (prompts, tokens of each), batches, context.
DEFAULTS = {"cuda": ((1, 512), (1, 32), CONTEXT), "cpu": ((1, 128), (1, 4), 256)}

_PREFILL = re.compile(r"(\d+)x(\d+)")
_DECODE = re.compile(r"(\d+)(?:@(\d+))?")


class Limits(Capacity, Protocol):
    """And of its steps' size."""

    @property
    def max_num_seqs(self) -> int: ...
    @property
    def max_num_batched_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """A step. `tokens`: prefill: of each prompt, all computed in the step; decode: that each
    sequence holds in the first recorded step, the one computed in it included."""

    kind: Kind
    batch: int
    tokens: int

    def __str__(self) -> str:
        """As the command line writes it, after its flag's name: "prefill 4x2048"."""
        sign = "x" if self.kind == "prefill" else "@"
        return f"{self.kind} {self.batch}{sign}{self.tokens}"

    @property
    def flag(self) -> str:
        """What the user wrote, to open an error message with."""
        return f"--{self.kind} {str(self).partition(' ')[2]}"

    @property
    def step_tokens(self) -> int:
        """Tokens that one step computes."""
        return self.batch * self.tokens if self.kind == "prefill" else self.batch


@dataclass(frozen=True, slots=True)
class Counts:
    """How many steps of each shape: `warmup` unrecorded ones, then `steps` recorded ones."""

    steps: int = 8
    warmup: int = 2


def parse(prefill: Sequence[str], decode: Sequence[str], context: int) -> list[Shape]:
    """`--prefill 1x512,4x2048` and `--decode 1,32@4096`, in that order, each shape once.

    `context` is for the decodes that name none. Raises `ProfileError`.
    """
    found: list[Shape] = []
    for text in _items(prefill):
        match = _PREFILL.fullmatch(text)
        if match is None or not int(match[1]) or not int(match[2]):
            raise ProfileError(f"--prefill {text}: write PROMPTSxTOKENS, e.g. 1x512 or 4x2048")
        found.append(Shape("prefill", int(match[1]), int(match[2])))
    for text in _items(decode):
        match = _DECODE.fullmatch(text)
        if match is None or not int(match[1]):
            raise ProfileError(f"--decode {text}: write BATCH or BATCH@CONTEXT, e.g. 32 or 32@4096")
        found.append(Shape("decode", int(match[1]), int(match[2] or context)))
    return list(dict.fromkeys(found))


def default_shapes(device: str, info: Limits, counts: Counts) -> list[Shape]:
    """What is recorded where nothing is asked for, cut down to what fits."""
    (prompts, tokens), batches, context = DEFAULTS["cpu" if device.startswith("cpu") else "cuda"]
    room = min(info.max_model_len, info.num_blocks * info.block_size)
    tokens = max(2, min(tokens, info.max_num_batched_tokens, room - 1))
    wanted = [Shape("prefill", prompts, tokens)]
    context = max(counts.warmup + 2, min(context, room - counts.steps))
    for batch in batches:
        while batch > 1 and _problem(Shape("decode", batch, context), info, counts):
            batch //= 2
        wanted.append(Shape("decode", batch, context))
    return list(dict.fromkeys(wanted))


def runs_here(shape: Shape, info: Limits, counts: Counts) -> bool:
    return not _problem(shape, info, counts)


def check(shapes: Iterable[Shape], info: Limits, counts: Counts) -> None:
    """Raise `ProfileError`, with the limit and what moves it, for the first that cannot run."""
    for shape in shapes:
        problem = _problem(shape, info, counts)
        if problem:
            raise ProfileError(f"{shape.flag}: {problem}")


def check_batch(shape: Shape, max_num_seqs: int, max_num_batched_tokens: int) -> str:
    """Why a step of this shape cannot be scheduled, or "". Known before the model is loaded."""
    if shape.batch > max_num_seqs:
        return (
            f"a batch of {shape.batch}, and at most {max_num_seqs} sequences run at once; raise "
            "--max-num-seqs"
        )
    if shape.step_tokens > max_num_batched_tokens:
        return (
            f"{shape.step_tokens} tokens in one step, and at most {max_num_batched_tokens} are "
            "computed in one; raise --max-num-batched-tokens"
        )
    return ""


def _problem(shape: Shape, info: Limits, counts: Counts) -> str:
    return (
        check_batch(shape, info.max_num_seqs, info.max_num_batched_tokens)
        or _context_problem(shape, info, counts)
        or _cache_problem(shape, info, counts)
    )


def _context_problem(shape: Shape, info: Limits, counts: Counts) -> str:
    limit = f"a sequence holds at most {info.max_model_len} (max_model_len)"
    if shape.kind == "prefill":
        if shape.tokens == 1:
            return "a step of one token of each sequence is a decode; write --decode"
        if shape.tokens < info.max_model_len:  # one more is sampled
            return ""
        return f"prompts of {shape.tokens} tokens and one more, and {limit}"
    least = counts.warmup + 2  # a prompt of one token, the token after it, the warm-up's
    if shape.tokens < least:
        return f"a context below {least} tokens has no room for {counts.warmup} warm-up steps"
    last = shape.tokens + counts.steps
    if last > info.max_model_len:
        return f"a context of {shape.tokens}, {counts.steps} steps: {last} tokens, and {limit}"
    return ""


def _cache_problem(shape: Shape, info: Limits, counts: Counts) -> str:
    needed = blocks_needed(shape, info.block_size, counts)
    if needed <= info.num_blocks:
        return ""
    return (
        f"it needs {needed} KV blocks of {info.block_size} tokens, and there are "
        f"{info.num_blocks}; a smaller batch or context, or more KV cache (atom doctor shows what "
        "decides it)"
    )


def blocks_needed(shape: Shape, block_size: int, counts: Counts) -> int:
    """KV blocks of one step of this shape. The scheduler keeps one back for each running sequence
    while it admits prompts."""
    prompt = prompt_tokens(shape, counts)
    admitting = shape.batch * -(-prompt // block_size) + shape.batch - 1
    if shape.kind == "prefill":
        return admitting
    last = shape.tokens + counts.steps - 1
    return max(admitting, shape.batch * -(-last // block_size))


def prompt_tokens(shape: Shape, counts: Counts) -> int:
    """Length of the prompts that lead to the shape. A decode's prompt and first token are there
    before its warm-up steps, each of which adds a token."""
    if shape.kind == "prefill":
        return shape.tokens
    return shape.tokens - counts.warmup - 1


def _items(texts: Sequence[str]) -> list[str]:
    return [item.strip() for text in texts for item in text.split(",") if item.strip()]

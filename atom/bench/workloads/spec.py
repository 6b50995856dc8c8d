"""What a workload is asked to be: every parameter with a sentence, and its checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from atom.bench.errors import BenchError
from atom.bench.types import Endpoint
from atom.config.fields import nearest

Dataset = Literal[
    "random", "prefix-repetition", "multi-turn", "sharegpt", "jsonl", "trace", "prompts"
]
LengthConvention = Literal["vllm", "inferencex", "sglang"]
PromptForm = Literal["ids", "text"]
TooLong = Literal["skip", "clip", "error"]
ThinkTime = Literal["constant", "exponential"]

DATASETS: dict[Dataset, str] = {
    "random": "random words, exactly as many tokens as asked",
    "prefix-repetition": "random prompts that share one of a few prefixes",
    "multi-turn": "random conversations: each turn is sent with all that was said before",
    "sharegpt": "a ShareGPT file: first question, and its answer's length",
    "jsonl": "an own file, one JSON object a line: prompt, messages, token_ids or turns",
    "trace": "a recorded trace: Mooncake (jsonl), Azure or BurstGPT (csv)",
    "prompts": "a bundled set of real prompts: mt_bench, vicuna, self_instruct or sonnet",
}
PROMPT_SETS: dict[str, str] = {
    "mt_bench": "80 questions of two turns (FastChat, Apache-2.0)",
    "vicuna": "80 questions (FastChat, Apache-2.0)",
    "self_instruct": "252 instructions of everyday work (self-instruct, Apache-2.0)",
    "sonnet": "lines of Shakespeare, as many as --input-len needs (LLMPerf, Apache-2.0)",
}
SYNTHETIC: frozenset[Dataset] = frozenset(("random", "prefix-repetition", "multi-turn"))
INPUT_LEN = 1024  # where none is asked for
OUTPUT_LEN = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """Parameters of a workload. All lengths are in tokens, all times in seconds.

    A synthetic prompt has `prefix_len` + `input_len` tokens in all: a chat template's own tokens
    are part of `input_len`. Raises `BenchError` on values that contradict each other.
    """

    dataset: Dataset = "random"
    path: str | None = None  # the file; for `prompts` the name of the set
    endpoint: Endpoint = "completions"
    prompt_form: PromptForm | None = None  # completions: token ids, or text; None: ids where known
    input_len: int | None = None  # synthetic, sonnet: of the prompt. Per turn in multi-turn
    output_len: int | None = None  # max_tokens; None: what the file says, else 128
    range_ratio: float | None = None  # spread of both lengths; None: exact
    length_convention: LengthConvention | None = None  # what `range_ratio` means; no default
    prefix_len: int = 0  # tokens that all prompts of a prefix group begin with
    num_prefixes: int = 1  # prefix groups, used in turn in random order
    turns: int = 1  # multi-turn: requests of a conversation; sharegpt, prompts: at most this many
    turns_max: int | None = None  # multi-turn: uniform from `turns` to this; None: all `turns`
    think_time_s: float = 0.0  # wait between an answer and the next turn, the mean of
    think_time: ThinkTime = "constant"  # this distribution
    time_scale: float = 1.0  # trace: its times are multiplied by this; 0.5 replays twice as fast
    block_size: int = 512  # trace: tokens that one of Mooncake's hash_ids stands for
    shuffle: bool | None = None  # order of a file's rows by seed; None: all but jsonl and trace
    max_len: int | None = None  # prompt + output must fit in this, the model's context
    too_long: TooLong = "skip"  # a file's rows that do not fit: left out, cut, or refused
    limit: int | None = None  # jobs that will be taken, if known: their tokens are counted early

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_numbers(self)
        _check_file(self)
        _check_length_convention(self)
        _check_belongs(self)
        if self.prompt_form == "ids" and self.endpoint == "chat":
            raise BenchError("token ids cannot be sent to the chat endpoint; use text")
        if self.prompt_form == "ids" and self.dataset == "multi-turn":
            raise BenchError(
                "multi-turn cannot be sent as token ids: a turn repeats the answers' text; use text"
            )


def parse_dataset(text: str) -> tuple[Dataset, str | None]:
    """A data set as people name it -> (dataset, path): `random`, `mt_bench`, `prompts:vicuna`,
    `trace:FILE.csv`. Raises `BenchError` for an unknown name.
    """
    name, _, path = text.partition(":")
    name = name.replace("_", "-")
    if name in DATASETS:
        return name, path or None
    if text in PROMPT_SETS:
        return "prompts", text
    known = [*DATASETS, *PROMPT_SETS]
    raise BenchError(
        f"unknown data set {text!r}{nearest(text, known)}; there are " + ", ".join(known)
    )


def _check_choices(spec: WorkloadSpec) -> None:
    choices = {
        "dataset": (spec.dataset, get_args(Dataset)),
        "endpoint": (spec.endpoint, get_args(Endpoint)),
        "prompt_form": (spec.prompt_form, (None, *get_args(PromptForm))),
        "length_convention": (spec.length_convention, (None, *get_args(LengthConvention))),
        "think_time": (spec.think_time, get_args(ThinkTime)),
        "too_long": (spec.too_long, get_args(TooLong)),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            known = [str(a) for a in allowed if a is not None]
            raise BenchError(
                f"{name} is {value!r}{nearest(str(value), known)}; it must be one of "
                + ", ".join(known)
            )


def _check_numbers(spec: WorkloadSpec) -> None:
    lows: dict[str, tuple[float | None, float]] = {
        "input_len": (spec.input_len, 1),
        "output_len": (spec.output_len, 1),
        "prefix_len": (spec.prefix_len, 0),
        "num_prefixes": (spec.num_prefixes, 1),
        "turns": (spec.turns, 1),
        "turns_max": (spec.turns_max, spec.turns),
        "think_time_s": (spec.think_time_s, 0),
        "block_size": (spec.block_size, 1),
        "max_len": (spec.max_len, 2),
        "limit": (spec.limit, 1),
    }
    for name, (value, low) in lows.items():
        if value is not None and not (low <= value < math.inf):
            raise BenchError(f"{name} is {value}; it must be at least {low:g}")
    if not 0 < spec.time_scale < math.inf:
        raise BenchError(f"time_scale is {spec.time_scale}; it must be above 0")
    if spec.dataset == "multi-turn" and (spec.turns_max or spec.turns) < 2:
        raise BenchError("multi-turn needs at least 2 turns; give --turns")
    if spec.dataset != "multi-turn" and spec.turns_max is not None:
        raise BenchError("turns_max goes with multi-turn")
    if spec.num_prefixes > 1 and not spec.prefix_len:
        raise BenchError("num_prefixes needs a prefix_len")
    if spec.dataset == "prefix-repetition" and not spec.prefix_len:
        raise BenchError("prefix-repetition needs a prefix_len: the tokens that prompts share")


def _check_file(spec: WorkloadSpec) -> None:
    if spec.dataset in SYNTHETIC:
        if spec.path is not None:
            raise BenchError(f"the data set {spec.dataset} reads no file; leave {spec.path} out")
        return
    if spec.path is None:
        what = "the name of a set: " + ", ".join(PROMPT_SETS)
        what = what if spec.dataset == "prompts" else "a file"
        raise BenchError(f"the data set {spec.dataset} needs {what}")
    if spec.dataset == "prompts":
        if spec.path not in PROMPT_SETS:
            raise BenchError(
                f"no bundled prompt set {spec.path!r}{nearest(spec.path, PROMPT_SETS)}; there are "
                + ", ".join(PROMPT_SETS)
            )
    elif not Path(spec.path).is_file():
        missing = "is a directory" if Path(spec.path).is_dir() else "does not exist"
        raise BenchError(f"data set {spec.path} {missing}; give a file")


# Which data sets a parameter means something for; beside its default it is refused elsewhere.
BELONGS: dict[str, tuple[object, frozenset[str]]] = {
    "input_len": (None, SYNTHETIC | {"sonnet"}),
    "range_ratio": (None, SYNTHETIC | {"sonnet"}),
    "prefix_len": (0, SYNTHETIC),
    "turns": (1, frozenset(("multi-turn", "sharegpt", "mt_bench"))),
    "think_time_s": (0.0, frozenset(("multi-turn", "sharegpt", "mt_bench"))),
    "time_scale": (1.0, frozenset(("trace",))),
    "block_size": (512, frozenset(("trace",))),
}


def _check_belongs(spec: WorkloadSpec) -> None:
    """Nothing is accepted and ignored."""
    kind = spec.path if spec.dataset == "prompts" else spec.dataset
    for name, (default, kinds) in BELONGS.items():
        value = getattr(spec, name)
        if value != default and kind not in kinds:
            known = ", ".join(sorted(kinds))
            raise BenchError(f"{name} means nothing for {kind}; it goes with {known}")


def _check_length_convention(spec: WorkloadSpec) -> None:
    """A spread means three different things in three tools: nobody's meaning is guessed."""
    ratio, convention = spec.range_ratio, spec.length_convention
    if ratio is None:
        return
    if convention is None:
        from atom.bench.workloads.lengths import bounds

        length = spec.input_len or INPUT_LEN
        meanings = []
        for name in get_args(LengthConvention):
            if 0 <= ratio < 1 or (ratio == 1 and name != "vllm"):
                low, high = bounds(length, ratio, name)
                meanings.append(f"{name}: {low} to {high}")
        raise BenchError(
            f"--range-ratio {ratio:g} means different lengths for {length} tokens "
            f"({', '.join(meanings)}); say which with --length-convention"
        )
    if not (0 <= ratio < 1 if convention == "vllm" else 0 <= ratio <= 1):
        limit = "at least 0 and below 1" if convention == "vllm" else "from 0 to 1"
        raise BenchError(
            f"--range-ratio is {ratio:g}; in the convention of {convention} it is {limit}"
        )

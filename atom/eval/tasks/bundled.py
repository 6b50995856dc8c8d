"""The tasks that need no network: names, prompts and metrics of lm-eval, rows that came with atom.

A task here is lm-eval's task configuration as data; `rows` gives the splits in the shape that the
task's data set has on the hub, so that both have the same prompts, targets and few-shot examples
(tests/eval/test_bundled.py compares them with lm-eval's own). Imports nothing heavy.
"""

from __future__ import annotations

import copy
import functools
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

Row = dict[str, Any]

BLIMP = (
    "blimp_anaphor_number_agreement",
    "blimp_regular_plural_subject_verb_agreement_1",
)
ALIASES = {"lambada": "lambada_openai"}


class Hub(NamedTuple):
    """Where the whole of a data set lies on the Hugging Face hub."""

    path: str
    name: str | None


@dataclass(frozen=True, slots=True)
class Bundled:
    """A task whose data came with atom."""

    config: Mapping[str, Any]  # lm-eval's, but for its data set
    files: Mapping[str, str]  # split -> file in atom/eval/data, without .jsonl.gz
    to_row: Callable[[int, Row], Row]
    hub: Hub
    main_metric: str
    licence: str
    missing: tuple[str, ...] = ()  # splits that lm-eval takes few-shot examples from
    exact_rows: bool = False  # the rows are the hub's, field by field

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of one split, in the hub's order and shape."""
        for number, row in enumerate(read_rows(self.files[split])):
            yield self.to_row(number, row)


def read_rows(name: str) -> Iterator[Row]:
    """The rows of a bundled file, as they came."""
    path = resources.files("atom.eval") / "data" / f"{name}.jsonl.gz"
    with path.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _as_it_is(number: int, row: Row) -> Row:
    return row


def _arc(number: int, row: Row) -> Row:
    labels = [chr(ord("A") + i) for i in range(len(row["choices"]))]
    return {
        "id": str(number),
        "question": row["query"].removeprefix("Question: "),
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["gold"]],
    }


def _lambada(number: int, row: Row) -> Row:
    return {"text": f"{row['context']} {row['continuation']}"}


def _copa(number: int, row: Row) -> Row:
    """The prompt puts the connecting word where the premise's full stop was."""
    premise, _, connector = row["query"].rpartition(", ")
    return {
        "premise": f"{premise}.",
        "choice1": row["choices"][0],
        "choice2": row["choices"][1],
        "question": {"because": "cause", "therefore": "effect"}[connector],
        "idx": number,
        "label": row["gold"],
    }


def _metric(name: str, aggregation: str = "mean", *, higher: bool = True, **more: Any) -> Row:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher, **more}


def _copa_choices(doc: Row) -> list[str]:
    return [f" {text[0].lower()}{text[1:]}" for text in (doc["choice1"], doc["choice2"])]


def _copa_question(doc: Row) -> str:
    connector = {"cause": "because", "effect": "therefore"}[doc["question"]]
    return f"{doc['premise'].strip()[:-1]} {connector}"


def _copa_answer(doc: Row) -> str:
    return _copa_choices(doc)[0 if doc["label"] == 0 else 1]


_GSM8K = Bundled(
    config={
        "output_type": "generate_until",
        "training_split": "train",
        "fewshot_split": "train",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            _metric(
                "exact_match",
                ignore_case=True,
                ignore_punctuation=False,
                regexes_to_ignore=[",", "\\$", "(?s).*#### ", "\\.$"],
            )
        ],
        "generation_kwargs": {
            "until": ["Question:", "</s>", "<|im_end|>"],
            "do_sample": False,
            "temperature": 0.0,
        },
        "num_fewshot": 5,
        "filter_list": [
            {
                "name": "strict-match",
                "filter": [
                    {"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"},
                    {"function": "take_first"},
                ],
            },
            {
                "name": "flexible-extract",
                "filter": [
                    {
                        "function": "regex",
                        "group_select": -1,
                        "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)",
                    },
                    {"function": "take_first"},
                ],
            },
        ],
        "metadata": {"version": 3.0},
    },
    files={"train": "gsm8k_train", "test": "gsm8k_test"},
    to_row=_as_it_is,
    hub=Hub("openai/gsm8k", "main"),
    main_metric="exact_match,flexible-extract",
    licence="MIT",
    exact_rows=True,
)
_ARC_EASY = Bundled(
    config={
        "output_type": "multiple_choice",
        "training_split": None,  # not bundled
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": "{{choices.text}}",
        "metric_list": [_metric("acc"), _metric("acc_norm")],
        "metadata": {"version": 1.0},
    },
    files={"test": "arc_easy"},
    to_row=_arc,
    hub=Hub("allenai/ai2_arc", "ARC-Easy"),
    main_metric="acc,none",
    licence="CC-BY-SA-4.0",
    missing=("train",),
)
_LAMBADA = Bundled(
    config={
        "output_type": "loglikelihood",
        "test_split": "test",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [_metric("perplexity", "perplexity", higher=False), _metric("acc")],
        "metadata": {"version": 1.0},
    },
    files={"test": "lambada_openai"},
    to_row=_lambada,
    hub=Hub("EleutherAI/lambada_openai", "default"),
    main_metric="acc,none",
    licence="CC-BY-4.0",
    exact_rows=True,
)
_COPA = Bundled(
    config={
        "output_type": "multiple_choice",
        "training_split": None,  # not bundled
        "validation_split": "validation",
        "doc_to_text": _copa_question,
        "doc_to_target": _copa_answer,
        "doc_to_choice": _copa_choices,
        "metric_list": [_metric("acc")],
        "metadata": {"version": 1.0},
    },
    files={"validation": "copa"},
    to_row=_copa,
    hub=Hub("aps/super_glue", "copa"),
    main_metric="acc,none",
    licence="BSD-2-Clause",
    missing=("train",),
)


def _blimp(name: str) -> Bundled:
    return Bundled(
        config={
            "output_type": "multiple_choice",
            "validation_split": "train",
            "doc_to_text": "",
            "doc_to_target": 0,
            "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
            "num_fewshot": 0,
            "metric_list": [_metric("acc")],
            "metadata": {"version": 1.0},
        },
        files={"train": name},
        to_row=_as_it_is,
        hub=Hub("nyu-mll/blimp", name.removeprefix("blimp_")),
        main_metric="acc,none",
        licence="CC-BY-4.0",
    )


TASKS: Mapping[str, Bundled] = {
    "gsm8k": _GSM8K,
    "arc_easy": _ARC_EASY,
    "lambada_openai": _LAMBADA,
    "copa": _COPA,
    **{name: _blimp(name) for name in BLIMP},
}


def has_rows_of(path: str, name: str) -> bool:
    """Whether a data set of the hub is bundled to the letter."""
    return any(task.exact_rows and task.hub == (path, name) for task in TASKS.values())


@dataclass(frozen=True, slots=True)
class BundledGroup:
    """Bundled tasks whose accuracies are averaged, each with the same weight."""

    members: tuple[str, ...]
    metrics: tuple[str, ...]
    version: float


GROUPS: Mapping[str, BundledGroup] = {
    "blimp_subset": BundledGroup(members=BLIMP, metrics=("acc",), version=1.0)
}


def num_documents(name: str) -> int:
    """Rows of the split that is evaluated."""
    task = TASKS[name]
    split = task.config.get("test_split") or task.config["validation_split"]
    return sum(1 for _ in read_rows(task.files[split]))


def configuration(name: str) -> dict[str, Any]:
    """lm-eval's task configuration with our rows; a new one, to be changed at will."""
    task = TASKS[name]
    config = {key: value for key, value in task.config.items() if value is not None}
    rows = functools.partial(_splits, task)
    return {**copy.deepcopy(config), "task": name, "custom_dataset": rows}


class Rows(list[Row]):
    """A split as lm-eval uses it: a list that knows its columns. Tables take a second to make."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


def _splits(task: Bundled, **ignored: Any) -> dict[str, Rows]:
    return {split: Rows(task.rows(split)) for split in task.files}


def dataset_of(task: Bundled) -> Callable[..., dict[str, Any]]:
    """The splits as tables in memory, for tasks that are not ours and may transform them."""

    def load(**ignored: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {split: Dataset.from_list(list(task.rows(split))) for split in task.files}

    return load

"""Plain lm-eval on bundled tasks: the oracle of eval_parity.py, the opponent of eval_speed.py.

    python benchmarks/eval_stock.py --model hf --path DIR --tasks arc_easy copa --limit 40 \
        --batch-size 8 --out hf.json
    python benchmarks/eval_stock.py --model local-completions --path DIR --url http://HOST:PORT \
        --name MODEL --tasks arc_easy --out stock.json

Tasks, prompts, model classes and metrics are lm-eval's own; only the download of the data set is
replaced by the rows in --data. What lm-eval does before the first request is kept short in its
favour: its index of tasks is built of five folders instead of all of them. Times are by phase.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
DATA = Path(__file__).resolve().parent.parent / "atom" / "eval" / "data"
COPA_KINDS = {"because": "cause", "therefore": "effect"}


class Source(NamedTuple):
    """Where a task is defined in lm-eval, and its rows of a data set by split."""

    folder: str  # within lm_eval/tasks
    files: dict[str, str]  # split -> file in the data folder, without .jsonl
    convert: Callable[[Row], Row]  # to the columns of the data set on the hub


def _arc(row: Row) -> Row:
    labels = [chr(ord("A") + i) for i in range(len(row["choices"]))]
    return {
        "question": row["query"].removeprefix("Question: "),
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["gold"]],
    }


def _copa(row: Row) -> Row:
    premise, _, word = row["query"].rpartition(", ")
    first, second = row["choices"]
    return {
        "premise": f"{premise}.",
        "choice1": first,
        "choice2": second,
        "question": COPA_KINDS[word],
        "label": row["gold"],
    }


def _lambada(row: Row) -> Row:
    return {"text": f"{row['context']} {row['continuation']}"}


def _blimp(row: Row) -> Row:
    return {name: row[name] for name in ("sentence_good", "sentence_bad")}


BLIMP = ("blimp_anaphor_number_agreement", "blimp_regular_plural_subject_verb_agreement_1")
SOURCES: dict[str, Source] = {
    # Without shots nothing is taken from "train", but lm-eval wants it to be there.
    "arc_easy": Source("arc", {"test": "arc_easy", "train": "arc_easy"}, _arc),
    "lambada_openai": Source("lambada", {"test": "lambada_openai"}, _lambada),
    "copa": Source("super_glue/copa", {"validation": "copa", "train": "copa"}, _copa),
    **{name: Source("blimp", {"train": name}, _blimp) for name in BLIMP},
    "gsm8k": Source("gsm8k", {"train": "gsm8k_train", "test": "gsm8k_test"}, dict),
}


def read_rows(data: Path, name: str) -> Iterator[Row]:
    """The rows of `name`.jsonl, packed or not."""
    packed = data / f"{name}.jsonl.gz"
    text = (
        gzip.decompress(packed.read_bytes())
        if packed.exists()
        else (data / f"{name}.jsonl").read_bytes()
    )
    return (json.loads(line) for line in text.splitlines() if line.strip())


def stock_tasks(names: Sequence[str], data: Path) -> Any:
    """lm-eval's own tasks (its `TaskDict`) over the rows in `data`."""
    import datasets
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    folders = sorted({str(root / SOURCES[name].folder) for name in names})
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=folders)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    kept = datasets.load_dataset
    for name in names:
        source = SOURCES[name]

        def rows(*_: Any, source: Source = source, **__: Any) -> Any:
            return datasets.DatasetDict(
                {
                    split: datasets.Dataset.from_list(
                        [source.convert(row) for row in read_rows(data, file)]
                    )
                    for split, file in source.files.items()
                }
            )

        datasets.load_dataset = rows
        try:
            loaded["tasks"].update(manager.load([name])["tasks"])
        finally:
            datasets.load_dataset = kept
    return loaded


class Answer(NamedTuple):
    """What a model said about one document."""

    prompt: str
    metrics: dict[str, float]
    choices: list[str]  # continuations that were scored
    logprobs: list[float]
    greedy: list[bool]
    text: str | None = None  # generated


Answers = dict[str, list[Answer]]  # task -> by doc_id


def answers_of(samples: dict[str, list[Row]]) -> Answers:
    """From lm-eval's log of samples; the filters of one document are joined."""
    found: Answers = {}
    for task, records in samples.items():
        answers: dict[int, Answer] = {}
        for record in sorted(records, key=lambda r: r["doc_id"]):
            metrics = {f"{m},{record['filter']}": as_number(record[m]) for m in record["metrics"]}
            doc = record["doc_id"]
            if doc in answers:
                answers[doc].metrics.update(metrics)
                continue
            prompt = record["arguments"][0][0]
            said = [each[0] for each in record["resps"]]
            if isinstance(said[0], str):
                answers[doc] = Answer(prompt, metrics, [], [], [], said[0])
            else:
                texts = [arguments[1] for arguments in record["arguments"]]
                values, greedy = zip(*said, strict=True)
                answers[doc] = Answer(prompt, metrics, texts, list(values), list(greedy))
        found[task] = [answers[doc] for doc in sorted(answers)]
    return found


def as_number(value: Any) -> float:
    """A metric's value for one document; of perplexity, the log-likelihood."""
    return float(value[0] if isinstance(value, (list, tuple)) else value)


def write_answers(path: Path, answers: Answers, **facts: Any) -> None:
    path.write_text(json.dumps({**facts, "answers": answers}) + "\n")


def read_answers(path: Path) -> tuple[Answers, dict[str, Any]]:
    """The answers, and the facts written beside them."""
    record = json.loads(path.read_text())
    answers = {task: [Answer(*a) for a in each] for task, each in record.pop("answers").items()}
    return answers, record


def build_model(args: argparse.Namespace) -> Any:
    """lm-eval's model: `hf` in float32 on the CPU, or a client of a server."""
    from lm_eval.api.registry import get_model

    if args.model == "hf":
        given = {"pretrained": str(args.path), "dtype": args.dtype, "device": "cpu"}
    else:
        given = {
            "base_url": f"{args.url}/v1/completions",
            "model": args.name,
            "tokenizer": str(args.path),
            "tokenizer_backend": "huggingface",
            "num_concurrent": args.concurrency,
            "max_length": args.max_length,
        }
    batch = args.batch_size if args.batch_size.startswith("auto") else int(args.batch_size)
    return get_model(args.model).create_from_arg_obj(given, {"batch_size": batch})


class Phases:
    """Seconds by phase; `asked` is within a phase: the model's share of it."""

    def __init__(self) -> None:
        self.times_s: dict[str, float] = {}
        self._at = time.perf_counter()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.times_s[name], self._at = now - self._at, now

    def watch(self, model: Any) -> None:
        """Adds up what the model's three methods take as "asked"."""
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(model, name, self._timed(getattr(model, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                asked = time.perf_counter() - began
                self.times_s["asked"] = self.times_s.get("asked", 0.0) + asked

        return timed


def run(args: argparse.Namespace) -> None:
    phases = Phases()
    import torch
    from lm_eval import evaluator

    if args.threads:
        torch.set_num_threads(args.threads)
    phases.end("imports")
    model = build_model(args)
    phases.watch(model)
    phases.end("model")
    tasks = stock_tasks(args.tasks, args.data)
    phases.end("tasks")
    limit = args.limit
    found = evaluator.simple_evaluate(
        model, tasks=list(tasks["tasks"].values()), limit=limit, bootstrap_iters=0
    )
    phases.end("evaluate")
    write_answers(
        args.out,
        answers_of(found["samples"]),
        results=found["results"],
        times_s=phases.times_s,
        versions={name: sys.modules[name].__version__ for name in ("lm_eval", "torch")},
        model=args.model,
        batch_size=args.batch_size,
        threads=torch.get_num_threads(),
        limit=limit,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=("hf", "local-completions"), required=True)
    add("--path", type=Path, required=True, help="HF folder: weights, or only the tokenizer")
    add("--url", help="of the server, without /v1")
    add("--name", help="the server's name of the model")
    add("--tasks", nargs="+", choices=sorted(SOURCES), required=True)
    add("--limit", type=int)
    add("--batch-size", default="8")
    add("--concurrency", type=int, default=1)
    add("--max-length", type=int, default=2048)
    add("--dtype", default="float32")
    add("--threads", type=int)
    add("--data", type=Path, default=DATA)
    add("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    run(args)


if __name__ == "__main__":
    main()

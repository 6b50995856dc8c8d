"""An outcome in lm-eval's form: results_*.json and samples_TASK_*.jsonl, for what reads those.

Field names and meanings are lm-eval 0.4's. What it has no place for (intervals, our ids) is left
out here; the history has it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from atom.eval.errors import EvalError
from atom.eval.types import EvalOutcome, Sample, TaskResult


def check_folder(folder: Path | None) -> None:
    """Raise `EvalError` now if the folder cannot take a file, not after the evaluation."""
    import tempfile

    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EvalError(f"--output {folder}: {error.strerror}") from error


def results_document(
    outcome: EvalOutcome, *, model: str, base_url: str, chat: bool, date: float
) -> dict[str, Any]:
    """The content of results_*.json. `date`: seconds since 1970, when the run began."""
    tasks = [r for r in outcome.tasks if r.kind == "task"]
    groups = [r for r in outcome.tasks if r.kind == "group"]
    hashes = _task_hashes(outcome.samples)
    document: dict[str, Any] = {
        "results": {r.task: _scores(r) for r in outcome.tasks},
        "configs": {r.task: _config(r) for r in tasks},
        "versions": {r.task: _number(r.version) for r in outcome.tasks if r.version},
        "n-shot": {r.task: r.num_fewshot for r in tasks},
        "higher_is_better": {
            r.task: {m.partition(",")[0]: s.higher_is_better for m, s in r.metrics.items()}
            for r in outcome.tasks
        },
        "n-samples": {
            r.task: {"original": r.num_documents, "effective": r.num_samples} for r in tasks
        },
        "config": {
            "model": "local-chat-completions" if chat else "local-completions",
            "model_args": {"model": model, "base_url": _without_user(base_url)},
            **outcome.config,
        },
        "date": date,
        "lm_eval_version": outcome.versions.get("lm_eval", ""),
        "task_hashes": hashes,
        "model_name": model,
        "model_name_sanitized": sanitized(model),
        "total_evaluation_time_seconds": str(outcome.duration_s),
    }
    if groups:
        document["groups"] = {r.task: _scores(r) for r in groups}
        document["group_subtasks"] = {r.task: list(r.members) for r in groups}
    return document


def _scores(result: TaskResult) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": result.task}
    for metric, score in result.metrics.items():
        name, _, chosen = metric.partition(",")
        found[metric] = score.value
        found[f"{name}_stderr,{chosen}"] = "N/A" if score.stderr is None else score.stderr
    return found


def _config(result: TaskResult) -> dict[str, Any]:
    return {
        "task": result.task,
        "output_type": result.output_type,
        "num_fewshot": result.num_fewshot,
        **({"generation_kwargs": result.generation} if result.generation else {}),
    }


def _number(version: str) -> Any:
    try:
        return float(version)
    except ValueError:
        return version


def _task_hashes(samples: Sequence[Sample]) -> dict[str, str]:
    """One hash over all documents, prompts and targets of a task, as lm-eval makes it."""
    parts: dict[str, list[str]] = {}
    for sample in samples:
        for _ in _filters(sample):
            parts.setdefault(sample.task, []).append(
                sample.doc_hash + _hash(sample.prompt) + _hash(sample.target)
            )
    return {task: _hash("".join(texts)) for task, texts in parts.items()}


def _filters(sample: Sample) -> list[str]:
    """The filters of a sample, in the order of its metrics."""
    return list(dict.fromkeys(metric.partition(",")[2] for metric in sample.metrics))


def sample_lines(samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """Lines of samples_*.jsonl: one for each document and filter."""
    for sample in samples:
        arguments, answers, filtered = _exchange(sample)
        for chosen in _filters(sample):
            metrics = {
                name.partition(",")[0]: value
                for name, value in sample.metrics.items()
                if name.partition(",")[2] == chosen
            }
            yield {
                "doc_id": sample.doc_id,
                "doc": sample.doc,
                "target": sample.target if sample.gold is None else str(sample.gold),
                "arguments": arguments,
                "resps": answers,
                "filtered_resps": [sample.filtered[chosen]]
                if chosen in sample.filtered
                else filtered,
                "filter": chosen,
                "metrics": list(metrics),
                "doc_hash": sample.doc_hash,
                "prompt_hash": _hash(sample.prompt),
                "target_hash": _hash(sample.target),
                **metrics,
            }


def _exchange(sample: Sample) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """(arguments, responses, responses as filtered) of a sample, in lm-eval's nesting."""
    arguments: dict[str, Any] = {}
    for number, answer in enumerate(sample.answers):
        choice = "logprob" in answer
        second: Any = answer["text"] if choice else {}
        arguments[f"gen_args_{number}"] = {"arg_0": sample.prompt, "arg_1": second}
    responses = [
        [[str(a["logprob"]), str(a.get("is_greedy", False))]] if "logprob" in a else [a["text"]]
        for a in sample.answers
    ]
    return arguments, responses, [response[0] for response in responses]


def write(
    folder: Path, document: Mapping[str, Any], samples: Sequence[Sample], moment: datetime
) -> list[Path]:
    """Write both kinds of files below `folder`/MODEL; their paths. Raises `OSError`."""
    stamp = moment.replace(tzinfo=None).isoformat().replace(":", "-")
    place = folder / str(document["model_name_sanitized"])
    place.mkdir(parents=True, exist_ok=True)
    written = [place / f"results_{stamp}.json"]
    text = json.dumps(document, indent=2, ensure_ascii=False)
    written[0].write_text(text + "\n", encoding="utf-8")
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    for task, found in by_task.items():
        path = place / f"samples_{task}_{stamp}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for line in sample_lines(found):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        written.append(path)
    return written


def sanitized(model: str) -> str:
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _without_user(url: str) -> str:
    return re.sub(r"(?<=://)[^/@\s]+@", "", url)

"""lm-eval's `samples_<task>_<date>.jsonl`: what was asked and answered, document by document.

They lie beside `results_<date>.json` and come in with it; alone they make a run whose scores are
the means of theirs. A sample becomes a JSON object of the shape of `atom.eval.types.Sample`.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from atom.bench.errors import BenchError
from atom.bench.history.documents import Loaded
from atom.bench.history.evaluations import Evaluations
from atom.bench.history.importers.build import Origin, make_run
from atom.bench.history.importers.reading import number, read_trees
from atom.bench.types import Interval

TOOL = "lm-eval samples"
Z_95 = 1.959964
_DATE = r"\d{4}-\d\d-\d\dT[\d.\-]+"
_RESULTS = re.compile(rf".*_({_DATE})\.json")
_SAMPLES = re.compile(rf"samples_(.+)_({_DATE})\.jsonl")
_MARKS = {"doc_id", "doc_hash", "arguments", "resps", "filtered_resps", "metrics"}
# What a damaged sample ends in.
_ODD = (TypeError, ValueError, KeyError, AttributeError, IndexError)


def is_samples(path: Path) -> bool:
    """By the file's name; its content is looked at when it is read."""
    return _SAMPLES.fullmatch(path.name) is not None


def beside(results: Path) -> Evaluations:
    """The samples of a results file, by task; none where they were not kept with it."""
    match = _RESULTS.fullmatch(results.name)
    if match is None:
        return {}
    files = sorted(results.parent.glob(f"samples_*_{match[1]}.jsonl"))
    return {_task(path): read_samples(path) for path in files}


def results_of(samples: Path) -> Path | None:
    """The results file that a samples file belongs to."""
    match = _SAMPLES.fullmatch(samples.name)
    assert match is not None, samples
    found = sorted(samples.parent.glob(f"*_{match[2]}.json"))
    return found[0] if len(found) == 1 else None


def _task(path: Path) -> str:
    match = _SAMPLES.fullmatch(path.name)
    assert match is not None, path
    return match[1]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """A file's samples, those of several filters as one; raises `BenchError` in one line."""
    task = _task(path)
    found: dict[int, dict[str, Any]] = {}
    for tree in read_trees(path):
        if not isinstance(tree.value, Mapping) or not tree.value.keys() >= _MARKS:
            raise BenchError(f"{path}:{tree.line}: not a sample of lm-eval")
        try:
            made = _sample(task, tree.value)
            held = found.setdefault(made["doc_id"], made)
            held["metrics"].update(made["metrics"])
            held["filtered"].update(made["filtered"])
        except _ODD as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise BenchError(f"{path}:{tree.line}: a damaged sample ({reason})") from error
    return list(found.values())


def _sample(task: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    chosen_filter = str(tree.get("filter") or "none")
    calls = _arguments(tree["arguments"])
    scored = _scored(tree["resps"])
    made = {
        "task": task,
        "doc_id": int(tree["doc_id"]),
        "doc_hash": str(tree["doc_hash"]),
        "prompt": calls[0][0] if calls else "",
        "target": str(tree.get("target", "")),
        "metrics": dict(_metrics(tree, chosen_filter)),
        "filtered": {},
        "doc": tree["doc"] if isinstance(tree.get("doc"), dict) else {},
    }
    if scored is None:
        texts = [text for response in tree["resps"] for text in _flat(response)]
        made["answers"] = [{"text": text} for text in texts]
        made["filtered"] = {chosen_filter: ", ".join(_flat(tree["filtered_resps"]))}
        return made
    if "acc_mutual_info" in tree["metrics"]:  # the second half are the choices without context
        calls, scored = calls[: len(calls) // 2], scored[: len(scored) // 2]
    apart = len({context for context, _ in calls}) > 1
    texts = [text for _, text in calls]
    made["answers"] = [
        {"text": text, "logprob": logprob, "is_greedy": greedy}
        for text, (logprob, greedy) in zip(texts, scored, strict=True)
    ]
    for answer, (context, _) in zip(made["answers"], calls, strict=True) if apart else ():
        answer["context"] = context
    if len(scored) > 1:
        made["chosen"] = max(range(len(scored)), key=lambda i: scored[i][0])
        made |= _gold(made["target"], texts)
    return made


def _arguments(tree: Any) -> list[tuple[str, str]]:
    """Context and continuation of each request; of a generation the second is "".

    Written as {"gen_args_0": {"arg_0": ..., "arg_1": ...}}, by older versions as lists.
    """
    calls = tree.values() if isinstance(tree, Mapping) else tree
    found = []
    for call in calls:
        given = list(call.values()) if isinstance(call, Mapping) else list(call)
        context = given[0]
        if isinstance(context, list) and len(context) == 1:  # a chat's messages, as JSON
            context = context[0]
        second = given[1] if len(given) > 1 and isinstance(given[1], str) else ""
        found.append((str(context), second))
    return found


def _scored(responses: Any) -> list[tuple[float, bool]] | None:
    """(log-probability, greedy) of each request; None where texts were generated."""
    found = []
    for response in responses:
        first = response[0] if isinstance(response, list) and response else response
        if not isinstance(first, list) or len(first) != 2 or str(first[1]) not in ("True", "False"):
            return None
        found.append((float(first[0]), str(first[1]) == "True"))
    return found or None


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield str(value)


def _metrics(tree: Mapping[str, Any], chosen_filter: str) -> Iterator[tuple[str, float]]:
    """The metrics that are one number; others (pairs for an F1 of all) have no score by sample."""
    for metric in tree["metrics"]:
        value = tree.get(metric)
        found = float(value) if isinstance(value, bool) else number(value)
        if found is not None:
            yield f"{metric},{chosen_filter}", found


def _gold(target: str, texts: list[str]) -> dict[str, Any]:
    """The right choice's number, which lm-eval writes as the target, or its text; and its text."""
    if target.isdecimal() and int(target) < len(texts):
        return {"gold": int(target), "target": texts[int(target)]}
    plain = [text.strip() for text in texts]
    return {"gold": plain.index(target.strip())} if target.strip() in plain else {}


def alone(path: Path, origin: Origin) -> Loaded:
    """A run of one task, made from its samples."""
    samples = read_samples(path)
    match = _SAMPLES.fullmatch(path.name)
    assert match is not None, path
    task = match[1]
    intervals = {
        f"{task}/{metric}": _mean([s["metrics"][metric] for s in samples if metric in s["metrics"]])
        for metric in dict.fromkeys(m for s in samples for m in s["metrics"])
        if not metric.startswith("perplexity")  # no mean of what the samples hold
    }
    model = origin.model or "unknown"
    run = make_run(
        tool=TOOL,
        origin=origin,
        content=samples,
        moment=_moment(match[2], origin),
        kind="eval",
        name=model.rstrip("/").rpartition("/")[2],
        model=model,
        load={},
        workload={"dataset": task, "tasks": {task: {"samples": len(samples)}}},
        provenance={"server": {"kind": "unknown"}, "hardware": {"known": False, "gpus": []}},
        metrics={name: interval.value for name, interval in intervals.items()},
        intervals={k: v for k, v in intervals.items() if v.low < v.high},
    )
    return Loaded(run, (), {task: samples})


def _mean(values: Iterable[float]) -> Interval:
    """With its interval of 95 %, as lm-eval's standard error of a mean gives it."""
    known = list(values)
    mean = statistics.fmean(known)
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else 0.0
    return Interval(mean, mean - Z_95 * error, mean + Z_95 * error)


def _moment(text: str, origin: Origin) -> datetime:
    """2026-11-21T19-19-04.321333 in a file's name; lm-eval takes the machine's clock."""
    try:
        found = datetime.strptime(text[:19], "%Y-%m-%dT%H-%M-%S")
    except ValueError:
        return origin.modified()
    return found.replace(tzinfo=timezone.utc)

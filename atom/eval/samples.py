"""One record for each document: what was asked, answered, found right. From lm-eval's instances."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from atom.eval.types import Generated, Sample


def make_sample(
    task: Any,
    doc_id: int,
    doc: Any,
    instances: Sequence[Any],
    metrics: Mapping[str, Any],
    generated: Mapping[int, Sequence[Generated]],
) -> Sample:
    """`instances`: the requests of one document, answered and filtered, in the order of choices.

    `metrics`: by "metric,filter"; those that are no numbers by themselves are left out.
    `generated`: what the server said, by the id of an instance.
    """
    first = instances[0]
    sample = Sample(
        task=task.task_name,
        doc_id=doc_id,
        doc_hash=document_hash(doc),
        prompt=str(first.args[0]),
        target="",
        metrics={name: float(v) for name, v in metrics.items() if isinstance(v, int | float)},
        doc=_plain(doc),
    )
    if first.request_type == "loglikelihood":
        _add_choices(sample, task, doc, instances)
    elif first.request_type == "generate_until":
        _add_text(sample, task, doc, first, generated.get(id(first), ()))
    else:
        sample.prompt, sample.target = "", str(first.args[0])
        sample.answers = [{"logprob": float(resp)} for resp in first.resps]
    return sample


def _add_choices(sample: Sample, task: Any, doc: Any, instances: Sequence[Any]) -> None:
    for instance in instances:
        logprob, is_greedy = instance.resps[0]
        sample.answers.append(
            {
                "text": str(instance.args[1]),
                "logprob": float(logprob),
                "is_greedy": bool(is_greedy),
            }
        )
    if task.OUTPUT_TYPE != "multiple_choice":
        sample.target = str(instances[0].args[1])
        return
    choices = [str(choice) for choice in task.doc_to_choice(doc)]
    for answer, instance in zip(sample.answers, instances, strict=True):
        if instance.args[0] != instances[0].args[0]:
            answer["context"] = str(instance.args[0])
    logprobs = [answer["logprob"] for answer in sample.answers[: len(choices)]]
    sample.chosen = max(range(len(logprobs)), key=logprobs.__getitem__)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str) and gold in choices:
        gold = choices.index(gold)
    if isinstance(gold, list):  # any of several is right
        sample.target = " | ".join(choices[g] for g in gold if isinstance(g, int))
    elif isinstance(gold, int) and 0 <= gold < len(choices):
        sample.gold, sample.target = gold, choices[gold]
    else:
        sample.target = str(gold)


def _add_text(
    sample: Sample, task: Any, doc: Any, instance: Any, answers: Sequence[Generated]
) -> None:
    sample.answers = [{"text": str(text)} for text in instance.resps]
    for answer, said in zip(sample.answers, answers, strict=True):
        if said.reasoning:
            answer["reasoning"] = said.reasoning
        if said.text != answer["text"]:
            answer["raw"] = said.text  # before the stop strings and the thinking were taken away
    sample.filtered = {name: _text(value) for name, value in instance.filtered_resps.items()}
    reasons = [said.finish_reason for said in answers]
    sample.finish_reason = "length" if "length" in reasons else next(iter(reasons), None)
    lengths = [said.output_tokens for said in answers]
    if lengths and None not in lengths:
        sample.output_tokens = sum(n for n in lengths if n is not None)
    target = task.doc_to_target(doc)
    choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
    sample.target = str(choices[target]) if choices and isinstance(target, int) else _text(target)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def document_hash(doc: Any) -> str:
    """lm-eval's `doc_hash`, so that its samples can be paired with ours."""
    text = json.dumps(doc, indent=2, default=_unusual, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def prompts_hash(instances: Sequence[Any]) -> str:
    """Of all that is asked: contexts and, where there are any, continuations."""
    digest = hashlib.sha256()
    for instance in instances:
        for part in instance.args:
            if isinstance(part, str):
                digest.update(part.encode())
                digest.update(b"\0")
    return digest.hexdigest()[:16]


def _unusual(value: Any) -> Any:
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        return value.item()  # a number of numpy's
    return list(value) if isinstance(value, set) else str(value)


def _plain(doc: Any) -> dict[str, Any]:
    """The document as JSON has it."""
    found = json.loads(json.dumps(doc, default=_unusual))
    return found if isinstance(found, dict) else {"document": found}

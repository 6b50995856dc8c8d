"""What a sample asked, what was said and what was right, in few words for lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atom.eval.types import Sample

# What a model says must not steer the terminal: control characters are shown by their pictures.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_CONTROLS |= {0x7F: 0x2421, **dict.fromkeys(range(128, 160), 65533)}


def harmless(text: str) -> str:
    return text.translate(_CONTROLS)


def choice(answer: Mapping[str, Any]) -> str:
    """A choice's text; where choices differ before it, with the end of what they follow."""
    text = str(answer.get("text", "")).strip()
    context = str(answer.get("context") or "").strip().rpartition("\n")[2]
    return f"{context} {text}".strip()


def question(sample: Sample) -> str:
    """The prompt without its examples: what follows the last empty line that has a text after it.

    Where choices differ before the answer (a prompt that is empty), the first choice's text.
    """
    prompt = sample.prompt.rstrip()
    if not prompt.strip() and sample.answers:
        return choice(sample.answers[0]) or sample.target.strip()
    return prompt.rpartition("\n\n")[2]


def target(sample: Sample) -> str:
    """What would have been right; of a worked answer its last line, without gsm8k's ####."""
    return sample.target.strip().rpartition("\n")[2].removeprefix("####").strip()


def chosen_per_character(sample: Sample) -> int | None:
    """The choice that acc_norm takes: the largest log-probability divided by its length."""
    if sample.chosen is None:
        return None
    scores = [
        float(answer["logprob"]) / (len(str(answer.get("text", "")).strip()) or 1)
        for answer in sample.answers
    ]
    return max(range(len(scores)), key=scores.__getitem__)


def said(sample: Sample, metric: str = "") -> str:
    """What the model answered: what the filters made of it, or the choice that `metric` takes.

    Of several filters the metric's own, else the first that found something.
    """
    chosen = chosen_per_character(sample) if metric.startswith("acc_norm") else sample.chosen
    if chosen is not None and chosen < len(sample.answers):
        return choice(sample.answers[chosen])
    own = sample.filtered.get(metric.partition(",")[2])
    if own is not None:
        return own
    for text in sample.filtered.values():
        if text and text != "[invalid]":
            return text
    if sample.filtered:
        return next(iter(sample.filtered.values()))
    return choice(sample.answers[0]) if sample.answers else ""


def one_line(text: str, room: int) -> str:
    """White space as single spaces, cut to `room` columns with a sign that it is."""
    plain = harmless(" ".join(text.split()))
    return plain if len(plain) <= room else plain[: max(0, room - 1)] + "…"

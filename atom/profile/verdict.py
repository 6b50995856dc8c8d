"""What `atom.trace` makes of the traces of one shape, and whether they hold what was asked for."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atom.errors import AtomError
from atom.profile.shapes import Shape
from atom.trace.analysis import load
from atom.trace.errors import NoGpuWork
from atom.trace.ranking import Top, top
from atom.trace.summary import summarize
from atom.trace.types import STEP_KINDS, Analysis, RankModel

TOP_ROWS = 5
MOST_KINDS = 2


@dataclass(slots=True)
class Item:
    """A module or a kernel. `share` of the busy time, 0 to 1; `us`: per step."""

    name: str
    share: float
    us: float


@dataclass(slots=True)
class Tops:
    """Where the time of the steps of one kind goes; "": of all work."""

    kind: str
    steps: int
    modules: list[Item]
    kernels: list[Item]  # on a CPU: operators


@dataclass(slots=True)
class Verdict:
    """Of the first rank, but for `problems`. Times are of GPU work, microseconds per step; on a CPU
    of operators."""

    device: str = ""  # "gpu" or "cpu"
    steps: int = 0
    median_us: float = 0.0
    min_us: float = 0.0
    max_us: float = 0.0
    busy_share: float = 0.0  # of the steps' time
    match_rate: float = 0.0
    how: dict[str, int] = field(default_factory=dict)  # how the match came -> rows
    num_layers: int = 0
    tops: list[Tops] = field(default_factory=list)  # the kinds with most time
    headlines: list[str] = field(default_factory=list)  # sentences, the most telling first
    problems: list[str] = field(default_factory=list)


def read(files: Sequence[Path], device: str) -> tuple[Verdict, Analysis | None]:
    """The figures of these traces, one per rank. A trace that cannot be explained is a problem of
    the verdict, not an error: it has been recorded."""
    verdict = Verdict(device="gpu" if device == "auto" else device)
    try:
        analysis, verdict.device = _load(files, device)
        summary = summarize(analysis)
    except AtomError as error:
        verdict.problems.append(str(error))
        return verdict, None
    verdict.problems += analysis.warnings
    ran_on = str(analysis.first.trace.atom.get("device", ""))
    if (device, verdict.device) == ("auto", "cpu") and not ran_on.startswith("cpu"):
        verdict.problems.append("no GPU events in the traces; the figures are of the host's work")
    rank = summary.first
    steps = [step for step in rank.steps if step.gpu_ns]
    if steps:
        spans = sorted(step.gpu_ns / 1000 for step in steps)
        verdict.steps = len(steps)
        verdict.median_us = (spans[(len(spans) - 1) // 2] + spans[len(spans) // 2]) / 2
        verdict.min_us, verdict.max_us = spans[0], spans[-1]
        verdict.busy_share = sum(step.busy_ns for step in steps) / (1000 * sum(spans))
    verdict.match_rate, verdict.how = rank.match.rate, dict(rank.match.by)
    verdict.num_layers = rank.num_layers
    verdict.headlines = list(summary.headlines)
    verdict.tops = _tops(analysis.first)
    return verdict, analysis


def _load(files: Sequence[Path], device: str) -> tuple[Analysis, str]:
    """ "auto": the GPU's work, or the host's where the traces hold none of a GPU."""
    if device != "auto":
        return load(list(files), device=device), device
    try:
        return load(list(files)), "gpu"
    except NoGpuWork:
        return load(list(files), device="cpu"), "cpu"


def judge(files: Sequence[Path], device: str, shape: Shape, steps: int) -> Verdict:
    """`read`, and a problem for whatever is not the recorded shape."""
    verdict, analysis = read(files, device)
    if analysis is not None:
        for model in analysis.ranks:
            verdict.problems += differences(model, shape, steps)
    del analysis
    gc.collect()  # the columns of a large trace, before the next is read
    return verdict


def differences(model: RankModel, shape: Shape, steps: int) -> list[str]:
    """How the steps that the file's labels name differ from `steps` steps of `shape`."""
    found = [step for step in model.steps if step.found_by == "label"]
    where = f"rank {model.trace.rank}"
    if len(found) != steps:
        return [f"{where}: {steps} steps were recorded, the labels name {len(found)}"]
    for number, step in enumerate(found):
        wanted = _expected(shape, number)
        got = {"kind": step.kind, **{k: step.fields.get(k) for k in wanted if k != "kind"}}
        if got != wanted:
            return [f"{where}: step {number} is {step.label}, not {_words(wanted)}"]
    return []


def _expected(shape: Shape, number: int) -> dict[str, Any]:
    """Fields of the label of recorded step `number`: `sk` counts the tokens that it sees."""
    seen = shape.tokens + (number if shape.kind == "decode" else 0)
    return {
        "kind": shape.kind,
        "bs": shape.batch,
        "tok": shape.step_tokens,
        "sk": shape.batch * seen,
    }


def _words(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def _tops(model: RankModel) -> list[Tops]:
    """Of the two kinds of step with most time, in the order of `STEP_KINDS`."""
    busy: Counter[str] = Counter()
    for step in model.steps:
        if step.counts:
            busy[step.kind] += step.busy_ns
    chosen = [kind for kind, ns in busy.most_common(MOST_KINDS) if ns] or [""]
    chosen.sort(key=lambda kind: STEP_KINDS.index(kind) if kind else 0)
    found = []
    for kind in chosen:
        modules, kernels = top(model, "module", kind), top(model, "kernel", kind)
        found.append(Tops(kind, modules.steps, _items(modules), _items(kernels)))
    return found


def _items(found: Top) -> list[Item]:
    per_step = 1000 * max(1, found.steps)
    return [Item(row.name, row.share, row.own_ns / per_step) for row in found.rows[:TOP_ROWS]]

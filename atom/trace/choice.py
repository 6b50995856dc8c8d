"""Which of many steps stands for its kind: by shape, by time, or by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from atom.trace.errors import TraceError
from atom.trace.groups import shape_of
from atom.trace.types import Analysis, RankModel, Step

# Kinds that get a breakdown, in the order in which they are shown.
KINDS = ("prefill", "decode", "mixed", "draft", "step")
WHICH = ("median", "first", "slowest")


@dataclass(frozen=True, slots=True)
class Choice:
    """One step, and the steps that it stands for."""

    step: Step
    how: str  # one sentence for people
    shape: str
    alike: list[Step]  # complete steps of the same kind and shape, with `step`, in order
    of_kind: int  # complete or not


def kind_text(kind: str) -> str:
    """For sentences: a step of kind "step" is one whose work is not known."""
    return "unlabelled" if kind == "step" else kind


def shape_text(step: Step) -> str:
    """E.g. "bs=30 graph=32"; of a step without a label its number of kernels. Finer than
    `groups.shape_of`: kernels of another graph are other kernels."""
    fields: list[tuple[str, object]] = [*shape_of(step).fields]
    if "graph" in step.fields:
        fields.append(("graph", step.fields["graph"]))
    text = " ".join(f"{name}={value}" for name, value in fields)
    return text or f"{len(step.rows)} kernel{'' if len(step.rows) == 1 else 's'}"


def pick_rank(analysis: Analysis, rank: int | None) -> RankModel:
    """The model of `rank`, or the first one; raises `TraceError`."""
    if rank is None:
        return analysis.first
    found = next((model for model in analysis.ranks if model.trace.rank == rank), None)
    if found is None:
        ranks = ", ".join(str(model.trace.rank) for model in analysis.ranks)
        raise TraceError(f"--rank {rank}: the traces are of rank {ranks}")
    return found


def steps_of(steps: Sequence[Step], kind: str) -> list[Step]:
    """The steps of a kind that have GPU work."""
    return [step for step in steps if step.kind == kind and len(step.rows)]


def choose(steps: Sequence[Step], kind: str, which: str | int = "median") -> Choice:
    """The step of `kind` that is shown: the median one by GPU time of the commonest shape, the
    first, the slowest, or the one whose index is given.

    Steps with a warning (incomplete ones) are taken only where there are no others, or by index.
    Raises `TraceError` if there is none.
    """
    found = steps_of(steps, kind)
    if isinstance(which, int):
        return _by_index(steps, found, kind, which)
    if not found:
        raise TraceError(f"no {kind_text(kind)} step with GPU work; {what_there_is(steps)}")
    whole = [step for step in found if not step.warning] or found
    shape = ""
    if which == "first":
        chosen, how = whole[0], f"the first of {len(whole)} {kind_text(kind)} steps"
    elif which == "slowest":
        chosen = max(whole, key=lambda step: step.gpu_ns)
        how = f"the slowest of {len(whole)} {kind_text(kind)} steps"
    elif which == "median":
        chosen, shape, how = _median(whole, kind)
    else:
        raise TraceError(f"--step {which}: give one of {', '.join(WHICH)}, or a step's number")
    shape = shape or shape_text(chosen)
    alike = [step for step in whole if shape_text(step) == shape]
    return Choice(chosen, _complete(how, found, whole), shape, alike, len(found))


def what_there_is(steps: Sequence[Step]) -> str:
    """E.g. "there are 60 decode and 2 prefill steps (0 to 61)"."""
    counts = Counter(step.kind for step in steps if len(step.rows) and step.counts)
    if not counts:
        return "no step has GPU work"
    parts = [f"{number} {kind_text(kind)}" for kind, number in counts.most_common()]
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    only = sum(counts.values()) == 1
    return f"there {'is' if only else 'are'} {listed} step{'' if only else 's'}"


def _by_index(steps: Sequence[Step], found: Sequence[Step], kind: str, index: int) -> Choice:
    chosen = next((step for step in found if step.index == index), None)
    if chosen is None:
        raise TraceError(f"--step {index} is no {kind_text(kind)} step; {what_there_is(steps)}")
    shape = shape_text(chosen)
    alike = [s for s in found if shape_text(s) == shape and (not s.warning or s is chosen)]
    return Choice(chosen, "the step asked for", shape, alike, len(found))


def _median(whole: Sequence[Step], kind: str) -> tuple[Step, str, str]:
    """The lower median by GPU time, of the commonest shape; ties go to the one with more time."""
    shapes: dict[str, list[Step]] = {}
    for step in whole:
        shapes.setdefault(shape_text(step), []).append(step)
    shape, group = max(shapes.items(), key=lambda item: (len(item[1]), _time(item[1])))
    if len(group) == 1 and len(whole) > 1:
        how = f"the median of {len(whole)} {kind_text(kind)} steps, no two of one shape"
        shape, group = "", list(whole)
    elif len(whole) == 1:
        how = f"the only {kind_text(kind)} step"
    else:
        how = f"the median of {len(group)} {kind_text(kind)} steps"
        how += f", all {shape}" if len(shapes) == 1 else f" with {shape}, the commonest shape"
    ordered = sorted(group, key=lambda step: step.gpu_ns)
    return ordered[(len(ordered) - 1) // 2], shape, how


def _time(steps: Sequence[Step]) -> int:
    return sum(step.gpu_ns for step in steps)


def _complete(how: str, found: Sequence[Step], whole: Sequence[Step]) -> str:
    left = len(found) - len(whole)
    if left:
        return f"{how}; {left} incomplete left out"
    warned = sum(bool(step.warning) for step in whole)
    return f"{how}; all {warned} are incomplete" if warned else how

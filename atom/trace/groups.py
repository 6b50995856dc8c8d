"""Steps that did the same work, so that their times compare: kind and shape, from their labels.

A decode's shape is its requests and tokens; a prefill's its prompts and tokens. How much context
the requests have is not in it: it differs from step to step, and is told beside the times.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from atom.trace.types import STEP_KINDS, RankModel, Step

STRAY = 3.0  # medians: a step beyond them tells of something else, such as code being loaded
FEWEST_FOR_STRAYS = 5
MOST_STRAYS = 0.1


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What two steps must have in common."""

    kind: str  # of STEP_KINDS
    fields: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        """E.g. "decode bs=32", "prefill bs=1 tok=512", "draft 1/3 bs=8", "decode graph=32"."""
        fields = dict(self.fields)
        if self.kind == "draft" and "i" in fields:
            draft = f"draft {fields.pop('i')}/{fields.pop('k', '?')}"
            return " ".join([draft, *(f"{k}={v}" for k, v in fields.items())])
        return " ".join([self.kind, *(f"{k}={v}" for k, v in fields.items())])


@dataclass(frozen=True, slots=True)
class Group:
    """Steps of one shape in one file."""

    shape: Shape
    model: RankModel
    steps: list[Step]
    notes: tuple[str, ...] = ()  # which were left out


def shape_of(step: Step) -> Shape:
    """From the label's fields; tok and spec only where they say more than bs."""
    fields = step.fields
    bs, tok = _number(fields, "bs"), _number(fields, "tok")
    names: dict[str, int | None] = {"bs": bs, "tok": tok}
    if step.kind == "decode":
        names["tok"] = tok if tok != bs else None
        names["spec"] = _number(fields, "spec") or None
    elif step.kind == "mixed":
        names["p"] = _number(fields, "p") or None
    elif step.kind == "step" and bs is None and tok is None:  # no label: by what can be seen
        names = {"graphs": step.graph_launches}
    elif step.kind == "draft":
        names = {"i": _number(fields, "i"), "k": _number(fields, "k"), "bs": bs}
    return Shape(step.kind, tuple((k, v) for k, v in names.items() if v is not None))


def graph_shape(step: Step) -> Shape | None:
    """Shape of the graph that ran it: what a replay computes, whatever part of it is padding."""
    size = _number(step.fields, "graph")
    return None if size is None else Shape(step.kind, (("graph", size),))


def bare_shape(step: Step) -> Shape | None:
    """Of steps without a label: whatever they did."""
    return Shape(step.kind, ()) if step.kind == "step" else None


def pair_groups(
    a: Sequence[RankModel], b: Sequence[RankModel], kind: str | None = None
) -> tuple[list[tuple[Group, Group]], list[str], list[str]]:
    """Groups of equal shape in the files of one rank, the longest first; what is left of each
    side, for people.

    Steps whose shape the other side lacks are paired by the size of their graph where both have
    it: a serving run seldom has the same number of requests in flight twice.
    """
    left_a, left_b = (
        [(m, s) for m in side for s in m.steps if _usable(s, kind)] for side in (a, b)
    )
    pairs: list[tuple[Group, Group]] = []
    for key in (shape_of, graph_shape, bare_shape):
        of_a, of_b = _by(left_a, key), _by(left_b, key)
        common = {shape for shape in of_a if shape in of_b}
        pairs += [_strays(_group(s, of_a[s]), _group(s, of_b[s])) for s in common]
        left_a = [each for each in left_a if key(each[1]) not in common]
        left_b = [each for each in left_b if key(each[1]) not in common]
    pairs.sort(key=lambda p: (-sum(s.gpu_ns for s in p[0].steps), p[0].shape))
    return pairs, describe(s for _, s in left_a), describe(s for _, s in left_b)


def describe(steps: Iterable[Step]) -> list[str]:
    """Shapes with their counts: "decode bs=32 (30 steps)", by kind and size."""
    counts = Counter(map(shape_of, steps))
    order = sorted(counts, key=lambda s: (STEP_KINDS.index(s.kind), s.fields))
    return [f"{shape} ({count(counts[shape], 'step')})" for shape in order]


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def contexts(a: Sequence[Step], b: Sequence[Step]) -> tuple[float, float] | None:
    """Mean number of tokens that the steps' requests see, where both sides' labels have it."""
    means = []
    for steps in (a, b):
        found = [v for s in steps if (v := _context(s.fields)) is not None]
        if not found:
            return None
        means.append(statistics.fmean(found))
    return means[0], means[1]


def _context(fields: Mapping[str, object]) -> int | None:
    for name in ("sk", "ctx"):
        value = fields.get(name)
        if isinstance(value, int):
            return value
    return None


def _usable(step: Step, kind: str | None) -> bool:
    return step.counts and len(step.rows) > 0 and kind in (None, step.kind)


def _by(
    steps: Iterable[tuple[RankModel, Step]], key: Callable[[Step], Shape | None]
) -> dict[Shape, list[tuple[RankModel, Step]]]:
    found: dict[Shape, list[tuple[RankModel, Step]]] = defaultdict(list)
    for model, step in steps:
        shape = key(step)
        if shape is not None:
            found[shape].append((model, step))
    return found


def _group(shape: Shape, found: Sequence[tuple[RankModel, Step]]) -> Group:
    """Of the file that has most of them; without steps whose work is not all there, and without a
    first one that still loads code."""
    by_file: dict[int, list[tuple[RankModel, Step]]] = defaultdict(list)
    for each in found:
        by_file[id(each[0])].append(each)
    chosen = max(by_file.values(), key=len)
    model, steps = chosen[0][0], [step for _, step in chosen]
    notes = []
    if len(by_file) > 1:
        notes.append(f"{len(by_file)} files have such steps; {model.trace.path.name} has most")
    whole = [s for s in steps if not s.warning.startswith("incomplete")]
    if whole and len(whole) < len(steps):
        notes.append(f"{count(len(steps) - len(whole), 'incomplete step')} left out")
    elif not whole:
        whole = steps
        notes.append("its steps are incomplete: some of their GPU work is not in the trace")
    if len(whole) >= FEWEST_FOR_STRAYS:
        times = whole[0].gpu_ns / statistics.median(s.gpu_ns for s in whole)
        if times > STRAY:
            notes.append(f"the first step left out: {times:.3g} x the median")
            whole = whole[1:]
    return Group(shape, model, whole, tuple(notes))


def _strays(a: Group, b: Group) -> tuple[Group, Group]:
    """Both without the few steps far beyond the median, if neither has more of them than the
    other, by a step or a standard error: they would hide any difference. Else they may be the
    difference, and count."""
    found = []
    for group in (a, b):
        limit = STRAY * statistics.median(s.gpu_ns for s in group.steps)
        many = len(group.steps) >= FEWEST_FOR_STRAYS
        found.append([s for s in group.steps if s.gpu_ns > limit] if many else [])
    sizes = [len(group.steps) for group in (a, b)]
    counts = [len(strays) for strays in found]
    if not any(counts):
        return a, b
    share = sum(counts) / sum(sizes)
    error = math.sqrt(share * (1 - share) * (1 / sizes[0] + 1 / sizes[1]))
    apart = abs(counts[0] / sizes[0] - counts[1] / sizes[1])
    left_out = share <= MOST_STRAYS and apart <= max(error, 1 / min(sizes))
    return _without(a, found[0], left_out), _without(b, found[1], left_out)


def _without(group: Group, strays: list[Step], left_out: bool) -> Group:
    if not strays:
        return group
    middle = statistics.median(s.gpu_ns for s in group.steps)
    most = max(s.gpu_ns for s in strays) / middle
    what = "left out" if left_out else "counted"
    note = (
        f"{len(strays)} of {count(len(group.steps), 'step')} up to {most:.3g} x the median: {what}"
    )
    numbers = {s.index for s in strays} if left_out else set()
    steps = [s for s in group.steps if s.index not in numbers]
    return Group(group.shape, group.model, steps, (*group.notes, note))


def _number(fields: Mapping[str, object], name: str) -> int | None:
    value = fields.get(name)
    return value if isinstance(value, int) else None

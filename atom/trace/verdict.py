"""A `TraceDiff` in sentences: what got slower, and by how much of it which kernel is to blame.

A sentence names a cause only as far as the rows carry it; what is inferred is called a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from atom.errors import AtomError
from atom.trace.attribution import Kind
from atom.trace.diff import OTHER_CONTEXT, Row, StepDiff, TraceDiff, diff
from atom.trace.errors import NoGpuWork
from atom.trace.kernels import kernel_class, short_name
from atom.trace.types import Analysis

MAIN = 0.5  # share of the difference from which a row is the cause
NEXT = 0.15  # from which a further one is named
WHOLE = 0.8  # share of its module's difference with which a kernel speaks for the module
FEW_LAYERS = 3
NEARLY = 0.9
ALIKE_TIME = 0.9  # share of the kernels' time that changed by the same factor
ALIKE = 0.25  # same: within this share of the change itself
ALIKE_ROWS = 5
SENTENCES = 3
CERTAIN = 0.01  # of the step: what a row must have changed by to be told of a step that did not
CERTAIN_ROWS = 2
SMALL = 0.01  # a change below this needs no cause
HOST = "no GPU work in the traces: these are operators of the host"
WAIT_SHARE = 0.02  # of the step: a change of the wait between steps that is worth a sentence


def sentences(found: TraceDiff, most: int = SENTENCES) -> list[str]:
    """The verdict: the steps that changed at most cost first, then what else must be known."""
    told = by_shape(found)
    lines = [line for group in told[:most] for line in _of_shape(found, group)]
    rest = told[most:]
    if rest:
        words = [f"{groups[0].shape} {percent(groups[0])}" for groups in rest[:4]]
        more = f" and {len(rest) - 4} more" if len(rest) > 4 else ""
        lines.append(f"less costly: {', '.join(words)}{more}")
    return lines


def fails(found: TraceDiff, limit: float) -> list[StepDiff]:
    """Groups whose steps are slower in B by more than `limit` (0.05 is 5%) and by more than
    their spread; with one step a side there is none, and the limit alone decides."""
    return [
        g
        for g in found.groups
        if g.span.delta_us > limit * g.span.a_us
        and (g.span.verdict == "slower" or g.span.p is None)
    ]


def headline(group: StepDiff) -> str:
    """E.g. "decode bs=32: 412 us -> 530 us per step, +29%: 97% of it is kernel X in
    self_attn.o_proj, +3.1 us x 36 layers"."""
    span = group.span
    sizes = f"{both(span.a_us, span.b_us)} per step, {percent(group)}"
    line = f"{group.shape}: {sizes}"
    spread = "" if span.half_us is None else f"±{100 * span.half_us / span.a_us:.1f}%"
    if span.verdict == "same":
        return f"{line}: the same{' (' + spread + ')' if spread else ''}{_certain(group)}"
    if span.verdict == "undecided" and spread:
        strays = "".join(f"; {note}" for note in group.notes if note.endswith("counted"))
        return f"{line} {spread}: undecided, the steps vary too much{strays}{_certain(group)}"
    why = causes(group) if abs(span.delta_us) >= SMALL * span.a_us else ""
    doubt = "" if spread else " (one step a side: the noise is not known)"
    return f"{line}{': ' + why if why else ''}{doubt}"


def _certain(group: StepDiff) -> str:
    """Rows that did change, though the step as a whole is the same or undecided."""
    proven = [
        r
        for r in group.rows[:CERTAIN_ROWS]
        if r.time.verdict in ("slower", "faster") and abs(r.delta_us) >= CERTAIN * group.span.a_us
    ]
    told = [f"{us(r.delta_us, sign=True)} is {_where(r, group)}" for r in proven]
    return f"; within it {'; '.join(told)}" if told else ""


def causes(group: StepDiff) -> str:
    """What the difference of the step's time consists of, in words."""
    total = group.span.delta_us
    if alike := _all_alike(group):
        return alike
    leading = _leading(group, total)
    if not leading:
        return "no single row leads"
    first = leading[0]
    share = first.delta_us / total
    lead = (
        f"{100 * share:.0f}% of it is {_where(first, group)}"
        if share <= 1.05
        else f"all of it and more is {_where(first, group)}, {us(first.delta_us, sign=True)}"
    )
    least = NEXT if share >= MAIN else 0.0
    others = [r for r in leading[1:3] if r.delta_us / total >= least]
    more = [f"{100 * r.delta_us / total:.0f}% {_where(r, group)}" for r in others]
    return "; ".join([lead, *more])


def _leading(group: StepDiff, total: float) -> list[Row]:
    """Rows in the direction of the difference, greatest first: kernels, or the whole module where
    no kernel of it speaks for it, as when others took its place; idle time of a kind likewise."""
    sums = [m for m in group.modules if m.delta_us * total > 0]
    chosen = []
    for whole in sums:
        parts = [r for r in group.rows if r.kind is whole.kind and r.module == whole.module]
        if whole.kind is not Kind.KERNEL:
            parts = [r for r in group.rows if r.kind is whole.kind]
        top = max(parts, key=lambda r: r.delta_us / total, default=whole)
        if whole.kind is Kind.KERNEL and not whole.module:  # no module: each kernel for itself
            chosen += [r for r in parts if r.delta_us * total > 0]
        else:
            speaks = WHOLE <= top.delta_us / whole.delta_us <= 1 / WHOLE
            chosen.append(top if speaks else whole)
    return sorted(chosen, key=lambda r: -r.delta_us / total)


def _where(row: Row, group: StepDiff) -> str:
    """A row in words, with how it spreads over the layers."""
    place = f" in {row.module}" if row.module else ""
    if row.kind in (Kind.HOST, Kind.GAP):
        return _idle(row) + _spread(row, group)
    if row.kind is Kind.OVERLAP:
        return "streams that overlap " + ("less" if row.delta_us > 0 else "more")
    if row.name == row.module:
        inside = {r.change for r in group.rows if r.module == row.module}
        other = " with other kernels" if inside & {"new", "vanished", "renamed"} else ""
        return f"{row.module}{other}{_spread(row, group)}"
    name = short_name(row.name)
    what = {
        "new": f"new kernel {name}{place}",
        "vanished": f"kernel {name}{place}, which is gone",
        "renamed": f"kernel {name}{place} in place of {short_name(row.was)}",
    }.get(row.change, f"kernel {name}{place}")
    if row.change == "calls":
        calls = (row.a_calls / group.steps_a, row.b_calls / group.steps_b)
        what += f", {calls[0]:.4g} -> {calls[1]:.4g} calls"
    return what + _spread(row, group)


def _idle(row: Row) -> str:
    less = "" if row.delta_us > 0 else "less "
    before = f" before {row.module}" if row.module else ""
    if row.kind is Kind.GAP:
        return f"{less}idle time between kernels{before}"
    launch = "its launch comes" if row.module else "launches come"
    return f"{less}idle time{before}: {launch} {'earlier' if less else 'late'}"


def _spread(row: Row, group: StepDiff) -> str:
    """Over how many layers: ", +3.1 us x 36 layers", ", in layer 3 only"."""
    deltas = row.layers[1:]
    if row.busy_layers < 2 or not deltas:
        calls = row.b_calls / group.steps_b
        if row.kind is Kind.KERNEL and calls > 1 and row.name != row.module:
            return f", {us(row.delta_us / calls, sign=True)} x {calls:.4g} calls"
        return ""
    order = sorted(range(len(deltas)), key=lambda i: -deltas[i] / row.delta_us)
    for few in range(1, min(FEW_LAYERS, max(1, row.busy_layers // 3)) + 1):
        if sum(deltas[i] for i in order[:few]) / row.delta_us >= NEARLY:
            layers = ", ".join(str(i) for i in sorted(order[:few]))
            each = us(row.delta_us / few, sign=True)
            return f", {each} in layer{'s' * (few > 1)} {layers} only"
    inside = sum(deltas)
    return f", {us(inside / row.busy_layers, sign=True)} x {row.busy_layers} layers"


def _all_alike(group: StepDiff) -> str:
    """Whether all kernels changed by one factor, as they do when the device's clock does."""
    rows = [r for r in group.rows if r.kind is Kind.KERNEL and r.a_ns and r.b_ns and not r.change]
    a, b = sum(r.time.a_us for r in rows), sum(r.time.b_us for r in rows)
    if len(rows) < ALIKE_ROWS or not a or abs(b - a) < 0.5 * abs(group.span.delta_us):
        return ""
    factor = b / a
    near = sum(
        r.time.a_us
        for r in rows
        if abs(r.time.b_us / r.time.a_us - factor) <= ALIKE * abs(factor - 1)
    )
    largest = max(r.time.a_us for r in rows)
    if near < ALIKE_TIME * a or largest > MAIN * a or abs(factor - 1) < SMALL:
        return ""
    return (
        f"all kernels alike, x{factor:.3g}; a guess: the device's clock, its power limit or "
        "another process, rather than a kernel"
    )


def by_shape(found: TraceDiff) -> list[list[StepDiff]]:
    """Groups of one shape on all ranks, the rank to blame first; costliest shape first."""
    shapes: dict[object, list[StepDiff]] = {}
    for group in found.groups:
        shapes.setdefault(group.shape, []).append(group)
    return [sorted(groups, key=_blame) for groups in shapes.values()]


def _blame(group: StepDiff) -> float:
    """Least for the rank whose own work changed most in the direction of the step's: the others
    spend the same time waiting for it in their communication."""
    own = sum(
        r.delta_us
        for r in group.rows
        if r.kind is not Kind.KERNEL or kernel_class(r.name) != "communication"
    )
    return -own if group.span.delta_us >= 0 else own


def _of_shape(found: TraceDiff, groups: Sequence[StepDiff]) -> Iterable[str]:
    first = groups[0]
    rank = f"rank {first.rank}, " if len(found.ranks) > 1 else ""
    yield rank + headline(first)
    waiting = [g for g in groups[1:] if _waits(g)]
    if waiting and first.span.verdict in ("slower", "undecided") and not _waits(first):
        ranks = ", ".join(str(g.rank) for g in sorted(waiting, key=lambda g: g.rank))
        who = f"rank{'s' * (len(waiting) > 1)} {ranks}"
        yield f"{who}: that time goes into waiting for rank {first.rank} in communication"
    yield from (f"{first.shape}: {n}" for n in first.notes if n.startswith(OTHER_CONTEXT))
    yield from _wait_line(first)


def _waits(group: StepDiff) -> bool:
    """Whether most of the difference is communication."""
    total = group.span.delta_us
    inside = sum(
        r.delta_us
        for r in group.rows
        if r.kind is Kind.KERNEL and kernel_class(r.name) == "communication"
    )
    return total > 0 and inside >= MAIN * total and group.span.verdict != "same"


def _wait_line(group: StepDiff) -> Iterable[str]:
    a, b = group.wait
    if abs(b - a) >= WAIT_SHARE * group.span.a_us:
        yield (
            f"before each {group.shape} the device idles {both(a, b)} (median): "
            "the host, or a lack of requests; not in the step's time"
        )


def percent(group: StepDiff) -> str:
    """B from A: "+29%"."""
    ratio = group.span.ratio
    if ratio is None:
        return "from nothing"
    change = 100 * (ratio - 1)
    return f"{change:+.{0 if abs(change) >= 10 else 1}f}%"


def us(value: float, *, sign: bool = False) -> str:
    """Microseconds to three digits: "3.1 us", "412 us", "15.2 ms"."""
    size = abs(value)
    plus = "+" if sign and value >= 0 else ""
    if size >= 1000:
        return f"{plus}{value / 1000:.{2 if size < 1e5 else 1}f} ms"
    return f"{plus}{value:.{0 if size >= 100 else 1 if size >= 1 else 2}f} us"


def both(a: float, b: float) -> str:
    """Two times in one unit: "950 us -> 1062 us"."""
    if 1000 <= max(a, b) < 10_000:
        return f"{a:.0f} us -> {b:.0f} us"
    if max(a, b) >= 10_000:
        return f"{a / 1000:.2f} ms -> {b / 1000:.2f} ms"
    return f"{us(a)} -> {us(b)}"


def trace_verdict(a_traces: Sequence[str | Path], b_traces: Sequence[str | Path]) -> list[str]:
    """What `atom bench` says of the traces of two runs; one line with the reason if nothing.

    Never raises for what the files are: a trace on another machine is no error of the benchmark's.
    """
    sides = [[Path(p) for p in paths] for paths in (a_traces, b_traces)]
    for letter, paths in zip("AB", sides, strict=True):
        if not paths:
            return [f"traces are not compared: {letter} has none"]
        missing = [p for p in paths if not p.exists()]
        if missing:
            return [f"traces are not compared: {letter}'s is not on this machine: {missing[0]}"]
    try:
        loaded, of_host = _loaded(sides)
        lines = sentences(diff(*loaded))
    except AtomError as error:
        return [f"traces are not compared: {' '.join(str(error).split())}"]
    return [*lines, HOST] if of_host else lines


def _loaded(sides: Sequence[Sequence[Path]]) -> tuple[list[Analysis], bool]:
    """Both by their GPU work; by the host's (true) where neither has any: servers without a GPU."""
    from atom.trace.analysis import load

    found: list[Analysis] = []
    lacking: list[NoGpuWork] = []
    for paths in sides:
        try:
            found.append(load(paths))
        except NoGpuWork as error:
            lacking.append(error)
    if lacking and found:
        raise lacking[0]
    return (found, False) if found else ([load(paths, device="cpu") for paths in sides], True)

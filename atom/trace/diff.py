"""Two profiles beside each other: which steps, layers, modules and kernels take more time in B.

The difference of a step's time is the sum of its rows' differences, to the nanosecond: a row is a
kernel in a module, idle time, or what streams do at once (`atom.trace.attribution`). Means per
step compare, so the numbers of steps may differ. In words: `atom.trace.verdict`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from atom.trace.attribution import Attribution, Item, Kind, attribute
from atom.trace.errors import TraceError
from atom.trace.groups import Group, Shape, contexts, describe, pair_groups
from atom.trace.noise import F64, Changes, Verdict, changes
from atom.trace.pairing import Pair, foreign_share, joined_modules, pair_items
from atom.trace.types import I64, NONE, Analysis, RankModel, Step

FOREIGN = 0.5  # share of a side's kernel time in modules that the other does not name
SAME_CALLS = 0.01
SAME_CONTEXT = 0.02
OTHER_CONTEXT = "not the same context"  # begins the note that may explain the whole difference
IDLE = {Kind.HOST: "idle: waits for the host", Kind.GAP: "idle: between kernels"}
OVERLAP = "overlap of streams"


@dataclass(frozen=True, slots=True)
class Change:
    """Means per step of A and of B, microseconds, and what the difference is worth."""

    a_us: float
    b_us: float
    half_us: float | None  # half of the 95% interval of the difference; None: one step a side
    p: float | None  # chance of it without a cause, corrected for the number of rows
    verdict: Verdict

    @property
    def delta_us(self) -> float:
        return self.b_us - self.a_us

    @property
    def ratio(self) -> float | None:
        """B / A; None if A has nothing."""
        return self.b_us / self.a_us if self.a_us else None


@dataclass(frozen=True, slots=True)
class Row:
    """A part of a step's time. Of one table, the rows' `a_ns` sum to that of the whole, and so do
    their `b_ns`; overlap is negative."""

    kind: Kind
    name: str  # kernel as in B's file (in A's if it vanished), module, layer, or words for idle
    module: str
    change: str  # "", "new", "vanished", "renamed", "calls"
    was: str  # A's name of a renamed kernel
    a_ns: int  # over all steps of A
    b_ns: int
    a_calls: int
    b_calls: int
    time: Change
    layers: tuple[float, ...] = ()  # delta in us per step: layer i at i + 1, outside of them at 0
    busy_layers: int = 0  # layers that have any of it

    @property
    def delta_us(self) -> float:
        return self.time.delta_us


@dataclass(frozen=True, slots=True)
class StepDiff:
    """Steps of one shape on one rank."""

    rank: int
    shape: Shape
    steps_a: int
    steps_b: int
    span: Change  # of the GPU work: what is attributed
    span_ns: tuple[int, int]  # its sums over all steps
    busy: Change  # of it, with anything running
    cpu: Change | None  # span of the host's annotation; None where the steps have none
    wait: tuple[float, float]  # us, median: idle before the step's first GPU work
    rows: list[Row]  # kernels in modules, idle before modules, overlap; greatest change first
    modules: list[Row]  # the same by module; idle and overlap as rows of their own
    layers: list[Row]  # the same by layer
    notes: tuple[str, ...]

    @property
    def cost_us(self) -> float:
        """What the change costs with A's number of steps."""
        return self.span.delta_us * self.steps_a


@dataclass(frozen=True, slots=True)
class TraceDiff:
    """All that two profiles have in common, and what they have not."""

    groups: list[StepDiff]  # greatest cost first
    only_a: list[str]  # "prefill bs=1 tok=512 (3 steps)"
    only_b: list[str]
    differences: list[tuple[str, str, str]]  # what else is not the same: fact, A's, B's
    notes: list[str]

    @property
    def ranks(self) -> list[int]:
        return sorted({g.rank for g in self.groups})


_Files = tuple[Sequence[RankModel], Sequence[RankModel]]  # of one rank, of A and of B


def diff(a: Analysis, b: Analysis, *, kind: str | None = None) -> TraceDiff:
    """B's steps beside A's of the same shape, rank by rank; `kind` of STEP_KINDS keeps only these.

    Raises `TraceError` where no step of the one has its like in the other.
    """
    groups: list[StepDiff] = []
    only_a: dict[str, None] = {}
    only_b: dict[str, None] = {}
    pairs, notes = _pair_ranks(a, b)
    for left, right in pairs:
        common, of_a, of_b = pair_groups(left, right, kind)
        only_a.update(dict.fromkeys(of_a))
        only_b.update(dict.fromkeys(of_b))
        groups += [_step_diff(*two) for two in common]
    if not groups:
        raise TraceError(_nothing(a, b, kind))
    groups.sort(key=lambda g: (-abs(g.cost_us), g.rank, g.shape))
    notes += _explained(pairs)
    return TraceDiff(groups, list(only_a), list(only_b), _differences(a.first, b.first), notes)


def _pair_ranks(a: Analysis, b: Analysis) -> tuple[list[_Files], list[str]]:
    """The files of each rank that both have; a rank may have several files."""
    by_rank: list[dict[int, list[RankModel]]] = [{}, {}]
    for found, side in zip(by_rank, (a, b), strict=True):
        for model in side.ranks:
            found.setdefault(model.trace.rank, []).append(model)
    common = [rank for rank in by_rank[0] if rank in by_rank[1]]
    if common:
        notes = [
            f"rank {rank} is only in {letter}"
            for letter, found in zip("AB", by_rank, strict=True)
            for rank in found
            if rank not in common
        ]
        return [(by_rank[0][rank], by_rank[1][rank]) for rank in common], notes
    ranks = [", ".join(map(str, found)) for found in by_rank]
    if len(by_rank[0]) == len(by_rank[1]) == 1:
        note = f"rank {ranks[0]} of A beside rank {ranks[1]} of B"
        return [(a.ranks, b.ranks)], [note]
    raise TraceError(f"no rank in common: A has {ranks[0]}, B has {ranks[1]}")


def _nothing(a: Analysis, b: Analysis, kind: str | None) -> str:
    sides = []
    for side in (a, b):
        steps = [s for model in side.ranks for s in model.steps if s.counts and len(s.rows)]
        found = describe(steps)
        more = f" and {len(found) - 6} more shapes" if len(found) > 6 else ""
        sides.append((", ".join(found[:6]) or "none") + more)
    what = f"no {kind} step" if kind else "no step"
    return f"{what} of A has its like in B: A has {sides[0]}; B has {sides[1]}"


def _step_diff(of_a: Group, of_b: Group) -> StepDiff:
    a, b = of_a.model, of_b.model
    notes = [f"{letter}: {n}" for letter, g in (("A", of_a), ("B", of_b)) for n in g.notes]
    rename = joined_modules(a.modules, b.modules)
    left, right = attribute(a, of_a.steps, rename), attribute(b, of_b.steps, rename)
    names = [{i.module for i in side.items} - {""} for side in (left, right)]
    strange = max(foreign_share(left, names[1] | {""}), foreign_share(right, names[0] | {""}))
    nameless = [foreign_share(side, {""}) for side in (left, right)]  # share that has a module
    if strange > FOREIGN or abs(nameless[0] - nameless[1]) > FOREIGN:
        notes.append("A and B do not know the same modules: kernels compare by name alone")
        left, right = (attribute(m, g.steps, lambda _: "") for m, g in ((a, of_a), (b, of_b)))
    notes += _context_note(of_a.steps, of_b.steps) + _ways(of_a.steps, of_b.steps)
    table = _Table(left, right, pair_items(left, right))
    whole = [np.stack([s.span, s.busy], axis=1) for s in (left, right)]
    span, busy = (_change(changes(*whole), i) for i in range(2))
    return StepDiff(
        rank=b.trace.rank,
        shape=of_a.shape,
        steps_a=len(left),
        steps_b=len(right),
        span=span,
        span_ns=(int(left.span.sum()), int(right.span.sum())),
        busy=busy,
        cpu=_cpu(of_a.steps, of_b.steps),
        wait=(_wait(a, of_a.steps), _wait(b, of_b.steps)),
        rows=table.rows(),
        modules=table.modules(),
        layers=table.layers(),
        notes=tuple(notes),
    )


class _Table:
    """Paired items in columns, A's and B's steps in rows; adds columns up into rows for people."""

    def __init__(self, a: Attribution, b: Attribution, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.items = [b.items[p.b] if p.b != NONE else a.items[p.a] for p in pairs]
        self.was = [a.items[p.a].kernel if p.change == "renamed" else "" for p in pairs]
        columns = [[p.a for p in pairs], [p.b for p in pairs]]
        deep = max(a.by_layer.shape[1], b.by_layer.shape[1])
        self.ns = [_taken(s.ns, c) for s, c in zip((a, b), columns, strict=True)]
        self.calls = [
            _taken(s.calls.sum(axis=0)[None], c)[0] for s, c in zip((a, b), columns, strict=True)
        ]
        self.by_layer = [
            _padded(_taken(s.by_layer.T, c).T, deep) for s, c in zip((a, b), columns, strict=True)
        ]
        self.layer_ns = [_padded(s.layer_ns, deep) for s in (a, b)]
        self.steps = len(a), len(b)

    def rows(self) -> list[Row]:
        found = changes(*self.ns)
        return _sorted(self._row(item, [i], found, i) for i, item in enumerate(self.items))

    def modules(self) -> list[Row]:
        def key(item: Item) -> Item:
            module = item.module if item.kind is Kind.KERNEL else ""
            return Item(item.kind, module, "")

        return self._grouped(key)

    def _grouped(self, key: Callable[[Item], Item]) -> list[Row]:
        places: dict[Item, list[int]] = {}
        for i, item in enumerate(self.items):
            places.setdefault(key(item), []).append(i)
        groups = list(places.items())
        sums = [np.stack([ns[:, c].sum(axis=1) for _, c in groups], axis=1) for ns in self.ns]
        found = changes(*sums)
        return _sorted(self._row(k, c, found, i) for i, (k, c) in enumerate(groups))

    def _row(self, item: Item, columns: list[int], found: Changes, index: int) -> Row:
        calls = [int(side[columns].sum()) for side in self.calls]
        layers = [side[columns].sum(axis=0) for side in self.by_layer]
        change, was = "", ""
        if item.kernel:
            change, was = self.pairs[columns[0]].change, self.was[columns[0]]
            rates = [n / steps for n, steps in zip(calls, self.steps, strict=True)]
            if not change and abs(rates[1] - rates[0]) > SAME_CALLS * max(rates):
                change = "calls"
        elif item.kind is Kind.KERNEL:
            changed = {self.pairs[c].change for c in columns}
            change = changed.pop() if changed in ({"new"}, {"vanished"}) else ""
        return Row(
            kind=item.kind,
            name=item.kernel or item.module or _words(item.kind),
            module=item.module,
            change=change,
            was=was,
            a_ns=int(self.ns[0][:, columns].sum()),
            b_ns=int(self.ns[1][:, columns].sum()),
            a_calls=calls[0],
            b_calls=calls[1],
            time=_change(found, index),
            layers=_per_layer(layers, self.steps),
            busy_layers=int(np.count_nonzero((layers[0] + layers[1])[1:])),
        )

    def layers(self) -> list[Row]:
        """Per layer, kernels only, in order; idle and overlap as rows of their own."""
        if len(self.layer_ns[0][0]) < 2:
            return []
        found = changes(*self.layer_ns)
        made = []
        for place in range(len(self.layer_ns[0][0])):
            a_ns, b_ns = (int(side[:, place].sum()) for side in self.layer_ns)
            if a_ns or b_ns:
                name = f"layer {place - 1}" if place else "outside of layers"
                time = _change(found, place)
                made.append(Row(Kind.KERNEL, name, "", "", "", a_ns, b_ns, 0, 0, time))
        return made + [row for row in self.modules() if row.kind is not Kind.KERNEL]


def _words(kind: Kind) -> str:
    return {Kind.KERNEL: "no module known", Kind.OVERLAP: OVERLAP, **IDLE}[kind]


def _taken(matrix: I64, columns: Sequence[int]) -> I64:
    """Columns by number; -1 is a column of zeros."""
    padded = np.concatenate((matrix, np.zeros((len(matrix), 1), dtype=np.int64)), axis=1)
    taken: I64 = padded[:, columns]
    return taken


def _padded(matrix: I64, width: int) -> I64:
    return np.pad(matrix, ((0, 0), (0, width - matrix.shape[1])))


def _per_layer(sums: Sequence[I64], steps: tuple[int, int]) -> tuple[float, ...]:
    delta: F64 = sums[1] / steps[1] - sums[0] / steps[0]
    return tuple((delta / 1e3).tolist())


def _sorted(rows: Iterable[Row]) -> list[Row]:
    some = [r for r in rows if r.a_ns or r.b_ns or r.kind is Kind.KERNEL]
    return sorted(some, key=lambda r: (-abs(r.delta_us), -r.time.a_us, r.kind, r.name, r.module))


def _change(found: Changes, i: int) -> Change:
    half, p = float(found.half[i]), float(found.p[i])
    return Change(
        a_us=float(found.a[i]) / 1e3,
        b_us=float(found.b[i]) / 1e3,
        half_us=None if np.isnan(half) else half / 1e3,
        p=None if np.isnan(p) else p,
        verdict=found.verdict(i),
    )


def _cpu(a: Sequence[Step], b: Sequence[Step]) -> Change | None:
    sides = [np.array([[s.cpu_ns] for s in steps if s.cpu_start >= 0]) for steps in (a, b)]
    return _change(changes(*sides), 0) if all(map(len, sides)) else None


def _wait(model: RankModel, steps: Sequence[Step]) -> float:
    """Median idle time before a step, since whatever the device did last; us."""
    gpu = model.trace.gpu
    running = np.maximum.accumulate(gpu.end)
    first = np.array([s.rows[0] for s in steps])
    first = first[first > 0]  # nothing is known of before the trace
    if not len(first):
        return 0.0
    return float(np.median(np.maximum(gpu.ts[first] - running[first - 1], 0))) / 1e3


def _context_note(a: Sequence[Step], b: Sequence[Step]) -> list[str]:
    found = contexts(a, b)
    if found is None or abs(found[1] - found[0]) <= SAME_CONTEXT * found[0]:
        return []
    change = 100 * (found[1] / found[0] - 1) if found[0] else 100.0
    return [
        f"{OTHER_CONTEXT}: {found[0]:,.0f} tokens a step in A, {found[1]:,.0f} in B "
        f"({change:+.0f}%); attention grows with it"
    ]


def _ways(a: Sequence[Step], b: Sequence[Step]) -> list[str]:
    """One side replays graphs and the other does not."""
    shares = [sum(s.graph_launches > 0 for s in steps) / len(steps) for steps in (a, b)]
    if abs(shares[0] - shares[1]) < 0.5:
        return []
    words = ["by graph" if share >= 0.5 else "without a graph" for share in shares]
    return [f"A runs {words[0]}, B {words[1]}"]


def _explained(pairs: Iterable[_Files]) -> list[str]:
    """How much of the kernels has a module, where that is not nearly all."""
    notes = []
    for two in pairs:
        for letter, model in ((x, m) for x, side in zip("AB", two, strict=True) for m in side):
            if model.report.rate < 0.995:
                where = f"{letter}, rank {model.trace.rank}"
                notes.append(f"{where}: {model.report.rate:.1%} of the kernels have a module")
            if model.layers_by == "blocks":
                notes.append(f"{letter}: layers are guessed from repeating blocks of kernels")
    return list(dict.fromkeys(notes))


def _differences(a: RankModel, b: RankModel) -> list[tuple[str, str, str]]:
    """What the files say of what ran, where it is not the same."""
    keys = (
        "version", "model", "dtype", "kv_cache_dtype", "tp_size", "level", "cudagraph_mode",
        "block_size", "marked",
    )  # fmt: skip
    facts = [
        {"device": m.trace.device_name or None, **{k: m.trace.atom.get(k) for k in keys}}
        for m in (a, b)
    ]
    return [
        (key, str(facts[0][key]), str(facts[1][key]))
        for key in facts[0]
        if facts[0][key] != facts[1][key] and None not in (facts[0][key], facts[1][key])
    ]

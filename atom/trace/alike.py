"""Which layers, and which steps, do the same work, and what each kernel of it takes on average.

Two layers are alike if the same modules run the same kernels the same number of times; the order
between streams does not count. Averages never mix layers that are not alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atom.trace.intervals import union_length
from atom.trace.rollup import added
from atom.trace.types import I64, NONE, RankModel, Step

_FEW_LAYERS = 4
_STANDS_OUT = 1.2  # times the median
_MAX_SAME = 1 << 24  # kernels of one name and module in a step


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one kernel's duration, ns, over layers or steps."""

    mean: float
    low: int
    high: int
    count: int


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of a step."""

    layer: int
    group: str
    kernels: int
    start_ns: int  # since the step's first GPU work
    sum_ns: int
    busy_ns: int  # union
    adds_ns: int  # to the step's busy time; see `rollup.added`
    span_ns: int  # first start to last end; also what others ran in it


@dataclass(frozen=True, slots=True)
class Outlier:
    """The slowest layer of a group, if it stands out, and the module that makes it so."""

    layer: int
    busy_ns: int
    median_ns: float  # of the group's layers
    module: str
    module_ns: int  # sum in that layer
    module_median_ns: float


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that are alike. Groups are named A, B, ... by size."""

    name: str
    layers: tuple[int, ...]
    kernels: int  # of one layer
    mean_sum_ns: float
    mean_busy_ns: float
    low_busy_ns: int
    high_busy_ns: int
    outlier: Outlier | None
    # Against group A: (module, kernel, how many more), negative where A has more.
    differs: tuple[tuple[str, str, int], ...]
    rows: I64  # [layers, kernels] of RankTrace.gpu, kernels in one order for all layers
    dur: I64  # [layers, kernels] ns

    def spread_by_row(self, layer: int) -> dict[int, Spread]:
        """For each kernel of `layer`: the spread of that kernel over the group's layers."""
        return _spreads(self.rows[self.layers.index(layer)], self.dur)


def group_layers(model: RankModel, step: Step) -> tuple[list[LayerRow], list[LayerGroup]]:
    """The layers of a step, and their groups by size."""
    layers = _layer_rows(model, step.rows)
    groups: dict[bytes, list[int]] = {}
    ordered: dict[int, I64] = {}
    for layer, rows in layers.items():
        ordered[layer], keys = _in_order(model, rows)
        groups.setdefault(keys.tobytes(), []).append(layer)
    by_size = sorted(groups.values(), key=lambda found: (-len(found), found[0]))
    busy = {layer: _busy(model, rows) for layer, rows in layers.items()}
    made: list[LayerGroup] = []
    for index, members in enumerate(by_size):
        rows = np.stack([ordered[layer] for layer in members])
        first = made[0].rows[0] if made else rows[0]
        made.append(_group(model, _letters(index), members, rows, first, busy))
    names = {layer: group.name for group in made for layer in group.layers}
    gpu, adds = model.trace.gpu, added(model, step)
    table = [
        LayerRow(
            layer=layer,
            group=names[layer],
            kernels=len(rows),
            start_ns=int(gpu.ts[rows].min()) - step.gpu_start,
            sum_ns=int(gpu.dur[rows].sum()),
            busy_ns=busy[layer],
            adds_ns=int(adds[model.layer[step.rows] == layer].sum()),
            span_ns=int(gpu.end[rows].max() - gpu.ts[rows].min()),
        )
        for layer, rows in sorted(layers.items())
    ]
    return table, made


def spread_over_steps(
    model: RankModel, steps: Sequence[Step], step: Step, layer: int
) -> tuple[dict[int, Spread], int]:
    """For each kernel of `layer` in `step`: the spread of that kernel over those of `steps` whose
    layer does the same work; and how many those are. No spread is made of one step."""
    rows, keys = _in_order(model, _of_layer(model, step, layer))
    found = []
    for other in steps:
        other_rows, other_keys = _in_order(model, _of_layer(model, other, layer))
        if np.array_equal(keys, other_keys):
            found.append(model.trace.gpu.dur[other_rows])
    if len(found) < 2:
        return {}, len(found)
    return _spreads(rows, np.stack(found)), len(found)


def _spreads(rows: I64, dur: I64) -> dict[int, Spread]:
    mean, low, high = dur.mean(axis=0), dur.min(axis=0), dur.max(axis=0)
    return {
        int(row): Spread(float(mean[i]), int(low[i]), int(high[i]), len(dur))
        for i, row in enumerate(rows)
    }


def _of_layer(model: RankModel, step: Step, layer: int) -> I64:
    rows: I64 = step.rows[model.layer[step.rows] == layer]
    return rows


def _layer_rows(model: RankModel, rows: I64) -> dict[int, I64]:
    layers = model.layer[rows]
    order = np.argsort(layers, kind="stable")
    cuts = np.flatnonzero(np.diff(layers[order])) + 1
    parts = [rows[part] for part in np.split(order, cuts)]
    return {int(model.layer[p[0]]): p for p in parts if model.layer[p[0]] != NONE}


def _in_order(model: RankModel, rows: I64) -> tuple[I64, I64]:
    """The rows by (module, kernel, time), and for each (module, kernel, how many before it)."""
    code = _code(model, rows)
    order = np.argsort(code, kind="stable")  # rows ascend in time
    code = code[order]
    new = np.ones(len(code), bool)
    new[1:] = code[1:] != code[:-1]
    starts = np.flatnonzero(new)
    before = np.arange(len(code)) - np.repeat(starts, np.diff(np.append(starts, len(code))))
    assert len(code) < _MAX_SAME, "a step of more kernels than any trace has"
    return rows[order], code * _MAX_SAME + before


def _code(model: RankModel, rows: I64) -> I64:
    code: I64 = (model.module[rows].astype(np.int64) + 1) * len(model.trace.strings)
    code += model.trace.gpu.name[rows]
    return code


def _busy(model: RankModel, rows: I64) -> int:
    return union_length(model.trace.gpu.ts[rows], model.trace.gpu.end[rows])


def _group(
    model: RankModel,
    name: str,
    layers: Sequence[int],
    rows: I64,
    reference: I64,
    busy: dict[int, int],
) -> LayerGroup:
    dur = model.trace.gpu.dur[rows]
    times = [busy[layer] for layer in layers]
    return LayerGroup(
        name=name,
        layers=tuple(layers),
        kernels=rows.shape[1],
        mean_sum_ns=float(dur.sum(axis=1).mean()),
        mean_busy_ns=float(np.mean(times)),
        low_busy_ns=min(times),
        high_busy_ns=max(times),
        outlier=_outlier(model, layers, rows, times),
        differs=_difference(model, rows[0], reference),
        rows=rows,
        dur=dur,
    )


def _outlier(
    model: RankModel, layers: Sequence[int], rows: I64, times: Sequence[int]
) -> Outlier | None:
    """None for groups too small to tell, and where all layers are within `_STANDS_OUT`."""
    slowest, median = int(np.argmax(times)), float(np.median(times))
    if len(layers) < _FEW_LAYERS or times[slowest] <= _STANDS_OUT * median:
        return None
    modules, column = np.unique(model.module[rows[0]], return_inverse=True)
    sums = np.zeros((len(layers), len(modules)), np.int64)
    for place in range(rows.shape[1]):  # kernels of a layer: few
        sums[:, column[place]] += model.trace.gpu.dur[rows[:, place]]
    medians = np.median(sums, axis=0)
    guilty = int(np.argmax(sums[slowest] - medians))
    return Outlier(
        layer=layers[slowest],
        busy_ns=times[slowest],
        median_ns=median,
        module=model.modules[modules[guilty]] if modules[guilty] >= 0 else "",
        module_ns=int(sums[slowest, guilty]),
        module_median_ns=float(medians[guilty]),
    )


def _difference(model: RankModel, rows: I64, reference: I64) -> tuple[tuple[str, str, int], ...]:
    def counted(of: I64) -> Counter[tuple[str, str]]:
        return Counter((model.module_name(int(r)), model.kernel_name(int(r))) for r in of)

    mine, theirs = counted(rows), counted(reference)
    keys = [key for key in {**mine, **theirs} if mine[key] != theirs[key]]
    return tuple((*key, mine[key] - theirs[key]) for key in keys)


def _letters(index: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("A") + rest) + name
    return name

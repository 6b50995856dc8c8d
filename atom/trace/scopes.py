"""Where in the model the host was: the innermost scope and operator of any moment of a thread.

A scope is an annotation with a module's path (ours, upstream's) or an "nn.Module: X_3" event of a
profile with stacks. It becomes one dotted name in which a layer's number stands in one place,
"layers.3.self_attn.qkv_proj", or none, "lm_head"; `split_scope` takes it apart. Of nn.Module
events, which know only a class and a running number, `modules` makes such names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atom.trace.labels import RECORD, WARM_UP, parse_label
from atom.trace.modules import NN_MODULE, Node, name_modules
from atom.trace.types import I32, I64, NONE, CpuKind, RankTrace

_LAYER = re.compile(r"(?:^|(?<=\.))(?:layers|decoder_layers|h|blocks|block|layer)\.(\d+)(?:\.|$)")
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*(?:\+[A-Za-z_]\w*(?:\.\w+)*)*")
# Containers that say nothing: a module outside of the layers is named without them.
_ROOTS = frozenset(
    {"model", "language_model", "transformer", "backbone", "decoder", "module", "base_model"}
)
# Names of ours that are complete without a path round them.
_WHOLE = frozenset({"prepare", "sample", "logits", "lm_head", "embed_tokens"})
_PLUMBING = frozenset({WARM_UP, RECORD, "DataLoader"})
# Phases that foreign runners mark; their other marks cover the whole forward and tell nothing.
_PHASES = (
    (re.compile(r"gpu_model_runner: (?:preprocess|prepare.*)|(?:_)?prepare_inputs?"), "prepare"),
    (re.compile(r"gpu_model_runner: sample|Sampl(?:e|er|ing)"), "sample"),
    (re.compile(r"gpu_model_runner: compute_?logits|compute_logits"), "logits"),
)
LAYER_ITSELF = "layer"  # the name of what a layer launches outside of its modules


def split_scope(scope: str) -> tuple[int, str]:
    """The layer and the module's name without it: "model.layers.3.mlp.up" -> (3, "mlp.up").

    Parts joined by "+" each lose theirs; the layer is the first part's. -1: outside of layers.
    """
    parts = [_split_one(part) for part in scope.split("+")]
    return parts[0][0], "+".join(module for _, module in parts)


def _split_one(path: str) -> tuple[int, str]:
    match = _LAYER.search(path)
    if match is None:
        return NONE, _without_roots(path) or path
    before = _without_roots(path[: match.start()].rstrip("."))
    module = path[match.end() :]
    if before:  # layers of another tower, e.g. "visual.blocks.3.attn": not the model's layer 3
        container = path[match.start() : match.start(1) - 1]
        return NONE, ".".join(filter(None, (before, container, module)))
    return int(match[1]), module or LAYER_ITSELF


def _without_roots(path: str) -> str:
    parts = path.split(".")
    while parts and parts[0] in _ROOTS:
        parts.pop(0)
    return ".".join(parts)


def scope_of(name: str) -> str:
    """The scope that an annotation's name stands for; "" if it is a label or plumbing."""
    if name in _PLUMBING or parse_label(name) is not None:
        return ""
    for pattern, phase in _PHASES:
        if pattern.fullmatch(name):
            return phase
    return name if _PATH.fullmatch(name) else ""


def _is_complete(scope: str) -> bool:
    """Whether it stands for itself, wherever it is nested."""
    first = scope.split("+", 1)[0]
    return first in _WHOLE or _LAYER.search(first) is not None or first.split(".")[0] in _ROOTS


class Intervals:
    """Intervals [start, end) that mostly nest; answers which is the latest begun of those open."""

    def __init__(self, start: I64, end: I64) -> None:
        self.order = np.lexsort((-end, start))
        self.start, self.end = start[self.order], end[self.order]
        self.outer = _previous_not_less(self.end)

    def at(self, points: I64, before: I64 | None = None) -> I64:
        """[P] index (as given to the constructor) of the innermost interval round each moment, or
        -1. `before`: positions in `order` that the answer must precede."""
        found = np.searchsorted(self.start, points, side="right") - 1
        if before is not None:
            found = np.minimum(found, before - 1)
        todo = np.flatnonzero(found >= 0)
        while len(todo):
            closed = self.end[found[todo]] <= points[todo]
            todo = todo[closed]
            # Whatever lies between an interval and `outer` ends no later than it.
            found[todo] = self.outer[found[todo]]
            todo = todo[found[todo] >= 0]
        return np.where(found >= 0, self.order[found], NONE) if len(self.order) else found

    def parents(self) -> I64:
        """[N] as given: the innermost interval open where each begins, or -1."""
        found = np.full(len(self.order), NONE, dtype=np.int64)
        found[self.order] = self.at(self.start, before=np.arange(len(self.order)))
        return found


def _previous_not_less(end: I64) -> I64:
    """[N] the nearest earlier index with end >= one's own; -1 none. By doubling: all that lies
    between i and outer[i] ends before i, at any time, so outer[outer[i]] is a valid jump."""
    outer = np.arange(-1, len(end) - 1, dtype=np.int64)
    todo = np.flatnonzero(outer >= 0)
    while len(todo):
        todo = todo[end[outer[todo]] < end[todo]]
        outer[todo] = outer[outer[todo]]
        todo = todo[outer[todo] >= 0]
    return outer


def by_track(trace: RankTrace, track: NDArray[np.integer], ts: I64) -> I64:
    """Moments of all threads on one axis, threads apart: one sweep does for all of them."""
    return ts + track.astype(np.int64) * _axis(trace)


def _axis(trace: RankTrace) -> int:
    last = 0
    for table in (trace.cpu, trace.runtime):
        if len(table):
            last = max(last, int((table.ts + np.maximum(table.dur, 0)).max()))
    return last + 1


@dataclass(frozen=True, slots=True)
class Scopes:
    """Where a trace's host calls lie."""

    names: list[str]  # of scopes, dotted
    runtime: I32  # [rows of trace.runtime] innermost scope of its start; index into names, -1 none
    op: I32  # [rows of trace.runtime] row of trace.cpu, the innermost operator; -1 none
    cpu: I32  # [rows of trace.cpu] scope round or of it; -1 none
    rows: I64  # of trace.cpu that are scopes
    parent: I64  # [len(rows)] index into rows: the scope round each; -1 none
    by_module: bool  # from nn.Module events; False: from paths, or there are none


def find_scopes(trace: RankTrace) -> Scopes:
    """Every scope of the file, and where each launch and operator lies. N log N."""
    rows, paths = _scope_rows(trace)
    start, end = _spans(trace, rows)
    intervals = Intervals(start, end)
    parent = intervals.parents()
    nodes, node = _tree(trace, rows, parent, paths)
    names, name_of = _name(nodes)
    moments = by_track(trace, trace.runtime.track, trace.runtime.ts)
    ops = np.flatnonzero(trace.cpu.kind == CpuKind.OP)
    op_at = Intervals(*_spans(trace, ops)).at(moments)
    return Scopes(
        names=names,
        runtime=_pick(name_of, _pick(node, intervals.at(moments))),
        op=_pick(ops, op_at),
        cpu=_pick(
            name_of, _pick(node, intervals.at(by_track(trace, trace.cpu.track, trace.cpu.ts)))
        ),
        rows=rows,
        parent=parent,
        by_module=any(each.is_module for each in nodes),
    )


def _pick(values: NDArray[np.integer], index: NDArray[np.integer]) -> I32:
    """values[index], and -1 where the index is -1."""
    if not len(values):
        return np.full(len(index), NONE, dtype=np.int32)
    return np.where(index >= 0, values[index], NONE).astype(np.int32)


def _spans(trace: RankTrace, rows: NDArray[np.integer]) -> tuple[I64, I64]:
    start = by_track(trace, trace.cpu.track[rows], trace.cpu.ts[rows])
    return start, start + np.maximum(trace.cpu.dur[rows], 0)


def _scope_rows(trace: RankTrace) -> tuple[I64, dict[int, str]]:
    """Rows of trace.cpu that are scopes, and by string index the paths of annotations."""
    cpu = trace.cpu
    annotations = np.flatnonzero(cpu.kind == CpuKind.ANNOTATION)
    paths = {}
    for index in np.unique(cpu.name[annotations]).tolist():
        scope = scope_of(trace.strings[index])
        if scope:
            paths[index] = scope
    rows = annotations[np.isin(cpu.name[annotations], list(paths))]
    # With paths that know layers, classes would only add a second, poorer name.
    if not any(_LAYER.search(path) for path in paths.values()):
        modules = np.flatnonzero(cpu.kind == CpuKind.MODULE)
        rows = np.sort(np.concatenate([rows, modules]))
    return rows.astype(np.int64), paths


def _tree(
    trace: RankTrace, rows: I64, parent: I64, paths: dict[int, str]
) -> tuple[list[Node], I64]:
    """Scopes of the same name within the same scopes are one node; [len(rows)] node of each."""
    nodes: list[Node] = []
    node = np.full(len(rows), NONE, dtype=np.int64)
    strings = trace.cpu.name[rows].astype(np.int64)
    width = len(trace.strings) + 1
    todo = np.flatnonzero(parent < 0)
    children = np.argsort(parent, kind="stable")
    sorted_parent = parent[children]
    while len(todo):  # one level of nesting at a time
        above = np.where(parent[todo] >= 0, node[parent[todo]], NONE)
        keys, first, inverse = np.unique(
            (above + 1) * width + strings[todo], return_index=True, return_inverse=True
        )
        base = len(nodes)
        for key, index in zip(keys.tolist(), first.tolist(), strict=True):
            name = int(key % width)
            nodes.append(_node(trace, paths, name, int(key // width) - 1, int(todo[index])))
        node[todo] = base + inverse.reshape(-1)
        low = np.searchsorted(sorted_parent, todo, side="left")
        high = np.searchsorted(sorted_parent, todo, side="right")
        todo = children[_ranges(low, high)]
    return nodes, node


def _ranges(low: I64, high: I64) -> I64:
    """All integers of [low[i], high[i]), in one array."""
    count = high - low
    total = int(count.sum())
    offset = np.repeat(low - np.concatenate([[0], np.cumsum(count)[:-1]]), count)
    return (offset + np.arange(total)).astype(np.int64) if total else np.empty(0, np.int64)


def _node(trace: RankTrace, paths: dict[int, str], name: int, parent: int, first: int) -> Node:
    path = paths.get(name)
    if path is not None:
        return Node(name=path, parent=parent, first=first, is_module=False)
    raw = trace.strings[name].removeprefix(NN_MODULE)
    return Node(name=raw, parent=parent, first=first, is_module=True)


def _name(nodes: list[Node]) -> tuple[list[str], I64]:
    """The nodes' scopes, each name once, and each node's index among them."""
    modules = name_modules(nodes)
    names: dict[str, int] = {}
    index = np.full(len(nodes), NONE, dtype=np.int64)
    full: list[str] = []
    for number, node in enumerate(nodes):
        outer = full[node.parent] if node.parent >= 0 else ""
        if node.is_module:
            # An annotation round it, if that is what its own parent is, is kept in front.
            within = outer if node.parent >= 0 and not nodes[node.parent].is_module else ""
            scope = f"{within}.{modules[number]}" if within else modules[number]
        elif not outer or _is_complete(node.name) or outer.split(".")[-1] == node.name:
            scope = node.name if not outer.endswith("." + node.name) else outer
        else:
            scope = f"{outer}.{node.name}"
        full.append(scope)
        index[number] = names.setdefault(scope, len(names))
    return list(names), index

"""Where the work of a call is known from: the engine's own facts of its modules, else shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from atom.trace.kernels import kernel_class
from atom.trace.roofline.operators import operator_work
from atom.trace.roofline.work import Work, attended, attention, bits_of, experts, product
from atom.trace.types import I64, NONE, RankModel, Step

# Classes of kernels that do a module's work, by the kind of its facts.
_WORKERS = {
    "linear": ("gemm",),
    "attention": ("attention", "rope_cache"),
    "moe": ("moe", "gemm"),
}
_COMPUTING = ("gemm", "attention", "moe")  # classes whose work one would want to know
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
_HEAD = "lm_head"


class Source(NamedTuple):
    """What tells the work of a call: facts of a module, else an operator with its inputs."""

    name: str = ""
    facts: Mapping[str, Any] | None = None
    selected: bool = False  # behind the last attention, where rows are left out
    op: int = NONE  # strings of the trace
    args: int = NONE


class Calls(NamedTuple):
    """Calls of one source in one module of a step, over all layers."""

    module: str  # the operator in parentheses where no module is known
    source: Source
    num_calls: int
    places: I64  # of their kernels among the step's rows
    names: frozenset[int]  # of their kernels, strings of the trace


class Book:
    """Of one rank."""

    def __init__(self, model: RankModel) -> None:
        self._model = model
        about = model.trace.atom
        self._dtype = str(about.get("dtype", ""))
        self._facts: dict[tuple[int, str], Mapping[str, Any]] = {}
        modules = about.get("modules")
        for path, facts in (modules if isinstance(modules, dict) else {}).items():
            if isinstance(facts, dict) and facts.get("kind") in _WORKERS:
                self._facts[_place(str(path))] = facts
        # Behind the last attention only the rows that are sampled go on, where the engine says so.
        last = max((layer for layer, _ in self._facts), default=-1)
        self._narrow_layer = last if about.get("selects_rows") else -1
        self._classes: dict[int, str] = {}
        self._known: dict[bytes, list[Calls]] = {}

    def calls(self, rows: I64) -> list[Calls]:
        """What computes among a step's `rows`. Steps that launched the same are looked at once."""
        model, gpu = self._model, self._model.trace.gpu
        without = np.where(model.module[rows] >= 0, NONE, model.launch[rows])
        launches = np.unique(without, return_inverse=True)[1]  # which share one, not when it was
        columns = (gpu.name[rows], model.module[rows], model.layer[rows], model.op[rows])
        key = b"".join(
            np.ascontiguousarray(column, np.int64).tobytes()
            for column in (*columns, model.op_args[rows], launches)
        )
        if key not in self._known:
            self._known[key] = self._look(rows)
        return self._known[key]

    def work(self, step: Step, source: Source) -> tuple[Work | None, str]:
        """Of one call in `step`; None and why where it is not known."""
        if source.facts is not None:
            return self._by_facts(step, source, source.facts)
        if source.op < 0:
            return None, "no operator is known that launched them"
        strings = self._model.trace.strings
        name, args = strings[source.op], strings[source.args] if source.args >= 0 else ""
        return operator_work(name, args, attended(step.fields)), _why_not(name, args)

    def _look(self, rows: I64) -> list[Calls]:
        parts: dict[tuple[str, Source, object], list[tuple[Source, I64]]] = {}
        for places in _single_calls(self._model, rows):
            for source, own in self._sources(rows, places):
                module = self._named(int(rows[own[0]]))
                facts = tuple(sorted((source.facts or {}).items()))
                alike = (module, source._replace(facts=None), facts)
                parts.setdefault(alike, []).append((source, own))
        found = []
        for (module, _, _), calls in parts.items():
            places = np.concatenate([own for _, own in calls])
            names = frozenset(self._model.trace.gpu.name[rows[places]].tolist())
            found.append(Calls(module, calls[0][0], len(calls), places, names))
        return found

    def _sources(self, rows: I64, places: I64) -> Iterator[tuple[Source, I64]]:
        """The work in one call, and the places of the kernels that did it."""
        model, row = self._model, int(rows[places[0]])
        classes = [self._class(int(name)) for name in model.trace.gpu.name[rows[places]]]
        left = np.ones(len(places), dtype=bool)
        layer = int(model.layer[row])
        for name in model.module_name(row).split("+"):
            facts = self._facts.get((layer, name)) or self._facts.get((-1, name))
            if facts is None:
                continue
            did = left & np.isin(classes, _WORKERS[facts["kind"]])
            if did.any():
                left &= ~did
                behind = layer == self._narrow_layer and "qkv" not in name
                selected = behind and facts["kind"] != "attention"
                yield Source(name, facts, selected), places[did]
        others = places[left & np.isin(classes, _COMPUTING)]
        pairs = np.stack((model.op[rows[others]], model.op_args[rows[others]]))
        for op, args in np.unique(pairs, axis=1).T.tolist():
            yield Source(op=op, args=args), others[(pairs[0] == op) & (pairs[1] == args)]

    def _named(self, row: int) -> str:
        op = int(self._model.op[row])
        return self._model.module_name(row) or (
            f"({self._model.trace.strings[op]})" if op >= 0 else ""
        )

    def _class(self, name: int) -> str:
        if name not in self._classes:
            self._classes[name] = kernel_class(self._model.trace.strings[name])
        return self._classes[name]

    def _by_facts(
        self, step: Step, source: Source, facts: Mapping[str, Any]
    ) -> tuple[Work | None, str]:
        tokens, bits = _tokens(step, source), bits_of(self._dtype)
        if tokens is None:
            return None, f"the step's label has no number of tokens: {step.label}"
        if bits is None:
            return None, f"the width of the model's numbers is not known: dtype {self._dtype!r}"
        match facts["kind"]:
            case "linear":
                size = facts.get("weight_bytes")
                return product(tokens, facts["n"], facts["k"], bits, weight_bytes=size), ""
            case "moe":
                return experts(tokens, facts, bits), ""
        seen = attended(step.fields)
        if seen is None:
            return None, "the step's label does not say how many keys attention saw"
        kept = str(facts.get("kv_dtype", self._dtype))
        kv_bits = bits_of(kept)
        if kv_bits is None:
            return None, f"the width of cached keys and values is not known: kv_dtype {kept!r}"
        made = attention(
            seen,
            facts["num_heads"],
            facts["num_kv_heads"],
            facts["head_dim"],
            bits=bits,
            kv_bits=kv_bits,
            window=int(facts.get("window") or 0),
        )
        return made, ""


def _tokens(step: Step, source: Source) -> int | None:
    """That go through it. A graph computes all rows to the end."""
    selected = source.selected and "graph" not in step.fields
    found = step.fields.get("bs" if selected or source.name.endswith(_HEAD) else "tok")
    return found if isinstance(found, int) else None


def _single_calls(model: RankModel, rows: I64) -> Iterator[I64]:
    """Places of each layer's module. Where no module is known by launch and operator: a kernel
    launched by itself is a call of its own."""
    known = model.module[rows] >= 0
    columns = (
        model.module[rows],
        model.layer[rows],
        np.where(known, NONE, model.launch[rows]),
        np.where(known, NONE, model.op[rows]),
    )
    order = np.lexsort((np.arange(len(rows)), *columns))
    changed = np.zeros(len(rows), dtype=bool)
    for column in columns:
        changed[1:] |= np.diff(column[order]) != 0
    yield from np.split(order, np.flatnonzero(changed))


def _why_not(operator: str, args: str) -> str:
    if not args:
        return "no shapes in the trace (record_shapes; ATOM_PROFILER_MORE=1)"
    return f"the work of {operator} is not known from its shapes"


def _place(path: str) -> tuple[int, str]:
    """(layer, name within it); (-1, name) outside of the layers."""
    found = _LAYER.search(path)
    return (int(found[1]), found[2]) if found else (-1, path.removeprefix("model."))

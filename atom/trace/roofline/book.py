"""Where the work of a call is known from: the engine's own facts of its modules, else shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from atom.trace.kernels import kernel_class
from atom.trace.roofline.operators import operator_work
from atom.trace.roofline.work import Attended, Work, attended, attention, bits_of, experts, product
from atom.trace.types import I32, I64, RankModel, Step

# Classes of kernels that do a module's work, by the kind of its facts.
_WORKERS = {
    "linear": ("gemm",),
    "attention": ("attention", "rope_cache"),
    "moe": ("moe", "gemm"),
}
_COMPUTING = ("gemm", "attention", "moe")  # classes whose work one would want to know
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
_HEAD = "lm_head"


class Part(NamedTuple):
    """Rows of a call and the work they did; None and why where it is not known."""

    rows: I64
    work: Work | None
    why: str = ""


class _Share(NamedTuple):
    rows: I64  # places among the call's rows
    name: str
    facts: Mapping[str, Any]


class Book:
    """Of one rank. `module` names are those of `RankModel.modules`."""

    def __init__(self, model: RankModel) -> None:
        self._model = model
        about = model.trace.atom
        self._bits = bits_of(str(about.get("dtype", ""))) or 16
        self._facts: dict[tuple[int, str], Mapping[str, Any]] = {}
        modules = about.get("modules")
        for path, facts in (modules if isinstance(modules, dict) else {}).items():
            if isinstance(facts, dict) and facts.get("kind") in _WORKERS:
                self._facts[_place(str(path))] = facts
        # Behind the last attention only the rows that are sampled go on, where the engine says so.
        last = max((layer for layer, _ in self._facts), default=-1)
        self._narrow_layer = last if about.get("selects_rows") else -1
        self._classes: dict[int, str] = {}
        self._seen: dict[int, Attended | None] = {}
        self._splits: dict[tuple[int, int, bytes], tuple[list[_Share], I64]] = {}

    def parts(self, step: Step, rows: I64) -> Iterator[Part]:
        """`rows` are of one call: one step, layer and module, or one operator's launch."""
        layer, module = int(self._model.layer[rows[0]]), int(self._model.module[rows[0]])
        names = self._model.trace.gpu.name[rows]
        key = (layer, module, names.tobytes())  # equal in all steps: looked at once
        if key not in self._splits:
            self._splits[key] = self._split(layer, int(rows[0]), names)
        shares, others = self._splits[key]
        for share in shares:
            work, why = self._by_facts(step, layer, share)
            yield Part(rows[share.rows], work, why)
        if len(others):
            yield from self._by_shapes(step, rows[others])

    def _split(self, layer: int, row: int, names: I32) -> tuple[list[_Share], I64]:
        """Which rows did the work of which facts, and which others compute."""
        classes = [self._class(int(name)) for name in names]
        left = np.ones(len(names), dtype=bool)
        shares = []
        for name in self._model.module_name(row).split("+"):
            facts = self._facts.get((layer, name)) or self._facts.get((-1, name))
            if facts is None:
                continue
            did = left & np.isin(classes, _WORKERS[facts["kind"]])
            if did.any():
                left &= ~did
                shares.append(_Share(np.flatnonzero(did), name, facts))
        return shares, np.flatnonzero(left & np.isin(classes, _COMPUTING))

    def _class(self, name: int) -> str:
        if name not in self._classes:
            self._classes[name] = kernel_class(self._model.trace.strings[name])
        return self._classes[name]

    def _attended(self, step: Step) -> Attended | None:
        if step.index not in self._seen:
            self._seen[step.index] = attended(step.fields)
        return self._seen[step.index]

    def _by_facts(self, step: Step, layer: int, share: _Share) -> tuple[Work | None, str]:
        name, facts = share.name, share.facts
        tokens = self._tokens(step, layer, name, facts)
        if tokens is None:
            return None, f"the step's label has no number of tokens: {step.label}"
        match facts["kind"]:
            case "linear":
                size = facts.get("weight_bytes")
                made = product(tokens, facts["n"], facts["k"], self._bits, weight_bytes=size)
                return made, ""
            case "moe":
                return experts(tokens, facts, self._bits), ""
        seen = self._attended(step)
        if seen is None:
            return None, "the step's label does not say how many keys attention saw"
        made = attention(
            seen,
            facts["num_heads"],
            facts["num_kv_heads"],
            facts["head_dim"],
            bits=self._bits,
            kv_bits=bits_of(str(facts.get("kv_dtype", ""))) or self._bits,
            window=int(facts.get("window") or 0),
        )
        return made, ""

    def _tokens(self, step: Step, layer: int, name: str, facts: Mapping[str, Any]) -> int | None:
        selected = (
            layer == self._narrow_layer
            and "graph" not in step.fields
            and facts["kind"] != "attention"
            and "qkv" not in name
        )
        narrow = selected or name.endswith(_HEAD)
        found = step.fields.get("bs" if narrow else "tok")
        return found if isinstance(found, int) else None

    def _by_shapes(self, step: Step, rows: I64) -> Iterator[Part]:
        """By operator: each distinct (operator, shapes) of the rows once."""
        model = self._model
        pairs = np.stack((model.op[rows], model.op_args[rows]))
        for op, args in np.unique(pairs, axis=1).T.tolist():
            mine = rows[(pairs[0] == op) & (pairs[1] == args)]
            if op < 0:
                yield Part(mine, None, "no operator is known that launched them")
                continue
            name = model.trace.strings[op]
            text = model.trace.strings[args] if args >= 0 else ""
            work = operator_work(name, text, self._attended(step))
            yield Part(mine, work, _why_not(name, text))


def _why_not(operator: str, args: str) -> str:
    if not args:
        return "no shapes in the trace (record_shapes; ATOM_PROFILER_MORE=1)"
    return f"the work of {operator} is not known from its shapes"


def _place(path: str) -> tuple[int, str]:
    """(layer, name within it); (-1, name) outside of the layers."""
    found = _LAYER.search(path)
    return (int(found[1]), found[2]) if found else (-1, path.removeprefix("model."))

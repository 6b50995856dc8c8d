"""A traced forward cut at its opaque operators, equal pieces found to be equal.

A piece is all that lies between two opaque operators. Weights and values of other pieces are its
inputs, in order of first use, so pieces of equal layers have one text and are compiled once.
"""

from __future__ import annotations

import hashlib
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from atom.engine.compiler.errors import CannotCompile
from atom.engine.compiler.plan import (
    FIRST_WEIGHT,
    INPUT_IDS,
    NUM_TOKENS,
    POSITIONS,
    OpaqueCall,
    PieceCall,
    Plan,
)
from atom.engine.compiler.structure import Structure

ALIGNMENT = 16  # bytes, that Inductor's kernels count on
NAMESPACE = "atom"  # of the opaque operators; their last argument is the layer's handle


class Piece(NamedTuple):
    graph: fx.GraphModule  # placeholders have their fake tensors as meta["val"]
    inputs: list[Any]  # those
    text: str
    fake_mode: Any


class Split(NamedTuple):
    plan: Plan
    pieces: dict[str, Piece]  # by key


def split(traced: fx.GraphModule, structure: Structure, salt: str) -> Split:
    """`salt` goes into the pieces' keys: all that decides their code besides their text.

    Raises `CannotCompile`.
    """
    return _Splitter(traced, structure, salt).run()


def _is_opaque(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == NAMESPACE


class _Splitter:
    def __init__(self, traced: fx.GraphModule, structure: Structure, salt: str) -> None:
        self._traced, self._structure, self._salt = traced, structure, salt
        self._numbers: dict[fx.Node, int] = {}  # values that have a number
        self._weights: dict[int, tuple[int, list[str | int]]] = {}  # id -> (number, path)
        self._pieces: dict[str, Piece] = {}
        self._steps: list[PieceCall | OpaqueCall] = []
        self._next = 0

    def run(self) -> Split:
        nodes = list(self._traced.graph.nodes)
        output = nodes.pop()
        self._number_inputs(nodes)
        for group in _groups(nodes):
            if _is_opaque(group[0]):
                self._add_opaque(group[0])
            else:
                self._add_piece(group)
        result = self._numbers[output.args[0]]
        weights = [path for _, path in self._weights.values()]
        plan = Plan(weights, self._steps, result, self._next)
        return Split(plan, self._pieces)

    def _number_inputs(self, nodes: list[fx.Node]) -> None:
        inputs = [node for node in nodes if node.op == "placeholder"]
        self._numbers.update(zip(inputs, (INPUT_IDS, POSITIONS), strict=True))
        (self._num_tokens,) = inputs[0].meta["val"].shape
        self._symbol = str(self._num_tokens)
        self._mode = inputs[0].meta["val"].fake_mode
        tensors: dict[int, int] = {}
        for node in nodes:
            if node.op != "get_attr":
                continue
            tensor = getattr(self._traced, str(node.target))
            path = self._structure.path_of(tensor)
            if path is None:
                raise CannotCompile(f"a tensor {list(tensor.shape)} hangs nowhere in the model")
            number = tensors.setdefault(id(tensor), FIRST_WEIGHT + len(tensors))
            self._numbers[node] = number
            self._weights[id(tensor)] = (number, list(path))
        self._next = FIRST_WEIGHT + len(tensors)

    def _new_number(self, node: fx.Node) -> int:
        self._numbers[node] = self._next
        self._next += 1
        return self._numbers[node]

    def _add_opaque(self, node: fx.Node) -> None:
        *args, handle = node.args
        path = self._structure.opaque.get(str(handle))
        if path is None:
            raise CannotCompile(f"{node.target} of a layer that hangs nowhere in the model")
        inputs = [self._numbers[arg] for arg in args if isinstance(arg, fx.Node)]
        name = node.target._opname  # type: ignore[union-attr]
        self._steps.append(OpaqueCall(name, list(path), inputs, self._new_number(node)))

    def _add_piece(self, group: list[fx.Node]) -> None:
        inputs, outputs = self._boundary(group)
        piece = self._canonical(group, inputs, outputs)
        key = hashlib.sha256(f"{self._salt}\n{piece.text}".encode()).hexdigest()[:32]
        self._pieces.setdefault(key, piece)
        numbers = [self._numbers.get(node, NUM_TOKENS) for node in inputs]
        results = [self._new_number(node) for node in outputs]
        self._steps.append(PieceCall(key, numbers, results))

    def _boundary(self, group: list[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
        """What the piece reads from outside, in order of first use, and what others read of it."""
        inside = set(group)
        inputs = [arg for node in group for arg in node.all_input_nodes if arg not in inside]
        outputs = [node for node in group if any(user not in inside for user in node.users)]
        # The token count is an input of every piece that asks for it, whoever asked first.
        outputs = [node for node in outputs if not self._is_num_tokens(node)]
        for node in outputs:
            if not isinstance(node.meta["val"], Tensor):
                raise CannotCompile(f"{node.format_node()} is no tensor, and crosses pieces")
        return list(dict.fromkeys(inputs)), outputs

    def _is_num_tokens(self, node: fx.Node) -> bool:
        value = node.meta["val"]
        return isinstance(value, torch.SymInt) and str(value) == self._symbol

    def _canonical(
        self, group: list[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node]
    ) -> Piece:
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        lines, fakes = [], []
        for i, node in enumerate(inputs):
            copies[node] = graph.placeholder(f"a{i}")
            fake = self._fake(node)
            copies[node].meta["val"] = fake
            fakes.append(fake)
            lines.append(f"a{i} = {self._describe(fake)}")
        for i, node in enumerate(group):
            copy = copies[node] = graph.node_copy(node, lambda arg: copies[arg])
            copy.name = f"v{i}"
            copy.meta = {"val": node.meta["val"]}
            lines.append(f"v{i} = {copy.target}{copy.args}{copy.kwargs}")
        results = [copies[node] for node in outputs]
        graph.output(tuple(results))
        lines.append(f"return {results}")
        _check_fresh(inputs, outputs)
        module = fx.GraphModule(torch.nn.Module(), graph)
        return Piece(module, fakes, "\n".join(lines), self._mode)

    def _fake(self, node: fx.Node) -> Any:
        if node.op != "get_attr":
            return node.meta["val"]
        tensor = getattr(self._traced, str(node.target))
        return self._mode.from_tensor(tensor, static_shapes=True)

    def _describe(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            return "T"
        sizes = (list(value.shape), list(value.stride()))
        aligned = value.storage_offset() * value.element_size() % ALIGNMENT == 0
        text = f"{value.dtype}{sizes}@{value.device}{'' if aligned else ' unaligned'}"
        return text.replace(self._symbol, "T")


def _groups(nodes: list[fx.Node]) -> list[list[fx.Node]]:
    """Opaque nodes alone, and the rest in runs between them; the parts of a tuple are taken where
    the tuple is made."""
    groups: list[list[fx.Node]] = []
    home: dict[fx.Node, list[fx.Node]] = {}
    run: list[fx.Node] = []
    for node in nodes:
        if node.op in ("placeholder", "get_attr"):
            continue
        if _is_opaque(node):
            groups += [run, [node]]
            run = []
        else:
            source = node.args[0] if node.target is operator.getitem else None
            home[node] = home[source] if isinstance(source, fx.Node) else run
            home[node].append(node)
    return [group for group in [*groups, run] if group]


def _check_fresh(inputs: list[fx.Node], outputs: list[fx.Node]) -> None:
    """No output may be a view of an input: a compiled piece is called without what mends that."""
    given = {id_ for node in inputs for id_ in _storage(node)}
    for node in outputs:
        if not given.isdisjoint(_storage(node)):
            raise CannotCompile(f"{node.format_node()} is a view that crosses pieces")


def _storage(node: fx.Node) -> list[int]:
    value = node.meta.get("val")
    return [value.untyped_storage()._cdata] if isinstance(value, Tensor) else []

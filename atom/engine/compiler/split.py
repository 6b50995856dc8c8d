"""A traced forward cut at its opaque operators, equal pieces found to be equal.

Opaque are attention, experts, sums over ranks and atom's own kernels: the compiler would only call
them. A piece is what lies between two of them. Weights and values of other pieces are its inputs,
in order of first use, so pieces of equal layers have one text and are compiled once.
"""

from __future__ import annotations

import hashlib
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from atom.engine.compiler.errors import CannotCompile
from atom.engine.compiler.plan import (
    ALIGNMENT,
    FIRST_WEIGHT,
    INPUT_IDS,
    KERNEL_OPS,
    LAYER_OPS,
    NUM_TOKENS,
    POSITIONS,
    VIEW,
    Argument,
    OpCall,
    PieceCall,
    Plan,
)
from atom.engine.compiler.structure import Structure
from atom.engine.compiler.trace import scope_of


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


def _op_name(node: fx.Node) -> str:
    """ "namespace::name" of an operator, else empty."""
    target = node.target
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else ""


def _is_opaque(node: fx.Node) -> bool:
    return _op_name(node).startswith(("atom::", f"{KERNEL_OPS}::"))


def _is_view(node: fx.Node) -> bool:
    """A view that can be taken anywhere."""
    sizes: Any = node.args[1:]
    return _op_name(node) == VIEW and all(isinstance(size, int) for size in sizes[0])


class _Splitter:
    def __init__(self, traced: fx.GraphModule, structure: Structure, salt: str) -> None:
        self._traced, self._structure, self._salt = traced, structure, salt
        self._numbers: dict[fx.Node, int] = {}  # values that have a number
        self._weights: dict[int, tuple[int, list[str | int]]] = {}  # id -> (number, path)
        self._pieces: dict[str, Piece] = {}
        self._steps: list[PieceCall | OpCall] = []
        self._next = 0

    def run(self) -> Split:
        nodes = list(self._traced.graph.nodes)
        output = nodes.pop()
        self._number_inputs(nodes)
        nodes = self._without_counts(nodes)
        self._note_reads([*nodes, output])
        for group in _groups(nodes):
            if _is_opaque(group[0]):
                self._add_op(group[0], group[1:])
                continue
            # Views of what comes from elsewhere are taken outside: a piece returns none of those.
            inside = set(group)
            for node in group:
                if _is_view(node) and node.args[0] not in inside:
                    self._add_op(node, [])
                    inside.remove(node)
            if inside:
                self._add_piece([node for node in group if node in inside])
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

    def _without_counts(self, nodes: list[fx.Node]) -> list[fx.Node]:
        """Nobody computes the number of tokens: it is given to every piece that asks for it. Of
        what a size was taken may have another by then, as behind `sampled_rows`."""
        counts = [n for n in nodes if n.op == "call_function" and self._is_num_tokens(n)]
        for count in counts[1:]:
            count.replace_all_uses_with(counts[0])
        dropped = set(counts)
        return [node for node in nodes if node not in dropped]

    def _note_reads(self, nodes: list[fx.Node]) -> None:
        self._order = {node: i for i, node in enumerate(nodes)}
        self._last_read: dict[int, int] = {}  # of a piece of memory, whichever views are read
        for node in nodes:
            for arg in node.all_input_nodes:
                memory = _storage(arg)
                if memory is not None:
                    self._last_read[memory] = self._order[node]

    def _new_number(self, node: fx.Node) -> int:
        self._numbers[node] = self._next
        self._next += 1
        return self._numbers[node]

    def _add_op(self, node: fx.Node, parts: list[fx.Node]) -> None:
        """`parts` are taken of its result, where that is a tuple."""
        name, args, layer = _op_name(node), list(node.args), None
        if node.kwargs:
            raise CannotCompile(f"{name} is called with keywords")
        if name in LAYER_OPS:
            path = self._structure.opaque.get(str(args.pop()))
            if path is None:
                raise CannotCompile(f"{name} of a layer that hangs nowhere in the model")
            layer = list(path)
        else:
            assert not name.startswith("atom::"), f"{name} is missing in LAYER_OPS"
        consumes = LAYER_OPS[name].consumes if layer is not None else ()
        copied, at = [], 0
        for i, arg in enumerate(args):
            nodes = _nodes_of(arg)
            if i in consumes:
                copied += [at + j for j, n in enumerate(nodes) if self._is_read_after(n, node)]
            at += len(nodes)
        arguments = [self._argument(arg) for arg in args]
        outputs: list[int | None]
        if isinstance(node.meta["val"], Tensor):
            outputs = [self._new_number(node)]
        else:
            taken = {part.args[1]: self._new_number(part) for part in parts}
            outputs = [taken.get(i) for i in range(len(node.meta["val"]))]
        self._steps.append(OpCall(name, layer, arguments, outputs, copied, scope_of(node)))

    def _is_read_after(self, value: fx.Node, reader: fx.Node) -> bool:
        """Whether anything reads the memory of `value` once `reader` has run."""
        memory = _storage(value)
        return memory is not None and self._last_read[memory] > self._order[reader]

    def _argument(self, arg: Any) -> Argument:
        if isinstance(arg, fx.Node):
            return Argument(value=self._numbers.get(arg, NUM_TOKENS))
        nodes = _nodes_of(arg)
        if nodes:
            if len(nodes) < len(arg):
                raise CannotCompile("a list holds tensors and other things")
            return Argument(values=[self._numbers[node] for node in nodes])
        if isinstance(arg, torch.dtype):
            return Argument(dtype=str(arg).removeprefix("torch."))
        return Argument(literal=list(arg) if isinstance(arg, tuple | list) else arg)

    def _add_piece(self, group: list[fx.Node]) -> None:
        inputs, outputs = self._boundary(group)
        piece = self._canonical(group, inputs, outputs)
        key = hashlib.sha256(f"{self._salt}\n{piece.text}".encode()).hexdigest()[:32]
        self._pieces.setdefault(key, piece)
        numbers = [self._numbers.get(node, NUM_TOKENS) for node in inputs]
        results = [self._new_number(node) for node in outputs]
        self._steps.append(PieceCall(key, numbers, results, _scope(group)))

    def _boundary(self, group: list[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
        """What the piece reads from outside, in order of first use, and what others read of it."""
        inside = set(group)
        inputs = [arg for node in group for arg in node.all_input_nodes if arg not in inside]
        outputs = [node for node in group if any(user not in inside for user in node.users)]
        for node in outputs:
            if not isinstance(node.meta["val"], Tensor):
                raise CannotCompile(f"{node.format_node()} is no tensor, and crosses pieces")
        return list(dict.fromkeys(inputs)), outputs

    def _is_num_tokens(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
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
            lines.append(f"a{i}: {self._describe(fake)}")
        for i, node in enumerate(group):
            copy = copies[node] = graph.node_copy(node, lambda arg: copies[arg])
            copy.name = f"v{i}"
            copy.meta = {"val": node.meta["val"]}
            text = f"{copy.target}{copy.args}{copy.kwargs}"
            lines.append(f"v{i}: {self._describe(node.meta['val'])} = {text}")
        results = [copies[node] for node in outputs]
        graph.output(tuple(results))
        lines.append(f"return {results}")
        given = {fake.untyped_storage()._cdata for fake in fakes if isinstance(fake, Tensor)}
        for node in outputs:
            # What would mend that is left out when a compiled piece is called.
            if _storage(node) in given:
                raise CannotCompile(f"{node.format_node()} is a view that crosses pieces")
        module = fx.GraphModule(torch.nn.Module(), graph)
        return Piece(module, fakes, "\n".join(lines), self._mode)

    def _fake(self, node: fx.Node) -> Any:
        if node.op != "get_attr":
            return node.meta["val"]
        tensor = getattr(self._traced, str(node.target))
        return self._mode.from_tensor(tensor, static_shapes=True)

    def _describe(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            return type(value).__name__
        sizes = (list(value.shape), list(value.stride()))
        aligned = value.storage_offset() * value.element_size() % ALIGNMENT == 0
        text = f"{value.dtype}{sizes}@{value.device}{'' if aligned else ' unaligned'}"
        return text.replace(self._symbol, "T")


def _nodes_of(arg: Any) -> list[fx.Node]:
    """The values in an argument, in order: itself, those of a list, or none."""
    if isinstance(arg, fx.Node):
        return [arg]
    return [a for a in arg if isinstance(a, fx.Node)] if isinstance(arg, tuple | list) else []


def _scope(group: list[fx.Node]) -> str:
    """Of the nodes that compute, in order; views alone are nobody's work."""
    working = [node for node in group if not getattr(node.target, "is_view", False)]
    return "+".join(dict.fromkeys(scope for node in working if (scope := scope_of(node))))


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
            home[node] = [node]
            groups += [run, home[node]]
            run = []
        else:
            source = node.args[0] if node.target is operator.getitem else None
            home[node] = home[source] if isinstance(source, fx.Node) else run
            home[node].append(node)
    return [group for group in [*groups, run] if group]


def _storage(node: fx.Node) -> int | None:
    """Names the memory of a tensor; its views have the same."""
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None

"""Names for nn.Module events, which carry a class and a running number: "RMSNorm_9".

The number counts instances of a class through the whole model, so a layer's own modules get names
that are equal in every layer: the rank among the parent's instances of that class. Which modules
are the layers shows in the tree: the shallowest parent with several instances of one class that
have modules themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

NN_MODULE = "nn.Module: "
_INSTANCE = re.compile(r"(?P<cls>.+?)_(?P<number>\d+)")


@dataclass(frozen=True, slots=True)
class Node:
    """Scopes of one name within the same scopes."""

    name: str  # a path, or "RMSNorm_9"
    parent: int  # index; parents come before children
    first: int  # orders the nodes by their first start
    is_module: bool


def instance(name: str) -> tuple[str, int]:
    """ "RMSNorm_9" -> ("RMSNorm", 9)."""
    match = _INSTANCE.fullmatch(name)
    return (match["cls"], int(match["number"])) if match else (name, 0)


def name_modules(nodes: Sequence[Node]) -> dict[int, str]:
    """Scopes of the nodes that are modules: "layers.3.Qwen3Attention.RMSNorm.1"."""
    children: dict[int, list[int]] = {}
    above: list[int] = []  # the nearest module round each node
    for number, node in enumerate(nodes):
        up = node.parent
        above.append(up if up < 0 or nodes[up].is_module else above[up])
        if node.is_module:
            children.setdefault(above[number], []).append(number)
    layers = _layers(nodes, children)
    wrappers = _ancestors(layers, above)
    own = _own_names(nodes, children)
    names: dict[int, str] = {}
    for number, node in enumerate(nodes):
        if not node.is_module:
            continue
        if number in layers:
            names[number] = f"layers.{layers[number]}"
        elif number in wrappers or above[number] in wrappers or above[number] < 0:
            names[number] = own[number]
        else:
            names[number] = f"{names[above[number]]}.{own[number]}"
    return names


def _own_names(nodes: Sequence[Node], children: dict[int, list[int]]) -> dict[int, str]:
    """The class, with the rank among the parent's instances of it if there are several."""
    own = {}
    for siblings in children.values():
        groups: dict[str, list[tuple[int, int]]] = {}
        for number in siblings:
            cls, index = instance(nodes[number].name)
            groups.setdefault(cls, []).append((index, number))
        for cls, group in groups.items():
            for rank, (_, number) in enumerate(sorted(group)):
                own[number] = cls if len(group) == 1 else f"{cls}.{rank}"
    return own


def _layers(nodes: Sequence[Node], children: dict[int, list[int]]) -> dict[int, int]:
    """Node -> number of its layer."""
    depth = [0] * len(nodes)
    best: tuple[int, int] | None = None
    chosen: list[int] = []
    for number, node in enumerate(nodes):
        depth[number] = depth[node.parent] + 1 if node.parent >= 0 else 0
    for parent, siblings in children.items():
        having = [number for number in siblings if children.get(number)]
        classes = Counter(instance(nodes[number].name)[0] for number in having)
        if not classes or classes.most_common(1)[0][1] < 2:
            continue
        # A hybrid model's layers are of several classes: all that repeat count.
        found = [n for n in having if classes[instance(nodes[n].name)[0]] > 1]
        rank = (depth[parent] if parent >= 0 else -1, -len(found))
        if best is None or rank < best:
            best, chosen = rank, found
    kinds = {instance(nodes[number].name)[0] for number in chosen}
    if len(kinds) == 1:  # then the running number is the layer's, even if the file begins late
        chosen.sort(key=lambda number: instance(nodes[number].name)[1])
    else:
        chosen.sort(key=lambda number: nodes[number].first)
    return {number: layer for layer, number in enumerate(chosen)}


def _ancestors(layers: dict[int, int], above: Sequence[int]) -> set[int]:
    found = set()
    for number in layers:
        up = above[number]
        while up >= 0 and up not in found:
            found.add(up)
            up = above[up]
    return found

"""Which item of A is which of B: same name in the same module, or the same place under a new name.

Also what counts as the same module where one side has fused what the other has apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from atom.trace.attribution import Attribution, Item, Kind
from atom.trace.kernels import kernel_class

ItemChange = Literal["", "new", "vanished", "renamed"]
NONE = -1


class Pair(NamedTuple):
    a: int  # index of A's item; -1 none
    b: int
    change: ItemChange


def pair_items(a: Attribution, b: Attribution) -> list[Pair]:
    """Every item of A and of B once."""
    in_b = {item: i for i, item in enumerate(b.items)}
    pairs = [Pair(i, in_b[item], "") for i, item in enumerate(a.items) if item in in_b]
    taken_a, taken_b = {p.a for p in pairs}, {p.b for p in pairs}
    left_a = [i for i in range(len(a.items)) if i not in taken_a]
    left_b = [i for i in range(len(b.items)) if i not in taken_b]
    renamed = _renamed(a, left_a, b, left_b)
    pairs += [Pair(i, j, "renamed") for i, j in renamed.items()]
    there = set(renamed.values())
    pairs += [Pair(i, NONE, _gone(a.items[i], "vanished")) for i in left_a if i not in renamed]
    pairs += [Pair(NONE, j, _gone(b.items[j], "new")) for j in left_b if j not in there]
    return pairs


def _gone(item: Item, change: ItemChange) -> ItemChange:
    return change if item.kind is Kind.KERNEL else ""


Place = tuple[str, str, int]  # module, class, calls per step


def _renamed(
    a: Attribution, left_a: list[int], b: Attribution, left_b: list[int]
) -> dict[int, int]:
    """A's items -> B's that took their place: the same module, class and calls a step.

    Where a module has several such, they pair in the order in which they run. Without a module
    only what is alone of its class and calls pairs: order says nothing across a whole step.
    """
    found: dict[int, int] = {}

    def places(drop: Callable[[Place], Place]) -> Iterator[tuple[str, list[int], list[int]]]:
        """(module, A's, B's) of what is left in each place."""
        there = set(found.values())
        in_a = _places(a, [i for i in left_a if i not in found], drop)
        in_b = _places(b, [j for j in left_b if j not in there], drop)
        for place, these in in_a.items():
            if len(these) == len(in_b.get(place, [])):
                yield place[0], these, in_b[place]

    for module, these, those in list(places(lambda place: place)):
        if module or len(these) == 1:
            found.update(zip(these, those, strict=True))
    # What is left alone in its module and class has changed its number of calls.
    for module, these, those in list(places(lambda place: (place[0], place[1], 0))):
        if module and len(these) == 1:
            found[these[0]] = those[0]
    # A name that says nothing may be of any class.
    for module, these, those in list(places(lambda place: (place[0], "", place[2]))):
        if module and len(these) == 1:
            names = a.items[these[0]].kernel, b.items[those[0]].kernel
            if "other" in map(kernel_class, names):
                found[these[0]] = those[0]
    return found


def _places(
    side: Attribution, left: Iterable[int], drop: Callable[[Place], Place]
) -> dict[Place, list[int]]:
    """Kernels by place, of which `drop` leaves out what shall not count; in order of running."""
    places: dict[Place, list[int]] = defaultdict(list)
    for i in left:
        item = side.items[i]
        if item.kind is Kind.KERNEL:
            calls = round(side.calls[:, i].sum() / len(side))
            places[drop((item.module, kernel_class(item.kernel), calls))].append(i)
    for items in places.values():
        items.sort(key=lambda i: (side.position[i], side.items[i].kernel))
    return places


def foreign_share(side: Attribution, modules: set[str]) -> float:
    """Share of the kernels' time in modules that are not among these."""
    whole = other = 0
    for i, item in enumerate(side.items):
        if item.kind is Kind.KERNEL:
            ns = int(side.ns[:, i].sum())
            whole += ns
            other += ns if item.module not in modules else 0
    return other / whole if whole else 0.0


def joined_modules(a: Iterable[str], b: Iterable[str]) -> Callable[[str], str]:
    """A renaming under which "x+y" of one side and "x" and "y" of the other are one module.

    Names that both sides have stay apart, unless a join takes them in.
    """
    names_a, names_b = dict.fromkeys(a), dict.fromkeys(b)
    everything = [name for name in (*names_a, *names_b) if name]
    root: dict[str, str] = {part: part for name in everything for part in name.split("+")}

    def find(part: str) -> str:
        while root[part] != part:
            part = root[part]
        return part

    def join(parts: list[str]) -> None:
        for part in parts[1:]:
            root[find(part)] = find(parts[0])

    common = [n for n in dict.fromkeys(everything) if n in names_a and n in names_b]
    for name in everything:
        if name not in names_a or name not in names_b:
            join(name.split("+"))
    before = -1
    while before != (before := sum(find(p) == p for p in root)):
        members: dict[str, list[str]] = defaultdict(list)
        for part in root:
            members[find(part)].append(part)
        for name in common:
            parts = name.split("+")
            if any(len(members[find(p)]) > 1 for p in parts):
                join(parts)
    titles: dict[str, list[str]] = defaultdict(list)
    for part in root:
        titles[find(part)].append(part)

    def rename(name: str) -> str:
        if not name:
            return ""
        parts = name.split("+")
        members = titles.get(find(parts[0]), parts) if parts[0] in root else parts
        return "+".join(members) if len(members) > 1 else name

    return rename

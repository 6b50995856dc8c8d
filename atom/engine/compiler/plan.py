"""What a forward has become: which pieces and operators run in which order, on what.

Plain data, kept on disk as JSON. Values are numbered: the step's inputs, the model's weights, then
what the steps give.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

Path = list[str | int]
INPUT_IDS, POSITIONS, NUM_TOKENS, FIRST_WEIGHT = 0, 1, 2, 3

ALIGNMENT = 16  # bytes, that the kernels of a piece count on


class Behind(NamedTuple):
    """What stands behind an operator `atom::*`: a method of its layer. Of an argument that is a
    list of tensors, all are consumed or none."""

    method: str
    num_arguments: int  # the first ones of the operator's, which may have more for its fake
    consumes: tuple[int, ...]  # arguments that it may overwrite


SAMPLED_ROWS = "atom::sampled_rows"  # after it, the number of tokens is another
LAYER_OPS = {
    "atom::attention": Behind("step", 2, (0,)),
    "atom::mix": Behind("step", 2, (0,)),
    "atom::experts": Behind("run", 2, ()),
    "atom::sparse_moe": Behind("run", 4, (0, 1)),
    "atom::all_reduce": Behind("run", 1, (0,)),
    SAMPLED_ROWS: Behind("run", 2, ()),
}
KERNEL_OPS = "atom_triton"  # namespace of kernels: functions without a state, of tensors
VIEW = "aten::view"


class PieceCall(msgspec.Struct, frozen=True, tag="piece"):
    """`outputs` = piece(*inputs)."""

    piece: str  # key of the compiled piece
    inputs: list[int]
    outputs: list[int]
    scope: str = ""  # the modules that it computes, by path, joined by "+"


class Argument(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value by its number, a list of them, a dtype by its name, or, where all are None, a
    literal."""

    value: int | None = None
    values: list[int] | None = None
    dtype: str | None = None
    literal: bool | int | float | str | list[int] | None = None


class OpCall(msgspec.Struct, frozen=True, tag="op"):
    """`outputs` = the operator, called without torch's dispatcher. Several outputs come as a tuple;
    None: one that nobody reads."""

    op: str  # of LAYER_OPS, or of the namespace KERNEL_OPS, or VIEW
    layer: Path | None  # of LAYER_OPS: where the layer hangs
    arguments: list[Argument]
    outputs: list[int | None]
    copied: list[int] = []  # inputs that it may overwrite although they are read again: indices
    scope: str = ""  # as a piece's

    @property
    def inputs(self) -> list[int]:
        """Values that it reads, those of lists one by one."""
        found = []
        for argument in self.arguments:
            found += [] if argument.value is None else [argument.value]
            found += argument.values or []
        return found


class Plan(msgspec.Struct, frozen=True):
    weights: list[Path]  # value FIRST_WEIGHT + i
    steps: list[PieceCall | OpCall]
    result: int
    num_values: int

    @property
    def pieces(self) -> list[str]:
        """The distinct ones, in order of first use."""
        return list(dict.fromkeys(s.piece for s in self.steps if isinstance(s, PieceCall)))

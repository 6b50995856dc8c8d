"""What a forward has become: which pieces and opaque operators run in which order, on what.

Plain data, kept on disk as JSON. Values are numbered: the step's inputs, the model's weights, then
what the steps give.
"""

from __future__ import annotations

import msgspec

Path = list[str | int]
INPUT_IDS, POSITIONS, NUM_TOKENS, FIRST_WEIGHT = 0, 1, 2, 3


class PieceCall(msgspec.Struct, frozen=True, tag="piece"):
    """`outputs` = piece(*inputs)."""

    piece: str  # key of the compiled piece
    inputs: list[int]
    outputs: list[int]


class OpaqueCall(msgspec.Struct, frozen=True, tag="opaque"):
    """`output` = the operator `atom::op` of the layer at `layer`, called without a dispatcher."""

    op: str
    layer: Path
    inputs: list[int]
    output: int


class Plan(msgspec.Struct, frozen=True):
    weights: list[Path]  # value FIRST_WEIGHT + i
    steps: list[PieceCall | OpaqueCall]
    result: int
    num_values: int

    @property
    def pieces(self) -> list[str]:
        """The distinct ones, in order of first use."""
        return list(dict.fromkeys(s.piece for s in self.steps if isinstance(s, PieceCall)))

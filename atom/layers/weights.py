"""How a layer gets its weights: it names the tensors it wants, takes its slice, then packs.

A layer yields one `WeightSlot` per checkpoint tensor. The loader calls `slot.load` with a
lazily read tensor, of which the layer reads only the rank's part, and `finish` when all are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from atom.ops.contracts import GGUFWeight

ALL = slice(None)


class CheckpointTensor(Protocol):
    """A tensor of a checkpoint, not yet read."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, rows: slice = ALL, cols: slice = ALL) -> Tensor | GGUFWeight:
        """The part of a matrix (or of a vector, `rows` only), as stored where that is possible."""
        ...

    def dense(self, *index: slice) -> Tensor:
        """A part of a tensor of any rank, floating point."""
        ...

    def packed(self, *index: slice) -> Tensor:
        """A part of a tensor of bytes, as stored."""
        ...

    def integers(self, limit: int) -> Tensor:
        """The whole of a tensor of integers from 0 to `limit` - 1."""
        ...


class WeightSlot(NamedTuple):
    """A tensor that a layer wants. `shape` is the whole tensor's, before it is shared out."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[CheckpointTensor], None]
    provides: tuple[str, ...] = ()  # other slots' names that this tensor makes unnecessary
    required: bool = True


class Layer(nn.Module):
    """A module with weights of its own. Weights are plain attributes: kernels own their form."""

    def slots(self, path: str) -> Iterator[WeightSlot]:
        """The tensors wanted by the layer that stands at `path` of the model."""
        raise NotImplementedError

    def finish(self) -> None:
        """Called once, when every slot has been loaded: put weights into their final form."""
        raise NotImplementedError

    @property
    def weight_bytes(self) -> int:
        """Bytes that the layer's weights hold on the device."""
        raise NotImplementedError


def sibling(path: str, name: str) -> str:
    """The path of `name` beside the module at `path`; the module's own path for no name."""
    return f"{path.rpartition('.')[0]}.{name}".lstrip(".") if name else path

"""What a checkpoint has and what its model wants, compared by name and shape; what to do about it.

One line each, because it ends a start-up: counts, the first names, and the likeliest reason.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.errors import ModelError

if TYPE_CHECKING:
    from atom.layers.weights import CheckpointTensor, WeightSlot

_SHOWN = 3
_OF = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class Wanted:
    """The tensors that a model wants, ticked off as they are seen. `origin` is for messages."""

    def __init__(self, model: Any, slots: dict[str, WeightSlot], origin: str) -> None:
        self._model = model
        self._slots = slots
        self._origin = origin
        self._missing = {slot.name for slot in slots.values() if slot.required}
        self._count = len(self._missing)
        self._unexpected: list[str] = []

    def take(self, tensor: CheckpointTensor) -> WeightSlot | None:
        """Where `tensor` goes; None for one that is left out, or that nobody wants."""
        slot = self._slots.get(self._our_name(tensor.name))
        if slot is None:
            if not self._left_out(tensor.name):
                self._unexpected.append(tensor.name)
            return None
        if tensor.shape != slot.shape and (tensor.shape, slot.shape) != ((1,), ()):
            raise ModelError(
                f"{self._origin}: {tensor.name} has shape {list(tensor.shape)}, "
                f"the config asks for {list(slot.shape)}: is config.json of this checkpoint?"
            )
        self._missing.discard(slot.name)
        self._missing.difference_update(slot.provides)
        return slot

    def check(self) -> None:
        """Raise `ModelError` unless all that is wanted, and nothing else, has been seen."""
        missing, unexpected = sorted(self._missing), self._unexpected
        if missing:
            raise ModelError(
                f"{self._origin} lacks {len(missing)} tensors for this architecture: "
                f"{_names(missing)}{self._why(missing, unexpected)}"
            )
        if unexpected:
            raise ModelError(
                f"{self._origin} has unexpected {len(unexpected)} tensors for this architecture: "
                f"{_names(unexpected)}{_too_many(unexpected, self._slots)}"
            )

    def _our_name(self, name: str) -> str:
        for theirs, ours in self._model.weight_map:
            name = name.replace(theirs, ours)
        return name

    def _left_out(self, name: str) -> bool:
        model = self._model
        skipped = (*model.skipped_weights, *model.mtp_prefixes)
        return name.endswith(model.ignored_weights) or name.startswith(skipped)

    def _why(self, missing: list[str], unexpected: list[str]) -> str:
        """The likeliest reason why tensors are missing."""
        if gone := _absent_shards(Path(self._origin)):
            return f"; of its files {_names(gone)} are not there: finish the download"
        if unexpected:
            near = difflib.get_close_matches(missing[0], unexpected, n=1, cutoff=0.0)
            example = f" ({near[0]} for one)" if near else ""
            also = f"; {len(unexpected)} others are unexpected{example}"
            whole = len(missing) == self._count
            doubt = "architectures in config.json" if whole else "config.json"
            return f"{also}: is {doubt} right for this checkpoint?"
        wanted, held = _layers(missing), _layers(set(self._slots) - self._missing)
        if wanted and held and min(wanted) > max(held):
            return (
                f": they end with layer {max(held)}, and num_hidden_layers in config.json asks for "
                f"{max(wanted) + 1}"
            )
        return ": is the download complete, and config.json of this checkpoint?"


def _absent_shards(folder: Path) -> list[str]:
    """Files that the name of another counts, where no index names them."""
    found = {path.name for path in folder.glob("*.safetensors")} if folder.is_dir() else set()
    for name in sorted(found):
        if match := _OF.search(name):
            stem, total = name[: match.start()], int(match[2])
            names = (f"{stem}-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1))
            return [name for name in names if name not in found]
    return []


def _too_many(unexpected: list[str], slots: dict[str, WeightSlot]) -> str:
    """The likeliest reason why there are more than are wanted."""
    extra, known = _layers(unexpected), _layers(slots)
    if extra and known and min(extra) > max(known):
        return (
            f": layers up to {max(extra)}, and num_hidden_layers in config.json says "
            f"{max(known) + 1}"
        )
    return ": is config.json of this checkpoint?"


def _layers(names: Iterable[str]) -> list[int]:
    return [int(match[1]) for name in names if (match := _LAYER.search(name))]


def _names(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")

"""A read-only view of a Hugging Face style `config.json`, both spellings of it alike.

Published configs say `rope_theta` / `rope_scaling` / `torch_dtype` or, newer, `rope_parameters` /
`dtype`; multimodal ones keep the language model's keys in `text_config`. Models read one view and
need not know. GGUF metadata is turned into the same style by `atom.models.gguf_config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atom.errors import ModelError

DEFAULT_ROPE_THETA = 10000.0


class HFConfig:
    """`config.name` gives the key's value or raises `ModelError` naming it; `.get` never raises.

    With a `text_config`, its keys hide the outer ones. `where` is only used in messages.
    """

    __slots__ = ("_flat", "raw", "where")

    raw: Mapping[str, Any]
    where: str
    _flat: dict[str, Any]

    def __init__(self, raw: Mapping[str, Any], where: str = "config.json") -> None:
        text = raw.get("text_config") or {}
        if not isinstance(text, Mapping):
            raise ModelError(f"{where}: text_config must be an object")
        object.__setattr__(self, "raw", raw)
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "_flat", {**raw, **text})

    @classmethod
    def from_file(cls, path: Path) -> HFConfig:
        return cls(read_json_object(path), str(path))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"HFConfig is read-only: {name}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and inspection protocols ask for many
            raise AttributeError(name)
        if name not in self._flat:
            raise ModelError(f"{self.where} does not say {name}, which this model needs")
        return self._flat[name]

    def __contains__(self, name: str) -> bool:
        return name in self._flat

    def __repr__(self) -> str:
        return f"HFConfig({self.raw.get('architectures')}, {self.where})"

    def get(self, name: str, default: Any = None) -> Any:
        return self._flat.get(name, default)

    def positive_int(self, name: str) -> int:
        """A size: an integer of at least 1, or a `ModelError`."""
        value = self.__getattr__(name)  # not a property of the same name
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"{self.where}: {name} must be a positive integer, got {value!r}")
        return value

    @property
    def architecture(self) -> str:
        """The first of `architectures`, the name in the registry of models."""
        names = self.raw.get("architectures") or self._flat.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise ModelError(f"{self.where} does not name its architecture (architectures)")
        return names[0]

    @property
    def vocab_size(self) -> int:
        return self.positive_int("vocab_size")

    @property
    def head_dim(self) -> int:
        if self._flat.get("head_dim") is not None:
            return self.positive_int("head_dim")
        hidden, heads = self.positive_int("hidden_size"), self.positive_int("num_attention_heads")
        if hidden % heads:
            raise ModelError(
                f"{self.where}: hidden_size {hidden} is not a multiple of"
                f" num_attention_heads {heads}, and head_dim is not given"
            )
        return hidden // heads

    @property
    def num_key_value_heads(self) -> int:
        given = self._flat.get("num_key_value_heads") is not None
        return self.positive_int("num_key_value_heads" if given else "num_attention_heads")

    @property
    def _rope(self) -> dict[str, Any]:
        """`rope_parameters`, or the same made of the older `rope_scaling`."""
        rope = self._flat.get("rope_parameters") or self._flat.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise ModelError(f"{self.where}: the rope parameters must be an object, got {rope!r}")
        return dict(rope)

    @property
    def rope_theta(self) -> float:
        value = self._rope.get("rope_theta", self._flat.get("rope_theta"))
        if value is None:
            return DEFAULT_ROPE_THETA
        if not isinstance(value, (int, float)) or not value > 0:
            raise ModelError(f"{self.where}: rope_theta must be positive, got {value!r}")
        return float(value)

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """How positions are stretched: always with `rope_type`; None when they are not."""
        rope = self._rope
        rope_type = rope.pop("rope_type", None) or rope.get("type") or "default"
        rope.pop("type", None)
        for name in ("rope_theta", "partial_rotary_factor"):
            rope.pop(name, None)
        return None if rope_type == "default" else {"rope_type": rope_type, **rope}

    @property
    def partial_rotary_factor(self) -> float:
        """Share of each head's channels that is rotated."""
        value = self._rope.get("partial_rotary_factor", self._flat.get("partial_rotary_factor"))
        return 1.0 if value is None else float(value)

    @property
    def dtype(self) -> str | None:
        """The dtype that the checkpoint was saved in, e.g. "bfloat16"; None if it is not said."""
        value = self._flat.get("dtype") or self._flat.get("torch_dtype")
        return None if value is None else str(value).removeprefix("torch.")

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the output head is the embedding (a `text_config`'s own word comes first)."""
        return bool(self._flat.get("tie_word_embeddings", False))


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `ModelError` if it cannot be read or is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}".splitlines()[0]) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return value


def token_ids(value: Any) -> tuple[int, ...]:
    """`eos_token_id` and its like: none, one or a list of ids."""
    found = value if isinstance(value, list) else [value]
    return tuple(i for i in found if isinstance(i, int) and not isinstance(i, bool) and i >= 0)

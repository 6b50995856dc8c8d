"""Where a request says nothing: the model's own generation config, or OpenAI's values."""

from __future__ import annotations

from typing import Any, NamedTuple

from atom.engine.sampling_params import SamplingParams
from atom.errors import ModelError, RequestError


class SamplingDefaults(NamedTuple):
    """What is used where a request says nothing; OpenAI's values unless the model has its own."""

    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_generation_config(cls, values: dict[str, Any]) -> SamplingDefaults:
        """The model's own values; raises `ModelError` for one that cannot be sampled with."""
        found: dict[str, Any] = {}
        for name, default in cls()._asdict().items():
            value = values.get(name)
            if value is None:
                continue
            try:
                found[name] = type(default)(value)
                SamplingParams(**{name: found[name]}).validate()
            except (RequestError, TypeError, ValueError) as error:
                raise ModelError(
                    f"the model's generation config has {name} = {str(value)[:40]}: {error}; "
                    "use --generation-config none"
                ) from None
        return cls(**found)

    def describe(self) -> str:
        """Those that differ from OpenAI's, for the log."""
        plain = SamplingDefaults()._asdict()
        own = [f"{k} {v:g}" for k, v in self._asdict().items() if v != plain[k]]
        return ", ".join(own) or "OpenAI's"

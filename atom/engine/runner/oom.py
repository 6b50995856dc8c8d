"""Out of memory in one line: what was being done, what it wanted, which settings free what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from atom.config.schema import Config
from atom.engine.plan import StepPlan
from atom.errors import AtomError, ConfigError
from atom.models.hf_config import HFConfig


class Explainer:
    """Knows the model and the settings of one runner. `memory_bytes` is the runner's own table and
    is read when something fails."""

    def __init__(
        self,
        config: Config,
        hf: HFConfig,
        device: torch.device,
        memory_bytes: Mapping[str, int],
    ) -> None:
        self._config = config
        self._hf = hf
        self._device = device
        self._memory_bytes = memory_bytes

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Turn torch's error inside a start-up phase into one that says what to change."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise self.explain(phase, error) from error

    def in_step(self, plan: StepPlan, error: torch.OutOfMemoryError) -> AtomError:
        """What to raise when launching `plan` ran out of memory."""
        doing = f"a step of {plan.num_tokens} tokens in {len(plan.rows)} sequences"
        return self.explain(doing, error)

    def explain(self, doing: str, error: torch.OutOfMemoryError) -> AtomError:
        return ConfigError(f"out of memory in {doing}: {str(error).splitlines()[0]}")

"""Out of memory in one line: what was being done, what it wanted, which settings free what.

The sizes are computed for the model at hand. "frees about" is an estimate, "frees" is what the
start-up measured or allocated.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

from atom.config.schema import Config
from atom.engine.plan import StepPlan
from atom.engine.runner.memory import GIB, size_text
from atom.errors import OutOfMemory
from atom.models.footprint import activation_bytes, count_parameters, kv_bytes_per_token
from atom.models.hf_config import HFConfig

DOING = {
    "load": "loading the weights",
    "tables": "allocating the tables of running sequences",
    "profile": "measuring the largest step",
    "kv_cache": "allocating the KV cache",
    "compile": "compiling the model",
    "warm_up": "running the first steps",
    "graphs": "capturing graphs",
}
_WANTED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIGNS = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
_UTILIZATION_STEP = 0.05
_ENOUGH_TO_MENTION = 16 * 2**20


class Card(NamedTuple):
    """A device's memory now; bytes."""

    free: int
    total: int
    ours: int  # allocated by this process's tensors
    split: int  # reserved by the allocator, but in pieces that nobody could use


class Saving(NamedTuple):
    """A change of settings and what it gives back."""

    change: str
    frees: float
    of: str = ""
    measured: bool = False

    def __str__(self) -> str:
        about = "" if self.measured else "about "
        return f"{self.change} frees {about}{size_text(self.frees)}{self.of}"


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
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            raise self.explain(phase, error) from None

    def in_step(self, plan: StepPlan, error: Exception) -> OutOfMemory:
        """What to raise when launching `plan` ran out of memory."""
        doing = f"running a step of {plan.num_tokens} tokens in {len(plan.rows)} sequences"
        # Measuring and warming up run steps too; what they lack is the phase's to say.
        phase = "step" if "kv_cache" in self._memory_bytes else "profile"
        return self.explain(phase, error, doing)

    def explain(self, phase: str, error: Exception, doing: str | None = None) -> OutOfMemory:
        """The error to raise instead. What the failed frames held is let go: the caller may want to
        try again with other settings."""
        traceback.clear_frames(error.__traceback__)
        card = self._card()
        wanted = _wanted(str(error))
        facts = [f"{size_text(wanted)} wanted"] if wanted else []
        if card is not None:
            facts.append(f"{size_text(card.free)} of {size_text(card.total)} free")
        facts += self._holders(card)
        ways = sorted(self._savings(phase), key=lambda saving: -saving.frees)
        told = [str(saving) for saving in ways if saving.frees >= _ENOUGH_TO_MENTION]
        if card is not None and card.split > max(wanted or 0, GIB):
            told.append(
                f"{size_text(card.split)} are free in pieces: PYTORCH_CUDA_ALLOC_CONF="
                "expandable_segments:True joins them"
            )
        told = told or ["choose a smaller or quantised model"]
        doing = doing or DOING.get(phase, phase)
        return OutOfMemory(f"out of memory {doing} ({', '.join(facts)}): {'; '.join(told)}")

    # -- where the memory is --------------------------------------------------------------------

    def _card(self) -> Card | None:
        """None on CPU. What the allocator keeps for later is given back first."""
        if self._device.type == "cpu":
            return None
        device = self._device
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_allocated(device)
        return Card(free, total, ours, torch.cuda.memory_reserved(device) - ours)

    def _holders(self, card: Card | None) -> list[str]:
        known = self._memory_bytes
        names = {"weights": "weights", "graphs": "graphs", "kv_cache": "KV cache"}
        parts = [f"{names[n]} {size_text(known[n])}" for n in names if known.get(n)]
        if card is not None:
            strangers = card.total - card.free - card.ours - card.split
            if strangers > GIB:
                parts.append(f"other processes and the runtime {size_text(strangers)}")
        return parts

    # -- what could be given up -----------------------------------------------------------------

    def _savings(self, phase: str) -> list[Saving]:
        match phase:
            case "load":
                return [*self._spread(), *self._weights()]
            case "tables":
                return [*self._rows(), *self._context(), *self._spread()]
            case "profile":
                return [*self._step(), *self._rows(), *self._spread()]
            case "kv_cache":
                return [*self._pool(), *self._step(), *self._spread()]
            case _:
                return [*self._pool(), *self._step(), *self._graphs(), *self._rows()]

    def _spread(self) -> list[Saving]:
        """Ranks share the weights."""
        size = self._config.parallel.tensor_parallel_size
        share = self._weight_bytes() / 2
        return [
            Saving(f"tensor_parallel_size {size} -> {2 * size}", share, " of each GPU's weights")
        ]

    def _weights(self) -> list[Saving]:
        dtype = self._config.model.dtype
        if dtype != "float32":
            return []
        return [Saving("dtype float32 -> bfloat16", self._weight_bytes() / 2, " of weights")]

    def _weight_bytes(self) -> float:
        known = self._memory_bytes.get("weights")
        itemsize = 4 if self._config.model.dtype == "float32" else 2
        ranks = self._config.parallel.tensor_parallel_size
        return known if known else itemsize * count_parameters(self._hf) / ranks

    def _pool(self) -> list[Saving]:
        """The KV pool takes what is left, so it is what gives way."""
        engine = self._config.engine
        known = self._memory_bytes.get("kv_cache", 0)
        if engine.num_kvcache_blocks > 0:
            blocks = engine.num_kvcache_blocks
            ranks = self._config.parallel.tensor_parallel_size
            size = known or blocks * engine.block_size * self._kv_token_bytes() / ranks
            change = f"num_kvcache_blocks {blocks} -> {blocks // 2}"
            return [Saving(change, size / 2, " of KV cache", measured=bool(known))]
        if self._device.type == "cpu":
            asked = engine.kv_cache_memory_gb
            size = known or int((asked or 0) * GIB)
            change = f"kv_cache_memory_gb {size / GIB:.2f} -> {size / 2 / GIB:.2f}"
            return [Saving(change, size / 2, " of KV cache", measured=bool(known))]
        share = engine.gpu_memory_utilization
        less = max(share - _UTILIZATION_STEP, share / 2)
        total = self._memory_bytes.get("total", 0)
        change = f"gpu_memory_utilization {share:.2f} -> {less:.2f}"
        return [Saving(change, (share - less) * total, " of KV cache", measured=True)]

    def _kv_token_bytes(self) -> int:
        names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}
        dtype = names.get(self._config.engine.kv_cache_dtype, "bfloat16")
        return kv_bytes_per_token(self._hf, dtype)

    def _step(self) -> list[Saving]:
        scheduler = self._config.scheduler
        tokens, rows = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
        if tokens < 2:
            return []
        change = f"max_num_batched_tokens {tokens} -> {tokens // 2}"
        return [
            Saving(change, self._activations(tokens, rows) - self._activations(tokens // 2, rows))
        ]

    def _rows(self) -> list[Saving]:
        """Fewer sequences: fewer logits, a smaller table of tokens, smaller graphs."""
        scheduler = self._config.scheduler
        tokens, rows = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
        if rows < 2:
            return []
        logits = self._activations(tokens, rows) - self._activations(tokens, rows // 2)
        table = 4 * (rows - rows // 2) * (self._config.model.max_model_len or 0)
        graphs = self._memory_bytes.get("graphs", 0) / 2
        return [Saving(f"max_num_seqs {rows} -> {rows // 2}", logits + table + graphs)]

    def _context(self) -> list[Saving]:
        """The tables are as wide as the longest sequence."""
        length = self._config.model.max_model_len or 0
        if length < 2:
            return []
        size = 4 * self._config.scheduler.max_num_seqs * (length - length // 2)
        return [Saving(f"max_model_len {length} -> {length // 2}", size, measured=True)]

    def _activations(self, tokens: int, rows: int) -> int:
        itemsize = 4 if self._config.model.dtype == "float32" else 2
        return activation_bytes(self._hf, tokens, min(rows, tokens), itemsize)

    def _graphs(self) -> list[Saving]:
        held = self._memory_bytes.get("graphs", 0)
        return [Saving("cudagraph_mode none", held, " of graphs", measured=True)] if held else []


def is_shortage(error: Exception) -> bool:
    """Whether memory ran out: torch's own error, its CPU allocator's, or a library's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(sign in str(error) for sign in _SIGNS)


def _wanted(message: str) -> float | None:
    found = _WANTED.search(message)
    return None if found is None else float(found[1]) * _UNITS[found[2]]

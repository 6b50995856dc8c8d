"""What the pages say about a run besides its metrics: names, shape, load, place, command.

Provenance of imported files is patchy, so each fact is None or "" where the run does not tell it;
none is guessed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from atom.bench.dashboard.command import command
from atom.bench.history.importers.reading import number
from atom.bench.history.runs import commit_of, data_set, recipe_of, shape_text, started_at
from atom.bench.types import RunResult


class Load(NamedTuple):
    """How a run was loaded; `level` orders the points of a curve."""

    mode: str  # concurrency, rate, other
    level: float | None
    label: str  # c=16, 4 req/s, 1 to 8 req/s


class Facts(NamedTuple):
    """One run for the pages; the fields are the columns' names in `data.js`."""

    time_ms: int  # since the epoch
    backend: str  # atom, vllm, ...
    version: str  # of the server
    shape: str  # 1024/1024: tokens asked in and out; else the data set
    dataset: str
    load: Load
    hardware: str  # 8x MI300X; the CPU's name
    gpus: int | None  # 0: a CPU machine; None: not known
    devices: int  # what per-device figures are divided by; never 0
    tp: int | None
    commit: str
    dirty: bool
    recipe: str  # its name
    series: str  # runs of one series differ in their load alone
    command: str  # reproduces this point; "" where it is not known


def facts(run: RunResult) -> Facts:
    gpus = _whole(_at(run.provenance, "hardware", "num_gpus"))
    moment = datetime.fromisoformat(started_at(run).replace("Z", "+00:00"))
    found = Facts(
        time_ms=int(moment.timestamp() * 1000),
        backend=_text(_at(run.provenance, "server", "kind")),
        version=_text(_at(run.provenance, "server", "version")),
        shape=shape_text(run.workload),
        dataset=data_set(run.workload),
        load=load(run.load),
        hardware=_hardware(run.provenance, gpus),
        gpus=gpus,
        devices=max(gpus or 0, 1),
        tp=_tensor_parallel(run.provenance),
        commit=commit_of(run),
        dirty=bool(_at(run.provenance, "server", "dirty")),
        recipe=recipe_of(run),
        series="",
        command=command(run),
    )
    key = (run.name, run.model, found.backend, found.shape, found.dataset, found.hardware)
    text = json.dumps([*key, found.gpus, found.tp, found.recipe, run.kind])
    return found._replace(series=hashlib.sha256(text.encode()).hexdigest()[:12])


def load(described: Mapping[str, Any]) -> Load:
    """Closed loop: its concurrency. Open loop: its rate, a ramp by its end."""
    concurrency = number(described.get("concurrency"))
    if concurrency is not None:
        return Load("concurrency", concurrency, f"c={concurrency:g}")
    rate = described.get("request_rate")
    if isinstance(rate, str) and ":" in rate:  # 2:20, 2:20:exponential
        low, high = (number(part) for part in rate.split(":")[:2])
        if low is not None and high is not None:
            return Load("rate", high, f"{low:g} to {high:g} req/s")
    level = number(rate)
    if level is not None:
        return Load("rate", level, f"{level:g} req/s")
    return Load("other", None, "all at once" if rate == "inf" else _text(described.get("mode")))


def _hardware(provenance: Mapping[str, Any], gpus: int | None) -> str:
    """The GPUs in use, else the CPU; "" for a machine that is not known."""
    names = _at(provenance, "hardware", "gpus")
    if gpus != 0 and isinstance(names, list) and names:
        name = _text(_at(names[0], "name"))
        count = gpus or len(names)
        return f"{count}x {name}" if count > 1 else name
    if gpus:
        return f"{gpus} GPU{'s' if gpus > 1 else ''}"
    return _text(_at(provenance, "hardware", "cpu"))


def _tensor_parallel(provenance: Mapping[str, Any]) -> int | None:
    for path in (
        ("server", "config", "parallel", "tensor_parallel_size"),
        ("server", "config", "tensor_parallel_size"),
        ("metadata", "tensor_parallel_size"),
    ):
        found = _whole(_at(provenance, *path))
        if found is not None:
            return found
    return None


def _at(tree: Any, *path: str) -> Any:
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)

"""A profile of chosen steps of the engine in this process: loads the model, records, writes down.

What was recorded is in `profile.json` after each shape; what comes later cannot lose it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from atom._version import __version__
from atom.config.fields import settings, value_of
from atom.config.schema import Config
from atom.config.serial import changed
from atom.engine.llm import LLM
from atom.engine.messages import EngineInfo
from atom.engine.runner.profiler import stamp_of_now
from atom.models.source import resolve_source
from atom.profile import folder as folders
from atom.profile import verdict
from atom.profile.display import Display
from atom.profile.driver import Driver, Recording
from atom.profile.errors import ProfileError
from atom.profile.interrupt import gentle
from atom.profile.shapes import (
    CONTEXT,
    Counts,
    Shape,
    check,
    check_batch,
    default_shapes,
    parse,
)

PROBED_STEPS = 32  # from so many steps on, two are recorded first to know how large they become
PROBE = Counts(steps=2, warmup=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What the command line asks for."""

    config: Config
    prefill: Sequence[str] = ()
    decode: Sequence[str] = ()
    context: int | None = None  # None: 1024, or what fits
    counts: Counts
    output_dir: Path | None = None
    mark_trace: bool = True
    more: bool = False
    recipe: Path | None = None


@dataclass(slots=True)
class Profile:
    """What came of it."""

    folder: Path
    document: dict[str, Any]
    recordings: list[Recording] = field(default_factory=list)
    verdicts: list[verdict.Verdict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False


def run(ask: Ask, display: Display) -> Profile:
    """Load, record every shape, read the traces. Ctrl-C ends it between two steps; what was
    recorded then is kept.

    Raises `AtomError` in one line where nothing can be recorded.
    """
    asked = _parse(ask, ask.context or CONTEXT)
    limits = ask.config.scheduler
    for shape in asked:
        problem = check_batch(shape, limits.max_num_seqs, limits.max_num_batched_tokens)
        if problem:
            raise ProfileError(f"{shape.flag}: {problem}")
    name = resolve_source(ask.config.model).name
    folder = folders.choose(ask.output_dir, name, datetime.now(timezone.utc))
    try:
        return _run(ask, asked, name, folder, display)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless there is something in it
        raise


def _run(ask: Ask, asked: list[Shape], name: str, folder: Path, display: Display) -> Profile:
    display.say(f"loading {name}")
    began = time.monotonic()
    with LLM(**_values(ask, folder)) as llm:
        info = llm.core.info
        display.say(f"{name} on {info.device} in {time.monotonic() - began:.1f} s; {info.graphs}")
        shapes = _settle(ask, asked, info)
        made = Profile(folder, _document(ask, info, name))
        with gentle(lambda text: display.say(text, important=True)) as stop:
            _record_all(made, llm, shapes, ask, display, stop.is_set)
    made.document["captures"] = _captures(folder)
    folders.write(folder, made.document)
    _judge_all(made, info, display)
    folders.write(folder, made.document)
    return made


def _parse(ask: Ask, context: int) -> list[Shape]:
    return parse(ask.prefill, ask.decode, context)


def _values(ask: Ask, folder: Path) -> dict[str, Any]:
    """The configuration's values with the profiler on."""
    profile = dataclasses.replace(
        ask.config.profile,
        torch_profiler_dir=str(folder),
        mark_trace=ask.mark_trace,
        profiler_more=ask.more or ask.config.profile.profiler_more,
    )
    config = dataclasses.replace(ask.config, profile=profile)
    return {s.name: value_of(config, s) for s in settings().values()}


def _settle(ask: Ask, asked: list[Shape], info: EngineInfo) -> list[Shape]:
    """The shapes for the engine that is there; raises `ProfileError` for one that cannot run."""
    if not asked:
        found = default_shapes(info.device, info, ask.counts)
        if ask.context is not None:
            found = [
                dataclasses.replace(s, tokens=ask.context) if s.kind == "decode" else s
                for s in found
            ]
    elif ask.context is None:
        room = info.max_model_len - ask.counts.steps
        found = _parse(ask, max(1, min(CONTEXT, room)))
    else:
        found = asked
    check(found, info, ask.counts)
    return found


def _record_all(
    made: Profile,
    llm: LLM,
    shapes: Sequence[Shape],
    ask: Ask,
    display: Display,
    stopped: Callable[[], bool],
) -> None:
    driver = Driver(llm.core, seed=ask.config.model.seed, stopped=stopped)
    sizes = folders.Sizes(made.folder)
    gc.collect()
    gc.freeze()  # as the server does: no collection walks the model in mid-step
    try:
        for shape in shapes:
            if stopped():
                break
            if ask.counts.steps >= PROBED_STEPS and not sizes.knows(shape.kind):
                _probe(driver, shape, sizes, display)
            refusal = sizes.refusal(shape.kind, ask.counts.steps)
            if refusal:
                made.problems.append(f"{shape} is not recorded: {refusal}")
                display.say(made.problems[-1], important=True)
                continue
            warning = sizes.warning(shape.kind, ask.counts.steps)
            if warning:
                display.say(f"{shape}: {warning}", important=True)
            _record(made, driver, shape, ask.counts, sizes, display)
    finally:
        gc.unfreeze()
    made.interrupted = stopped()
    made.document["status"] = "interrupted" if made.interrupted else "complete"


def _probe(driver: Driver, shape: Shape, sizes: folders.Sizes, display: Display) -> None:
    """Two steps, recorded to be weighed."""
    display.say(f"{shape}: two steps to see how large a trace becomes")
    found = driver.record(shape, PROBE, stamp_of_now())
    if found is not None:
        sizes.weigh(shape.kind, found.steps, folders.num_bytes(found.files))
        for file in found.files:
            Path(file).unlink()


def _record(
    made: Profile,
    driver: Driver,
    shape: Shape,
    counts: Counts,
    sizes: folders.Sizes,
    display: Display,
) -> None:
    display.say(f"{shape}: {counts.warmup} steps to warm up, {counts.steps} to record")
    found = driver.record(shape, counts, stamp_of_now())
    if found is None:
        return
    size = folders.num_bytes(found.files)
    sizes.add(shape.kind, found.steps, size)
    made.recordings.append(found)
    made.document["shapes"].append(_entry(made.folder, found, size))
    folders.write(made.folder, made.document)


def _entry(folder: Path, found: Recording, size: int) -> dict[str, Any]:
    shape = found.shape
    plain = found.plain_s / found.plain_steps if found.plain_steps else None
    return {
        "name": str(shape),
        "kind": shape.kind,
        "batch": shape.batch,
        "tokens" if shape.kind == "prefill" else "context": shape.tokens,
        "steps_asked": found.asked,
        "steps": found.steps,
        "files": folders.relative(folder, found.files),
        "bytes": size,
        # On the host, from the first launch to the last token; GPU work is under "trace".
        "wall_us_per_step": round(found.wall_s / found.steps * 1e6, 3),
        "wall_us_per_step_unrecorded": None if plain is None else round(plain * 1e6, 3),
    }


def _captures(folder: Path) -> list[str]:
    found = sorted(folder.glob("rank_*/capture_graph_*.json.gz"))
    return folders.relative(folder, found)


def _judge_all(made: Profile, info: EngineInfo, display: Display) -> None:
    device = "cpu" if info.device.startswith("cpu") else "gpu"
    for found, entry in zip(made.recordings, made.document["shapes"], strict=True):
        display.say(f"{found.shape}: reading the trace")
        files = [Path(file) for file in found.files]
        judged = verdict.judge(files, device, found.shape, found.steps)
        made.verdicts.append(judged)
        entry["trace"] = dataclasses.asdict(judged)


def _document(ask: Ask, info: EngineInfo, name: str) -> dict[str, Any]:
    from atom.bench.history import provenance

    where = provenance.collect(
        seed=ask.config.model.seed,
        recipe=ask.recipe,
        num_gpus=0 if info.device.startswith("cpu") else ask.config.parallel.tensor_parallel_size,
    )
    kept = ("command", "recipe", "hardware", "driver", "packages", "time", "host", "seed")
    return {
        "schema": folders.SCHEMA,
        "mode": "offline",
        "status": "recording",
        "atom": {"version": __version__, **where["atom"]},
        "python": platform.python_version(),
        "model": name,
        "engine": {
            "device": info.device,
            "dtype": info.dtype,
            "kv_cache_dtype": info.kv_cache_dtype,
            "max_model_len": info.max_model_len,
            "block_size": info.block_size,
            "overlap": info.overlap,
            "graphs": info.graphs,
            "backends": dict(info.backends),
            "tensor_parallel_size": ask.config.parallel.tensor_parallel_size,
        },
        "settings": changed(ask.config),
        "mark_trace": ask.mark_trace,
        "more": ask.more or ask.config.profile.profiler_more,
        "warmup": ask.counts.warmup,
        "shapes": [],
        "captures": [],
        **{key: where[key] for key in kept},
    }

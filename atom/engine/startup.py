"""What an engine says of its start: where the time went, and where the memory is.

Plain aligned lines, for the log of the server and of `LLM`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from atom.engine.messages import EngineInfo

GIB = 2**30

# In the order of the start; what else there is comes after.
PHASES = ("import", "load", "compile", "profile", "kv_cache", "warm_up", "graphs")
MEMORY = ("weights", "other", "activations", "graphs", "reserve", "kv_cache", "free", "total")

_LABELS = {
    "import": "import",
    "load": "load the weights",
    "compile": "compile",
    "profile": "measure the largest step",
    "kv_cache": "make the KV cache",
    "warm_up": "first steps",
    "graphs": "capture graphs",
}


def report(info: EngineInfo) -> list[str]:
    """Both tables with their headings."""
    return [
        "start-up of the engine:",
        *timetable(info.startup_s),
        "memory:",
        *memory_table(info),
    ]


def timetable(phases_s: Mapping[str, float]) -> list[str]:
    """One line per phase, in seconds, and their sum."""
    names = _ordered(phases_s, PHASES)
    rows = [(_LABELS.get(name, name), phases_s[name]) for name in names]
    rows.append(("total", sum(phases_s.values())))
    width = max(len(label) for label, _ in rows)
    return [f"  {label:{width}}  {seconds:7.2f} s" for label, seconds in rows]


def memory_table(info: EngineInfo) -> list[str]:
    """One line per part, in GiB, with what decided it."""
    sizes = dict(info.memory_bytes)
    if "total" in sizes:
        held = sum(size for name, size in sizes.items() if name != "total")
        sizes["free"] = sizes["total"] - held
    names = _ordered(sizes, MEMORY)
    width = max(len(name) for name in names) if names else 0
    notes = {**_notes(info), **info.memory_notes}
    lines = []
    for name in names:
        size = f"{sizes[name] / GIB:8.2f} GiB"
        lines.append(f"  {name.replace('_', ' '):{width}}  {size}  {notes.get(name, '')}".rstrip())
    return lines


def _notes(info: EngineInfo) -> dict[str, str]:
    return {
        "weights": f"computing in {info.dtype}",
        "kv_cache": f"{info.num_blocks} blocks of {info.block_size} tokens, {info.kv_cache_dtype}",
        "free": "left alone",
        "total": f"of {info.device}",
    }


def _ordered(found: Mapping[str, object], order: tuple[str, ...]) -> list[str]:
    return [name for name in order if name in found] + [n for n in found if n not in order]

"""What the mapping says about itself: warnings of steps, notes for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from atom.trace.mapping.types import Replay, Template
from atom.trace.types import NONE, Match

if TYPE_CHECKING:
    from atom.trace.mapping.replay import Found

_NAMED = 4  # captures that a note names


def incomplete(
    replays: Sequence[Replay], found: Sequence[Found], templates: Sequence[Template]
) -> dict[int, str]:
    """Warnings, by step, that the file lacks kernels which its graphs have run."""
    most: Counter[tuple[str, int, int]] = Counter()
    for replay in replays:
        key = (replay.kind, replay.size, len(replay.launches))
        most[key] = max(most[key], _rows(replay))
    warnings: dict[int, str] = {}
    for replay, one in zip(replays, found, strict=True):
        rows, launches = _rows(replay), len(replay.launches)
        empty = sum(not len(r) for r in replay.launches)
        wanted = _captured(one, templates)
        if wanted and rows >= wanted:  # pieces may be captured without a kernel
            continue
        if empty:
            warnings[replay.step] = (
                f"incomplete: {empty} of {launches} graph launches have no GPU work in the file"
            )
            continue
        if wanted and _all_from_capture(one):
            warnings[replay.step] = (
                f"incomplete: {rows} of the {wanted} kernels of its graphs are in the file"
            )
        elif not wanted and rows < most[replay.kind, replay.size, launches]:
            other = most[replay.kind, replay.size, launches]
            warnings[replay.step] = (
                f"incomplete? {rows} kernels of graphs, other steps like it have {other}"
            )
    return warnings


def _rows(replay: Replay) -> int:
    return sum(len(r) for r in replay.launches)


def _captured(one: Found, templates: Sequence[Template]) -> int:
    """Number of kernels of the templates used."""
    used = np.unique(one.template[one.template >= 0])
    return sum(len(templates[int(index)]) for index in used)


def _all_from_capture(one: Found) -> bool:
    """Nothing new in it: every kernel has a partner or might have one of several."""
    return int((one.match == Match.NONE).sum()) <= one.doubtful


def notes(
    replays: Sequence[Replay], found: Sequence[Found], templates: Sequence[Template]
) -> tuple[str, ...]:
    """Lines for `MatchReport.notes`."""
    lines: list[str] = []
    used: Counter[int] = Counter()
    other_size: Counter[tuple[int, int]] = Counter()
    for replay, one in zip(replays, found, strict=True):
        for index in np.unique(one.template[one.template >= 0]).tolist():
            used[index] += 1
            size = templates[index].size
            if replay.size >= 0 and size >= 0 and size != replay.size:
                other_size[replay.size, size] += 1
    lines += _used(used, templates)
    lines += [templates[i].note for i in sorted(used) if templates[i].note]
    for (wanted, given), count in sorted(other_size.items()):
        steps = "1 step" if count == 1 else f"{count} steps"
        lines.append(
            f"{steps} of size {wanted} mapped by the capture of size {given}:"
            " modules hold, shapes are the capture's"
        )
    doubtful = sum(one.doubtful for one in found)
    if doubtful:
        lines.append(
            f"{doubtful} replayed kernels could belong to several modules and were given none"
        )
    renamed = sum(one.renamed for one in found)
    if renamed:
        lines.append(
            f"{renamed} replayed kernels have another name than the captured one at their place"
        )
    skipped = sum(one.skipped > 0 for one in found)
    if skipped:
        lines.append(
            f"{skipped} of {len(replays)} steps differ from their capture and were not aligned with"
            " it: too many others had been; give fewer steps"
        )
    unknown = sum(
        len(one.match) > 0 and not one.skipped and not (one.template != NONE).any() for one in found
    )
    if unknown and templates:
        lines.append(
            f"{unknown} of {len(replays)} steps with graphs are like none of the"
            f" {len(templates)} captured ones"
        )
    if not templates and any(len(r.launches) for r in replays):
        lines.append(
            "graphs were replayed, but no capture trace tells their modules"
            " (record with --mark-trace, or give --capture-trace)"
        )
    return tuple(lines)


def _used(used: Counter[int], templates: Sequence[Template]) -> list[str]:
    """Which captures explain how many steps."""
    captures = [i for i in sorted(used) if not templates[i].eager]
    if not captures:
        return []
    named = [f"{templates[i].label} ({len(templates[i])} kernels)" for i in captures[:_NAMED]]
    if len(captures) > _NAMED:
        named.append(f"{len(captures) - _NAMED} more")
    total = sum(used[i] for i in captures)
    return [f"graphs of {total} {'step' if total == 1 else 'steps'}: {', '.join(named)}"]

"""Which calls of the runtime put work on the device, and what a capture's annotations are named."""

from __future__ import annotations

import re

import numpy as np

from atom.trace.labels import parse_label
from atom.trace.types import I8, I32, I64, NONE, GpuKind, RankTrace

_KERNEL = re.compile(r"Launch(?:Cooperative)?Kernel|ModuleLaunch")
_NOT_WORK = re.compile(r"Graph|Occupancy|Attribute|HostFunc|Pointer")

_CAPTURE_FILE = re.compile(r"(?:^|[_/])bs_(\d+)")
_PROMPTS = ("piecewise", "extend", "prefill")


def parse_capture(name: str) -> tuple[str, int] | None:
    """Kind ("decode", "piecewise", "") and size of a capture's annotation; `None`: it is none."""
    label = parse_label(name)
    if label is None or label.kind != "capture":
        return None
    tokens, mode = label.fields.get("tok"), str(label.fields.get("mode", "")).lower()
    if isinstance(tokens, int):
        return "piecewise", tokens
    size = label.fields.get("bs", NONE)
    assert isinstance(size, int), label
    if any(word in mode for word in _PROMPTS):
        return "piecewise", size
    return ("decode" if label.family == "atom" or "decode" in mode else ""), size


def parse_capture_file(stem: str) -> int:
    """Size in a capture's file name, `bs_32_q_1_rank0`; -1 if there is none."""
    found = _CAPTURE_FILE.search(stem)
    return int(found[1]) if found else NONE


def launch_kinds(trace: RankTrace) -> I8:
    """[R] GpuKind of what each runtime call puts on the device, 255 for calls that put nothing.

    A graph launch is 255 as well: what it puts there its capture knows.
    """
    by_name = np.full(len(trace.strings) + 1, 255, np.uint8)
    for index in np.unique(trace.runtime.name):
        by_name[index] = _kind_of_call(trace.strings[int(index)])
    return by_name[trace.runtime.name]


def _kind_of_call(name: str) -> int:
    if _NOT_WORK.search(name):
        return 255
    if "Memcpy" in name:
        return GpuKind.MEMCPY
    if "Memset" in name:
        return GpuKind.MEMSET
    return GpuKind.KERNEL if _KERNEL.search(name) else 255


def first_row(trace: RankTrace) -> I64:
    """[R] the first row of `trace.gpu` with the call's correlation; -1: the file has none."""
    wanted = trace.runtime.correlation
    order = np.argsort(trace.gpu.correlation, kind="stable")
    known = trace.gpu.correlation[order]
    found = np.full(len(wanted), NONE, np.int64)
    if not len(known):
        return found
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    hit = (known[at] == wanted) & (wanted >= 0)
    found[hit] = order[at[hit]]
    return found


def outermost(trace: RankTrace, rows: I64) -> I64:
    """[len(rows)] index of the call that each of these, by time, lies in, or its own: a runtime's
    launch may show the driver's within it as a second event."""
    found = np.arange(len(rows), dtype=np.int64)
    track, start = trace.runtime.track[rows], trace.runtime.ts[rows]
    end = start + trace.runtime.dur[rows]
    for one in np.unique(track):
        mine = np.flatnonzero(track == one)
        reach = np.maximum.accumulate(end[mine])
        new = np.concatenate([[True], start[mine][1:] >= reach[:-1]])
        found[mine] = mine[np.maximum.accumulate(np.where(new, np.arange(len(mine)), 0))]
    return found


def calls_named(trace: RankTrace, pattern: str) -> I64:
    """Rows of `trace.runtime` whose name matches, ascending."""
    wanted = re.compile(pattern)
    names = [i for i in np.unique(trace.runtime.name) if wanted.search(trace.strings[int(i)])]
    return np.flatnonzero(np.isin(trace.runtime.name, np.asarray(names, np.int32))).astype(np.int64)


def names_or_none(trace: RankTrace, rows: I64) -> I32:
    """Names of rows of `trace.gpu`; -1 where the row is -1."""
    if not len(trace.gpu):
        return np.full(len(rows), NONE, np.int32)
    return np.where(rows >= 0, trace.gpu.name[np.maximum(rows, 0)], NONE).astype(np.int32)

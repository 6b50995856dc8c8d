"""Begins with their ends elsewhere, and events that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from raw_events import kernel, read
from synthetic import TraceBuilder

from atom.trace.reader import event as ev
from atom.trace.reader import read_trace
from atom.trace.reader.ends import Phase, close_open, pair
from atom.trace.types import CpuKind, RankTrace


def host(events: list[dict[str, Any]], tmp_path: Path) -> RankTrace:
    common = {"cat": "user_annotation", "pid": 1, "tid": 1}
    return read(tmp_path, json.dumps([{**common, **event} for event in events]).encode())


def test_pairs_of_begin_and_end(tmp_path: Path) -> None:
    run = TraceBuilder()
    for label in ("decode[bs=1]", "decode[bs=2]"):
        with run.annotation(label, end="BE"), run.annotation("inner", end="BE"):
            run.kernel("k")
    plain = TraceBuilder()
    for label in ("decode[bs=1]", "decode[bs=2]"):
        with plain.annotation(label), plain.annotation("inner"):
            plain.kernel("k")
    one = read_trace(run.write(tmp_path / "a.json"))
    other = read_trace(plain.write(tmp_path / "b.json"))
    for key in ("ts", "dur", "kind", "external"):
        assert getattr(one.cpu, key).tolist() == getattr(other.cpu, key).tolist()
    assert one.counts == other.counts
    assert one.warnings == ()


def test_pairs_out_of_order_and_without_partner(tmp_path: Path) -> None:
    trace = host(
        [
            {"ph": "E", "ts": 9},
            {"ph": "B", "ts": 5, "name": "b"},
            {"ph": "B", "ts": 1, "name": "a"},
            {"ph": "E", "ts": 7},
            {"ph": "E", "ts": 20},
            {"ph": "B", "ts": 21, "name": "c"},
            {"ph": "X", "ts": 22, "dur": 3, "name": "d"},
        ],
        tmp_path,
    )
    assert [trace.strings[name] for name in trace.cpu.name] == ["a", "b", "c", "d"]
    assert trace.cpu.dur.tolist() == [8000, 2000, 4000, 3000]
    assert set(trace.cpu.kind.tolist()) == {CpuKind.ANNOTATION}
    assert trace.warnings == (
        "events without an end, which was set where what is round them ends, and for GPU work to "
        "0 us: 1",
        "ends without a begin, left out: 1",
    )


def test_a_label_without_end_does_not_swallow_the_next(tmp_path: Path) -> None:
    run = TraceBuilder()
    for size in (1, 2):
        with run.step(f"decode[bs={size}]", end="none"), run.op("aten::mm"):
            run.kernel("k")
    trace = read_trace(run.write(tmp_path / "m.json"))
    labels = [row for row in range(len(trace.cpu)) if trace.cpu.kind[row] == CpuKind.ANNOTATION]
    first, second = labels
    assert trace.cpu.ts[first] + trace.cpu.dur[first] == trace.cpu.ts[second]
    ends = trace.cpu.ts + trace.cpu.dur
    assert ends[second] == ends.max()
    assert "events without an end" in trace.warnings[0]


def test_gpu_work_without_end_counts_nothing(tmp_path: Path) -> None:
    event = kernel(0)
    del event["dur"]
    trace = read(tmp_path, json.dumps([event, kernel(1)]).encode())
    assert trace.gpu.dur.tolist() == [0, 500]
    assert "events without an end" in trace.warnings[0]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40), st.one_of(st.just(-1), st.integers(0, 15)), st.integers(0, 2)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_open_ends_by_brute_force(rows: list[tuple[int, int, int]]) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    strings = ["a[1]", "a[2]", "b"]
    columns = {
        "ts": np.array([row[0] for row in rows]),
        "dur": np.array([row[1] for row in rows]),
        "name": np.array([row[2] for row in rows]),
        "track": np.zeros(len(rows), dtype=np.int32),
    }
    assert close_open(columns, strings) == sum(dur < 0 for _, dur, _ in rows)
    last = max(ts + max(dur, 0) for ts, dur, _ in rows)
    for place, (ts, dur, name) in enumerate(rows):
        end = columns["ts"][place] + columns["dur"][place]
        if dur >= 0:
            assert columns["dur"][place] == dur
            continue
        assert ts <= end <= last
        family = "ab"[name == 2]
        later = [t for t, _, n in rows[place + 1 :] if "ab"[n == 2] == family]
        if later:
            assert end <= later[0]
        enclosing = [t + d for t, d, _ in rows[:place] if d >= 0 and t + d > ts]
        if end < last and end not in later[:1] and end not in enclosing:
            # Then it lies within another one without end, which ends there.
            ends = (columns["ts"] + columns["dur"])[:place]
            assert end in ends[[row[1] < 0 for row in rows[:place]]]


def test_pairing_takes_the_last_open_begin() -> None:
    def phase(letter: str, ns: int, order: int) -> Phase:
        return Phase(ev.FloatEvent(ph=letter, name=str(order), pid=1, tid=1), order, ns)

    found, orphans = pair([phase("B", 0, 0), phase("B", 0, 1), phase("E", 3000, 2)])
    assert [(one.event.name, one.event.dur) for one in found] == [("0", None), ("1", 3.0)]
    assert orphans == 0

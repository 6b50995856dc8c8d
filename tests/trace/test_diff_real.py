"""Traces of real devices, with time planted in one module: it is found, and nothing else is."""

from __future__ import annotations

import gzip
import json
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import atom

from atom.trace.analysis import load
from atom.trace.attribution import Kind
from atom.trace.diff import diff
from atom.trace.verdict import headline, trace_verdict

HERE = Path(__file__).parent
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def stretch(source: Path, target: Path, rows: list[int], ns: int) -> None:
    """These rows of `RankTrace.gpu` take longer, and all that begins after them is as much later,
    on the host as well; what the host was doing meanwhile takes longer, too."""
    document = json.loads(gzip.decompress(source.read_bytes()), parse_float=Decimal)
    us = Decimal(ns) / 1000
    events = [e for e in document["traceEvents"] if e.get("ph") == "X"]
    on_device = sorted((e for e in events if e.get("cat") in DEVICE), key=lambda e: e["ts"])
    chosen = [on_device[row] for row in rows]
    begins = [event["ts"] for event in chosen]
    for event in events:
        start, dur = event["ts"], event.get("dur", 0)
        event["ts"] = start + us * sum(begin < start for begin in begins)
        if event.get("cat") not in DEVICE:
            event["dur"] = dur + us * sum(start <= begin < start + dur for begin in begins)
    for event in chosen:
        event["dur"] += us
    target.write_bytes(gzip.compress(json.dumps(document, default=float).encode()))


def planted(source: Path, target: Path, module: str, layers: set[int], ns: int) -> int:
    """`source`, a folder, with one more kernel's time in these layers; rows stretched per step."""
    shutil.copytree(source, target)
    (run,) = (p for p in source.rglob("*.json.gz") if "capture" not in p.name)
    (model,) = load([source]).ranks
    steps = [step for step in model.steps if step.counts]
    rows = [
        row
        for step in steps
        for row in step.rows.tolist()
        if model.module_name(row) == module and model.layer[row] in layers
    ]
    first = {(int(model.step[row]), int(model.layer[row])): row for row in reversed(rows)}
    stretch(run, target / run.relative_to(source), list(first.values()), ns)
    return len(first) // len(steps)


@pytest.mark.parametrize("way", ["llama_graphs", "llama_eager", "moe_graphs", "moe_eager"])
@pytest.mark.parametrize(
    ("layers", "words"),
    [({2}, "+40.0 us in layer 2 only"), ({0, 1, 2, 3}, "+40.0 us x 4 layers")],
)
def test_time_planted_on_an_h200_is_found_to_the_nanosecond(
    tmp_path: Path, way: str, layers: set[int], words: str
) -> None:
    source = HERE / "h200" / way
    count = planted(source, tmp_path / "b", "self_attn.o_proj", layers, 40_000)
    assert count == len(layers)
    (group,) = diff(load([source]), load([tmp_path / "b"])).groups
    first = group.rows[0]
    assert (first.kind, first.module) == (Kind.KERNEL, "self_attn.o_proj")
    assert first.b_ns - first.a_ns == count * 40_000 * group.steps_a
    assert all(row.a_ns == row.b_ns for row in group.rows[1:])
    assert sum(row.b_ns for row in group.rows) == group.span_ns[1]
    assert words in headline(group)


def test_time_planted_on_an_mi300_is_found(tmp_path: Path) -> None:
    source = tmp_path / "a"
    shutil.copytree(HERE / "sglang_mi300", source)
    module = "Qwen3Attention.RowParallelLinear"
    assert planted(source, tmp_path / "b", module, {5}, 2_000_000) == 1
    (line,) = trace_verdict([source], [tmp_path / "b"])
    assert f"in {module}, +2.00 ms in layer 5 only" in line
    assert "one step a side" in line


def test_graphs_against_none_is_idle_time(capsys: pytest.CaptureFixture[str]) -> None:
    sides = [str(HERE / "h200" / f"llama_{way}") for way in ("graphs", "eager")]
    ran = atom(capsys, "trace", "diff", *sides, "--fail-above", "5%")
    assert ran.code == 3
    assert "89% of it is idle time: launches come late" in ran.out.splitlines()[0]
    assert "note: A runs by graph, B without a graph" in ran.out
    assert "cudagraph_mode: full_and_piecewise | none" in ran.out


def test_a_profile_beside_itself_has_no_difference_at_all() -> None:
    side: Any = load([HERE / "h200" / "moe_graphs"])
    (group,) = diff(side, side).groups
    assert group.span.delta_us == 0
    assert all(row.delta_us == 0 and not row.change for row in group.rows)

"""`atom trace diff` on files: what is planted is named first, on every kind of trace."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Ran, atom
from diff_programs import Program

from atom.cli.trace_diff import parse_share
from atom.trace.errors import SLOWER, TraceError
from atom.trace.verdict import trace_verdict

REAL = "nvjet_tst_64x8_64x16"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return Program().write(tmp_path / "a" / "rank_0" / "m_ts_1.pt.trace.json.gz")


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> Ran:
    return atom(capsys, "trace", "diff", *map(str, argv))


def document(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    ran = run(capsys, *argv, "--json")
    assert ran.code in (0, SLOWER), ran.err
    return json.loads(ran.out)


PLANTED = {
    "a slow kernel": (
        Program(us={"self_attn.o_proj": 7.1}),
        "101% of it is kernel nvjet_tst_64x8_64x16 in self_attn.o_proj, +3.1 us x 4 layers",
    ),
    "one layer's": (
        Program(us={"2.self_attn.o_proj": 30.0}),
        "kernel nvjet_tst_64x8_64x16 in self_attn.o_proj, +26.0 us in layer 2 only",
    ),
    "a doubled GEMM": (
        Program(extra={"mlp.down_proj": ("nvjet_tst_128x8_64x8", 5.5)}),
        "in mlp.down_proj, 4 -> 8 calls, +5.5 us x 4 layers",
    ),
    "a sleep": (
        Program(extra={"self_attn.attn": ("spin_kernel(long)", 12.0)}),
        "new kernel spin_kernel in self_attn.attn, +12.0 us x 4 layers",
    ),
    "another tile": (
        Program(us={"lm_head": 31.0}, names={"lm_head": "nvjet_tst_64x8_64x3"}),
        "nvjet_tst_64x8_64x3 in lm_head in place of nvjet_tst_512x8_64x3",
    ),
    "a late host": (
        Program(host_us={"mlp.gate_up_proj": 80.0}),
        "idle time before mlp.gate_up_proj: its launch comes late",
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_named_first(
    capsys: pytest.CaptureFixture[str], before: Path, tmp_path: Path, what: str
) -> None:
    program, expected = PLANTED[what]
    after = program.write(tmp_path / "b" / "rank_0" / "m_ts_2.pt.trace.json.zst", steps=11)
    ran = run(capsys, tmp_path / "a", tmp_path / "b")
    assert ran.code == 0, ran.err
    first = ran.out.splitlines()[0]
    assert re.match(r"decode bs=8: \d+ us -> \d+ us per step, \+[\d.]+%: ", first)
    # Host time delays what comes after, too: its share is not all of the difference.
    assert expected in first, first
    group = document(capsys, before, after)["groups"][0]
    assert group["steps"] == {"a": 8, "b": 11}
    for table in ("rows", "modules", "layers"):
        for side in ("a_ns", "b_ns"):
            assert sum(row[side] for row in group[table]) == group["span"][side]


def test_tables_sum_to_the_step(
    capsys: pytest.CaptureFixture[str], before: Path, tmp_path: Path
) -> None:
    slow = Program(us={"self_attn.o_proj": 7.1}, extra={"mlp.down_proj": ("reduce_kernel", 2.0)})
    after = slow.write(tmp_path / "b.json")
    out = run(capsys, before, after, "-n", "2").out
    assert "more kernels" in out
    tables = re.split(r"^.*, mean us per step$", out, flags=re.M)[1:]
    assert len(tables) == 2
    for table in tables:
        rows = [line.split() for line in table.splitlines() if re.match(r" *[+-][\d,.]+ ", line)]
        changes = [float(cells[0].replace(",", "")) for cells in rows]
        assert rows[-1][-2:] == ["the", "step"]
        assert sum(changes[:-1]) == pytest.approx(changes[-1], abs=0.005 * len(rows))


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_it_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], before: Path, tmp_path: Path, columns: int
) -> None:
    import io

    from rich.console import Console

    from atom.cli.trace_diff_tables import print_diff
    from atom.trace.analysis import load
    from atom.trace.diff import diff

    after = Program(us={"self_attn.o_proj": 7.1}).write(tmp_path / "b.json")
    out = Console(file=io.StringIO(), width=columns, force_terminal=True, no_color=True)
    print_diff(out, diff(load([before]), load([after])), rows=8, every=False)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
    assert max(map(len, lines)) <= columns
    table = lines[lines.index("decode bs=8: kernels, mean us per step") :]
    place = next(i for i, line in enumerate(table) if "self_attn.o_proj" in line)
    assert REAL in table[place] + table[place + 1]  # what is too long is folded


def test_fail_above(capsys: pytest.CaptureFixture[str], before: Path, tmp_path: Path) -> None:
    after = Program(us={"self_attn.o_proj": 7.1}).write(tmp_path / "b.json")
    ran = run(capsys, before, after, "--fail-above", "5%")
    assert ran.code == SLOWER
    assert "slower by more than 5%: decode bs=8 +" in ran.out.splitlines()[-1]
    assert run(capsys, before, after, "--fail-above", "50").code == 0
    assert run(capsys, after, before, "--fail-above", "5%").code == 0
    found = document(capsys, before, after, "--fail-above", "0.05")["fail_above"]
    assert found == {"limit": 0.05, "failed": [{"rank": 0, "name": "decode bs=8"}]}


@pytest.mark.parametrize("text", ["", "x", "-5%", "1000%", "5%%", "inf"])
def test_a_bad_limit_is_refused(text: str) -> None:
    with pytest.raises(TraceError, match="write a percentage"):
        parse_share(text)


def test_without_scopes_kernels_compare_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    a = Program().write(tmp_path / "a.json", scopes=False)
    b = Program(us={"lm_head": 60.0}).write(tmp_path / "b.json", scopes=False)
    assert "kernel nvjet_tst_512x8_64x3" in run(capsys, a, b).out.splitlines()[0]


def test_ranks_compare_one_by_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for side, slow in (("a", {}), ("b", {"self_attn.attn": 9.0})):
        for rank in range(2):
            program = Program(us=slow if rank else {})
            program.write(tmp_path / side / f"rank_{rank}" / "m.json", rank=rank, world_size=2)
    out = run(capsys, tmp_path / "a", tmp_path / "b").out
    assert out.startswith("rank 1, decode bs=8")
    found = document(capsys, tmp_path / "a", tmp_path / "b")
    assert [(g["rank"], g["span"]["verdict"]) for g in found["groups"]] == [
        (1, "slower"),
        (0, "same"),
    ]


def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], before: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.json").write_text("not a trace")
    other = Program().write(tmp_path / "b.json", label="decode[bs=9 tok=9 d=9 sk=900]")
    for argv, words in (
        ((before, tmp_path / "none"), "B: "),
        ((tmp_path / "text.json", before), "A: "),
        ((before, other), "A has decode bs=8 (8 steps); B has decode bs=9 (8 steps)"),
        ((before, other, "--kind", "decoding"), "--kind decoding: one of prefill, decode"),
        ((before, before, "--fail-above", "much"), "write a percentage, e.g. 5%"),
    ):
        ran = run(capsys, *argv)
        assert ran.code == 2
        assert words in ran.err
        assert ran.err.count("\n") == 1
        assert ran.out == ""


def test_the_verdict_for_a_benchmark(before: Path, tmp_path: Path) -> None:
    after = Program(us={"self_attn.o_proj": 7.1}).write(tmp_path / "b.json")
    (line,) = trace_verdict([before], [str(after)])
    assert "in self_attn.o_proj, +3.1 us x 4 layers" in line


def test_no_verdict_has_a_reason(before: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("<html>")
    gone = tmp_path / "gone.json"
    for a, b, words in (
        ([], [before], "A has none"),
        ([before], [], "B has none"),
        ([before], [gone], f"B's is not on this machine: {gone}"),
        ([broken], [before], "traces are not compared: "),
    ):
        (line,) = trace_verdict(a, b)
        assert words in line
        assert line.startswith("traces are not compared: ")

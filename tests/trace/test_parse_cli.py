"""`atom trace parse` as a user calls it: files, terminal, JSON, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hand_models import llama
from synthetic import TraceBuilder

from atom.cli.main import main


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two ranks: a prefill, then decode steps replayed from a captured graph."""
    folder = tmp_path_factory.mktemp("profile")
    for rank in range(2):
        capture = TraceBuilder(rank=rank, world_size=2, atom={"capture": True})
        graph = capture.capture("capture_graph_bs_32", body)
        capture.write(folder / f"rank_{rank}" / "capture_graph_m_ts_1.pt.trace.json.gz")
        run = TraceBuilder(rank=rank, world_size=2, atom={"model": "llama", "dtype": "bfloat16"})
        llama(run, "prefill[bs=1 tok=512 ctx=512]", scale=4, layers=5)
        for place in range(4):
            with run.step(f"decode[bs=32 tok=32 d=32 sk={place} graph=32]"):
                with run.scope("prepare"):
                    run.copy("HtoD", us=1.5)
                run.graph_launch(graph)
            run.wait()
        run.write(folder / f"rank_{rank}" / "m_ts_2.pt.trace.json.gz")
    return folder


def body(run: TraceBuilder) -> None:
    """What the graph holds: five layers."""
    for layer in range(5):
        at = f"model.layers.{layer}"
        with run.scope(f"{at}.input_layernorm"):
            run.kernel("rms_norm_kernel", 2.0 + layer)
        with run.scope(f"{at}.self_attn.qkv_proj"):
            run.kernel("nvjet_tst_128x64", 11.0)
        with run.scope(f"{at}.mlp"):
            run.kernel("nvjet_tst_256x128", 21.0)
            run.kernel("silu_kernel", 3.0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a call that must exit with 2."""
    assert main(["trace", "parse", *argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.splitlines() if not line.startswith("atom: warning")]
    assert len(lines) == 1
    return lines[0]


def test_writes_workbooks_and_summary_and_says_so(
    profile: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["trace", "parse", str(profile), "--layer", "3"]) == 0
    shown = capsys.readouterr().out
    files = ["prefill_breakdown.xlsx", "decode_breakdown.xlsx", "performance_summary.md"]
    for name in files:
        assert (tmp_path / name).exists()
        assert f"wrote {name}" in shown
    assert "Averages over layers: the 5 layers of group A (0-4)" in shown
    assert "The median of 4 decode steps, all bs=32 graph=32." in shown
    book = openpyxl.load_workbook(tmp_path / "decode_breakdown.xlsx")
    rows = list(book["decode"].iter_rows(values_only=True))
    assert [row[0] for row in rows] == [
        "cpu_module", "input_layernorm", "self_attn.qkv_proj", "mlp", None, "TOTAL"
    ]  # fmt: skip
    assert rows[-1][2] == pytest.approx(5.0 + 11 + 21 + 3)
    assert rows[1][6] == pytest.approx(4.0)  # mean of 2, 3, ... 6
    assert "ranks" in book.sheetnames
    assert (tmp_path / "performance_summary.md").read_text(encoding="utf-8").startswith("# ")


def test_json_is_one_document_and_writes_nothing(
    profile: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["trace", "parse", str(profile), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    assert [made["kind"] for made in document["breakdowns"]] == ["prefill", "decode"]
    decode = document["breakdowns"][1]
    rows = decode["sheets"]["decode"]["rows"]
    assert sum(row["duration_us"] for row in rows) == pytest.approx(decode["layer_sum_us"])
    assert {row["match"] for row in rows} == {"capture"}
    assert document["match_rate"] == 1.0
    assert document["capture_trace"].endswith("capture_graph_m_ts_1.pt.trace.json.gz")
    assert document["files"] == []


def test_json_with_a_folder_writes_and_lists_the_files(
    profile: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folder"
    call = ["trace", "parse", str(profile), "--json", "--csv", "--output-dir", str(out)]
    assert main(call) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files
    assert all(Path(name).is_file() for name in files)
    assert {"decode_breakdown.csv", "prefill_kernel_summary.csv"} <= {Path(f).name for f in files}


def test_a_step_by_number_shows_only_its_kind(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "parse", str(profile), "--step", "2", "--rank", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (made,) = document["breakdowns"]
    assert (made["kind"], made["step"]["index"], document["rank"]) == ("decode", 2, 1)
    assert made["step"]["chosen"] == "the step asked for"


def test_only_decode_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TraceBuilder()
    llama(run, "decode[bs=1 tok=1 d=1]", layers=2)
    trace = run.write(tmp_path / "m.json")
    assert main(["trace", "parse", str(trace)]) == 0
    shown = capsys.readouterr().out
    assert "no prefill_breakdown.xlsx: there is 1 decode step" in shown
    assert not (tmp_path / "prefill_breakdown.xlsx").exists()
    assert "the step has layers 0-1" in shown  # layer 3 is only the default


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer", "9"], "--layer 9: the prefill step 0 has layers 0-4"),
        (["--layer", "-1"], "--layer -1: the prefill step 0 has layers 0-4"),
        (["--rank", "5"], "--rank 5: the traces are of rank 0, 1"),
        (["--step", "77"], "--step 77: no such step with GPU work; there are 4 decode and"),
        (["--step", "best"], "--step best: give one of median, first, slowest, or a step's number"),
    ],
)
def test_bad_requests_are_one_line(
    profile: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert message in fails(capsys, str(profile), *flags)


def test_nothing_is_written_when_it_fails(
    profile: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fails(capsys, str(profile), "--layer", "9", "--output-dir", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_a_file(
    profile: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    line = fails(capsys, str(profile), "--output-dir", str(tmp_path / "file"))
    assert "cannot be made: File exists" in line


def test_a_capture_given_by_hand(
    profile: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = profile / "rank_0" / "m_ts_2.pt.trace.json.gz"
    capture = profile / "rank_1" / "capture_graph_m_ts_1.pt.trace.json.gz"
    call = ["trace", "parse", str(trace), "--capture-trace", str(capture), "--json"]
    assert main(call) == 0
    assert json.loads(capsys.readouterr().out)["capture_trace"] == str(capture)


def test_unmatched_kernels_are_never_hidden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TraceBuilder()
    llama(run, "decode[bs=1 tok=1 d=1]", stray=True)
    run.kernel("between_steps", 3.0)
    assert main(["trace", "parse", str(run.write(tmp_path / "m.json"))]) == 0
    shown = capsys.readouterr().out
    assert (
        "98.3% of 59 kernels and copies of all steps have a module: 58 by launch, 1 without"
        in shown
    )
    assert "1 kernel or copy is in no step: 3.00 us" in shown
    book = openpyxl.load_workbook(tmp_path / "decode_breakdown.xlsx")
    assert book["unmatched"]["A2"].value == "=mystery()"
    assert book["match"]["A3"].value == "<unmatched>"


def test_draft_and_mixed_steps_have_workbooks_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TraceBuilder()
    llama(run, "decode[bs=4 tok=16 d=4 spec=3]")
    llama(run, "draft[1/3 bs=4]", layers=1)
    llama(run, "prefill[bs=5 tok=130 p=1 d=4 ctx=126]")
    trace = run.write(tmp_path / "m.json")
    assert main(["trace", "parse", str(trace), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    found = {made["kind"]: made["layer"] for made in document["breakdowns"]}
    assert found == {"decode": 3, "mixed": 3, "draft": 0}
    assert main(["trace", "parse", str(trace), "--layer", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [made["kind"] for made in document["breakdowns"]] == ["decode", "mixed"]
    assert (
        "no draft_breakdown.xlsx: --layer 3: the draft step 1 has layers 0" in (document["missing"])
    )


def test_a_run_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TraceBuilder(device_name="")
    for place in range(3):
        with run.step(f"decode[bs=8 tok=8 d=8 sk={place}]"):
            for layer in range(4):
                with (
                    run.scope(f"model.layers.{layer}.mlp"),
                    run.op("aten::mm", us=5.0 + layer),
                    run.op("aten::copy_", us=1.0),
                ):
                    pass
    trace = run.write(tmp_path / "m.json")
    assert "--device cpu" in fails(capsys, str(trace))
    assert main(["trace", "parse", str(trace), "--device", "cpu", "--layer", "2", "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["breakdowns"]
    rows = made["sheets"]["decode"]["rows"]
    # Own times: copy_ 2 us, mm 7 before and 7 after it, the scope 1 before and 1 after that.
    assert sum(row["duration_us"] for row in rows) == pytest.approx(2 + 14 + 2)
    assert {row["cpu_module"] for row in rows} == {"mlp"}
    assert any(note.startswith("CPU time") for note in made["notes"])
    assert any(note.startswith("a run without a GPU") for note in made["notes"])

"""`atom profile` of a tiny model on a CPU: each trace holds the steps asked for, and no others."""

from __future__ import annotations

import gzip
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Ran, atom
from tiny import tiny_checkpoint

from atom.cli import profile as command

ENGINE = ("--num-threads", "1", "--num-kvcache-blocks", "64", "--max-num-seqs", "8")
ENGINE += ("--max-model-len", "128", "--dtype", "float32")


def profile(capsys: pytest.CaptureFixture[str], *argv: str) -> Ran:
    return atom(capsys, "profile", str(tiny_checkpoint("qwen3")), *ENGINE, *argv)


def labels(file: Path) -> list[str]:
    """The step labels of a trace in the order of time, read by nothing of ours."""
    with gzip.open(file) as opened:
        events = json.load(opened)["traceEvents"]
    found = [e for e in events if e.get("cat") == "user_annotation"]
    steps = [e for e in found if re.match(r"(prefill|decode|dummy)", e["name"])]
    return [e["name"] for e in sorted(steps, key=lambda e: float(e["ts"]))]


def scopes(file: Path) -> set[str]:
    with gzip.open(file) as opened:
        events = json.load(opened)["traceEvents"]
    return {e["name"] for e in events if e.get("cat") == "user_annotation"}


def test_each_trace_holds_the_steps_of_its_shape_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shapes = ("--prefill", "2x16", "--decode", "3@40", "--steps", "3", "--warmup", "1")
    ran = profile(capsys, *shapes, "-o", str(out), "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said == json.loads((out / "profile.json").read_text())
    assert (said["status"], said["mode"], said["engine"]["device"]) == (
        "complete",
        "offline",
        "cpu",
    )
    assert said["settings"]["scheduler.max_num_seqs"] == "8"
    assert "api_key" not in ran.out
    prefill, decode = said["shapes"]
    assert (prefill["name"], prefill["batch"], prefill["tokens"]) == ("prefill 2x16", 2, 16)
    assert (decode["name"], decode["batch"], decode["context"]) == ("decode 3@40", 3, 40)
    assert (
        labels(out / prefill["files"][0])
        == ["prefill[bs=2 tok=32 ctx=[16,16] sk=32 sqsk=512 sqsq=512]"] * 3
    )
    assert labels(out / decode["files"][0]) == [
        f"decode[bs=3 tok=3 d=3 sk={3 * seen}]" for seen in (40, 41, 42)
    ]
    assert said["mark_trace"]
    for entry in said["shapes"]:
        (file,) = entry["files"]
        assert any(name.startswith("model.layers.2.") for name in scopes(out / file))
        assert re.fullmatch(r"rank_0/\S+_ts_\d{8}_\d{6}_\d{3}\.pt\.trace\.json\.gz", file)
        assert entry["bytes"] == (out / file).stat().st_size
        assert (entry["steps"], entry["trace"]["steps"]) == (3, 3)
        assert entry["trace"]["problems"] == []
        assert entry["trace"]["num_layers"] == 3
        assert entry["trace"]["match_rate"] > 0.9
        assert min(entry["trace"]["median_us"], entry["wall_us_per_step"]) > 0
        (tops,) = entry["trace"]["tops"]
        assert (tops["kind"], tops["steps"], len(tops["modules"])) == (entry["kind"], 3, 5)
    assert sorted(p.name for p in out.iterdir()) == ["profile.json", "rank_0"]
    assert len(list((out / "rank_0").iterdir())) == 2


def test_what_is_printed_and_typed_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    ran = profile(capsys, "--decode", "1", "--context", "20", "--steps", "2", "-o", str(out))
    assert ran.code == 0, ran.err
    assert "decode 1@20: 2 steps to warm up, 2 to record" in ran.err
    assert re.search(r"^decode 1@20 +2 +\S+ \S+ ", ran.out, re.MULTILINE)
    modules = r"^(self_attn|mlp)\.\w+ +\S+%"  # some of the five that took most time
    assert re.search(modules, ran.out, re.MULTILINE)
    assert f"next: atom trace summary {out} --device cpu" in ran.out
    commands = re.findall(r"(?:next: +| {6})atom (trace .*)", ran.out)
    assert len(commands) == 2
    for line in commands:  # what is told to type works
        more = ("--output-dir", str(tmp_path / "books")) if " parse " in line else ()
        again = atom(capsys, *line.split(), *more)
        assert again.code == 0, again.err


def test_no_marks_where_none_are_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("--decode", "1@20", "--steps", "1", "--warmup", "0", "-q", "--no-mark-trace")
    ran = profile(capsys, *argv, "-o", str(tmp_path))
    assert (ran.code, ran.err) == (0, "")
    (file,) = tmp_path.glob("rank_0/*")
    assert len(labels(file)) == 1
    assert not any(name.startswith("model.layers.") for name in scopes(file))
    assert json.loads((tmp_path / "profile.json").read_text())["mark_trace"] is False


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--decode", "9"), "--decode 9@1024: a batch of 9, and at most 8 sequences run at once"),
        (("--prefill", "1x128"), "--prefill 1x128: prompts of 128 tokens and one more, and a "),
        (("--decode", "1@121"), "--decode 1@121: a context of 121, 8 steps: 129 tokens, and a "),
        (("--decode", "8@128", "--max-model-len", "512"), "--decode 8@128: it needs 72 KV blocks"),
        (("--decode", "two"), "--decode two: write BATCH or BATCH@CONTEXT"),
        (("--steps", "0"), "invalid value for '--steps'"),
        (("--url", "http://127.0.0.1:9"), " and --url: give one"),
        (("--requests", "4"), "--requests: only for a running server, --url"),
    ],
)
def test_what_cannot_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    argv = argv if "--url" in argv else (*ENGINE, *argv)
    target = str(tiny_checkpoint("qwen3"))
    capsys.readouterr()  # making the checkpoint, in the first test of a process, shows progress
    ran = atom(capsys, "profile", target, *argv, "-q", "-o", str(tmp_path / "o"))
    assert ran.code == 2
    assert ran.err.startswith("atom: error: ")
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_ctrl_c_keeps_what_was_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say = command.Lines.say

    def interrupted(lines: Any, text: str, *, important: bool = False) -> None:
        say(lines, text, important=important)
        if text.startswith("decode 2@20: 2 steps to warm up"):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command.Lines, "say", interrupted)
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "out"
    ran = profile(capsys, "--decode", "1@20,2@20,3@20", "--steps", "2", "-o", str(out))
    assert ran.code == 130
    assert "what was recorded is kept" in ran.err
    assert "interrupted: what had been recorded is kept" in ran.out
    said = json.loads((out / "profile.json").read_text())
    assert said["status"] == "interrupted"
    assert [entry["name"] for entry in said["shapes"]] == ["decode 1@20"]
    (file,) = out.glob("rank_0/*")
    assert len(labels(file)) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_many_steps_are_weighed_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps are recorded, weighed and thrown away; what would be too large is not begun."""
    out = tmp_path / "out"
    shape = ("--decode", "1@20", "--steps", "40", "--warmup", "0", "-o", str(out))
    monkeypatch.setattr("atom.profile.folder.MOST_BYTES", 50_000)
    ran = profile(capsys, *shape)
    assert ran.code == 0
    assert "two steps to see how large a trace becomes" in ran.err
    found = re.search(r"decode 1@20 is not recorded: about .* --steps (\d+) would fit", ran.err)
    assert found is not None
    assert 0 < int(found[1]) < 40
    assert "nothing was recorded" in ran.out
    assert list(out.rglob("*.gz")) == []


def test_the_kernels_of_a_folder_without_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = profile(capsys, "--decode", "1@20", "--steps", "1", "-q")
    assert ran.code == 0
    (folder,) = tmp_path.iterdir()
    assert re.fullmatch(r"profile-\S+-\d{8}-\d{6}", folder.name)
    assert f"atom trace summary {folder.name} --device cpu" in ran.out


def test_every_rank_writes_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    ran = profile(capsys, "--decode", "2@20", "--steps", "2", "-tp", "2", "-o", str(out), "--json")
    assert ran.code == 0, ran.err
    (entry,) = json.loads(ran.out)["shapes"]
    assert [Path(file).parent.name for file in entry["files"]] == ["rank_0", "rank_1"]
    for file in entry["files"]:
        assert labels(out / file) == [f"decode[bs=2 tok=2 d=2 sk={s}]" for s in (40, 42)]
    assert entry["trace"]["problems"] == []

"""`atom profile --url`: what is asked of the server and when, what is said where it cannot be."""

from __future__ import annotations

import gzip
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_helpers import atom, serving
from mock_behaviour import Behaviour
from mock_server import MockServer

from atom.bench import client

SMALL = ("--concurrency", "2", "--input-len", "24", "--output-len", "8")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def url(traces: Path) -> Iterator[str]:
    """A server of the embedded model whose profiler is on."""
    flags = ["--num-threads", "1", "--max-num-seqs", "4", "--max-model-len", "128"]
    profiler = ["--torch-profiler-dir", str(traces), "--mark-trace"]
    with serving(*flags, *profiler, "--num-kvcache-blocks", "64") as found:
        yield found


def events(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file) as opened:
        found: list[dict[str, Any]] = json.load(opened)["traceEvents"]
    return found


def test_all_requests_are_recorded(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = (*SMALL, "--requests", "6", "-o", str(out), "--json")
    ran = atom(capsys, "profile", "--url", url, *argv)
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said == json.loads((out / "profile.json").read_text())
    assert said["load"]["answered"] == 6
    assert said["load"]["output_tokens"] == 48
    (file,) = said["files"]
    assert Path(file).parent == Path("rank_0")
    names = [e["name"] for e in events(out / file) if e.get("cat") == "user_annotation"]
    steps = [re.match(r"(prefill|decode)\[bs=(\d+) tok=(\d+)(?: p=(\d+))?", n) for n in names]
    # Every prompt is computed in the recording, whole: the prompts' tokens are all there.
    prompts = sum(int(m[3]) - (int(m[2]) - int(m[4]) if m[4] else 0)
                  for m in steps if m and m[1] == "prefill")  # fmt: skip
    assert prompts == 6 * 24
    assert said["trace"]["problems"] == []
    assert {t["kind"] for t in said["trace"]["tops"]} >= {"decode"}


def test_a_stretch_of_a_steady_load(
    url: str, traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = atom(capsys, "profile", "--url", url, *SMALL, "--seconds", "0.5")
    assert ran.code == 0, ran.err
    assert "recording for 0.5 s, 2 requests at a time" in ran.err
    (path,) = re.findall(rf"B  ({traces}/rank_0/\S+\.json\.gz)$", ran.out, re.MULTILINE)
    labels = [e["name"] for e in events(Path(path)) if e.get("cat") == "user_annotation"]
    steps = [name for name in labels if re.match(r"(prefill|decode)\[", name)]
    assert len(steps) > 3
    assert all("bs=2 " in s or "bs=1 " in s for s in steps)
    assert f"next: atom trace summary {path} --device cpu" in ran.out
    assert re.search(r"\d+ requests answered", ran.out)


def test_one_profile_at_a_time(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert httpx.post(f"{url}/start_profile").status_code == 200
    try:
        for how in (("--requests", "2"), ("--seconds", "1")):
            ran = atom(capsys, "profile", "--url", url, *SMALL, *how, "-q")
            assert ran.code == 2
            assert "did not start its profiler (HTTP 409): A profile is running" in ran.err
            assert ran.err.count("\n") == 1
    finally:  # and the other's profile is still there
        assert httpx.post(f"{url}/stop_profile", timeout=60).status_code == 200


def test_longer_than_the_server_takes(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "profile", "--url", url, "--input-len", "100", "--output-len", "60")
    assert ran.code == 2
    assert "--input-len 100 and --output-len 60 make 160 tokens" in ran.err
    assert "holds at most 128" in ran.err


@pytest.mark.parametrize("how", [("--requests", "3"), ("--seconds", "0.2")])
def test_a_server_without_a_profiler(capsys: pytest.CaptureFixture[str], how: Any) -> None:
    with MockServer(Behaviour(profiler=False)) as server:
        ran = atom(capsys, "profile", "--url", server.url, *SMALL, *how, "-q")
        assert ran.code == 2
        assert "has no profiler to start (HTTP 404); start it with --torch-profiler-dir" in ran.err
        assert ran.err.count("\n") == 1


@pytest.mark.parametrize("how", [("--requests", "3"), ("--seconds", "0.2")])
def test_traces_on_another_machine(capsys: pytest.CaptureFixture[str], how: Any) -> None:
    with MockServer(Behaviour()) as server:
        ran = atom(capsys, "profile", "--url", server.url, *SMALL, *how)
        assert ran.code == 0, ran.err
        assert server.profiling == ["/start_profile", "/stop_profile"]
    assert "not to be seen from here" in ran.out
    assert "rank_0/mock.pt.trace.json.gz" in ran.out
    assert "next:" not in ran.out


def test_the_profiler_is_on_only_while_all_places_are_taken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with MockServer(Behaviour(ttft_ms=20, itl_ms=5)) as server:
        real, active = client.profile, []

        def watched(target: Any, action: Any) -> Any:
            active.append((action, server.active))
            return real(target, action)

        monkeypatch.setattr(client, "profile", watched)
        argv = ("--concurrency", "3", "--input-len", "8", "--output-len", "200")
        ran = atom(capsys, "profile", "--url", server.url, *argv, "--seconds", "0.3")
        assert ran.code == 0, ran.err
    assert active == [("start", 3), ("stop", 3)]


def test_the_profiler_is_stopped_when_the_load_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = client.run_load, []

    def second_breaks(*args: Any, **named: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("the load broke")
        return real(*args, **named)

    monkeypatch.setattr(client, "run_load", second_breaks)
    with MockServer(Behaviour()) as server:
        ran = atom(capsys, "profile", "--url", server.url, *SMALL, "--requests", "3")
        assert "the load broke" in ran.err
        assert server.profiling == ["/start_profile", "/stop_profile"]


def test_ctrl_c_during_the_warm_up_records_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = client.run_load

    def interrupted(*args: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*args, **named)

    monkeypatch.setattr(client, "run_load", interrupted)
    with MockServer(Behaviour()) as server:
        for how in (("--requests", "3"), ("--seconds", "0.2")):
            assert atom(capsys, "profile", "--url", server.url, *SMALL, *how).code == 130
        assert server.profiling == []


def test_a_server_that_does_not_say_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "profile", lambda *_: {})
    with MockServer(Behaviour(kind="vllm")) as server:
        ran = atom(capsys, "profile", "--url", server.url, *SMALL, "--requests", "2")
        assert ran.code == 0
        assert "the vllm server does not say where its traces are; give --trace-dir" in ran.out
        trace = tmp_path / "w" / "x_rank0.pt.trace.json.gz"

        def write(_: Any, action: str) -> dict[str, Any]:
            if action == "stop":
                trace.parent.mkdir()
                trace.write_bytes(gzip.compress(b'{"traceEvents": []}'))
            return {}

        monkeypatch.setattr(client, "profile", write)
        argv = (*SMALL, "--requests", "2", "--trace-dir", str(tmp_path), "-o", str(tmp_path / "o"))
        ran = atom(capsys, "profile", "--url", server.url, *argv)
        assert ran.code == 0, ran.err
    assert (tmp_path / "o" / "rank_0" / trace.name).read_bytes() == trace.read_bytes()


def test_every_request_fails(capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "profile", "--url", "http://127.0.0.1:9", *SMALL)
    assert ran.code == 4
    assert ran.err == "atom: error: no server answers at http://127.0.0.1:9: Connection refused\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--steps", "4"), "--steps: not with --url; the server is as it is"),
        (("--max-num-seqs", "4"), "--max-num-seqs: not with --url"),
        (("--seconds", "1", "--requests", "2"), "--seconds and --requests: give one"),
        (("--seconds", "100"), "invalid value for '--seconds'"),
    ],
)
def test_what_does_not_go_together(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    ran = atom(capsys, "profile", "--url", "http://127.0.0.1:9", *argv)
    assert ran.code == 2
    assert said in ran.err

"""A recipe's server is started, waited for and always stopped; its death is one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bench_helpers import eventually

from atom.bench.errors import BenchError
from atom.bench.server_process import RecipeServer, Stopped

READY = "print('12:00:00 INFO listening on http://127.0.0.1:12345', flush=True)"
LASTING = f"{READY}; import time; time.sleep(60)"


class Scripted(RecipeServer):
    """A server that is a line of Python."""

    code = LASTING

    @property
    def argv(self) -> list[str]:
        return ["-c", self.code]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid


def server(tmp_path: Path, code: str, **more: object) -> Scripted:
    made = Scripted(Path("r.toml"), tmp_path / "logs" / "s.log", **more)  # type: ignore[arg-type]
    made.code = code
    return made


def gone(pid: int) -> bool:
    """Dead, if perhaps not yet collected by whoever inherited it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in ("Z", "X")


def test_it_serves_and_is_stopped(tmp_path: Path) -> None:
    with server(tmp_path, LASTING) as one:
        assert one.url == "http://127.0.0.1:12345"
        assert one.died() is None
        pid = one.pid
        assert os.getsid(pid) != os.getsid(0)  # the terminal's Ctrl-C does not reach it
    assert gone(pid)
    assert "listening on" in (tmp_path / "logs" / "s.log").read_text()


def test_it_is_stopped_when_the_measuring_fails(tmp_path: Path) -> None:
    one = server(tmp_path, LASTING)
    with pytest.raises(KeyboardInterrupt), one:
        raise KeyboardInterrupt
    assert one._process is None
    assert one.died() is None


def test_one_that_will_not_end_is_killed_with_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atom.bench.server_process.DRAIN_S", 0.1)
    code = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"print('child', child.pid, flush=True); {LASTING}"
    )
    with server(tmp_path, code) as one:
        pid = one.pid
        child = int(one.log.read_text().split()[1])
    assert gone(pid)
    eventually(lambda: gone(child))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "import sys; sys.exit('atom: error: port 1 is in use')",
            r"^the server of r\.toml ended with exit code 1: port 1 is in use; its log is .*\.log$",
        ),
        ("print('one'); print('two')", r"ended with exit code 0: two; its log"),
        ("import os; os.kill(os.getpid(), 9)", r"ended by SIGKILL; its log"),
    ],
)
def test_one_that_dies_says_why(tmp_path: Path, code: str, says: str) -> None:
    with pytest.raises(BenchError, match=says), server(tmp_path, code):
        raise AssertionError("it never was ready")


def test_one_that_never_is_ready(tmp_path: Path) -> None:
    one = server(tmp_path, "import time; time.sleep(60)", ready_s=0.0)
    with pytest.raises(BenchError, match=r"not ready within 0 s \(--ready-timeout-s\)"), one:
        pass
    assert one._process is None


def test_giving_up_while_it_starts(tmp_path: Path) -> None:
    one = server(tmp_path, "import time; time.sleep(60)", stopped=lambda: True)
    with pytest.raises(Stopped), one:
        pass
    assert one._process is None


def test_a_death_while_measuring_is_noticed(tmp_path: Path) -> None:
    with server(tmp_path, f"{READY}; import sys; sys.stdin.read(); sys.exit(3)") as one:
        eventually(lambda: one.died() is not None)
        assert "exit code 3" in str(one.died())


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with (
        pytest.raises(BenchError, match="cannot write the server's log"),
        server(tmp_path, LASTING),
    ):
        pass


def test_the_command_is_ours_whatever_the_recipe_says(tmp_path: Path) -> None:
    one = RecipeServer(
        Path("r.toml"), tmp_path / "s.log", args=["--port", "9", "--max-num-seqs", "2"]
    )
    assert one.argv[:4] == ["-m", "atom.cli", "serve", "r.toml"]
    assert one.argv[4:8] == ["--port", "9", "--max-num-seqs", "2"]
    assert one.argv[8:] == ["--host", "127.0.0.1", "--port", "0", "--log-level", "info"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_it_ends_when_we_are_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_run_server_process import LASTING, server\n"
        "with server(Path(sys.argv[2]), LASTING) as one:\n"
        "    print(one.pid, flush=True); time.sleep(60)\n"
    )
    ours = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with ours:
        assert ours.stdout is not None
        pid = int(ours.stdout.readline())
        assert not gone(pid)
        ours.send_signal(signal.SIGKILL)
    eventually(lambda: gone(pid))

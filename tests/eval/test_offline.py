"""Bundled tasks need no network, and none is tried: the whole command, watched from within.

A hook in every Python process of the command refuses and writes down whatever would leave this
machine: connections, datagrams and the looking up of names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_helpers import CLI, clean_environment
from scoring_server import Manners, ScoringServer

BUNDLED = ("gsm8k", "arc_easy", "lambada", "copa", "blimp_subset")
HOOK = """
import os, sys

LOCAL = ("127.0.0.1", "::1", "localhost", b"localhost", b"127.0.0.1", None, "")

def watch(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if address is None or isinstance(address, (str, bytes)):
            return  # connected already, or of this machine's files
        host = address[0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    else:
        return
    if host in LOCAL:
        return
    handle = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{event} {host}\\n".encode())
    os.close(handle)
    raise OSError(101, f"the test refuses {event} {host}")

sys.addaudithook(watch)
"""


class Watched(NamedTuple):
    code: int
    out: str
    err: str
    tried: list[str]


class Watcher:
    """Runs `atom` under the hook; its home and its caches are new."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self._log = folder / "tried"
        hooks = folder / "hooks"
        hooks.mkdir()
        (hooks / "sitecustomize.py").write_text(HOOK)
        self._environment = {
            name: value
            for name, value in clean_environment().items()
            if not name.startswith(("HF_", "XDG_")) and "proxy" not in name.lower()
        }
        told = {"PYTHONPATH": hooks, "HOME": self.home, "WATCHED": self._log}
        self._environment |= {name: str(path) for name, path in told.items()}

    def run(self, *argv: str) -> Watched:
        self._log.write_text("")
        done = subprocess.run(
            [*CLI, *argv],
            capture_output=True,
            text=True,
            timeout=120,
            env=self._environment,
            cwd=self.home,
        )
        return Watched(done.returncode, done.stdout, done.stderr, self._log.read_text().split("\n"))


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    return Watcher(tmp_path)


def test_bundled_tasks_try_no_network(watcher: Watcher) -> None:
    with ScoringServer(Manners(max_model_len=4096, reply=" #### 18")) as server:
        ran = watcher.run("eval", *BUNDLED, "--url", server.url, "--limit", "3", "--json")
        asked = {path for path, _ in server.asked}
    assert (ran.code, ran.tried) == (0, [""]), ran.err
    assert asked == {"/v1/completions"}
    results = json.loads(ran.out)["results"]
    assert results["gsm8k"]["exact_match,flexible-extract"] == pytest.approx(1 / 3)
    assert {"arc_easy", "lambada_openai", "copa", "blimp_subset"} < set(results)
    written = [path.relative_to(watcher.home) for path in watcher.home.rglob("*")]
    assert not [path for path in written if "huggingface" in path.parts], "a cache was written"


def test_what_other_tasks_try_is_seen_and_they_say_what_is_missing(watcher: Watcher) -> None:
    with ScoringServer() as server:
        ran = watcher.run("eval", "hellaswag", "--url", server.url)
        asked = server.asked
    assert (ran.code, asked) == (2, [])
    assert ran.tried == ["socket.getaddrinfo huggingface.co", ""]
    assert "Traceback" not in ran.err
    assert "Retry" not in ran.err
    last = ran.err.strip().splitlines()[-1]
    assert "hellaswag: its data set 'Rowan/hellaswag' is neither in the cache nor to be had" in last
    assert "load_dataset('Rowan/hellaswag')" in last
    assert "below ~/.cache/huggingface/datasets" in last
    assert "--include-path" in last


def test_the_environment_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from atom.eval.quiet import OFFLINE, offline

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    before = dict(os.environ)
    with offline(True):
        assert [os.environ[name] for name in OFFLINE] == ["1"] * len(OFFLINE)
    assert dict(os.environ) == before
    with offline(False):
        assert dict(os.environ) == before


def test_listing_bundled_tasks_does_not_load_lm_eval() -> None:
    code = "import sys; from atom.cli.main import main; main(['eval', 'tasks'])\n"
    code += "print([m for m in ('lm_eval', 'datasets', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"

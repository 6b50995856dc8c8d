"""Run `atom` as a user does: in a process of its own, or quickly in this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from atom.cli.main import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without ATOM_ settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ATOM_")}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "120", **extra}


def atom(capsys: pytest.CaptureFixture[str], *argv: str) -> Ran:
    """In this process; `clean_atom_environment` should be in force."""
    code = main(argv)
    out, err = capsys.readouterr()
    return Ran(code, out, err)


def atom_process(*argv: str, stdin: str | None = None, **env: str) -> Ran:
    """In a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "atom.cli", *argv],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        env=clean_environment(**env),
        timeout=120,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


CLI = [sys.executable, "-c", "import sys; from atom.cli.main import main; sys.exit(main())"]


@contextmanager
def serving(*flags: str) -> Iterator[str]:
    """The address of `atom serve` with `flags`, on a free port, until the block ends."""
    command = [*CLI, "serve", "--port", "0", *flags]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    said = []
    try:
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(said))
        yield found[1]
    finally:
        server.terminate()
        server.communicate(timeout=60)

"""Light modules stay light: importing them loads neither torch nor transformers, by no detour."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import atom.bench
import atom.cli
import atom.config
import atom.engine.text
import atom.eval
import atom.server
import atom.trace

PACKAGES = (
    atom.bench,
    atom.cli,
    atom.config,
    atom.engine.text,
    atom.eval,
    atom.server,
    atom.trace,
)
SINGLE = (
    "atom",
    "atom.engine.client",
    "atom.engine.messages",
    "atom.engine.admission",
    "atom.models.source",
    "atom.models.gguf",
    "atom.models.hf_config",
    "atom.models.embedded",
    "atom.models.footprint",
    "atom.utils.machine",
)


def modules_of(package: object) -> list[str]:
    path, name = package.__path__, package.__name__  # type: ignore[attr-defined]
    found = [m.name for m in pkgutil.walk_packages(path, name + ".")]
    return [m for m in found if not m.endswith("__main__")]


@pytest.mark.parametrize(
    "names",
    [*[modules_of(p) for p in PACKAGES], *[[name] for name in SINGLE]],
    ids=[*[p.__name__ for p in PACKAGES], *SINGLE],
)
def test_no_torch(names: list[str]) -> None:
    assert names
    code = f"import {', '.join(names)}, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stdout + done.stderr


HEAVY = ("torch", "transformers")

"""Several files, each in a process of its own where that pays: decoding JSON holds the GIL."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atom.trace.errors import TraceError
from atom.trace.reader import wire
from atom.trace.reader.read import read_trace
from atom.trace.types import RankTrace

_PAYS = 24 << 20  # decompressed bytes, guessed; below them starting a process takes longer
_RATIO = 10  # of compressed traces
_MOST = 8  # processes; each takes some 300 MB for a trace of 1 GB


def read_traces(paths: Sequence[Path]) -> list[RankTrace]:
    """All of them, by rank, then as given.

    Raises:
        TraceError: of the first file that cannot be read.
    """
    num_processes = min(len(paths), os.cpu_count() or 1, _MOST)
    if num_processes > 1 and sum(map(_guessed_bytes, paths)) >= _PAYS:
        with ThreadPoolExecutor(num_processes) as pool:
            traces = list(pool.map(_read_apart, paths))
    else:
        traces = [read_trace(path) for path in paths]
    return sorted(traces, key=lambda trace: trace.rank)


def _guessed_bytes(path: Path) -> int:
    size = path.stat().st_size if path.exists() else 0
    return size * (_RATIO if path.suffix in (".gz", ".zst") else 1)


def _read_apart(path: Path) -> RankTrace:
    """`read_trace` in another process."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "atom.trace.reader.worker", str(path.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            # A folder named atom where the user stands is not this package (Python >= 3.11).
            env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        )
        with process:
            assert process.stdout is not None
            try:
                found = wire.receive(process.stdout, path)
            except EOFError:
                found = ""
            except BaseException:
                process.kill()
                raise
        if isinstance(found, RankTrace):
            return found
        if found:
            raise TraceError(found.replace(str(path.absolute()), str(path)))
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        why = f"exit status {process.returncode}" + "".join(f", {line}" for line in said)
        raise TraceError(f"{path}: the process that read it ended early ({why})")

"""Reading one large trace: atom beside HTA and TraceLens, and beside the plain whole-file floors.

    python benchmarks/trace_reader.py --hta "/path/to/python" --tracelens "/path/to/python"

Each reader runs in a fresh process on the same file; wall and CPU time and the peak resident set
are the kernel's (wait4: the largest process, the CPU of all). A peer's command may be several
words, e.g. "env PYTHONPATH=... python". HTA 0.5 needs pandas < 3; TraceLens is AMD's
(github.com/AMD-AGI/TraceLens), not the package of that name on PyPI.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from trace_generator import generate

# What each reader does with sys.argv[1]; the last line it prints says how much it has read.
ATOM = """
import sys
from pathlib import Path
from atom.trace.reader import read_trace
trace = read_trace(Path(sys.argv[1]))
print(f"{sum(trace.counts.values())} events, {len(trace.gpu)} of the GPU, in columns")
"""
HTA = """
import sys
from hta.trace_analysis import TraceAnalysis
analysis = TraceAnalysis(trace_files={0: sys.argv[1]}, trace_dir="/")
print(f"{len(analysis.t.get_trace(0))} rows in a DataFrame")
"""
TRACELENS = """
import sys
from TraceLens import TreePerfAnalyzer
analyzer = TreePerfAnalyzer.from_file(sys.argv[1])
print(f"{len(analyzer.tree.events)} events in a tree")
"""
GUNZIP = """
import gzip, sys
size = 0
with gzip.open(sys.argv[1]) as file:
    while block := file.read(4 << 20):
        size += len(block)
print(f"{size} bytes")
"""
JSON = """
import gc, gzip, json, sys
gc.disable()
with gzip.open(sys.argv[1]) as file:
    print(f"{len(json.load(file)['traceEvents'])} events as dicts")
"""
ORJSON = """
import gc, gzip, sys
import orjson
gc.disable()
with gzip.open(sys.argv[1]) as file:
    print(f"{len(orjson.loads(file.read())['traceEvents'])} events as dicts")
"""


@dataclass
class Result:
    """One run of one reader."""

    reader: str
    wall_s: float
    cpu_s: float
    peak_mb: float
    failed: bool
    read: str  # its own words, or why it failed


def measure(name: str, command: list[str], code: str, path: Path, timeout_s: float) -> Result:
    """Run it in a fresh process."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "-c", code, str(path)], stdout=output, stderr=subprocess.STDOUT
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() - start > timeout_s:
                process.kill()
            time.sleep(0.02)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    said = lines[-1][:100] if lines else ""
    if process.returncode:
        said = f"failed ({process.returncode}): {said}"
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6
    return Result(name, wall, cpu, peak, bool(process.returncode), said)


def table(results: list[Result], num_bytes: int) -> str:
    """Markdown; the median run of each reader by wall time."""
    lines = [
        "| reader | runs | wall s | CPU s | peak MB | MB/s | what it read |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for reader in dict.fromkeys(result.reader for result in results):
        mine = sorted((r for r in results if r.reader == reader), key=lambda r: r.wall_s)
        middle = mine[len(mine) // 2]
        speed = "-" if middle.failed else f"{num_bytes / 1e6 / middle.wall_s:,.0f}"
        lines.append(
            f"| {reader} | {len(mine)} | {middle.wall_s:.1f} | {middle.cpu_s:.1f} "
            f"| {middle.peak_mb:,.0f} | {speed} | {middle.read} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, help="a trace in .json.gz; else one is made")
    parser.add_argument("--gib", type=float, default=1.0, help="decompressed size of what is made")
    parser.add_argument("--hta", help="a command that runs Python with HTA")
    parser.add_argument("--tracelens", help="a command that runs Python with TraceLens")
    parser.add_argument("--runs", type=int, default=3, help="of atom; the others run once")
    parser.add_argument("--no-floors", action="store_true", help="without gunzip, json and orjson")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for each run")
    parser.add_argument("--output", type=Path, help="write the raw figures here, as JSON")
    arguments = parser.parse_args()
    here = [sys.executable]
    jobs = [("atom", here, ATOM)] * arguments.runs
    if not arguments.no_floors:
        jobs += [("gunzip alone", here, GUNZIP), ("json, whole file", here, JSON),
                 ("orjson, whole file", here, ORJSON)]  # fmt: skip
    for name, command, code in (
        ("HTA", arguments.hta, HTA),
        ("TraceLens", arguments.tracelens, TRACELENS),
    ):
        if command:
            jobs.append((name, shlex.split(command), code))
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.trace
        if path is None:
            path = Path(folder) / "rank_0" / "made.pt.trace.json.gz"
            generate(path, int(arguments.gib * 2**30))
        num_bytes = int(measure("", here, GUNZIP, path, 600).read.split()[0])
        results = []
        for name, command, code in jobs:
            results.append(measure(name, command, code, path, arguments.timeout))
            print(json.dumps(asdict(results[-1])), file=sys.stderr, flush=True)
        size = path.stat().st_size
    print(f"{num_bytes:,} bytes of JSON ({size:,} compressed), {os.cpu_count()} cores, "
          f"Python {platform.python_version()}\n\n{table(results, num_bytes)}")  # fmt: skip
    if arguments.output:
        document = {"bytes": num_bytes, "compressed": size, "cores": os.cpu_count(),
                    "python": platform.python_version(),
                    "runs": [asdict(result) for result in results]}  # fmt: skip
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

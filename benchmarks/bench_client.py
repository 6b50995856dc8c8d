"""What the load client costs per streamed chunk, how late its moments are, and its own verdict.

    python benchmarks/bench_client.py --streams 128 --tokens 250 --itl-ms 20 --out client.json

Three measurements on the mock server of the tests (constant gaps, its send times written down):

cost      CPU of the client per chunk, all of it (requests, ticker, records): ours, and an aiohttp
          loop as benchmark clients usually have it (read, split, decode), both on uvloop
lateness  a chunk's moment at the client less the moment the server handed it to the kernel
verdict   the same load undisturbed, then with the client on one core that another process takes
          80 % of: `ClientHealth.bound` must be true for the second

Exit status: 1 if the disturbed client says nothing. CPU figures want a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from atom.bench.client import run_load
from atom.bench.client.worker import go_first
from atom.bench.types import Job, Load, LoadOutcome, Target, Turn

MOCK = Path(__file__).parents[1] / "tests" / "bench" / "mock_server.py"
KINDS = ("quiet", "aiohttp", "disturbed")
# Busy 20 ms, idle 5 ms, before everybody else where that is allowed.
HOG = """
import os, time
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
except OSError:
    pass
while True:
    end = time.perf_counter() + 0.020
    while time.perf_counter() < end:
        pass
    time.sleep(0.005)
"""


class Mock:
    """The mock server in a process of its own; `truth` is there after the end."""

    def __init__(self, itl_ms: float) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._truth = Path(self._folder.name) / "truth.jsonl"
        flags = ["--port", "0", "--ttft-ms", "50", "--itl-ms", str(itl_ms)]
        self._process = subprocess.Popen(
            [sys.executable, MOCK, *flags, "--truth", self._truth],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url: str = json.loads(self._process.stdout.readline())["url"]

    def end(self) -> dict[str, list[float]]:
        """Prompt -> the moments of its chunks."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=60)
        rows = [json.loads(line) for line in self._truth.read_text().splitlines()]
        self._folder.cleanup()
        return {row["prompt"]: row["chunk_s"] for row in rows if "chunk_s" in row}


def ours(url: str, streams: int, tokens: int, requests: int) -> LoadOutcome:
    jobs = (Job(i, [Turn(prompt=f"prompt {i}", max_tokens=tokens)]) for i in range(requests))
    load = Load(concurrency=streams, num_requests=requests, workers=1)
    return run_load(Target(base_url=url, model="mock"), jobs, load)


async def aiohttp_loop(
    url: str, streams: int, tokens: int, requests: int
) -> tuple[float, dict[str, list[float]]]:
    """CPU seconds of a plain client, and the moments of each prompt's chunks."""
    import aiohttp

    numbers = iter(range(requests))
    found: dict[str, list[float]] = {}

    async def one(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            body = {
                "model": "mock",
                "prompt": f"prompt {number}",
                "max_tokens": tokens,
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            }
            moments = found[f"prompt {number}"] = []
            rest = b""
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                async for data in answer.content.iter_any():
                    *events, rest = (rest + data).split(b"\n\n")
                    for event in events:
                        if event.startswith(b"data: {"):
                            now = time.perf_counter()
                            if msgspec.json.decode(event[6:])["choices"]:
                                moments.append(now)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=10 << 20) as session:
        before = time.process_time()
        await asyncio.gather(*(one(session) for _ in range(streams)))
        return time.process_time() - before, found


def lateness(found: dict[str, list[float]], truth: dict[str, list[float]]) -> dict[str, Any]:
    late = [
        (ours - sent) * 1000
        for prompt, moments in found.items()
        for ours, sent in zip(moments, truth[prompt], strict=True)
    ]
    cuts = statistics.quantiles(late, n=1000)
    told = {"mean": statistics.fmean(late), "p50": cuts[499], "p99": cuts[989]}
    return {"late_ms": {**told, "max": max(late)}}


def moments_of(outcome: LoadOutcome) -> dict[str, list[float]]:
    start = outcome.started_s
    return {f"prompt {r.index}": [t + start for t in r.token_times_s] for r in outcome.records}


def cpu_per_chunk_us(outcome: LoadOutcome) -> float:
    return sum(outcome.health.cpu_share) / outcome.health.chunks_per_s * 1e6


def child(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a fresh process, so that workers inherit its CPU."""
    flags = ["--streams", args.streams, "--tokens", args.tokens, "--itl-ms", args.itl_ms]
    command = [sys.executable, __file__, "--child", kind, *map(str, flags)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    size = (args.streams, args.tokens, 2 * args.streams)
    mock = Mock(args.itl_ms)
    if kind == "aiohttp":
        import uvloop

        go_first()  # as our workers do; one that comes late finds several chunks in a read
        asyncio.set_event_loop(loop := uvloop.new_event_loop())
        cpu_s, found = loop.run_until_complete(aiohttp_loop(mock.url, *size))
        chunks = sum(map(len, found.values()))
        return {"us_per_chunk": cpu_s / chunks * 1e6, **lateness(found, mock.end())}
    hog = None
    if kind == "disturbed":
        core = min(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})
        hog = subprocess.Popen([sys.executable, "-c", HOG])
    try:
        outcome = ours(mock.url, *size)
    finally:
        if hog is not None:
            hog.kill()
            hog.wait()
    return {
        "us_per_chunk": cpu_per_chunk_us(outcome),
        **lateness(moments_of(outcome), mock.end()),
        "health": msgspec.to_builtins(outcome.health),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=250, help="chunks of each answer")
    parser.add_argument("--itl-ms", type=float, default=20.0)
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument(
        "--child", choices=("quiet", "aiohttp", "disturbed"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args)))
        return 0
    results = {kind: child(kind, args) for kind in KINDS}
    print(f"{args.streams} streams, {args.tokens} chunks each, one every {args.itl_ms:g} ms")
    print(f"{'':12}{'us/chunk':>9}{'late mean':>11}{'p50':>8}{'p99':>9}{'max ms':>9}  bound")
    for kind, told in results.items():
        late = told["late_ms"]
        row = f"{kind:12}{told['us_per_chunk']:9.1f}"
        row += f"{late['mean']:11.3f}{late['p50']:8.3f}{late['p99']:9.3f}{late['max']:9.2f}"
        print(row + (f"  {told['health']['bound']}" if "health" in told else ""))
    print(f"disturbed: {results['disturbed']['health']['reason']}")
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if results["disturbed"]["health"]["bound"] else 1


if __name__ == "__main__":
    sys.exit(main())

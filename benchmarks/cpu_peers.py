"""Runs atom and its CPU peers side by side, one server at a time, and prints Markdown tables.

    python benchmarks/cpu_peers.py --root ~/peers --rounds 3 --out cpu_peers.jsonl

cpu_peers.toml names the servers and says how to install them. Each round starts every server in
turn, sends the workloads W1-W3 of openai_load.py, and stops it, so a slow hour of the machine
falls on all of them. A server that cannot run here is listed with the reason. Raw records go to
--out as JSON lines, and server logs beside it; --report prints the tables of such a file again.

Peak RSS is summed over the server's process tree. "Other CPU" is what the machine did besides
the server, the client and this script: on two cores, half a busy core already distorts a run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import psutil
from cpu_peers_report import Record, report
from openai_load import WORKLOADS
from peer_server import RunningServer, ServerSpec, StartError, free_port

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
NUM_WARMUP = 2
QUIET_SAMPLE_S = 1.0


class Journal:
    """Appends records to the raw file as they happen, so that a broken run keeps its rounds."""

    def __init__(self, file: TextIO) -> None:
        self.records: list[Record] = []
        self._file = file

    def add(self, kind: str, **values: Any) -> None:
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"kind": kind, "at": at, **values}
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


class OtherWork:
    """CPU time that neither the server's tree, nor the client, nor this process used."""

    def __init__(self, server: RunningServer | None = None) -> None:
        self._started_at = time.perf_counter()
        self._others_s = others_s(server)
        self._steal_s = psutil.cpu_times().steal

    def cores(self, server: RunningServer | None = None) -> dict[str, float]:
        wall_s = time.perf_counter() - self._started_at
        return {
            "other_cores": round(max(0.0, others_s(server) - self._others_s) / wall_s, 3),
            "steal_cores": round((psutil.cpu_times().steal - self._steal_s) / wall_s, 3),
        }


def others_s(server: RunningServer | None) -> float:
    times = psutil.cpu_times()
    busy_s = float(times.user + times.nice + times.system + times.irq + times.softirq)
    clients = resource.getrusage(resource.RUSAGE_CHILDREN)
    server_s = server.cpu_s() if server else 0.0
    return busy_s - server_s - clients.ru_utime - clients.ru_stime - time.process_time()


def wait_until_quiet(
    max_other: float | None, timeout_s: float, server: RunningServer | None = None
) -> None:
    ends_at = time.perf_counter() + timeout_s
    while max_other is not None and time.perf_counter() < ends_at:
        meter = OtherWork(server)
        time.sleep(QUIET_SAMPLE_S)
        if meter.cores(server)["other_cores"] <= max_other:
            return


def load_command(server: RunningServer, workload: str, seed: int) -> list[str]:
    target = server.target
    command = [sys.executable, str(HERE / "openai_load.py"), "--base-url", target.base_url]
    command += ["--model", target.model, "--workload", workload, "--seed", str(seed)]
    command += ["--warmup", str(NUM_WARMUP), "--extra-body", json.dumps(target.extra_body)]
    return [*command, "--drop", *target.drop] if target.drop else command


def run_workload(server: RunningServer, workload: str, seed: int) -> Record:
    """The client runs in a process of its own: this one's sampling must not delay it."""
    server.take_peak_rss()
    meter = OtherWork(server)
    client = subprocess.run(
        load_command(server, workload, seed), capture_output=True, text=True, check=False
    )
    if not client.stdout.strip():
        raise RuntimeError(f"{workload}: the client failed: {client.stderr.strip()[-400:]}")
    summary: Record = json.loads(client.stdout)
    return summary | meter.cores(server) | {"peak_rss_bytes": server.take_peak_rss()}


def run_attempts(
    server: RunningServer,
    workload: str,
    where: dict[str, Any],
    args: argparse.Namespace,
    journal: Journal,
) -> None:
    """A run that other work disturbed is kept in the raw file and made again."""
    first_seed = args.seed + 1000 * where["round"] + 100 * list(WORKLOADS).index(workload)
    for attempt in range(args.attempts):
        wait_until_quiet(args.max_other, args.quiet_wait, server)
        record = run_workload(server, workload, first_seed + attempt)
        journal.add("run", **where, workload=workload, attempt=attempt, **record)
        print_progress(journal.records[-1])
        if args.max_other is None or record["other_cores"] <= args.max_other:
            return


def run_server(
    spec: ServerSpec, port: int, round_index: int, args: argparse.Namespace, journal: Journal
) -> None:
    where = {"server": spec.name, "round": round_index}
    log_path = args.out.with_name(f"{args.out.stem}.{spec.name}.{round_index}.log")
    wait_until_quiet(args.max_other, args.quiet_wait)
    meter = OtherWork()
    try:
        with RunningServer(spec, port, log_path) as server:
            journal.add(
                "start",
                **where,
                start_s=round(server.start_s, 3),
                rss_bytes=server.rss_bytes(),
                peak_rss_bytes=server.take_peak_rss(),
                **meter.cores(server),
            )
            for workload in args.workloads:
                run_attempts(server, workload, where, args, journal)
    except (StartError, RuntimeError, OSError) as error:
        journal.add("failed", **where, reason=str(error))
        print(f"{spec.name}: {error}", file=sys.stderr)


def print_progress(run: Record) -> None:
    ttft = run["ttft_ms"]["p50"] if run["ttft_ms"] else float("nan")
    print(
        f"round {run['round']}  {run['server']:<24} {run['workload']}  "
        f"{run['output_tok_per_s']:8.1f} out tok/s  TTFT p50 {ttft:7.0f} ms  "
        f"failed {run['failed']}  other CPU {run['other_cores']:.2f} cores",
        file=sys.stderr,
        flush=True,
    )


def load_specs(path: Path) -> list[ServerSpec]:
    tables = tomllib.loads(path.read_text())["server"]
    return [ServerSpec.from_table(name, table) for name, table in tables.items()]


def chosen_specs(path: Path, only: list[str] | None) -> list[ServerSpec]:
    specs = load_specs(path)
    names = {spec.name for spec in specs}
    if unknown := set(only or ()) - names:
        raise SystemExit(f"--only: not in {path}: {', '.join(unknown)}; it has {', '.join(names)}")
    return [spec for spec in specs if not only or spec.name in only]


def placeholders(args: argparse.Namespace, port: int) -> dict[str, str]:
    values = {"port": str(port), "threads": str(args.threads), "cpus": f"0-{args.threads - 1}"}
    return values | ({"root": str(args.root.resolve())} if args.root else {})


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def run_rounds(args: argparse.Namespace, journal: Journal) -> None:
    specs = []
    for spec in chosen_specs(args.config, args.only):
        if reason := spec.filled(placeholders(args, 0)).missing():
            journal.add("skipped", server=spec.name, reason=reason)
            print(f"{spec.name}: skipped: {reason}", file=sys.stderr)
        else:
            specs.append(spec)
    for round_index in range(args.rounds):
        # Rotated, so that no server always follows the same neighbour.
        turn = round_index % max(1, len(specs))
        for spec in specs[turn:] + specs[:turn]:
            port = args.port or free_port()
            filled = spec.filled(placeholders(args, port))
            run_server(filled, port, round_index, args, journal)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", type=Path, default=HERE / "cpu_peers.toml")
    add("--root", type=Path, help="folder of the peers: fills {root} in the configuration")
    add("--port", type=int, default=0, help="fills {port}; default: a free one for each start")
    add("--threads", type=int, default=os.cpu_count(), help="fills {threads} and {cpus}")
    add("--rounds", type=int, default=3)
    add("--workloads", nargs="+", choices=sorted(WORKLOADS), default=sorted(WORKLOADS))
    add("--only", nargs="+", metavar="SERVER", help="leave the other servers out")
    add("--subject", default="atom", help="the server that the ratios are of")
    add("--seed", type=int, default=1, help="of round 0; every round has its own")
    add("--max-other", type=float, metavar="CORES", help="leave noisier runs out of the tables")
    add("--quiet-wait", type=float, default=30.0, help="seconds to wait for --max-other")
    add("--attempts", type=int, default=3, help="how often to try a workload for --max-other")
    add("--out", type=Path, default=Path("cpu_peers.jsonl"), help="raw records, appended")
    add("--report", type=Path, metavar="JSONL", help="only print the tables of this file")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped too
    if args.report:
        lines = args.report.read_text().splitlines()
        records = [json.loads(line) for line in lines]
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            journal = Journal(file)
            journal.add("machine", **machine(), threads=args.threads, argv=sys.argv[1:])
            run_rounds(args, journal)
            records = journal.records
    print(report(records, args.subject, args.max_other))
    return 1 if any(record["kind"] == "failed" for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())

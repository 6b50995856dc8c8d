"""How long a whole task takes: lm-eval's `hf` backend, `atom eval`, and lm-eval on `atom serve`.

    python benchmarks/eval_speed.py DIR [--task arc_easy] [--limit N] [--rounds 3]
        [--ways hf-1 hf-8 hf-32 hf-auto atom atom-url stock] [--json speed.json]

A way is measured as one command from start to result, in a process of its own; the model is the
same folder, in the same dtype, on the same number of threads. Each round runs all ways, beginning
with another one, so that a slow hour falls on all of them.

    hf-N      eval_stock.py --model hf --batch-size N: lm-eval without its index of tasks
    atom      atom eval TASK --recipe R, the start of its server included
    atom-url  eval_ours.py against a server that runs already: the evaluation alone
    stock     eval_stock.py --model local-completions against such a server

"asked" is the time within a command in which the model is asked, tokenisation included and loading
left out (of `atom`, prompts and scores are in it, too). "CPU" is what the command and its server
used, in seconds; "tokens computed" are prompt tokens that the server did not find in its prefix
cache; "other" is what the machine did besides, in cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cpu_peers import OtherWork, machine
from eval_ours import served_model
from eval_stock import DATA, SOURCES, read_answers

HERE = Path(__file__).resolve().parent
WAYS = ("hf-1", "hf-8", "hf-32", "hf-auto", "atom", "atom-url", "stock")
COUNTERS = {"computed": "prompt_tokens_computed_total", "found": "prefix_cache_hits_total"}
Record = dict[str, Any]


class Job(NamedTuple):
    """What all ways do."""

    path: Path
    task: str
    limit: int | None
    dtype: str
    threads: int
    data: Path
    server_args: list[str]
    client_args: list[str]  # of atom eval and eval_ours.py

    @property
    def server_flags(self) -> list[str]:
        return ["--dtype", self.dtype, "--num-threads", str(self.threads), *self.server_args]

    @property
    def limit_flags(self) -> list[str]:
        return ["--limit", str(self.limit)] if self.limit else []


def run_command(command: Sequence[str], threads: int) -> tuple[float, str]:
    """Seconds from its start to its end, and what it printed. Raises when it fails."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("ATOM_")}
    env |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    wall_s = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return wall_s, done.stdout


def run_script(job: Job, script: str, flags: Sequence[str], folder: Path) -> Record:
    """One of the two scripts: its wall time, phases and scores."""
    out = folder / "answers.json"
    command = [sys.executable, str(HERE / script), "--tasks", job.task, "--out", str(out)]
    wall_s, _ = run_command([*command, *job.limit_flags, *flags], job.threads)
    answers, facts = read_answers(out)
    counted = sum(max(1, len(answer.logprobs)) for answer in answers[job.task])
    return {
        "wall_s": wall_s,
        "asked_s": facts["times_s"]["asked"],
        "times_s": facts["times_s"],
        "requests": counted,
        "score": accuracies(facts["results"][job.task]),
    }


def accuracies(row: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k.startswith("acc") and "stderr" not in k}


def stock_flags(job: Job, *model: str) -> list[str]:
    fixed = ["--path", str(job.path), "--dtype", job.dtype, "--data", str(job.data)]
    return [*model, *fixed, "--threads", str(job.threads)]


def run_hf(job: Job, batch_size: str, folder: Path) -> Record:
    flags = stock_flags(job, "--model", "hf", "--batch-size", batch_size)
    return run_script(job, "eval_stock.py", flags, folder)


def run_atom(job: Job, folder: Path) -> Record:
    """The command as a user types it, with a recipe that holds nothing but the model."""
    recipe = folder / "model.toml"
    recipe.write_text(f'[model]\nmodel = "{job.path}"\n')
    command = [sys.executable, "-m", "atom.cli", "eval", job.task, "--recipe", str(recipe)]
    command += ["--server-args", " ".join(job.server_flags), "--json", "--quiet"]
    command += ["--history", str(folder / "history.db"), *job.limit_flags, *job.client_args]
    wall_s, out = run_command(command, job.threads)
    report = json.loads(out)
    return {
        "wall_s": wall_s,
        "asked_s": float(report["total_evaluation_time_seconds"]),
        "score": accuracies(report["results"][job.task]),
        "report": report,
    }


@contextmanager
def server(job: Job, log: Path) -> Iterator[str]:
    from atom.bench.server_process import RecipeServer

    with RecipeServer(job.path, log, args=job.server_flags) as running:
        yield running.url


def counters(url: str) -> dict[str, float]:
    """The server's counts so far, of `COUNTERS`."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = {}
    for name, metric in COUNTERS.items():
        lines = re.findall(rf"^atom:{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        found[name] = sum(float(value) for value in lines)
    return found


def run_against_server(job: Job, way: str, folder: Path) -> Record:
    with server(job, folder / "server.log") as url:
        if way == "stock":
            flags = stock_flags(job, "--model", "local-completions", "--url", url)
            flags += ["--name", served_model(url), "--concurrency", "4", "--batch-size", "32"]
            before = counters(url)
            record = run_script(job, "eval_stock.py", flags, folder)
        else:
            before = counters(url)
            record = run_script(job, "eval_ours.py", ["--url", url, *job.client_args], folder)
        after = counters(url)
    return {**record, "tokens": {name: after[name] - before[name] for name in after}}


def run_way(job: Job, way: str) -> Record:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        meter, cpu_s = OtherWork(), children_s()
        if way.startswith("hf-"):
            record = run_hf(job, way.removeprefix("hf-"), folder)
        elif way == "atom":
            record = run_atom(job, folder)
        else:
            record = run_against_server(job, way, folder)
        return {**record, "cpu_s": children_s() - cpu_s, **meter.cores()}


def children_s() -> float:
    """CPU time of all processes that were started here and have ended, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_rounds(job: Job, ways: Sequence[str], rounds: int) -> list[Record]:
    records = []
    for number in range(rounds):
        turn = number % len(ways)
        for way in [*ways[turn:], *ways[:turn]]:
            record = {"round": number, "way": way, **run_way(job, way)}
            records.append(record)
            print(
                f"round {number}  {way:9} {record['wall_s']:8.1f} s, asked "
                f"{record['asked_s']:.1f} s, other CPU {record['other_cores']:.2f} cores",
                file=sys.stderr,
                flush=True,
            )
    return records


def summary(records: Sequence[Record], ways: Sequence[str]) -> dict[str, Record]:
    """Medians by way."""
    found = {}
    for way in ways:
        mine = [record for record in records if record["way"] == way]
        walls = [record["wall_s"] for record in mine]
        asked = [record["asked_s"] for record in mine]
        found[way] = {
            "wall_s": statistics.median(walls),
            "wall_range_s": [min(walls), max(walls)],
            "asked_s": statistics.median(asked),
            "cpu_s": statistics.median(record["cpu_s"] for record in mine),
            "score": mine[0]["score"],
            "other_cores": max(record["other_cores"] for record in mine),
            "tokens": mine[-1].get("tokens"),
        }
    return found


def print_table(rows: dict[str, Record]) -> None:
    """Ratios are of the fastest `hf` way: how many times faster."""
    hf = [row for way, row in rows.items() if way.startswith("hf-")]
    base = {key: min((row[key] for row in hf), default=None) for key in ("wall_s", "asked_s")}

    def ratio(row: Record, key: str) -> str:
        return f"{base[key] / row[key]:.2f}x" if base[key] and row[key] else ""

    head = f"{'way':9}{'command s':>11}{'':>8}{'asked s':>9}{'':>8}{'CPU s':>8}"
    print(head + f"{'tokens computed':>17}{'cached':>9}{'other':>7}  score")
    for way, row in rows.items():
        tokens = row["tokens"] or {}
        counts = [f"{tokens[k]:.0f}" if k in tokens else "" for k in ("computed", "found")]
        scores = [f"{k.removesuffix(',none')} {v:.4f}" for k, v in row["score"].items()]
        print(
            f"{way:9}{row['wall_s']:>11.1f}{ratio(row, 'wall_s'):>8}{row['asked_s']:>9.1f}"
            f"{ratio(row, 'asked_s'):>8}{row['cpu_s']:>8.1f}{counts[0]:>17}{counts[1]:>9}"
            f"{row['other_cores']:>7.2f}  {', '.join(scores)}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("path", type=Path, metavar="DIR", help="HF folder with the weights and the tokenizer")
    add("--task", choices=sorted(SOURCES), default="arc_easy")
    add("--limit", type=int)
    add("--ways", nargs="+", choices=WAYS, default=WAYS)
    add("--rounds", type=int, default=1)
    add("--dtype", default="float32")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--server-args", nargs="*", default=[], help="more flags of atom serve")
    add("--client-args", nargs="*", default=[], help="more flags of atom eval")
    add("--data", type=Path, default=DATA)
    add("--json", type=Path)
    args = parser.parse_args(argv)
    job = Job(
        args.path.resolve(),
        args.task,
        args.limit,
        args.dtype,
        args.threads,
        args.data,
        args.server_args,
        args.client_args,
    )
    records = run_rounds(job, args.ways, args.rounds)
    rows = summary(records, args.ways)
    print_table(rows)
    if args.json:
        facts = {"machine": machine(), "argv": sys.argv[1:], "ways": rows, "runs": records}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

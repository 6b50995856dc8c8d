"""How each tool is run against the mock, and where its report keeps each metric.

A tool gets the same load: so many streams in closed loop, so many requests of so many tokens.
What it does not report is absent, never guessed; what it calls otherwise is mapped by definition,
not by name (guidellm's and aiperf's "inter token latency" is a request's (last - first) / (n - 1),
which is TPOT here).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENIZER = "local/tokenizer"  # the name under which peers find --tokenizer, offline
INPUT_TOKENS = 32


@dataclass(frozen=True)
class Task:
    """One load on one mock."""

    url: str
    model: str
    chat: bool
    streams: int
    requests: int
    tokens: int  # of each request's output
    seed: int
    folder: Path  # for whatever the tool writes


@dataclass(frozen=True)
class Tool:
    name: str
    command: Callable[[Task], list[str]]
    read: Callable[[Task], dict[str, float]]


def environment(tokenizer: Path | None, folder: Path) -> dict[str, str]:
    """Offline, with `tokenizer` (a directory) in a cache of its own under the name `TOKENIZER`."""
    found = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    found["OMP_NUM_THREADS"] = "1"
    found["TOKENIZERS_PARALLELISM"] = "false"
    if tokenizer is not None:
        commit = "0" * 39 + "1"
        place = folder / "hf" / "hub" / ("models--" + TOKENIZER.replace("/", "--"))
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit, encoding="utf-8")
        (place / "snapshots" / commit).mkdir(parents=True)
        for path in tokenizer.glob("*.json"):
            shutil.copy(path, place / "snapshots" / commit)
    return found


def atom_tool() -> Tool:
    script = Path(__file__).with_name("accuracy_atom.py")

    def command(task: Task) -> list[str]:
        endpoint = "chat" if task.chat else "completions"
        numbers = [task.streams, task.requests, task.tokens, task.seed]
        return [sys.executable, str(script), task.url, task.model, endpoint, *map(str, numbers)]

    def read(task: Task) -> dict[str, float]:
        text = (task.folder / "stdout").read_text(encoding="utf-8")
        found: dict[str, float] = json.loads(text.splitlines()[-1])
        return found

    return Tool("atom", command, read)


def guidellm_tool(program: str) -> Tool:
    def command(task: Task) -> list[str]:
        route = "/v1/chat/completions" if task.chat else "/v1/completions"
        return [
            *program.split(),
            "run",
            "--backend",
            f"kind=openai_http,target={task.url},model={task.model},request_format={route}",
            "--profile",
            f"kind=concurrent,streams={task.streams}",
            "--constraint",
            f"kind=max_requests,count={task.requests}",
            "--data",
            f"kind=synthetic_text,prompt_tokens={INPUT_TOKENS},output_tokens={task.tokens}",
            "--seed",
            f"kind=static,value={task.seed}",
            "--output",
            f"kind=json,path={task.folder / 'report.json'}",
            "--disable-console",
        ]

    def read(task: Task) -> dict[str, float]:
        report = json.loads((task.folder / "report.json").read_text(encoding="utf-8"))
        metrics = report["benchmarks"][0]["metrics"]
        totals = metrics["request_totals"]
        found: dict[str, float] = {
            "completed": totals["successful"],
            "failed": totals["errored"],  # "incomplete" ones were given up by itself at the end
            "total_output_tokens": metrics["output_token_count"]["successful"]["total_sum"],
            "output_throughput": metrics["output_tokens_per_second"]["successful"]["mean"],
        }
        for ours, theirs, scale in (
            ("ttft", "time_to_first_token_ms", 1.0),
            ("tpot", "inter_token_latency_ms", 1.0),
            ("e2el", "request_latency", 1e3),
        ):
            values = metrics[theirs]["successful"]
            found[f"mean_{ours}_ms"] = values["mean"] * scale
            found[f"median_{ours}_ms"] = values["median"] * scale
            found[f"p99_{ours}_ms"] = values["percentiles"]["p99"] * scale
        return found

    return Tool("guidellm", command, read)


def aiperf_tool(program: str) -> Tool:
    def command(task: Task) -> list[str]:
        return [
            *program.split(),
            "profile",
            *("--model", task.model, "--url", task.url, "--tokenizer", TOKENIZER, "--streaming"),
            *("--endpoint-type", "chat" if task.chat else "completions"),
            *("--concurrency", str(task.streams), "--request-count", str(task.requests)),
            *("--isl", str(INPUT_TOKENS), "--osl", str(task.tokens)),
            *("--extra-inputs", "ignore_eos:true", "--random-seed", str(task.seed)),
            *("--use-server-token-count", "--use-legacy-max-tokens", "--ui", "none"),
            *("--output-artifact-dir", str(task.folder / "artifacts")),
        ]

    def read(task: Task) -> dict[str, float]:
        path = task.folder / "artifacts" / "profile_export_aiperf.json"
        report = json.loads(path.read_text(encoding="utf-8"))
        failed = report.get("error_request_count") or {"avg": 0}
        found: dict[str, float] = {
            "completed": report["request_count"]["avg"],
            "failed": failed["avg"],
            "total_output_tokens": report["total_usage_completion_tokens"]["avg"],
            "output_throughput": report["output_token_throughput"]["avg"],
        }
        for ours, theirs in (
            ("ttft", "time_to_first_token"),
            ("tpot", "inter_token_latency"),
            ("chunk_gap", "inter_chunk_latency"),
            ("e2el", "request_latency"),
        ):
            values = report[theirs]
            found[f"mean_{ours}_ms"] = values["avg"]
            found[f"median_{ours}_ms"] = values["p50"]
            found[f"p99_{ours}_ms"] = values["p99"]
        return found

    return Tool("aiperf", command, read)


def run(tool: Tool, task: Task, env: dict[str, str], limit_s: float) -> tuple[str, float]:
    """Run the tool to its end: what went wrong or "", and CPU seconds, its children's included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wrong = _run(tool, task, env, limit_s)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wrong, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _run(tool: Tool, task: Task, env: dict[str, str], limit_s: float) -> str:
    with (task.folder / "stdout").open("wb") as out, (task.folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            tool.command(task),
            stdout=out,
            stderr=err,
            env=env,
            cwd=task.folder,
            start_new_session=True,
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"no end within {limit_s:.0f} s"
        finally:
            if process.poll() is None:  # too late, or Ctrl-C: with all that it has started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return f"exit status {status}: {_last_words(task)}" if status else ""


def _last_words(task: Task) -> str:
    said = [
        line.strip()
        for name in ("stdout", "stderr")
        for line in (task.folder / name).read_text(errors="replace").splitlines()
        if line.strip()
    ]
    return " | ".join(said[-3:])


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"

"""The whole GPU table in one call: decode, prefill, throughput, start-up, fp8 KV, beside the peers.

    python benchmarks/h200.py [--models DIR ...] [--only decode throughput] [--quick]
        [--json FILE] [--set level=0 max_num_seqs=256] [--long NAME ...] [--device cpu]

A model is a folder with a config.json (default: the three in benchmarks/configs); weights are
random. Decode: 128 tokens in, 128 out; the time per output token is the difference of the median
times of generating 128 and 1, over 127. Throughput: 256 prompts of 1,024 tokens, 128 out. Prefill:
32 prompts of 2,048 tokens, one token out. Long: 64 prompts of 8,192 tokens, 128 out, with a
bfloat16 and with an fp8 KV cache. Every prompt is random and new, so no prefix is ever reused. Each
figure stands beside its floor, the better peer's figure and what counts as a pass.

Each model runs in processes of its own: the first starts with whatever caches there are and says
whether they were empty, a later one shows the start with warm ones. A cell that fails prints its
error and the rest goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from h200_report import print_tables
from h200_targets import Cell, cells, floor_s, shape_of, target_of

HERE = Path(__file__).resolve().parent
MODELS = [HERE / "configs" / name for name in ("llama-3.1-8b", "qwen3-0.6b", "qwen3-30b-a3b")]
CELL_LIMIT_S = 150.0  # between two lines of a child; a cold start compiles in it


class Child:
    """An engine process, and its lines as they come."""

    def __init__(self, model: Path, settings: dict[str, Any], todo: list[Cell], log: Path) -> None:
        read, write = os.pipe()
        command = [sys.executable, str(HERE / "h200_child.py"), "--model", str(model)]
        command += ["--settings", json.dumps(settings), "--out", str(write)]
        command += ["--cells", json.dumps([dataclasses.asdict(cell) for cell in todo])]
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        self._log = log.open("a")
        self._process = subprocess.Popen(
            [*command, "--spawned", repr(time.monotonic())],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
            env={**os.environ, "PYTHONPATH": path},
        )
        os.close(write)
        self._lines = os.fdopen(read)
        self.timed_out = False

    def events(self, limit_s: float) -> Iterator[dict[str, Any]]:
        """Until the process ends; it is killed when it is silent for `limit_s`."""
        while True:
            timer = threading.Timer(limit_s, self._kill)
            timer.start()
            line = self._lines.readline()
            timer.cancel()
            if not line:
                break
            yield json.loads(line)
        self._process.wait()
        self._log.close()

    def _kill(self) -> None:
        self.timed_out = True
        self._process.kill()

    @property
    def status(self) -> str:
        if self.timed_out:
            return "silent for too long, killed"
        code = self._process.returncode
        return f"the process ended with {'signal' if code < 0 else 'status'} {abs(code)}"


class Run:
    """All cells of one model, through as many processes as it takes."""

    def __init__(self, model: Path, settings: dict[str, Any], log: Path, limit_s: float) -> None:
        self.model = model
        self.shape = shape_of(model)
        self.results: dict[str, dict[str, Any]] = {}
        self.starts: list[dict[str, Any]] = []
        self._settings = settings
        self._log = log
        self._limit_s = limit_s

    def run(self, wanted: list[Cell]) -> None:
        groups: dict[str, list[Cell]] = {}
        for cell in wanted:
            groups.setdefault(cell.kv, []).append(cell)
        for kv, todo in groups.items():
            while todo:
                todo = self._process(kv, todo)

    def _process(self, kv: str, todo: list[Cell]) -> list[Cell]:
        """One engine's worth; returns the cells still to be run, without the one that failed."""
        settings = dict(self._settings)
        if kv == "fp8":
            settings["kv_cache_dtype"] = "fp8"
        caches = cache_state()
        child = Child(self.model, settings, todo, self._log)
        left = [cell for cell in todo if cell.kind != "start"]
        started = failed = False
        for event in child.events(self._limit_s):
            match event.pop("event"):
                case "start":
                    started = True
                    self._started(event | {"caches": caches, "kv": kv}, todo)
                case "cell":
                    name = event.pop("name")
                    left = [cell for cell in left if cell.name != name]
                    self._done(name, event)
                case "error":
                    failed = True
                    left = self._failed(event["name"], event["error"], left, started)
        if left and not failed:
            left = self._failed(left[0].name, child.status, left, started)
        elif not started and not failed:
            self._failed("start", child.status, [], started)
        return left

    def _started(self, event: dict[str, Any], todo: list[Cell]) -> None:
        self.starts.append(event)
        total = event["import_s"] + event["start_s"]
        say(f"{self.model.name}: started in {total:.1f} s (caches {event['caches']})")
        for cell in todo:
            if cell.kind == "start":
                self._done(cell.name, {"total_s": total})

    def _done(self, name: str, values: dict[str, Any]) -> None:
        self.results[name] = values
        figure = {k: v for k, v in values.items() if isinstance(v, (int, float))}
        say(f"{self.model.name} {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in figure.items()))

    def _failed(self, name: str, error: str, left: list[Cell], started: bool) -> list[Cell]:
        say(f"{self.model.name} {name}: FAILED: {error}")
        if not started:  # it would not start for the others either
            names = [cell.name for cell in left] or [name]
            self.results |= {each: {"error": error} for each in names}
            return []
        self.results[name] = {"error": error}
        return [cell for cell in left if cell.name != name]

    def as_json(self, wanted: list[Cell]) -> dict[str, Any]:
        rows = {}
        for cell in wanted:
            target = target_of(cell, self.shape)
            rows[cell.name] = {
                "work": dataclasses.asdict(cell),
                "floor_s": floor_s(cell, self.shape),
                "target": target.value if target else None,
                "peer": target.peer if target else None,
                **self.results.get(cell.name, {"error": "not run"}),
            }
        return {"model": self.model.name, "starts": self.starts, "cells": rows}


def say(line: str) -> None:
    print(line, flush=True)


def cache_state() -> str:
    """What compiled code is on disk: Triton's kernels and our own pieces."""
    home = Path.home()
    ours = Path(os.environ.get("ATOM_CACHE_DIR") or home / ".cache" / "atom")
    triton = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    found = {"triton": triton.is_dir() and any(triton.iterdir())}
    found["pieces"] = any(p.is_file() for p in (ours / "compiled").rglob("*"))
    there = [name for name, is_there in found.items() if is_there]
    return "warm" if len(there) == len(found) else f"only {there[0]}" if there else "cold"


def machine() -> dict[str, Any]:
    """Where the figures were made; a part that cannot be had is left out."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": os.environ.get("ATOM_COMMIT") or answer_of("git", "rev-parse", "--short", "HEAD"),
        "gpu": answer_of(
            "nvidia-smi",
            "--query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw",
            "--format=csv,noheader",
        ),
    }
    for package in ("torch", "triton"):
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        found[package] = answer_of(sys.executable, "-c", code)
    return {name: value for name, value in found.items() if value}


def answer_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=HERE.parent)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", type=Path, default=MODELS, metavar="DIR")
    parser.add_argument("--only", nargs="+", default=[], help="cells or their prefixes: decode-32")
    parser.add_argument("--quick", action="store_true", help="one repeat of each")
    parser.add_argument("--long", nargs="*", help="names of models that run bf16 against fp8 KV")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--set", nargs="*", type=setting, default=[], help="settings of LLM")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--log", type=Path, default=Path("h200.log"), help="the engines' output")
    parser.add_argument("--limit-s", type=float, default=CELL_LIMIT_S, help="silence of an engine")
    args = parser.parse_args()
    for model in args.models:
        if not (model / "config.json").is_file():
            parser.error(f"--models {model}: there is no config.json; name a folder that has one")
    return args


def main() -> None:
    args = parse()
    began = time.monotonic()
    tiny = args.device == "cpu"
    settings: dict[str, Any] = {"device": args.device, "load_dummy": True, **dict(args.set)}
    about = {"machine": machine(), "settings": settings, "quick": args.quick}
    say(json.dumps(about))
    if tiny:
        say("on a CPU: shapes are tiny, the floors are an H200's, nobody's figures are beside them")
    # Fp8 against bfloat16 KV on the first model, unless told.
    long = args.long if args.long is not None else [args.models[0].resolve().name]
    done = []
    args.log.write_text("")
    for model in args.models:
        model = model.resolve()
        wanted = cells(tiny, args.quick, model.name in long)
        if args.only:
            wanted = [c for c in wanted if c.name.startswith(tuple(args.only))]
        run = Run(model, settings, args.log, args.limit_s)
        run.run(wanted)
        done.append((run, wanted))
        if args.json:
            models = [run.as_json(wanted) for run, wanted in done]
            args.json.write_text(json.dumps({**about, "models": models}, indent=1))
    print_tables([(r.model.name, r.shape, r.results, r.starts, w) for r, w in done])
    say(f"{time.monotonic() - began:.0f} s in all; the engines' output is in {args.log}")


if __name__ == "__main__":
    main()

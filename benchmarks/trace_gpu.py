"""Traces of our engine on a GPU, and whether `atom trace` tells the truth about them.

    python benchmarks/trace_gpu.py --model DIR --out DIR [--layers 4] [--batch 8] [--steps 6]
        [--ways eager graphs ...] [--set tensor_parallel_size=1 ...] [--device cuda]

`--model` is a folder with a config.json (a tokenizer is not needed); weights are random. `--layers`
makes a copy of it with so many layers. The same prompts run in several ways: eager (level 0, no
graphs), eager-graphs (level 0, decode and piecewise graphs), level1 and level2 (torch.compile, no
graphs), compiled (level 3, no graphs), graphs (level 3, as a server runs), full (level 3,
whole-forward graphs); each once with --mark-trace and
once with the profiler alone. Checked, per way:

- mapped: every kernel of the recorded steps has a module; how they came to it is shown
- sequence: the modules of a step, in order, are those of the same step run without graphs
- marks: tokens and kernels are the same as without --mark-trace
- totals: per step, the analysis' sum of durations is that of the trace's JSON, summed here by
  other means; the workbook's TOTAL is the sum of its step's

Exit status 1 if one fails. `OUT/report.json` holds what is printed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from h200 import setting

HERE = Path(__file__).resolve().parent
WAYS: dict[str, dict[str, Any]] = {
    "eager": {"level": 0, "cudagraph_mode": "none"},
    "eager-graphs": {"level": 0, "cudagraph_mode": "full_and_piecewise"},
    "level1": {"level": 1, "cudagraph_mode": "none"},
    "level2": {"level": 2, "cudagraph_mode": "none"},
    "compiled": {"level": 3, "cudagraph_mode": "none"},
    "graphs": {"level": 3, "cudagraph_mode": "full_and_piecewise"},
    "full": {"level": 3, "cudagraph_mode": "full"},
}
LIKE = {"eager-graphs": "eager", "graphs": "compiled", "full": "compiled"}  # without graphs
# Not the model's, or done elsewhere where graphs run: an eager step picks the rows that are sampled
# in its last block, a graph's hidden states are picked from by "logits".
AROUND = ("prepare", "model", "self_attn.rows", "logits", "sample")
GPU_KINDS = ("kernel", "gpu_memcpy", "gpu_memset")
LIMIT_S = 300.0  # of one engine


class Check(NamedTuple):
    way: str
    trace: str
    name: str
    ok: bool
    text: str


# -- running --------------------------------------------------------------------------------------


def truncated(model: Path, layers: int, out: Path) -> Path:
    """A copy of the folder's files that are not weights, with fewer layers."""
    folder = out / f"{model.name}-{layers}"
    folder.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.is_file() and path.suffix in (".json", ".txt", ".model"):
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config["num_hidden_layers"] = layers
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:layers]
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def settings_of(args: argparse.Namespace, way: str, marked: bool, folder: Path) -> dict[str, Any]:
    longest = max(*args.prompts, args.context + 16 + 3 * args.steps)
    return {
        "load_dummy": True,
        "device": args.device,
        "overlap": False,
        "enable_prefix_caching": False,
        "max_model_len": longest + 64,
        "max_num_seqs": args.batch,
        "max_num_batched_tokens": longest,
        "cudagraph_capture_sizes": sorted({1, args.batch}),
        "torch_profiler_dir": str(folder),
        "mark_trace": marked,
        **WAYS[way],
        **dict(args.set),
    }


def run_engine(args: argparse.Namespace, model: Path, way: str, marked: bool) -> dict[str, Any]:
    """What the child says. Its own words go to a file beside the traces."""
    folder = args.out / ("marked" if marked else "plain") / way
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.json"
    settings = settings_of(args, way, marked, folder)
    command = [sys.executable, str(HERE / "trace_gpu_child.py")]
    command += ["--model", str(model), "--out", str(result), "--batch", str(args.batch)]
    command += ["--context", str(args.context), "--steps", str(args.steps)]
    command += ["--prompts", *map(str, args.prompts)]
    command += ["--token-sizes", *map(str, args.token_sizes)]
    command += ["--set", *(f"{name}={json.dumps(value)}" for name, value in settings.items())]
    with (folder / "log.txt").open("wb") as log:
        done = subprocess.run(command, stdout=log, stderr=log, timeout=LIMIT_S, check=False)
    if done.returncode:
        tail = (folder / "log.txt").read_text(errors="replace").splitlines()[-6:]
        raise RuntimeError("\n".join([f"the engine ended with {done.returncode}:", *tail]))
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def kept_result(path: Path) -> dict[str, Any]:
    """Of an earlier run, perhaps on another machine: the traces are beside it."""
    found: dict[str, Any] = json.loads(path.read_text())
    for name, traces in found["traces"].items():
        here = [path.parent / Path(trace).parent.name / Path(trace).name for trace in traces]
        found["traces"][name] = [str(trace) for trace in here]
    return found


# -- the trace's JSON, by other means than atom.trace's -------------------------------------------


def events_of(path: str) -> list[dict[str, Any]]:
    with gzip.open(path) as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return [event for event in events if event.get("ph") == "X"]


def is_label(event: dict[str, Any]) -> bool:
    return event.get("cat") == "user_annotation" and event["name"].startswith(
        ("prefill[", "decode[")
    )


def steps_in_json(events: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(label, its GPU events by start) of each step: by launches within the label's time."""
    labels = sorted((e for e in events if is_label(e)), key=lambda e: float(e["ts"]))
    starts = [float(label["ts"]) for label in labels]
    step_of: dict[int, int] = {}
    for event in events:
        if event.get("cat") in ("cuda_runtime", "cuda_driver"):
            index = bisect_right(starts, float(event["ts"])) - 1
            if index >= 0 and float(event["ts"]) < starts[index] + float(labels[index]["dur"]):
                step_of[event["args"]["correlation"]] = index
    steps: list[tuple[str, list[dict[str, Any]]]] = [(label["name"], []) for label in labels]
    for event in sorted(events, key=lambda e: float(e["ts"])):
        if event.get("cat") in GPU_KINDS:
            index = step_of.get(event["args"]["correlation"], -1)
            if index >= 0:
                steps[index][1].append(event)
    return steps


def kernel_names(path: str) -> list[list[str]]:
    """Of each step. Copies are left out: where the host has nothing to add there is none."""
    steps = steps_in_json(events_of(path))
    return [[e["name"] for e in events if e["cat"] == "kernel"] for _, events in steps]


def ns(event: dict[str, Any]) -> int:
    return round(float(event["dur"]) * 1000)


# -- checks ---------------------------------------------------------------------------------------


class Analysed(NamedTuple):
    model: Any  # RankModel
    steps: list[Any]  # those that count


def analysed(path: str, device: str) -> Analysed:
    from atom.trace.analysis import load

    model = load([Path(path)], device="gpu" if device == "cuda" else "cpu").first
    return Analysed(model, [step for step in model.steps if step.counts])


def sequence(found: Analysed, step: Any) -> list[str]:
    """Modules of the model in the order of their first kernel, contiguous ones once."""
    model = found.model
    names = []
    for row in step.rows.tolist():
        name = model.module_name(row)
        if name not in AROUND:
            layer = int(model.layer[row])
            names.append(f"{layer}.{name}" if layer >= 0 else name)
    return [name for name, _ in groupby(names)]


def mapped(found: Analysed) -> tuple[bool, str]:
    report = found.model.report
    how = ", ".join(f"{kind.name.lower()} {n}" for kind, n in report.rows.items() if n)
    lost = ", ".join(f"{n} x {name[:40]}" for name, n in list(report.unmatched.items())[:3])
    return report.rate == 1.0, f"{100 * report.rate:.2f}% of {report.total}: {how} {lost}".strip()


def same_sequence(found: Analysed, other: Analysed) -> tuple[bool, str]:
    ours, theirs = (sequence(each, each.steps[-1]) for each in (found, other))
    if ours == theirs:
        return True, f"{len(ours)} modules in order"
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    return (
        False,
        f"{len(ours)} and {len(theirs)}; at {at}: {ours[at : at + 2]}, {theirs[at : at + 2]}",
    )


def same_totals(found: Analysed, path: str) -> tuple[bool, str]:
    expected = [
        (label, len(rows), sum(map(ns, rows))) for label, rows in steps_in_json(events_of(path))
    ]
    got = [(step.label, len(step.rows), step.sum_ns) for step in found.steps]
    total = sum(each[2] for each in got)
    if got == expected:
        return True, f"{len(got)} steps, {total / 1000:.3f} us"
    wrong = [(a, b) for a, b in zip(got, expected, strict=False) if a != b]
    return False, f"{len(got)} and {len(expected)} steps; first: {wrong[:1]}"


def workbook(path: str, found: Analysed, out: Path, device: str) -> tuple[bool, str]:
    """TOTAL of the sheet `step` against the sum of that step, by the command as one types it."""
    out.mkdir(parents=True, exist_ok=True)
    asked = ["--device", "cpu"] if device == "cpu" else []
    command = [sys.executable, "-m", "atom.cli", "trace", "parse", path, "--layer", "1"]
    done = subprocess.run(
        [*command, "--step", str(found.steps[0].index), *asked, "--output-dir", str(out)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        return False, f"exit {done.returncode}: {(done.stderr or done.stdout).strip()[-200:]}"
    kind = found.steps[0].kind
    total = _total(out / f"{kind}_breakdown.xlsx", "step")
    wanted = found.steps[0].sum_ns / 1000
    return abs(total - wanted) < 1e-3, f"TOTAL {total:.3f}, the step's sum {wanted:.3f} us"


def _total(path: Path, sheet: str) -> float:
    """duration_us in the row TOTAL; NaN if there is none."""
    import openpyxl

    rows = openpyxl.load_workbook(path, data_only=True)[sheet].iter_rows(values_only=True)
    column = list(next(rows)).index("duration_us")
    totals = [row[column] for row in rows if "TOTAL" in row]
    return float(totals[0]) if len(totals) == 1 else float("nan")


def checks_of(
    way: str, results: dict[str, dict[str, dict[str, Any]]], args: argparse.Namespace
) -> Iterator[Check]:
    marked, plain = results["marked"].get(way), results["plain"].get(way)
    if marked is None:
        return
    for name, (path, *_) in marked["traces"].items():

        def check(what: str, outcome: tuple[bool, str], name: str = name) -> Check:
            return Check(way, name, what, *outcome)

        found = analysed(path, args.device)
        yield check("mapped", mapped(found))
        other = results["marked"].get(LIKE.get(way, ""))
        if other is not None:
            twin = analysed(other["traces"][name][0], args.device)
            yield check("sequence", same_sequence(found, twin))
        if plain is not None:
            yield check("marks", _as_without(name, marked, plain))
        if args.device == "cuda":
            yield check("totals", same_totals(found, path))
        book = args.out / "workbooks" / way / name
        yield check("workbook", workbook(path, found, book, args.device))


def _as_without(name: str, marked: dict[str, Any], plain: dict[str, Any]) -> tuple[bool, str]:
    tokens = marked["tokens"][name] == plain["tokens"][name]
    ours, theirs = (kernel_names(each["traces"][name][0]) for each in (marked, plain))
    text = f"tokens {'equal' if tokens else 'DIFFER'}, {sum(map(len, ours))} kernels"
    return tokens and ours == theirs, text if ours == theirs else f"{text}, other than without"


# -- the whole ------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="keep so many of the model's layers")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=128, help="prompt of the decode steps")
    parser.add_argument("--prompts", type=int, nargs="+", default=[60, 1000], help="of prefills")
    parser.add_argument("--token-sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--no-plain", action="store_true", help="only with --mark-trace")
    parser.add_argument("--analyse-only", action="store_true", help="of traces that are there")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--set", nargs="*", type=setting, default=[], help="settings of the engine")
    return parser.parse_args()


def run_all(args: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    model = args.model if args.layers is None else truncated(args.model, args.layers, args.out)
    results: dict[str, dict[str, dict[str, Any]]] = {"marked": {}, "plain": {}}
    for way in args.ways:
        for kind in ("marked",) if args.no_plain else ("marked", "plain"):
            started = time.monotonic()
            kept = args.out / kind / way / "result.json"
            try:
                if args.analyse_only:
                    result = kept_result(kept)
                else:
                    result = run_engine(args, model, way, kind == "marked")
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                print(f"{way} ({kind}): {error}", flush=True)
                continue
            results[kind][way] = result
            print(
                f"{way} ({kind}): {time.monotonic() - started:.1f} s, start "
                f"{result['start_s']:.1f} s, decode step {result['step_ms']:.3f} ms, "
                f"{result['mode']}, {result['graphs']}, ran {result['counts']}",
                flush=True,
            )
    return results


def main() -> int:
    args = parse()
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    results = run_all(args)
    checks: list[Check] = []
    for way in args.ways:
        try:
            for check in checks_of(way, results, args):
                checks.append(check)
                mark = "ok  " if check.ok else "FAIL"
                print(f"{mark} {way:13} {check.trace:12} {check.name:9} {check.text}", flush=True)
        except Exception as error:  # the other ways are worth seeing all the same
            checks.append(Check(way, "", "analysis", False, f"{type(error).__name__}: {error}"))
            print(f"FAIL {way:13} {checks[-1].text}", flush=True)
    report = {"results": results, "checks": [check._asdict() for check in checks]}
    (args.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    failed = sum(not check.ok for check in checks)
    missing = sum(way not in results["marked"] for way in args.ways)
    print(f"{len(checks)} checks, {failed} failed, {missing} ways did not run")
    return int(failed > 0 or missing > 0)


if __name__ == "__main__":
    sys.exit(main())

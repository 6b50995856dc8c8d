"""Whether `atom trace diff` finds what was planted in a real engine.

    python benchmarks/trace_diff_gpu.py --out DIR [--model DIR] [--layers 6] [--at 3] [--batch 8]
        [--steps 8] [--ways eager eager-graphs] [--plants gemm sleep] [--device cuda]

An engine with random weights runs the same steps several times, each in a process of its own: twice
as it is, then with something planted in `self_attn.o_proj` of one layer: its product done 40 times
over (gemm), or a kernel that spins for a millisecond (sleep). Ways are those of trace_gpu.py. Both
sides of each comparison are recorded with --mark-trace.

Checked, of the decode steps: the planted kernel is the first row (without graphs, where the host is
noisy, the kernel that lost most), with its module and its layer; the rows sum to the steps' own
sums; the GPU work of the two runs without anything planted differs by less than `--noise` percent.
Exit status 1 if one fails; `OUT/report.json` holds what is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trace_gpu import LIMIT_S, WAYS, truncated

HERE = Path(__file__).resolve().parent
MODULE = "self_attn.o_proj"
SLEEP_CYCLES = 2_000_000  # about a millisecond: more than a step without graphs idles
TIMES = 40  # the product of a few rows takes microseconds, and noise is as much
CONTEXT = 128
PLAIN = ("none", "again")


# -- one engine, in a process of its own ----------------------------------------------------------


class Planted:
    """A packed weight whose product takes longer."""

    def __init__(self, packed: Any, plant: str) -> None:
        self._packed, self._plant = packed, plant

    def __call__(self, x: Any, bias: Any) -> Any:
        import torch

        if self._plant == "sleep":
            torch.cuda._sleep(SLEEP_CYCLES)
        for _ in range(TIMES - 1 if self._plant == "gemm" else 0):
            self._packed(x, bias)
        return self._packed(x, bias)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._packed, name)


def plant(what: str, layer: int) -> None:
    """From now on every model that is loaded has it."""
    from atom.engine.runner import started_runner

    load = started_runner.load_model

    def planted(*args: Any, **keywords: Any) -> Any:
        model = load(*args, **keywords)
        linear = model.get_submodule(f"model.layers.{layer}.{MODULE}")
        linear.packed = Planted(linear.packed, what)
        return model

    started_runner.load_model = planted


def child(args: argparse.Namespace) -> None:
    """Writes the traces below `args.out`, and their paths beside them."""
    from trace_gpu_child import Engine

    if args.child not in PLAIN:
        plant(args.child, args.at)
    settings = {
        "load_dummy": True,
        "device": args.device,
        "overlap": False,
        "max_model_len": CONTEXT + 64 + args.steps,
        "max_num_seqs": args.batch,
        "cudagraph_capture_sizes": [1, args.batch],
        "torch_profiler_dir": str(args.out),
        "mark_trace": True,
        **WAYS[args.ways[0]],
    }
    engine = Engine(args.model, settings)
    engine.add(engine.prompts(1, args.batch, CONTEXT), 16 + args.steps)
    for _ in range(8):  # all prompts and some decode steps
        engine.step()
    paths, _ = engine.recorded(f"decode_{args.batch}", args.steps)
    engine.drain()
    engine.llm.close()
    (args.out / "result.json").write_text(json.dumps(paths), encoding="utf-8")


# -- comparing ------------------------------------------------------------------------------------


class Check(NamedTuple):
    way: str
    plant: str
    name: str
    ok: bool
    text: str


def recorded(args: argparse.Namespace, model: Path, way: str, what: str) -> list[Path]:
    """The traces of one engine; they are made unless they are there."""
    folder = args.out / way / what
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.json"
    if not (args.analyse_only and result.exists()):
        command = [sys.executable, str(Path(__file__).resolve()), "--child", what, "--ways", way]
        command += ["--model", str(model), "--out", str(folder), "--device", args.device]
        command += ["--at", str(args.at), "--batch", str(args.batch), "--steps", str(args.steps)]
        with (folder / "log.txt").open("wb") as log:
            done = subprocess.run(command, stdout=log, stderr=log, timeout=LIMIT_S, check=False)
        if done.returncode:
            tail = (folder / "log.txt").read_text(errors="replace").splitlines()[-6:]
            raise RuntimeError("\n".join([f"the engine ended with {done.returncode}:", *tail]))
    return [Path(path) for path in json.loads(result.read_text())]


def checks_of(args: argparse.Namespace, way: str, traces: dict[str, list[Path]]) -> Iterator[Check]:
    from atom.trace.analysis import load
    from atom.trace.attribution import Kind
    from atom.trace.diff import diff
    from atom.trace.verdict import headline

    device = "gpu" if args.device == "cuda" else "cpu"
    loaded = {what: load(paths, device=device) for what, paths in traces.items()}
    for what, side in loaded.items():
        if what == PLAIN[0]:
            continue
        group = diff(loaded[PLAIN[0]], side, kind="decode").groups[0]
        text = headline(group)
        if what in PLAIN:
            ratio = group.busy.ratio or 0.0
            yield Check(way, what, "same", abs(ratio - 1) <= args.noise / 100, text)
        else:
            graphs = WAYS[way]["cudagraph_mode"] != "none"
            kernels = [r for r in group.rows if r.kind is Kind.KERNEL]
            first = group.rows[0] if graphs else max(kernels, key=lambda r: r.delta_us)
            layers = first.layers[1:]
            most = max(range(len(layers)), key=lambda i: layers[i]) if layers else -1
            found = first.module == MODULE and most == args.at and first.delta_us > 0
            yield Check(way, what, "named", found, text)
        sums = tuple(sum(getattr(r, x) for r in group.rows) for x in ("a_ns", "b_ns"))
        yield Check(way, what, "sums", sums == group.span_ns, f"{sums} ns of {group.span_ns}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE / "configs" / "qwen3-0.6b")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--at", type=int, default=3, help="the layer in which it is planted")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["eager", "eager-graphs"])
    parser.add_argument("--plants", nargs="+", choices=("gemm", "sleep"), default=["gemm", "sleep"])
    parser.add_argument("--noise", type=float, default=5.0, help="percent, of two equal runs")
    parser.add_argument("--analyse-only", action="store_true", help="of traces that are there")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.absolute()
    return args


def main() -> int:
    args = parse()
    if args.child:
        child(args)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    model = truncated(args.model, args.layers, args.out)
    plants = [p for p in args.plants if p != "sleep" or args.device == "cuda"]
    checks: list[Check] = []
    for way in args.ways:
        try:
            traces = {what: recorded(args, model, way, what) for what in (*PLAIN, *plants)}
            for check in checks_of(args, way, traces):
                checks.append(check)
                mark = "ok  " if check.ok else "FAIL"
                words = f"{check.way:13} {check.plant:6} {check.name:6} {check.text}"
                print(f"{mark} {words}", flush=True)
        except Exception as error:  # the other ways are worth seeing all the same
            checks.append(Check(way, "", "run", False, f"{type(error).__name__}: {error}"))
            print(f"FAIL {way:13} {checks[-1].text}", flush=True)
    report = [check._asdict() for check in checks]
    (args.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    failed = sum(not check.ok for check in checks)
    print(f"{len(checks)} checks, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

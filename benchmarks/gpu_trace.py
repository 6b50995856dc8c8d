"""Where a step's time goes on a GPU: busy and idle shares, time per kernel, the gaps.

    python benchmarks/gpu_trace.py --model DIR [--batch 32] [--prompt 128] [--steps 20]
        [--phase decode] [--set level=3] [--trace FILE] [--json FILE]

Random weights, random prompts, greedy. `decode`: `--steps` steps of `--batch` running sequences;
`prefill`: all steps that `--batch` prompts take. The same kind of step runs twice: untraced, which
gives the time that counts, and under torch's profiler, which gives the kernels. A profiler slows
the host and lengthens gaps, so the idle share is reported both as traced and as the untraced step
less the traced kernels' time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from h200 import setting
from roofline import Shape

STEP = "atom step"
GPU_KINDS = ("kernel", "gpu_memcpy", "gpu_memset")


# -- reading a trace ------------------------------------------------------------------------------


class Piece(NamedTuple):
    """One piece of work on the GPU; microseconds."""

    start: float
    end: float
    name: str
    step: int  # which launch it belongs to; -1: none


class Gap(NamedTuple):
    seconds: float
    before: str
    after: str
    between_steps: bool


class Kernel(NamedTuple):
    """Per step. A kernel that is launched early waits for the one before while it runs already
    (programmatic dependent launch): `own` counts from where the work before it ended, so that the
    kernels' own times add up to `Report.busy`; `span` is what the trace says."""

    name: str
    calls: float
    own: float  # microseconds
    span: float


@dataclass(frozen=True)
class Report:
    """Of the steps of one trace; microseconds per step unless said otherwise."""

    steps: int
    window: float  # from the first step's first kernel to the last one's last
    busy: float
    kernels: list[Kernel]  # the most first
    gaps: list[tuple[str, float, float]]  # "before -> after", count, microseconds
    idle_within: float
    idle_between: float
    host: float  # in `launch`


def read(events: Iterable[dict[str, Any]]) -> Report:
    """`events`: the traceEvents of a Chrome trace whose launches are marked "atom step"."""
    marks: list[tuple[float, float]] = []
    launches: dict[int, float] = {}
    found: list[dict[str, Any]] = []
    for event in events:
        if event.get("ph") != "X":
            continue
        kind = event.get("cat", "")
        if kind in ("user_annotation", "cpu_op") and event["name"] == STEP:
            marks.append((event["ts"], event["ts"] + event["dur"]))
        elif kind in ("cuda_runtime", "cuda_driver"):
            correlation = event.get("args", {}).get("correlation")
            if correlation is not None:
                launches[correlation] = event["ts"]
        elif kind in GPU_KINDS:
            found.append(event)
    marks = sorted(set(marks))
    pieces = sorted(_piece(event, launches, marks) for event in found)
    return summarise([piece for piece in pieces if piece.step >= 0], marks)


def _piece(
    event: dict[str, Any], launches: dict[int, float], marks: list[tuple[float, float]]
) -> Piece:
    launched = launches.get(event.get("args", {}).get("correlation", -1), event["ts"])
    step = next((i for i, (start, end) in enumerate(marks) if start <= launched <= end), -1)
    return Piece(event["ts"], event["ts"] + event["dur"], event["name"], step)


def summarise(pieces: list[Piece], marks: list[tuple[float, float]]) -> Report:
    if not pieces:
        raise SystemExit("the trace holds no work of a GPU")
    count = len({piece.step for piece in pieces})
    busy, end, last = 0.0, pieces[0].start, pieces[0]
    by_name: dict[str, list[tuple[float, float]]] = defaultdict(list)
    gaps: list[Gap] = []
    for piece in pieces:
        if piece.start > end:
            gaps.append(Gap(piece.start - end, last.name, piece.name, piece.step != last.step))
        own = max(0.0, piece.end - max(piece.start, end))
        by_name[piece.name].append((own, piece.end - piece.start))
        busy += own
        if piece.end > end:
            end, last = piece.end, piece
    kernels = [
        Kernel(n, len(t) / count, sum(o for o, _ in t) / count, sum(s for _, s in t) / count)
        for n, t in by_name.items()
    ]
    by_place: dict[str, list[float]] = defaultdict(list)
    for gap in gaps:
        place = f"{short(gap.before)} -> {short(gap.after)}"
        by_place[("[next step] " if gap.between_steps else "") + place].append(gap.seconds)
    places = [(n, len(t) / count, sum(t) / count) for n, t in by_place.items()]
    return Report(
        steps=count,
        window=(end - pieces[0].start) / count,
        busy=busy / count,
        kernels=sorted(kernels, key=lambda kernel: -kernel.own),
        gaps=sorted(places, key=lambda row: -row[2]),
        idle_within=sum(g.seconds for g in gaps if not g.between_steps) / count,
        idle_between=sum(g.seconds for g in gaps if g.between_steps) / count,
        host=sum(stop - start for start, stop in marks) / max(1, len(marks)),
    )


def short(name: str, width: int = 34) -> str:
    """A kernel's name without its template arguments and return type."""
    name = name.split("<")[0].removeprefix("void ").split("(")[0]
    return name if len(name) <= width else name[: width - 1] + "~"


# -- running --------------------------------------------------------------------------------------


class Traced:
    """An engine whose launches are marked in the trace."""

    def __init__(self, model: Path, settings: dict[str, Any]) -> None:
        from atom.engine.llm import LLM

        self.llm = LLM(str(model), **{"load_dummy": True, **settings})
        self.core = self.llm.core
        self._random = random.Random(7)
        self._count = 0

    def mark_launches(self) -> None:
        from torch.profiler import record_function

        runner = self.core._runner  # a benchmark may look inside
        launch = runner.launch

        def marked(plan: Any) -> Any:
            with record_function(STEP):
                return launch(plan)

        runner.launch = marked  # type: ignore[method-assign]

    def add(self, batch: int, prompt: int, output: int) -> None:
        from atom.engine.messages import GenerateRequest
        from atom.engine.sampling_params import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        for _ in range(batch):
            self._count += 1
            tokens = self._random.choices(range(self.core.info.vocab_size), k=prompt)
            self.core.add(GenerateRequest(f"t{self._count}", tokens, sampling))

    def decoding(self, batch: int, prompt: int, output: int) -> None:
        """Bring `batch` sequences to the point where all of them decode."""
        self.add(batch, prompt, output)
        table = self.core.scheduler.table
        while True:
            self.core.step()
            rows = self.core.scheduler.state.running_rows
            done = table.num_computed[rows] >= table.prefill_end[rows]
            if len(rows) == batch and bool(done.all()):
                break
        for _ in range(5):
            self.core.step()

    def steps(self, count: int) -> list[float]:
        """Seconds of each of `count` steps; 0: all there are."""
        times = []
        while self.core.has_work and (not count or len(times) < count):
            started = time.perf_counter()
            self.core.step()
            times.append(time.perf_counter() - started)
        return times

    def drain(self) -> None:
        self.core.abort_all()
        while self.core.has_work:
            self.core.step()


def run(args: argparse.Namespace) -> tuple[float, int, dict[str, Any]]:
    """(seconds of an untraced step, steps, the trace)."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    engine = Traced(args.model, dict(args.set))
    prefill = args.phase == "prefill"

    def prepare(output: int) -> None:
        if prefill:
            engine.add(args.batch, args.prompt, 1)
        else:
            engine.decoding(args.batch, args.prompt, output)

    for _ in range(2):  # the first time warms up
        prepare(4 * args.steps + 20)
        torch.cuda.synchronize()
        before, started = engine.core.stats().steps, time.perf_counter()
        times = engine.steps(0 if prefill else args.steps)
        torch.cuda.synchronize()
        steps = engine.core.stats().steps - before
        seconds = (time.perf_counter() - started) / max(1, steps)
        if not prefill:  # with overlap a step's own time is the device's pace
            seconds = statistics.median(times)
        engine.drain()
    engine.mark_launches()
    prepare(4 * args.steps + 20)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        engine.steps(0 if prefill else args.steps)
        torch.cuda.synchronize()
    engine.drain()
    path = args.trace or Path(tempfile.mkdtemp()) / "trace.json"
    profiler.export_chrome_trace(str(path))
    return seconds, steps, json.loads(Path(path).read_text())


# -- printing -------------------------------------------------------------------------------------


def show(report: Report, step_s: float, floor_s: float, top: int) -> None:
    step = 1e6 * step_s
    idle = max(0.0, 1 - report.busy / step)
    print(f"step, untraced      {step:10.1f} us")
    print(f"step, traced        {report.window:10.1f} us over {report.steps} steps")
    print(f"GPU busy            {report.busy:10.1f} us")
    print(f"GPU idle, untraced  {step - report.busy:10.1f} us = {idle:.1%} of the step")
    traced = report.idle_between / report.window
    print(f"idle between steps  {report.idle_between:10.1f} us traced = {traced:.1%}")
    print(f"idle within a step  {report.idle_within:10.1f} us traced")
    print(f"host in launch      {report.host:10.1f} us traced")
    print(f"floor               {1e6 * floor_s:10.1f} us; the step is {step / 1e6 / floor_s:.2f}x")
    print(f"\n{'kernel':60}{'calls':>8}{'us/step':>10}{'us each':>9}{'share':>7}{'span':>9}")
    for row in report.kernels[:top]:
        print(f"{short(row.name, 58):60}{row.calls:8.1f}{row.own:10.1f}", end="")
        print(f"{row.own / row.calls:9.2f}{row.own / report.busy:7.1%}", end="")
        print(f"{row.span / row.calls:9.2f}")
    rest = report.kernels[top:]
    if rest:
        calls, own = sum(row.calls for row in rest), sum(row.own for row in rest)
        print(f"{f'{len(rest)} more':60}{calls:8.1f}{own:10.1f}")
    print(f"{'all':60}{sum(row.calls for row in report.kernels):8.1f}{report.busy:10.1f}")
    print(f"\n{'gap':84}{'count':>7}{'us/step':>9}")
    for place, count, spent in report.gaps[: top // 2]:
        print(f"{place:84}{count:7.1f}{spent:9.1f}")


def floor_of(args: argparse.Namespace, steps: int) -> float:
    """Seconds per step."""
    shape = Shape.read(args.model)
    if args.phase == "prefill":
        return shape.prefill_s(args.batch, args.prompt) / max(1, steps)
    fp8 = dict(args.set).get("kv_cache_dtype") == "fp8"
    return shape.decode_s(args.batch, args.prompt + 5 + args.steps / 2, 1 if fp8 else 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--phase", default="decode", choices=("decode", "prefill"))
    parser.add_argument("--set", nargs="*", type=setting, default=[], help="settings of LLM")
    parser.add_argument("--top", type=int, default=24, help="kernels that are listed")
    parser.add_argument("--trace", type=Path, help="keep the Chrome trace (few steps: it is large)")
    parser.add_argument("--json", type=Path, help="the figures")
    args = parser.parse_args()
    args.model = args.model.resolve()
    step_s, steps, trace = run(args)
    report = read(trace["traceEvents"])
    floor_s = floor_of(args, steps)
    print(f"{args.model.name}: {args.phase}, batch {args.batch}, {args.prompt} tokens in")
    show(report, step_s, floor_s, args.top)
    if args.json:
        figures = {"step_s": step_s, "floor_s": floor_s, **vars(report)}
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

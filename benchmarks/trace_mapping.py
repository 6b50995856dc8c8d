"""How well replayed kernels find their modules in a trace that is damaged: kernels are taken out of
a real replay and others put in at random, which is known, so mistakes can be counted.

    python benchmarks/trace_mapping.py [RUN CAPTURE]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from atom.trace.mapping import Replay, Template, capture_templates, map_replays
from atom.trace.reader import read_trace
from atom.trace.scopes import find_scopes
from atom.trace.types import RankTrace

REAL = Path(__file__).parent.parent / "tests" / "trace" / "sglang_mi300"
DAMAGE = ((1, 0, 544), (2, 0, 200), (5, 0, 200), (20, 0, 100), (100, 0, 30), (0, 1, 300),
          (0, 5, 100), (1, 1, 200), (5, 5, 100))  # fmt: skip


def main() -> None:
    """Print one row for each kind of damage."""
    given = [Path(path) for path in sys.argv[1:3]]
    run, capture = given or [REAL / f"qwen3-8b.{n}.json.gz" for n in ("run", "capture_bs32")]
    trace, captured = read_trace(run), read_trace(capture)
    templates = capture_templates(captured, find_scopes(captured).runtime)
    rows = longest_launch(trace)
    whole = map_replays(trace, [Replay(0, "", -1, (rows,))], templates)
    if (whole.node < 0).any() or len(np.unique(whole.template)) != 1:
        raise SystemExit(f"{run}: the undamaged replay is not mapped by {capture}")
    template = templates[int(whole.template[0])]
    print(f"{run.name}: {len(rows)} kernels of one graph launch, {template.label}")
    print("missing  extra  replays   kernels  without module  wrong module  ms/replay")
    for missing, extra, times in DAMAGE:
        print(measure(trace, rows, template, whole.node, missing, extra, times))


def longest_launch(trace: RankTrace) -> np.ndarray:
    """Rows of the graph launch with most kernels."""
    graphs = [i for i in np.unique(trace.runtime.name) if "GraphLaunch" in trace.strings[int(i)]]
    launches = trace.runtime.correlation[np.isin(trace.runtime.name, graphs)]
    found = [np.flatnonzero(trace.gpu.correlation == one) for one in launches]
    return max(found, key=len).astype(np.int64)


def measure(
    trace: RankTrace,
    rows: np.ndarray,
    template: Template,
    node: np.ndarray,
    missing: int,
    extra: int,
    times: int,
) -> str:
    """A row of the table; the damage is drawn anew for each replay."""
    rng = np.random.default_rng(1)
    replays, truths = [], []
    for _ in range(times):
        kept = np.sort(rng.choice(len(rows), len(rows) - missing, replace=False))
        damaged, truth = rows[kept], node[kept]
        for _ in range(extra):
            at = int(rng.integers(0, len(damaged) + 1))
            damaged = np.insert(damaged, at, rows[rng.integers(0, len(rows))])
            truth = np.insert(truth, at, -1)
        replays.append(Replay(len(replays), template.kind, template.size, (damaged,)))
        truths.append(truth)
    start = time.perf_counter()
    mapped = map_replays(trace, replays, [template])
    spent = (time.perf_counter() - start) / times
    truth = np.concatenate(truths)
    ours = np.where(mapped.node >= 0, template.place[mapped.node], -1)
    true = np.where(truth >= 0, template.place[truth], -1)
    without = int(((ours < 0) & (true >= 0)).sum())
    wrong = int(((ours >= 0) & (ours != true)).sum())
    return (
        f"{missing:7}  {extra:5}  {times:7}  {len(truth):8,}"
        f"  {without:5,} ({without / len(truth):6.2%})"
        f"  {wrong:3,} ({wrong / len(truth):7.3%})  {spent * 1000:9.1f}"
    )


if __name__ == "__main__":
    main()

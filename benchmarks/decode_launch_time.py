"""Host time of launching a decode step that is one graph, the graph itself left out.

    python benchmarks/decode_launch_time.py [--sizes 1 32 256] [--steps 600]

What is measured is the Python between a plan and the graph's launch: choosing the size, writing the
packet, editing block tables, looking at sampling flags, making the handle. Runs on CPU, where the
copies to and from the device are small copies in memory; on a GPU they are three driver calls more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atom.engine.plan import RowBlocks, StepPlan
from atom.engine.runner.decode_graphs import DecodeGraphs, StepKernels
from atom.engine.runner.inputs import InputBatch

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class NoGraph:
    def replay(self) -> None:
        pass


class NoRecorder:
    @contextmanager
    def session(self) -> Iterator[None]:
        yield

    def record(self, body: Callable[[], Any]) -> tuple[NoGraph, Any]:
        return NoGraph(), body()

    def begin(self) -> None:
        pass

    def end(self) -> NoGraph:
        return NoGraph()

    def alias(self, tensor: Tensor) -> Tensor:
        return tensor

    def used_bytes(self) -> int:
        return 0


def make_graphs(batch: InputBatch) -> DecodeGraphs:
    kernels = StepKernels(lambda *args, **kwargs: None, lambda *args: None, lambda *args: None)
    graphs = DecodeGraphs(
        SIZES,
        batch,
        8192,
        forward=lambda ids, positions: ids,
        compute_logits=lambda hidden: hidden[:, None].float(),
        kernels=kernels,
        recorder=NoRecorder(),
        copies=None,
    )
    for size in reversed(SIZES):
        graphs.capture(size)
    return graphs


def measure(graphs: DecodeGraphs, batch: InputBatch, count: int, steps: int) -> list[float]:
    """Seconds of each step; a sixteenth of the sequences begins a block in each."""
    flags, seconds = np.zeros(SIZES[-1], np.int32), []
    for step in range(steps):
        plan = StepPlan(
            step=step,
            new_rows=[],
            new_blocks=[
                RowBlocks(i, (100 + step) // 16, [i]) for i in range(count) if (i + step) % 16 == 0
            ],
            free_rows=[],
            rows=np.arange(count, dtype=np.int32),
            num_computed=np.full(count, 100 + step, np.int32),
            num_scheduled=np.ones(count, np.int32),
            samples=np.ones(count, np.bool_),
        )
        started = time.perf_counter()
        with torch.inference_mode():
            size = graphs.size_for(plan)
            assert not plan.new_blocks or batch.begins_blocks(plan)
            slot, _ = graphs.replay(plan, size)
            assert not np.bitwise_or.reduce(flags[plan.rows])
            graphs.ring.deliver(slot, size, count)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    batch = InputBatch(SIZES[-1], 8192, 16, torch.device("cpu"))
    graphs = make_graphs(batch)
    print(f"{'sequences':>10}{'median us':>12}{'p10 us':>10}{'p90 us':>10}")
    for count in args.sizes:
        seconds = measure(graphs, batch, count, args.steps)
        low, high = seconds[len(seconds) // 10], seconds[len(seconds) * 9 // 10]
        row = (1e6 * statistics.median(seconds), 1e6 * low, 1e6 * high)
        print(f"{count:10}" + "{:12.1f}{:10.1f}{:10.1f}".format(*row))


if __name__ == "__main__":
    main()

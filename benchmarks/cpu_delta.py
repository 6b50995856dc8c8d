"""Gated DeltaNet on one CPU core: milliseconds of one layer, native beside torch's chunks.

    python benchmarks/cpu_delta.py [--repeats 7]

Sizes of Qwen3-Next (16 key heads, 32 value heads, 128 channels), float32; processor time, the two
in turn, median and range.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import gpu_delta
import torch

from atom.ops.cpu import delta, delta_native

gpu_delta.LAYERS = 1
WORK: dict[str, tuple[int, list[int]]] = {
    "1 decode": (1, []),
    "8 decodes": (8, []),
    "prompt of 256": (0, [256]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    params = gpu_delta.make_params(1, False, "cpu")
    params = dataclasses.replace(params, conv_weight=params.conv_weight.float())
    print(f"{'work':15} {'native ms':>24} {'torch ms':>24}")
    for name, (decodes, prompts) in WORK.items():
        step = gpu_delta.Step(params, decodes, prompts, "cpu")
        x, ring, state = step.x.float(), step.rings[0].float(), step.states[0]
        taken: dict[str, list[float]] = {"native": [], "torch": []}
        kernels = {"native": delta_native.gated_delta_net, "torch": delta.gated_delta_net}
        for repeat in range(repeats + 1):
            for kind, kernel in kernels.items():
                inputs = x.clone(), ring.clone(), state.clone()
                began = time.process_time()
                kernel(*inputs, step.meta, params)
                if repeat:  # the first one warms up
                    taken[kind].append(1e3 * (time.process_time() - began))
        cells = [
            f"{statistics.median(t):.2f} ({min(t):.2f} to {max(t):.2f})" for t in taken.values()
        ]
        print(f"{name:15} {cells[0]:>24} {cells[1]:>24}", flush=True)


if __name__ == "__main__":
    main()

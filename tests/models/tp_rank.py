"""One rank of the tensor-parallel test: `tp_rank.py RANK SIZE PORT OUT MODEL...`.

Computes the logits of a fixed prompt with each model and writes them to OUT/RANK.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from harness import PagedModel
from safetensors.torch import save_file
from tiny import random_prompt

from atom.config.schema import Config, ModelConfig
from atom.engine.runner.tp import leave
from atom.models.loader import load_model
from atom.models.source import resolve_source
from atom.parallel.rendezvous import rendezvous


def main() -> None:
    rank, size, port = (int(arg) for arg in sys.argv[1:4])
    torch.set_num_threads(1)
    parallel = rendezvous(rank, size, port=port, timeout_s=120)
    results = {}
    for number, job in enumerate(sys.argv[5:]):
        path, _, option = job.partition("=")
        dummy = option == "dummy"
        dtype = "float32" if option != "packed" else "auto"
        config = Config(model=ModelConfig(model=path, dtype=dtype, load_dummy=dummy))
        source = resolve_source(config.model)
        device = torch.device("cpu")
        model = load_model(source, config, device, torch.float32, parallel=parallel)
        results[str(number)] = PagedModel(model, block_size=4).logits(random_prompt(40), [17, 1, 9])
    save_file(results, Path(sys.argv[4]) / f"{rank}.safetensors")
    leave()


if __name__ == "__main__":
    main()

"""One rank of `test_families_tp`: `families_rank.py RANK SIZE PORT OUT FOLDER:BLOCK_SIZE...`.

Computes the logits of each checkpoint's own reference sequence, in chunks, and writes them to
OUT/RANK.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from harness import PagedModel
from safetensors.torch import load_file, save_file

from atom.config.schema import Config, EngineConfig, ModelConfig
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
        folder, _, block = job.rpartition(":")
        engine = EngineConfig(kv_cache_block_size=int(block))
        config = Config(model=ModelConfig(model=folder, dtype="float32"), engine=engine)
        source, device = resolve_source(config.model), torch.device("cpu")
        model = load_model(source, config, device, torch.float32, parallel=parallel)
        found = load_file(str(Path(folder) / "reference.safetensors"))
        ids = [*found["input_ids"].tolist(), *found["greedy_ids"].tolist()]
        logits = PagedModel(model, int(block)).logits(ids, [37, 1, 1, 9])
        results[str(number)] = logits.contiguous()
    save_file(results, Path(sys.argv[4]) / f"{rank}.safetensors")
    leave()


if __name__ == "__main__":
    main()

"""Compile a model in pieces for real and say what it took: `compile_once.py STORE MODEL`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from compiling import compiled, load_traceable, logits_of
from tiny import random_prompt

from atom.engine.compiler import environment
from atom.engine.compiler.store import Store


def main() -> None:
    torch.set_num_threads(1)
    environment.source_digest = lambda *_: "as it is"  # who edits the tree breaks no test
    model, ids = load_traceable(Path(sys.argv[2])), random_prompt(40)
    made = compiled(model, Store(Path(sys.argv[1])))
    difference = 0.0
    for chunks in ([23, 1, 1, 9], [1]):
        want = logits_of(model, model.forward, ids, chunks)
        got = logits_of(model, made.forward, ids, chunks)
        difference = max(difference, float((got - want).abs().max()))
    print(json.dumps([made.traced, made.compiled, made.num_pieces, difference]))


if __name__ == "__main__":
    main()

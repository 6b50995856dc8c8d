"""One rank that compares what is compiled with eager: `compile_rank.py RANK SIZE PORT MODEL...`.

Every model runs as Dynamo traces it (levels 1 and 2) and in interpreted pieces (level 3).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from compiling import Interpreter, compiled, load_traceable, logits_of
from tiny import random_prompt

from atom.engine.compiler import inductor
from atom.engine.compiler.plan import OpCall
from atom.engine.compiler.store import Store
from atom.engine.runner.tp import leave
from atom.parallel.rendezvous import rendezvous


def main() -> None:
    rank, size, port = (int(arg) for arg in sys.argv[1:4])
    torch.set_num_threads(1)
    parallel = rendezvous(rank, size, port=port, timeout_s=120)
    interpreter = Interpreter()
    inductor.compile_piece = interpreter.compile_piece  # type: ignore[assignment]
    inductor.load_piece = interpreter.load_piece
    ids = random_prompt(40)
    for path in map(Path, sys.argv[4:]):
        model = load_traceable(path, parallel=parallel)
        want = logits_of(model, model.forward, ids, [17, 9])
        dynamo = torch.compile(model.forward, backend="aot_eager", fullgraph=True, dynamic=True)
        with tempfile.TemporaryDirectory() as folder:
            pieces = compiled(model, Store(Path(folder))).forward
        for forward in (dynamo, pieces):
            got = logits_of(model, forward, ids, [17, 9])
            torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
        sums = [step for step in pieces.plan.steps if isinstance(step, OpCall) and step.layer]
        assert sum(step.op == "atom::all_reduce" for step in sums) > 2 * model_layers(model)
        assert not any(step.copied for step in sums), "sums are made in place"
    leave()


def model_layers(model: object) -> int:
    return len(model.attention_layers())  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()

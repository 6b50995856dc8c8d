"""How far each family's logits are from transformers', as one table: `python family_parity.py`.

Tiny random checkpoints of every family, float32 on CPU; 112 tokens (DeepSeek V4: 312), of which the
last 32 are transformers' greedy ones. Differences are the largest over all logits, over the largest
logit. "chunks": prompts in pieces of 37, 1, 1 and then 9 tokens; "native" and "reference" are the
CPU's own kernels and plain torch.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "models")]

import torch  # noqa: E402
import transformers  # noqa: E402
from harness import PagedModel  # noqa: E402
from hub import hub_checkpoint  # noqa: E402
from test_families import BLOCK_SIZES, SUPPORTED, load, reference  # noqa: E402

from atom.ops import registry  # noqa: E402


def difference(family: str, chunks: list[int]) -> tuple[float, int]:
    """(largest difference, greedy tokens of 32 that are equal), given the tokens before each."""
    size = BLOCK_SIZES.get(family, 16)
    prompt, after, want = reference(family)
    model = load(hub_checkpoint(family), size)
    got = PagedModel(model, size).logits([*prompt, *after], chunks)
    chosen = got[len(prompt) - 1 : -1].argmax(-1).tolist()
    equal = sum(a == b for a, b in zip(chosen, after, strict=True))
    return float((got - want).abs().max() / want.abs().max()), equal


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{'family':20} {'whole':>9} {'chunks':>9} {'reference':>9} {'greedy':>9}")
    preferred = dict(registry.PREFERENCE)
    for family in SUPPORTED:
        whole, _ = difference(family, [1000])
        chunks, equal = difference(family, [37, 1, 1, 9])
        registry.PREFERENCE["cpu"] = ("reference",)
        plain, also = difference(family, [37, 1, 1, 9])
        registry.PREFERENCE.update(preferred)
        greedy = f"{min(equal, also)} of 32"
        print(f"{family:20} {whole:9.1e} {chunks:9.1e} {plain:9.1e} {greedy:>9}", flush=True)


if __name__ == "__main__":
    main()

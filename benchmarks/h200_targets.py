"""What is measured, what others reach on it, and what counts as a pass: data of `h200.py`.

The peers' figures are vLLM 0.26.0 and SGLang 0.5.17, measured on the same card (one H200, torch
2.11.0+cu130) with the same work: bfloat16, random weights (matrices of deviation 0.02, norms 1),
random token ids, greedy, end of sequence ignored, no prefix ever reused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from roofline import Shape

PEERS = "vLLM 0.26.0, SGLang 0.5.17 on the same card"
START_S = 18.0  # import + start with warm caches; vLLM's is 37 to 45 s
DECODE_BATCHES = (1, 32, 128)


@dataclass(frozen=True)
class Peer:
    """The better of the two peers: TPOT in ms by batch, tokens per second."""

    tpot_ms: tuple[float, float, float]
    vllm_tpot_ms: tuple[float, float, float]
    throughput: float
    prefill: float
    start_s: float  # vLLM's import + start


# By (hidden size, layers): a config folder may have any name.
KNOWN = {
    (4096, 32, 0): Peer((4.71, 5.27, 6.98), (4.83, 5.38, 6.98), 35_865, 42_861, 39),
    (1024, 28, 0): Peer((1.59, 1.82, 2.93), (1.62, 1.89, 2.93), 155_175, 397_130, 45),
    (2048, 48, 128): Peer((4.02, 15.28, 18.15), (4.11, 15.32, 18.43), 42_805, 71_160, 37),
}
# Llama-3.1-8B at batch 1 must also reach 85 % of the bandwidth roofline.
ROOFLINE_SHARE = {(4096, 32, 0): 0.85}


def key_of(shape: Shape) -> tuple[int, int, int]:
    return shape.hidden, shape.layers, shape.experts


@dataclass(frozen=True)
class Cell:
    """One measurement. `kind`: decode, throughput, prefill, long or start.

    `kv`: the KV cache's dtype, which is the engine's and so the process's.
    """

    name: str
    kind: str
    batch: int = 0
    prompt: int = 0
    output: int = 0
    kv: str = "auto"
    repeats: int = 3

    @property
    def kv_itemsize(self) -> int:
        return 1 if self.kv == "fp8" else 2


def cells(tiny: bool, quick: bool, with_long: bool) -> list[Cell]:
    """The table's rows for one model. `tiny`: shapes for a CPU; `quick`: one repeat of each."""
    prompt, output = (16, 8) if tiny else (128, 128)
    batches = (1, 2, 4) if tiny else DECODE_BATCHES
    repeats = 1 if quick else 3
    rows = [
        Cell(f"decode-{batch}", "decode", batch, prompt, output, repeats=repeats)
        for batch in batches
    ]
    many, length, out = (8, 32, 8) if tiny else (256, 1024, 128)
    rows.append(Cell("prefill", "prefill", *((4, 64) if tiny else (32, 2048)), 1, repeats=repeats))
    # Quick: two, of which the report takes the faster; the first one warms up.
    rows.append(Cell("throughput", "throughput", many, length, out, repeats=max(2, repeats)))
    if with_long:
        work = (4, 128, 8) if tiny else (64, 8192, 128)
        # The fp8 engine is another process: it is the second start too.
        rows += [Cell(f"long-{kv}", "long", *work, kv=kv, repeats=1) for kv in ("auto", "fp8")]
    rows.append(Cell("start", "start", batch=0 if tiny else 1, kv="start"))
    return rows


def floor_s(cell: Cell, shape: Shape) -> float | None:
    """Seconds below which no version runs: of a token for decode, else of the whole work."""
    match cell.kind:
        case "decode":
            return shape.decode_s(cell.batch, cell.prompt + cell.output / 2)
        case "prefill":
            return shape.prefill_s(cell.batch, cell.prompt)
        case "throughput" | "long":
            return shape.offline_s(cell.batch, cell.prompt, cell.output, cell.kv_itemsize)
        case _:
            return None


@dataclass(frozen=True)
class Target:
    """`value` in the cell's own unit (ms, tok/s or s) and the peer's figure beside it."""

    value: float
    peer: float
    lower_is_better: bool

    def met(self, measured: float) -> bool:
        return measured <= self.value if self.lower_is_better else measured >= self.value


def target_of(cell: Cell, shape: Shape) -> Target | None:
    """None: nobody's figure is known for this work."""
    peer = KNOWN.get(key_of(shape))
    if peer is None:
        return None
    match cell.kind:
        case "decode" if cell.batch in DECODE_BATCHES and (cell.prompt, cell.output) == (128, 128):
            known = peer.tpot_ms[DECODE_BATCHES.index(cell.batch)]
            share = ROOFLINE_SHARE.get(key_of(shape))
            aim = known
            if cell.batch == 1 and share is not None:
                floor = floor_s(cell, shape)
                assert floor is not None
                aim = min(aim, 1e3 * floor / share)
            return Target(aim, known, True)
        case "throughput" if (cell.batch, cell.prompt, cell.output) == (256, 1024, 128):
            return Target(1.1 * peer.throughput, peer.throughput, False)
        case "prefill" if (cell.batch, cell.prompt) == (32, 2048):
            return Target(peer.prefill, peer.prefill, False)
        case "start" if cell.batch:  # on a GPU
            return Target(START_S, peer.start_s, True)
        case _:
            return None


def shape_of(folder: Path) -> Shape:
    return Shape.read(folder)

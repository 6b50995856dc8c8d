"""DeepSeek V4's kernels against the reference, over caches that are NaN wherever nothing is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from harness import make_metadata, poison
from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_v4 import Compressor, HyperWeights, Pending
from atom.ops.reference import v4 as reference
from atom.ops.reference import v4_hyper as reference_hyper
from atom.ops.triton import v4_attention, v4_best, v4_choose, v4_compress, v4_hyper, v4_write

F32, BF16, FP8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
LIMITS = {F32: 2e-5, BF16: 1.5e-2}
SIZE = 16  # tokens of a block


def error(out: Tensor, expected: Tensor) -> float:
    """NaN where either holds one."""
    out, expected = out.double(), expected.double()
    return float((out - expected).norm() / expected.norm())


def table(length: int, size: int, device: str) -> Tensor:
    angles = torch.outer(torch.arange(length).float(), 1 / 100 ** (torch.arange(size // 2) / size))
    return torch.cat((angles.cos(), angles.sin()), -1).to(device)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.uint8 if x.dtype == FP8 else x.dtype)


@dataclass
class Step:
    """Sequences of `lengths` tokens, the last `new` of each the step's. 0: padding of a decode."""

    meta: AttentionMetadata
    positions: Tensor
    device: str

    def cache(self, shape: tuple[int, ...], dtype: torch.dtype, full: bool) -> Tensor:
        """Poisoned where no sequence has a block; where one has, random."""
        cache = poison(torch.empty((24, *shape), dtype=dtype, device=self.device))
        meta = self.meta if full else self.meta.window
        assert meta is not None
        for row in meta.block_table.tolist():
            for block in row:
                if block >= 0:
                    cache[block] = torch.randn(shape).to(self.device, dtype)
        return cache

    def rows(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Strided, as slices of a projection are."""
        wide = torch.randn(len(self.positions), *shape[:-1], shape[-1] + 16)
        return wide.to(self.device, dtype)[..., : shape[-1]]


def make_step(lengths: list[int], new: list[int], num_padding: int, device: str) -> Step:
    counts = [-(-n // SIZE) for n in lengths]
    metas = []
    for _ in range(2):
        order = torch.randperm(24).tolist()
        chunks = [
            ([order.pop() for _ in range(count)], length - added, added)
            for length, count, added in zip(lengths, counts, new, strict=True)
        ]
        metas.append(make_metadata(chunks, SIZE, num_padding, device))
    meta = replace(metas[0], window=metas[1])
    places = [range(n - k, n) if n else range(1) for n, k in zip(lengths, new, strict=True)]
    known = [p for place in places for p in place]
    positions = torch.tensor(known + [0] * num_padding, device=device)
    if 0 in lengths:  # a row for each sequence, padding or not
        assert meta.window is not None
        for held in (meta, meta.window):
            slots = iter(held.slot_mapping.tolist())
            rows = [next(slots) if length else -1 for length in lengths]
            held.slot_mapping = torch.tensor(rows, device=device)
            held.num_tokens = len(lengths)
    return Step(meta, positions, device)


STEPS = {
    "decode": ([38, 0, 16, 3], [1, 0, 1, 1], 0),
    "mixed": ([38, 23, 1], [13, 1, 1], 2),
}


@pytest.fixture(params=STEPS)
def step(request: pytest.FixtureRequest, device: str) -> Step:
    return make_step(*STEPS[request.param], device)


def alive(step: Step) -> Tensor:
    assert step.meta.window is not None
    return step.meta.window.slot_mapping >= 0


@pytest.mark.parametrize(("dtype", "kv"), [(F32, F32), (BF16, BF16), (BF16, FP8)], ids=str)
def test_write(step: Step, dtype: torch.dtype, kv: torch.dtype) -> None:
    assert step.meta.window is not None
    q, keys = step.rows(3 * 32, dtype=dtype), step.rows(32, dtype=dtype)
    norm, cos_sin = torch.randn(32).to(step.device, dtype), table(64, 8, step.device)
    caches = [step.cache((SIZE, 32), kv, False) for _ in range(2)]
    caches[1].view(torch.uint8).copy_(caches[0].view(torch.uint8))
    slots = step.meta.window.slot_mapping
    got, want = (
        run(q.view(-1, 3, 32), keys, norm, 1e-6, step.positions, cos_sin, cache, slots)
        for run, cache in zip((v4_write.v4_write, reference.v4_write), caches, strict=True)
    )
    assert error(got, want) < LIMITS[dtype]
    held = [cache.float().nan_to_num(0.0) for cache in caches]
    assert error(*held) < (0.04 if kv == FP8 else LIMITS[dtype])
    assert torch.equal(*(cache.float().isnan() for cache in caches))


@pytest.mark.parametrize(("dtype", "kv"), [(F32, F32), (BF16, FP8)], ids=str)
@pytest.mark.parametrize(("ratio", "overlap"), [(2, True), (4, True), (16, False)])
def test_compress(
    step: Step, ratio: int, overlap: bool, dtype: torch.dtype, kv: torch.dtype
) -> None:
    width = 64 if overlap else 32
    compressor = Compressor(
        ratio=ratio,
        overlap=overlap,
        bias=torch.randn(ratio, width, device=step.device),
        norm=torch.randn(32).to(step.device, dtype),
        eps=1e-6,
        cos_sin=table(64, 8, step.device),
    )
    kept = min(SIZE, 2 * compressor.span)
    x = step.rows(2 * width, dtype=dtype)
    ring = step.cache((kept, 2 * width), dtype, False)
    entries = step.cache((SIZE // ratio, 32), kv, True)
    rings, made = [ring, ring.clone()], [entries, entries.clone()]
    v4_compress.v4_compress(x, compressor, rings[0], made[0], step.meta)
    x = x[alive(step)]  # the reference goes by the sequences' lengths
    reference.v4_compress(x, compressor, rings[1], made[1], step.meta)
    torch.testing.assert_close(rings[0], rings[1], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(*(cache.float().isnan() for cache in made))
    held = [cache.float().nan_to_num(0.0) for cache in made]
    assert error(*held) < (0.04 if kv == FP8 else LIMITS[dtype])


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("k", [3, 32], ids=["some", "all"])
def test_choose(step: Step, k: int, dtype: torch.dtype) -> None:
    q, weights = step.rows(16 * 16, dtype=dtype), step.rows(16, dtype=dtype)
    keys = step.cache((SIZE // 4, 16), dtype, True)
    arguments = (keys, step.positions, table(64, 8, step.device))
    got = v4_choose.v4_choose(q.view(-1, 16, 16), weights, *arguments, step.meta, 4, k)
    real = alive(step)
    where = (arguments[1][real], arguments[2])
    want = reference.v4_choose(
        q.view(-1, 16, 16)[real], weights[real], keys, *where, step.meta, 4, k
    )
    assert bool((got[~real] == -1).all())
    got = got[real]
    assert torch.equal((got >= 0).sum(1), (want >= 0).sum(1))
    assert bool(((got >= 0).int().diff(dim=1) <= 0).all())  # none comes after those
    same = (got.sort(1).values == want.sort(1).values).all(1)
    assert bool(same.all()) if dtype == F32 else same.float().mean() > 0.7  # a near tie may flip


@pytest.mark.parametrize("k", [1, 3])
def test_stages_of_the_choice(device: str, k: int) -> None:
    """Rows of one, two and three stages; of equal scores the first wins."""
    lengths = [2, 5, 31, 62, 128]
    width = max(lengths) // 2
    step = make_step([16] * len(lengths), [1] * len(lengths), 0, device)
    step.meta.seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    scores = torch.randint(-4, 4, (len(lengths), width)).to(device, F32)
    chosen = torch.empty(len(lengths), k, dtype=torch.int32, device=device)
    v4_best.choose_best(chosen, scores, 0, step.meta, 2, most=8)
    for row, length in enumerate(lengths):
        order = scores[row, : length // 2].sort(descending=True, stable=True).indices[:k]
        want = torch.full((k,), -1, device=device)
        want[: len(order)] = order.sort().values
        assert torch.equal(chosen[row].long(), want), row


@pytest.mark.parametrize(
    ("kind", "parts", "dtype", "kv"),
    [
        ("window", 0, F32, F32),
        ("all", 1, F32, F32),
        ("all", 3, BF16, FP8),
        ("some", 1, BF16, BF16),
        ("some", 2, F32, F32),
    ],
    ids=str,
)
def test_attention(step: Step, kind: str, parts: int, dtype: torch.dtype, kv: torch.dtype) -> None:
    cut = v4_attention.Cut(16, 16, parts, 4) if parts else None
    heads, dim, window = 5, 32, 9
    ratio = {"window": 0, "all": 16, "some": 4}[kind]
    tokens = len(step.positions)
    q = torch.randn(tokens, heads, dim).to(step.device, dtype)
    cache = step.cache((SIZE, dim), kv, False)
    entries = chosen = None
    if ratio:
        entries = step.cache((SIZE // ratio, dim), kv, True)
    if kind == "some":
        chosen = torch.full((tokens, 6), -1, dtype=torch.int32, device=step.device)
        for row, position in enumerate(step.positions.tolist()):
            count = (position + 1) // ratio
            some = torch.randperm(count)[:6].to(torch.int32)
            chosen[row, : len(some)] = some.to(step.device)
    sinks, cos_sin = torch.randn(heads, device=step.device), table(64, 8, step.device)
    out = v4_attention.v4_attention(
        q, cache, entries, chosen, step.positions, cos_sin, step.meta, window, ratio, sinks, cut
    )
    real = alive(step)
    want = reference.v4_attention(
        q[real],
        cache,
        entries,
        None if chosen is None else chosen[real],
        step.positions[real],
        cos_sin,
        step.meta,
        window,
        ratio,
        sinks,
    )
    assert error(out[real], want) < LIMITS[dtype]
    assert bool((out[~real] == 0).all())


@pytest.mark.parametrize("head", [False, True], ids=["layer", "head"])
@pytest.mark.parametrize("pending", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_hyper_mix(device: str, pending: bool, head: bool, dtype: torch.dtype) -> None:
    tokens, n, size = 17, 4, 160
    count = n if head else n * (2 + n)
    weights = HyperWeights(
        fn=torch.randn(count, n * size, device=device) * (n * size) ** -0.5,
        base=torch.randn(count, device=device),
        scale=torch.randn(1 if head else 3, device=device),
        eps=1e-6,
        hyper_eps=1e-6,
        iterations=3,
        norm=torch.randn(size).to(device, dtype),
    )
    streams = torch.randn(tokens, n, size).to(device, dtype)
    added = None
    if pending:
        out = torch.randn(tokens, size + 16).to(device, dtype)[:, :size]
        comb = torch.rand(tokens, n, n, device=device)
        added = Pending(out, torch.rand(tokens, n, device=device), comb)
    want = reference_hyper.hyper_mix(streams.clone(), added, weights)
    run = v4_hyper._traced if dtype == F32 else v4_hyper.hyper_mix
    for mine, theirs in zip(run(streams.clone(), added, weights), want, strict=True):
        if theirs is None:
            assert mine is None
        else:
            assert mine is not None
            assert mine.dtype == theirs.dtype
            assert error(mine, theirs) < LIMITS[dtype]


def test_swiglu_clamp(device: str) -> None:
    x = 4 * torch.randn(5, 2 * 48 + 16, device=device)[:, :96]
    torch.testing.assert_close(
        v4_hyper.swiglu_clamp(x, 3.0), reference_hyper.swiglu_clamp(x, 3.0), rtol=1e-5, atol=1e-6
    )

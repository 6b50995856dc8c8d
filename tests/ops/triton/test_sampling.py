"""The sampler's kernels against sorting in float64, token by token and in distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from runner.sampling import chi_square_z, kept_tokens, naive_draw
from torch import Tensor

from atom.engine.runner import draw, host_sampling, randomness
from atom.engine.runner.penalties import Penalties, PenaltyInputs
from atom.engine.runner.sampling_rows import _kind
from atom.engine.sampling_params import SamplingParams
from atom.ops.sampling_row import ROW, WORDS, kinds_of
from atom.ops.triton import logprobs, penalties, sampling

GREEDY = SamplingParams(temperature=0.0)
KINDS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=1.7, top_k=20),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=0.8, min_p=0.05),
    SamplingParams(temperature=1.2, top_k=40, top_p=0.7),
    SamplingParams(temperature=1.0, top_k=300, top_p=0.95, min_p=0.001),
    SamplingParams(temperature=100.0, top_p=0.999),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1e-30),
    SamplingParams(temperature=2.0, top_p=0.95, min_p=0.02),
    GREEDY,
]


@pytest.fixture(autouse=True)
def _small_chunks(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks of a small vocabulary under the interpreter, and lists that overflow."""
    if not on_gpu:
        monkeypatch.setattr(sampling, "_CHUNK", 256)
        monkeypatch.setattr(sampling, "_LISTED", 256)
        monkeypatch.setattr(sampling, "_SMALL", 32)
        monkeypatch.setattr(sampling, "_GROUPS", 32)
        monkeypatch.setattr(sampling, "_PIVOTS", 4)
        monkeypatch.setattr(logprobs, "_CHUNK", 128)
        monkeypatch.setattr(logprobs, "_GROUP", 8)


def records(params: Sequence[SamplingParams], vocab: int, positions: Sequence[int]) -> np.ndarray:
    rows = np.zeros(len(params), ROW)
    for i, p in enumerate(params):
        top_k = p.top_k if 0 < p.top_k < vocab else 0
        key = randomness.keys(np.array([i * 7 - 3], np.int64))[0]
        rows[i] = (
            max(p.temperature, 1e-5),
            p.top_p,
            p.min_p,
            top_k,
            key,
            positions[i],
            _kind(p, top_k),
        )
    return rows


def words(rows: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(rows.view(np.int32).reshape(-1, WORDS)).to(device)


def sample(logits: Tensor, rows: np.ndarray, device: str) -> list[int]:
    return sampling.sample(logits.to(device), words(rows, device), kinds_of(rows)).tolist()


def expected(logits: Tensor, params: Sequence[SamplingParams], rows: np.ndarray) -> list[int]:
    noise = randomness.uniforms(rows["key"], rows["position"].astype(np.int64))
    return [
        int(line.argmax()) if p.greedy else naive_draw(kept_tokens(line, p), u)
        for line, p, u in zip(logits.numpy(), params, noise, strict=True)
    ]


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_tokens_equal_the_naive_sampler_s(scale: float, device: str, on_gpu: bool) -> None:
    vocab, params = (32000, KINDS * 40) if on_gpu else (600, KINDS)
    rows = records(params, vocab, range(len(params)))
    logits = torch.randn(len(params), vocab) * scale
    got, want = sample(logits, rows, device), expected(logits, params, rows)
    wrong = [(i, params[i]) for i in range(len(params)) if got[i] != want[i]]
    assert len(wrong) <= len(params) // 100, wrong  # sums of float32 may round across a draw


def test_a_row_does_not_depend_on_its_batch(device: str, on_gpu: bool) -> None:
    vocab, params = (128256 if on_gpu else 300), KINDS[:7]
    rows = records(params, vocab, range(7))
    logits = torch.randn(7, vocab) * 2
    together = sample(logits, rows, device)
    order = [5, 2, 6, 0]
    assert sample(logits[order], rows[order], device) == [together[i] for i in order]
    for i in (0, 5):
        assert sample(logits[i : i + 1], rows[i : i + 1], device) == [together[i]]


@pytest.mark.parametrize("params", [KINDS[3], KINDS[5], KINDS[10]], ids=["top_p", "both", "min_p"])
def test_frequencies_match_the_exact_distribution(
    params: SamplingParams, device: str, on_gpu: bool
) -> None:
    """`params` of one row at many positions: chi-square against sorting."""
    if not on_gpu:
        pytest.skip("thousands of draws take minutes under the interpreter")
    vocab, draws = 4096, 20000
    line = torch.randn(vocab) * 2.5
    rows = np.repeat(records([params], vocab, [0]), draws)
    rows["position"] = np.arange(draws)
    tokens = sample(line.expand(draws, vocab).contiguous(), rows, device)
    counts = np.bincount(tokens, minlength=vocab)
    assert -5 < chi_square_z(counts, kept_tokens(line.numpy(), params)) < 5


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.01),
        SamplingParams(min_p=0.5),
        SamplingParams(top_k=3, top_p=0.2),
        SamplingParams(top_k=400, top_p=0.9),
    ],
    ids=["top_k", "top_p", "min_p", "both", "nearly all"],
)
def test_ties_at_the_edge_are_all_kept(params: SamplingParams, device: str, on_gpu: bool) -> None:
    """More equal logits than a list holds, so that the row itself is searched."""
    vocab, many = (60000, 50000) if on_gpu else (500, 420)
    line = torch.full((vocab,), -5.0)
    line[50 : 50 + many] = 4.0
    count = 24 if on_gpu else 3
    rows = records([params] * count, vocab, range(count))
    logits = line.expand(count, vocab).contiguous()
    assert sample(logits, rows, device) == expected(logits, [params] * count, rows)


def test_rows_that_are_hardly_distributions(device: str) -> None:
    vocab, inf = 600, float("inf")
    logits = torch.full((6, vocab), -inf)  # row 2 stays like that
    logits[0, 17] = 3.0  # all others are banned
    logits[1] = float("nan")
    logits[1, 5:7] = torch.tensor([0.0, -90.0])
    logits[3] = torch.randn(vocab)
    logits[3, 300] = inf
    logits[4] = 2.5
    logits[5] = torch.linspace(-1e38, 1e38, vocab)
    for params in (KINDS[0], KINDS[6], SamplingParams(top_k=5), KINDS[4]):
        rows = records([params] * 6, vocab, range(6))
        got = sample(logits, rows, device)
        assert [got[i] for i in (0, 1, 3, 5)] == [17, 5, 300, vocab - 1]
        assert 0 <= got[2] < vocab
        noise = randomness.uniforms(rows["key"], rows["position"].astype(np.int64))[4]
        assert abs(got[4] - noise * vocab) <= 1.0


def test_noise_is_the_host_s_bit_for_bit() -> None:
    rows = np.zeros(500, ROW)
    rng = np.random.default_rng(1)
    rows["key"] = rng.integers(0, 1 << 64, 500, dtype=np.uint64)
    rows["position"] = rng.integers(0, 1 << 31, 500)
    want = randomness.uniforms(rows["key"], rows["position"].astype(np.int64))
    assert draw.uniforms(words(rows, "cpu")).tolist() == want.tolist()


def test_noise_of_the_kernel_is_the_host_s(device: str) -> None:
    """With 2**20 equal logits a token is the first twenty bits of the uniform number."""
    vocab = 1 << (20 if device == "cuda" else 10)
    count = 40
    rows = records([KINDS[0]] * count, vocab, np.random.default_rng(2).integers(0, 1 << 31, count))
    noise = randomness.uniforms(rows["key"], rows["position"].astype(np.int64))
    got = sample(torch.zeros(count, vocab), rows, device)
    assert got == (noise * vocab).astype(np.int64).tolist()


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
@pytest.mark.parametrize("vocab", [40, 300])
def test_logprobs(num_top: int, vocab: int, device: str, on_gpu: bool) -> None:
    vocab = 128256 if on_gpu and vocab == 300 else vocab
    logits = torch.randn(12, vocab) * 3
    logits[2] = logits[2].round()  # ties: the lower id first
    logits[3, :30] = float("-inf")
    rows = torch.tensor([2, 3, 0, 7])
    tokens = torch.randint(30, vocab, (4,))
    placed = logits.to(device)
    for given in (rows, None):
        count = 4 if given is not None else 12
        ids = tokens if given is not None else tokens.repeat(3)
        values, ranks, top_ids, top_values = (
            column.cpu()
            for column in logprobs.logprobs(
                placed, None if given is None else given.to(device), ids.to(device), num_top
            )
        )
        assert top_ids.shape == (count, num_top)
        for i in range(count):
            line = logits[i if given is None else int(rows[i])].numpy()
            want = host_sampling.logprobs(line, int(ids[i]), num_top)
            assert int(ranks[i]) == want.rank
            assert top_ids[i].tolist() == want.top_ids.tolist()
            np.testing.assert_allclose(float(values[i]), want.logprob, atol=2e-5)
            np.testing.assert_allclose(top_values[i].numpy(), want.top_logprobs, atol=2e-5)


def test_penalties(device: str, on_gpu: bool) -> None:
    vocab, width = (50000, 5000) if on_gpu else (60, 90)
    rows, count = 9, 6
    pool = torch.randint(0, vocab // 3, (rows, width), dtype=torch.int32)
    pool[4] = 7  # one token all over
    lengths = torch.tensor([width, 1, 17, width // 2, 40, 30])
    inputs = PenaltyInputs(
        indices=torch.tensor([0, 7, 3, 2, 5, 1]),
        pool_rows=torch.tensor([8, 0, 4, 1, 2, 4]),
        lengths=lengths,
        num_prompt=torch.tensor([5, 1, 0, width // 2, 3, 29]),
        repetition=torch.tensor([1.3, 0.7, 1.0, 1.1, 2.0, 1.0]),
        frequency=torch.tensor([0.5, 1.0, 0.1, 0.0, -1.0, 0.7]),
        presence=torch.tensor([0.0, 1.0, 0.3, 2.0, -1.0, 0.2]),
        max_length=width,
    )
    logits = torch.randn(count + 2, vocab)
    want = logits.clone()
    Penalties(vocab, torch.device("cpu")).apply(want, pool, inputs)
    counts = torch.zeros(count * vocab, dtype=torch.int32, device=device)
    placed = [x.to(device) if isinstance(x, Tensor) else x for x in inputs]
    for _ in range(2):
        got = logits.to(device, copy=True)
        penalties.apply(got, counts, pool.to(device), *placed)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-6)
        assert not bool(counts.any())

"""The sampler against a naive one, against exact distributions, and against itself in any order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from runner.sampling import Bench, chi_square_z, kept_tokens, naive_draw, new_row

from atom.engine.runner import randomness
from atom.engine.runner.draw import draw
from atom.engine.runner.host_sampling import _draw as draw_on_host
from atom.engine.runner.logprobs import _TorchLogprobs, raw_logprobs
from atom.engine.runner.sampler import _choose_in_torch
from atom.engine.sampling_params import SamplingParams

SETTINGS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=1.7, top_k=20),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=0.8, min_p=0.05),
    SamplingParams(temperature=1.2, top_k=40, top_p=0.7),
    SamplingParams(temperature=1.0, top_k=300, top_p=0.95, min_p=0.001),
    SamplingParams(temperature=3.0, top_p=0.999),  # more kept than any candidate list holds
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=2.0, top_p=0.95, min_p=0.02),
]


def make_logits(n: int, vocab: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("params", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("vocab", [1000, 4096])
def test_frequencies_match_the_exact_distribution(params: SamplingParams, vocab: int) -> None:
    logits = make_logits(1, vocab, scale=2.5)
    bench = Bench(vocab, [new_row(0, params, seed=11)])
    counts = np.zeros(vocab, np.int64)
    for start in range(0, 8000, 2000):
        positions = list(range(start, start + 2000))
        tokens = bench.sample(logits.expand(2000, -1), [0] * 2000, positions).token_ids
        counts += np.bincount(tokens.numpy(), minlength=vocab)
    z = chi_square_z(counts, kept_tokens(logits[0].numpy(), params))
    assert -5 < z < 5


@pytest.mark.parametrize("params", SETTINGS, ids=range(len(SETTINGS)))
def test_equals_the_naive_sampler(params: SamplingParams) -> None:
    """Token by token: both draw by inverse CDF in id order from the same uniform number."""
    vocab, n = 3000, 200
    logits = make_logits(n, vocab, seed=3)
    bench = Bench(vocab, [new_row(0, params, seed=5)])
    positions = np.arange(n, dtype=np.int64)
    got = bench.sample(logits, [0] * n, positions.tolist()).token_ids.tolist()
    key = randomness.keys(np.array([5], np.int64))
    for i, token in enumerate(got):
        u = randomness.uniforms(key, positions[i : i + 1])[0]
        assert token == naive_draw(kept_tokens(logits[i].numpy(), params), u), i


def in_torch(logits: torch.Tensor, bench: Bench, rows: list[int]) -> torch.Tensor:
    """The way that looks at no value on the host, run on this machine."""
    return _choose_in_torch(logits.clone(), bench.stage(rows).random)


def test_both_ways_agree() -> None:
    """What serves on CPU and what serves on devices without kernels, all settings together."""
    vocab, params = 2048, [*SETTINGS, SamplingParams(temperature=0.0)] * 20
    bench = Bench(vocab, [new_row(i, p, seed=i) for i, p in enumerate(params)])
    rows = np.random.default_rng(0).permutation(len(params)).tolist()
    logits = make_logits(len(rows), vocab, seed=8, scale=3.0)
    host = bench.sample(logits, rows).token_ids
    assert torch.equal(host, in_torch(logits, bench, rows))
    for kind in (0, 5):  # every row drawn, with and without filters
        alike = [r for r in rows if params[r] is SETTINGS[kind]]
        some = make_logits(len(alike), vocab, seed=kind)
        assert torch.equal(bench.sample(some, alike).token_ids, in_torch(some, bench, alike))


def test_ties_at_the_edge_are_all_kept() -> None:
    vocab = 512
    logits = torch.full((1, vocab), -5.0)
    logits[0, 100:300] = 4.0  # 200 equal maxima: more than top_k, more than the candidates
    for params in (
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.01),
        SamplingParams(min_p=0.5),
        SamplingParams(top_k=3, top_p=0.2),
    ):
        bench = Bench(vocab, [new_row(0, params)])
        tokens = bench.sample(logits.expand(4000, -1), [0] * 4000, list(range(4000))).token_ids
        counts = np.bincount(tokens.numpy(), minlength=vocab)
        assert -5 < chi_square_z(counts, kept_tokens(logits[0].numpy(), params)) < 5


@pytest.mark.parametrize("vocab", [7, 32, 50, 97, 32000, 49153])
def test_draw_covers_any_vocabulary(vocab: int) -> None:
    weights = torch.rand(64, vocab, generator=torch.Generator().manual_seed(vocab))
    weights[weights < 0.5] = 0.0
    weights[:, -1] = 0.0
    uniforms = torch.linspace(1e-12, 1 - 1e-12, 64, dtype=torch.float64)
    tokens = draw(weights, uniforms)
    assert bool((weights.gather(1, tokens[:, None]) > 0).all())
    expected = [
        naive_draw(w.double().numpy(), u) for w, u in zip(weights, uniforms.tolist(), strict=True)
    ]
    on_host = [draw_on_host(w.numpy(), u) for w, u in zip(weights, uniforms.tolist(), strict=True)]
    for got in (tokens.tolist(), on_host):
        same = [a == b for a, b in zip(got, expected, strict=True)]
        assert sum(same) >= 62  # the ends of two float32 sums may differ by one place


def test_extreme_weights() -> None:
    weights = torch.zeros(3, 1024)
    weights[0, 1023] = 1e-38
    weights[1, 0] = 1.0
    weights[2, 511] = weights[2, 512] = 3e38 / 4
    for u in (2.0**-41, 0.5, 1 - 2.0**-41):
        uniforms = torch.full((3,), u, dtype=torch.float64)
        for tokens in (
            draw(weights, uniforms).tolist(),
            [draw_on_host(row.numpy(), u) for row in weights],
        ):
            assert tokens[:2] == [1023, 0]
            assert tokens[2] in (511, 512)


def test_greedy_is_argmax_and_skips_everything() -> None:
    vocab = 500
    bench = Bench(vocab, [new_row(0, SamplingParams(temperature=0.0, top_k=5, top_p=0.5))])
    logits = make_logits(50, vocab)
    logits[7, [3, 400]] = 99.0  # a tie: the first
    step = bench.stage([0] * 50, list(range(50)))
    assert (step.edits, step.penalties, step.random) == (None,) * 3
    got = bench.sample(logits, [0] * 50, list(range(50))).token_ids
    assert torch.equal(got, logits.argmax(-1))
    assert got[7] == 3


def test_a_tiny_temperature_is_greedy_without_overflow() -> None:
    logits = make_logits(20, 300) * 1000
    bench = Bench(300, [new_row(0, SamplingParams(temperature=1e-30))])
    got = bench.sample(logits, [0] * 20, list(range(20))).token_ids
    assert torch.equal(got, logits.argmax(-1))


def test_a_row_does_not_depend_on_its_batch() -> None:
    """Every row alone, all together, reversed, and with copies of the others: equal tokens."""
    vocab = 4096
    kinds = [
        *SETTINGS,
        SamplingParams(temperature=0.0),
        SamplingParams(presence_penalty=1.0, repetition_penalty=1.3),
        SamplingParams(logit_bias={5: 50.0, 9: -100.0}, top_p=0.8),
        SamplingParams(min_tokens=50, stop_token_ids=(1, 2, 3)),
    ]
    rows = [
        new_row(i, p, seed=i * 17 - 20, tokens=[i, 5, 7, 5], num_prompt=2, eos=(0,))
        for i, p in enumerate(kinds)
    ]
    bench = Bench(vocab, rows)
    logits = make_logits(len(rows), vocab, seed=9)
    numbers = list(range(len(rows)))
    alone = [bench.sample(logits[i : i + 1], [i]).token_ids[0].item() for i in numbers]
    orders = [numbers, numbers[::-1], numbers[5:] + numbers[:5], numbers * 3, numbers[3:4] * 9]
    for order in orders:
        got = bench.sample(logits[order], order).token_ids.tolist()
        assert got == [alone[i] for i in order]


def brute_force_edit(
    logits: np.ndarray, p: SamplingParams, tokens: list[int], num_prompt: int, eos: tuple[int, ...]
) -> np.ndarray:
    out = logits.astype(np.float32).copy()
    for token, bias in (p.logit_bias or {}).items():
        out[token] += bias
    if len(tokens) - num_prompt < p.min_tokens:
        out[list({*eos, *p.stop_token_ids})] = -np.inf
    for token in set(tokens):
        out[token] *= p.repetition_penalty if out[token] <= 0 else 1 / p.repetition_penalty
    for token in set(tokens[num_prompt:]):
        out[token] -= p.frequency_penalty * tokens[num_prompt:].count(token)
        out[token] -= p.presence_penalty
    return out


def edited_logits(bench: Bench, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """What the sampler leaves of the logits, which it edits in place."""
    scratch = logits.clone()
    bench.sampler(scratch, bench.pool, bench.stage(rows))
    return scratch


def test_penalties_biases_and_bans_against_brute_force() -> None:
    vocab, rng = 200, np.random.default_rng(4)
    grid = list(
        itertools.product(
            (1.0, 1.4, 0.7), (0.0, 1.5, -1.0), (0.0, 0.8, -2.0), (None, {3: 2.0, 9: -99.0}), (0, 5)
        )
    )
    rows = []
    for i, (repetition, frequency, presence, bias, minimum) in enumerate(grid):
        tokens = rng.integers(0, vocab if i % 2 else 6, rng.integers(1, 60)).tolist()
        params = SamplingParams(
            temperature=0.0,
            repetition_penalty=repetition,
            frequency_penalty=frequency,
            presence_penalty=presence,
            logit_bias=bias,
            min_tokens=minimum,
            stop_token_ids=(3, 17),
        )
        prompt = int(rng.integers(1, len(tokens) + 1))
        rows.append(new_row(i, params, tokens=tokens, num_prompt=prompt, eos=(0, 17)))
    bench = Bench(vocab, rows)
    logits = make_logits(len(rows), vocab, seed=2)
    order = rng.permutation(len(rows)).tolist()
    for _ in range(2):  # twice: the counters are zero again
        got = edited_logits(bench, logits[order], order)
        for i, r in enumerate(order):
            new = rows[r]
            want = brute_force_edit(
                logits[r].numpy(), new.sampling, new.token_ids, new.num_prompt_tokens, (0, 17)
            )
            np.testing.assert_allclose(got[i].numpy(), want, rtol=1e-5, atol=1e-5)
    tokens = bench.sample(logits[order], order).token_ids
    assert torch.equal(tokens, edited_logits(bench, logits[order], order).argmax(-1))


def test_penalties_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=0.0, frequency_penalty=1.0)
    rows = [new_row(i, params, tokens=[i, i, 3], num_prompt=1) for i in range(10)]
    logits = make_logits(10, 50)
    whole = edited_logits(Bench(50, rows), logits, list(range(10)))
    monkeypatch.setattr("atom.engine.runner.penalties._MAX_ROWS", 3)
    assert torch.equal(whole, edited_logits(Bench(50, rows), logits, list(range(10))))


def test_min_tokens_ends_exactly_when_reached() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=3, stop_token_ids=(4,))
    bench = Bench(20, [new_row(0, params, tokens=[1, 2], num_prompt=2, eos=(9,))])
    logits = torch.zeros(1, 20)
    logits[0, 4], logits[0, 9], logits[0, 6] = 9.0, 8.0, 5.0
    got = [bench.sample(logits, [0], [position]).token_ids.item() for position in range(2, 7)]
    assert got == [6, 6, 6, 4, 4]


def test_logprobs_are_of_the_raw_logits() -> None:
    vocab = 300
    loud = SamplingParams(temperature=0.7, top_k=5, logit_bias={7: 100.0}, logprobs=4)
    quiet = SamplingParams(temperature=0.0)
    plain = SamplingParams(temperature=0.0, logprobs=0)
    bench = Bench(vocab, [new_row(0, loud), new_row(1, quiet), new_row(2, plain)])
    logits = make_logits(3, vocab, seed=6)
    sampled = bench.sample(logits, [0, 1, 2])
    columns = sampled.logprobs
    assert columns is not None
    reference = torch.log_softmax(logits[[0, 2]].double(), -1)
    assert sampled.token_ids.tolist()[0] == 7  # the bias works, and is not in the logprobs
    for i, (token, row) in enumerate([(7, 0), (int(logits[2].argmax()), 2)]):
        assert columns.token_ids[i] == token
        assert columns.logprobs[i].item() == pytest.approx(reference[i, token].item(), abs=1e-5)
        assert columns.ranks[i] == 1 + (logits[row] > logits[row, token]).sum()
    assert torch.equal(columns.top_ids[0].long(), logits[0].topk(4).indices)
    np.testing.assert_allclose(columns.top_logprobs[0], reference[0].topk(4).values, atol=1e-5)


@pytest.mark.parametrize("vocab", [40, 500, 5000])
@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_logprobs_of_both_ways_agree(vocab: int, num_top: int) -> None:
    logits = make_logits(30, vocab, seed=1)
    tokens = torch.randint(0, vocab, (30,), generator=torch.Generator().manual_seed(2))
    host, device = raw_logprobs(logits, num_top).of(tokens), _TorchLogprobs(logits, num_top)
    for ours, theirs in zip(host, device.of(tokens), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)

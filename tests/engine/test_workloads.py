"""Random workloads: no block is lost, every plan is legal, tokens do not depend on the schedule."""

from __future__ import annotations

import random

import pytest
from engine.engine_helpers import Engine, make_config, random_sampling

from atom.engine.runner.fake import FakeOptions

VOCAB = 40


def random_engine(seed: int, rng: random.Random) -> Engine:
    block_size = rng.choice([1, 4, 4, 16])
    return Engine(
        make_config(
            block_size=block_size,
            num_blocks=rng.choice([112, 112, 130, 200, 600]) // block_size,
            overlap=seed % 2 == 1,
            caching=rng.random() < 0.85,
            policy=("prefill_first", "mixed", "throughput")[seed // 2 % 3],
            max_num_seqs=rng.choice([2, 5, 8, 16]),
            max_num_batched_tokens=rng.choice([8, 32, 256, 256]),
            max_prefill_chunk=rng.choice([1, 5, 64, 64]),
            scheduler_delay_factor=rng.choice([0.0, 0.0, 1.5]),
        ),
        FakeOptions(vocab_size=VOCAB, max_model_len=112),
    )


def random_prompt(rng: random.Random, stems: list[list[int]]) -> list[int]:
    stem = rng.choice(stems)[: rng.randrange(61)] if rng.random() < 0.5 else []
    return stem + [rng.randrange(VOCAB) for _ in range(rng.randrange(0 if stem else 1, 12))]


@pytest.mark.parametrize("seed", range(60))
def test_random_workload_loses_no_block_and_equals_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    engine = random_engine(seed, rng)
    stems = [[rng.randrange(VOCAB) for _ in range(60)] for _ in range(3)]
    aborted: set[str] = set()
    to_come = [f"r{i}" for i in range(40)]
    while to_come or engine.core.has_work:
        engine.clock.now += rng.random() * 0.1
        for _ in range(rng.choice([0, 0, 0, 0, 0, 0, 12])):
            if to_come:
                salt = rng.choice(["", "", "tenant"])
                tokens = random_prompt(rng, stems)
                sampling = random_sampling(rng, VOCAB, len(tokens))
                engine.add(to_come.pop(0), tokens, sampling, salt)
        alive = [name for name in engine.requests if name not in engine.finished]
        if alive and rng.random() < 0.04:
            victim = rng.choice(alive)
            aborted.add(victim)
            engine.abort(victim)
        if rng.random() < 0.01:
            engine.reset_prefix_cache()
        engine.step()
    engine.check_idle()
    check_results(engine, aborted)


def check_results(engine: Engine, aborted: set[str]) -> None:
    for name, request in engine.requests.items():
        expected, got = engine.expected(name), engine.tokens[name]
        if engine.finished[name] == "abort":
            assert name in aborted
            assert got == expected[: len(got)]
            continue
        assert got == expected, name
        sampling, chunks = request.sampling, engine.chunks[name]
        stopped = len(got) < (sampling.max_tokens or 0) or engine.finished[name] == "stop"
        assert engine.finished[name] == ("stop" if stopped else "length")
        assert chunks[-1].stop_token_id == (got[-1] if stopped else None)
        assert chunks[-1].timings is not None
        logprobs = [entry for chunk in chunks for entry in chunk.logprobs or []]
        if sampling.logprobs is not None:
            assert [entry.token_ids[0] for entry in logprobs] == got
        if sampling.prompt_logprobs is not None:
            entries = chunks[0].prompt_logprobs
            assert entries is not None
            first = max(1, sampling.logprobs_start)
            assert entries[:first] == [None] * first
            prompt = [entry.token_ids[0] for entry in entries[first:] if entry is not None]
            assert prompt == request.prompt_token_ids[first:]
            assert chunks[0].num_cached_tokens < first


def test_the_workloads_reach_what_they_are_meant_to_reach() -> None:
    """Preemption, prefix hits and held-back prompts all happen, under both loops."""
    for overlap in (False, True):
        engine = Engine(
            make_config(num_blocks=24, overlap=overlap, max_num_seqs=8),
            FakeOptions(vocab_size=VOCAB),
        )
        rng = random.Random(0)
        stem = [rng.randrange(VOCAB) for _ in range(24)]
        for i in range(12):
            engine.add(f"r{i}", [*stem, i, i, i])
        engine.run()
        check_results(engine, set())
        stats = engine.core.stats()
        assert stats.prefix_cache_hits > 0
        assert stats.preemptions > 0
        engine.check_idle()

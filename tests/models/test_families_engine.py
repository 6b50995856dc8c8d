"""Every published family through the whole engine: 32 greedy tokens, equal to transformers'.

Prompts come in chunks, in mixed batches, from the prefix cache and after a preemption.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub import hub_checkpoint
from test_families import BLOCK_SIZES, SUPPORTED, reference
from tiny import random_prompt

from atom.engine.llm import LLM
from atom.engine.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)


@contextmanager
def engine(path: Path, **settings: object) -> Iterator[LLM]:
    common = {"dtype": "float32", "kv_cache_dtype": "fp32", "device": "cpu", "num_threads": 1}
    llm = LLM(str(path), max_model_len=512, max_num_seqs=4, **{**common, **settings})
    try:
        yield llm
    finally:
        llm.close()


@pytest.mark.parametrize("family", SUPPORTED)
def test_chunks_mixtures_and_reuse(family: str) -> None:
    prompt, after, _ = reference(family)
    others = [random_prompt(len(prompt) + 9 * i, seed=i) for i in range(1, 3)]
    size = BLOCK_SIZES.get(family, 16)
    with engine(
        hub_checkpoint(family),
        kv_cache_block_size=size,
        max_num_batched_tokens=48,
        max_prefill_chunk=32,
        policy="mixed",
        num_kvcache_blocks=40,
    ) as llm:
        together = llm.generate([others[0], prompt, others[1]], GREEDY)
        assert together[1].outputs[0].token_ids == after
        again = llm.generate([prompt, others[1]], GREEDY)
        assert [r.outputs[0].token_ids for r in again] == [
            after,
            together[2].outputs[0].token_ids,
        ]
        assert [r.num_cached_tokens // size for r in again] == [
            (len(p) - 1) // size for p in (prompt, others[1])
        ]
        alone = llm.generate([others[0]], GREEDY)
        assert alone[0].outputs[0].token_ids == together[0].outputs[0].token_ids
        llm.core.check_invariants()


# Within 32 tokens no sequence outgrows blocks of 128 that the planner has kept for it.
@pytest.mark.parametrize("family", [name for name in SUPPORTED if name not in BLOCK_SIZES])
def test_preemption(family: str) -> None:
    prompt, after, _ = reference(family)
    others = [random_prompt(len(prompt), seed=i) for i in range(1, 3)]
    each = -(-(len(prompt) + len(after)) // 16)  # blocks of a whole sequence
    with engine(
        hub_checkpoint(family),
        kv_cache_block_size=16,
        num_kvcache_blocks=3 * each - 1,
        enable_prefix_caching=False,
    ) as llm:
        results = llm.generate([others[0], others[1], prompt], GREEDY)
        assert llm.core.stats().preemptions > 0
        assert results[2].outputs[0].token_ids == after


@pytest.mark.parametrize("family", BLOCK_SIZES)
def test_preemption_of_large_blocks(family: str) -> None:
    """Prompts end shortly before a block does, so that all want another one at once. What a
    sequence gives alone is transformers' (`test_chunks_mixtures_and_reuse`)."""
    size = BLOCK_SIZES[family]
    prompts = [random_prompt(size - 8, seed=i) for i in range(3)]
    with engine(
        hub_checkpoint(family),
        kv_cache_block_size=size,
        num_kvcache_blocks=5,
        enable_prefix_caching=False,
    ) as llm:
        alone = [llm.generate([prompt], GREEDY)[0].outputs[0].token_ids for prompt in prompts]
        assert llm.core.stats().preemptions == 0
        together = llm.generate(prompts, GREEDY)
        assert llm.core.stats().preemptions > 0
        assert [result.outputs[0].token_ids for result in together] == alone


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_next"])
def test_two_ranks(family: str) -> None:
    """What a plan says of windows and states reaches the other rank: reuse, and what it begins."""
    prompt, after, _ = reference(family)
    other = random_prompt(len(prompt), seed=1)
    with engine(
        hub_checkpoint(family),
        kv_cache_block_size=16,
        num_kvcache_blocks=40,
        max_num_batched_tokens=48,
        tensor_parallel_size=2,
    ) as llm:
        first = llm.generate([other, prompt], GREEDY)
        again = llm.generate([prompt, other], GREEDY)
        assert first[1].outputs[0].token_ids == again[0].outputs[0].token_ids == after
        assert first[0].outputs[0].token_ids == again[1].outputs[0].token_ids
        assert [result.num_cached_tokens for result in again] == [64, 64]

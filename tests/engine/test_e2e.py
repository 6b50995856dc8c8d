"""The embedded model through the engine equals transformers on the dequantised weights.

transformers judges by teacher forcing: one forward over prompt and answer, whose argmax at each
position must be the token that follows. By induction the answer is then greedy decoding's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_reference import transformers_llama
from serving import Shared, generate, greedy, make_config, make_runner

from atom.engine.core import EngineCore
from atom.engine.runner.model_runner import ModelRunner
from atom.engine.text.tokenizer import load_tokenizer
from atom.models.gguf import GGUFFile
from atom.models.source import resolve_source

SHORT = [1, 2, 16, 17, 63, 130, 300]
LONG = [*SHORT, 5, 9, 31, 32, 47, 90, 100, 150, 200, 256, 400, 512, 900]
NEW = 12

Schedule = dict[str, Any]
SCHEDULES: dict[str, Schedule] = {
    "overlap": {"overlap": True},
    "chunks": {"max_num_batched_tokens": 64, "max_prefill_chunk": 40},
    "mixed": {
        "policy": "mixed",
        "max_num_batched_tokens": 96,
        "max_prefill_chunk": 33,
        "overlap": True,
    },
    "few blocks": {"num_blocks": 0, "overlap": True},  # the longest sequence and little else
}


class Embedded:
    """One loaded engine and one reference for all tests."""

    def __init__(self, gguf: Path) -> None:
        self.gguf = gguf
        self.config = make_config(gguf, max_model_len=2048, num_threads=2)
        self.runner: ModelRunner = make_runner(self.config)
        tokenizer = load_tokenizer(resolve_source(self.config.model))
        license_text = (Path(__file__).parents[2] / "LICENSE").read_text()
        self.text = tokenizer.encode(license_text)
        self.answers: dict[tuple[int, ...], list[int]] = {}

    def prompts(self, lengths: list[int]) -> list[list[int]]:
        """Natural text; none shares a first block with another."""
        return [self.text[7 * i : 7 * i + n] for i, n in enumerate(lengths)]

    def plain(self, prompts: list[list[int]]) -> list[list[int]]:
        """Tokens of the plainest schedule: one step after another, whole prompts, no reuse."""
        new = [p for p in prompts if tuple(p) not in self.answers]
        if new:
            core = EngineCore(make_config(self.gguf, caching=False), self.runner)
            for prompt, result in zip(new, generate(core, new, greedy(NEW)), strict=True):
                self.answers[tuple(prompt)] = result.token_ids
        return [self.answers[tuple(p)] for p in prompts]


@pytest.fixture(scope="module")
def embedded(embedded_gguf: Path) -> Embedded:
    return Embedded(embedded_gguf)


def check_against_transformers(embedded: Embedded, lengths: list[int]) -> None:
    prompts = embedded.prompts(lengths)
    answers = embedded.plain(prompts)
    model = transformers_llama(GGUFFile(embedded.gguf))
    torch.set_num_threads(1)  # a pool of threads suffers on a busy machine
    for prompt, tokens in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt + tokens[:-1]])
        with torch.inference_mode():
            logits = model(ids, use_cache=False, logits_to_keep=NEW).logits[0]
        assert logits.argmax(-1).tolist() == tokens, f"prompt of {len(prompt)} tokens"


def check_schedule(embedded: Embedded, lengths: list[int], schedule: Schedule) -> None:
    prompts = embedded.prompts(lengths)
    expected = embedded.plain(prompts)
    options = dict(schedule)
    if options.get("num_blocks") == 0:
        options["num_blocks"] = -(-(max(lengths) + NEW) // 16) + 1
    config = make_config(embedded.gguf, **options)
    blocks = config.engine.num_kvcache_blocks
    core = EngineCore(config, Shared(embedded.runner, blocks))
    results = generate(core, prompts, greedy(NEW))
    assert [r.token_ids for r in results] == expected


def check_preemption(embedded: Embedded) -> None:
    """Short prompts that are admitted together and then need more blocks than there are."""
    prompts = embedded.prompts([1, 2, 16, 17])
    config = make_config(embedded.gguf, overlap=True)
    core = EngineCore(config, Shared(embedded.runner, 16))
    results = generate(core, prompts * 3, greedy(34))
    answers = [r.token_ids for r in results]
    assert [a[:NEW] for a in answers] == embedded.plain(prompts) * 3
    assert answers[:4] == answers[4:8] == answers[8:]
    assert core.stats().preemptions > 0


def check_prefix_hits(embedded: Embedded, lengths: list[int]) -> None:
    """The second time all but the last block of each prompt comes from the cache."""
    prompts = embedded.prompts(lengths)
    core = EngineCore(make_config(embedded.gguf), embedded.runner)
    for again in (False, True):
        before = core.stats().prompt_tokens
        results = generate(core, prompts, greedy(NEW))
        assert [r.token_ids for r in results] == embedded.plain(prompts)
        computed = core.stats().prompt_tokens - before
        if again:
            assert [r.num_cached_tokens for r in results] == [(n - 1) // 16 * 16 for n in lengths]
            assert computed == sum(n - (n - 1) // 16 * 16 for n in lengths)
        else:
            assert computed == sum(lengths)


def test_greedy_equals_transformers(embedded: Embedded) -> None:
    check_against_transformers(embedded, SHORT)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_schedule_gives_the_same_text(embedded: Embedded, schedule: str) -> None:
    check_schedule(embedded, SHORT, SCHEDULES[schedule])


def test_prefix_hits_change_nothing(embedded: Embedded) -> None:
    check_prefix_hits(embedded, SHORT)


def test_preemption_changes_nothing(embedded: Embedded) -> None:
    check_preemption(embedded)


@pytest.mark.slow
def test_twenty_prompts_equal_transformers(embedded: Embedded) -> None:
    assert len(LONG) == 20
    check_against_transformers(embedded, LONG)
    for schedule in SCHEDULES.values():
        check_schedule(embedded, LONG, schedule)
    check_prefix_hits(embedded, LONG)

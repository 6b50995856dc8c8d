"""Made prompts: exact lengths with real tokenizers and servers, sharing, reproducibility."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from workload_helpers import (
    FakeTokens,
    TokenServer,
    byte_bpe,
    digest,
    newline_bpe,
    request_of,
    sentence_bpe,
    serving,
    word_spanning,
    words_of,
)

from atom.bench.errors import BenchError
from atom.bench.types import Job, Target
from atom.bench.workloads import (
    LocalTokens,
    ServerTokens,
    TokenSource,
    UsageTokens,
    WorkloadSpec,
    bounds,
    make_workload,
    open_tokens,
    realised,
)

SPREAD: dict[str, Any] = {"range_ratio": 0.5, "length_convention": "inferencex"}
SPECS = {
    "random": {"input_len": 90, "output_len": 20, **SPREAD},
    "shared prefix": {"input_len": 90, "prefix_len": 40},
    "prefix-repetition": {
        "dataset": "prefix-repetition",
        "input_len": 60,
        "prefix_len": 30,
        "num_prefixes": 3,
    },
    "multi-turn": {"dataset": "multi-turn", "input_len": 70, "turns": 2, "turns_max": 4, **SPREAD},
    "sonnet": {"dataset": "prompts", "path": "sonnet", "input_len": 120, **SPREAD},
}


def jobs_of(
    fields: dict[str, Any], tokens: TokenSource, seed: int = 7, count: int = 12
) -> list[Job]:
    return list(islice(make_workload(WorkloadSpec(**fields), tokens, seed).jobs(), count))


# Exact lengths


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("make", [byte_bpe, newline_bpe, sentence_bpe])
@pytest.mark.parametrize(
    "server",
    [{"dialect": "vllm"}, {"dialect": "llama", "strips": True}, {"takes_ids": False}],
    ids=["vllm", "llama", "text only"],
)
def test_prompts_are_as_long_as_asked(
    endpoint: str, make: Callable[[], tokenizers.Tokenizer], server: dict[str, Any]
) -> None:
    with serving(TokenServer(make(), **server)) as real:
        tokens = open_tokens(real.target(endpoint))
        assert isinstance(tokens, ServerTokens)
        for fields in SPECS.values():
            jobs = jobs_of({**fields, "endpoint": endpoint}, tokens)
            for job in jobs:
                assert real.prompt_tokens(*request_of(job)) == job.turns[0].input_len
            if "range_ratio" in fields:
                assert len({job.turns[0].input_len for job in jobs}) > 4


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("make", [byte_bpe, newline_bpe, sentence_bpe])
def test_usage_alone_is_enough(endpoint: str, make: Callable[[], tokenizers.Tokenizer]) -> None:
    with serving(TokenServer(make(), dialect="none")) as real:
        tokens = open_tokens(real.target(endpoint))
        assert isinstance(tokens, UsageTokens)
        for name in ("random", "prefix-repetition", "multi-turn"):
            for job in jobs_of({**SPECS[name], "endpoint": endpoint}, tokens):
                assert real.prompt_tokens(*request_of(job)) == job.turns[0].input_len
        # One request for one token each, and never many.
        asked = [body for path, body in real.seen if path != "/tokenize"]
        assert all(body["max_tokens"] == 1 for body in asked)
        assert len(asked) < 250


def test_embedded_model_has_exact_lengths(embedded_gguf: Path) -> None:
    from atom.engine.text.gguf_tokenizer import tokenizer_from_gguf
    from atom.models.gguf import GGUFFile

    parts = tokenizer_from_gguf(GGUFFile(embedded_gguf))
    with serving(TokenServer(parts.backend)) as real:
        tokens = open_tokens(real.target())
        assert len(tokens.pool().words) > 4000
        for form in ("ids", "text"):
            for job in jobs_of({**SPECS["random"], "prompt_form": form}, tokens):
                assert real.prompt_tokens(*request_of(job)) == job.turns[0].input_len


def test_ids_and_text_are_the_same_prompt() -> None:
    """A prefix cache must see equal tokens, however they travel."""
    with serving(TokenServer(byte_bpe())) as real:
        tokens = ServerTokens(real.target())
        ids = jobs_of({**SPECS["random"], "prompt_form": "ids"}, tokens)
        text = jobs_of({**SPECS["random"], "prompt_form": "text"}, tokens)
        around = tokens.overhead("text")
        for a, b in zip(ids, text, strict=True):
            encoded = byte_bpe().encode(b.turns[0].prompt).ids
            assert encoded[around:] == a.turns[0].prompt[: len(encoded) - around]


def test_sources_agree_on_the_pool(tmp_path: Path) -> None:
    byte_bpe().save(str(tmp_path / "tokenizer.json"))
    with serving(TokenServer(byte_bpe(), dialect="llama")) as real:
        local = LocalTokens(tmp_path, real.target())
        server = ServerTokens(real.target())
        assert local.pool() == server.pool()
        assert local.counts(["Text: I am", ""]) == server.counts(["Text: I am", ""])
        assert local.overhead("text") == LocalTokens(tmp_path).overhead("text")
        spec = {**SPECS["random"], "endpoint": "chat"}
        assert jobs_of(spec, local) == jobs_of(spec, server)


def test_another_models_tokenizer_is_noticed(tmp_path: Path) -> None:
    sentence_bpe().save(str(tmp_path / "tokenizer.json"))
    with serving(TokenServer(byte_bpe())) as real:
        for fields in ({"input_len": 60}, {"input_len": 60, "prompt_form": "ids"}):
            with pytest.raises(BenchError, match=r"cannot be made exact.* --tokenizer"):
                jobs_of(fields, LocalTokens(tmp_path, real.target()))


@pytest.mark.parametrize("text", ["no", "{}"])
def test_a_tokenizer_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(BenchError, match=r"no tokenizer\.json there"):
        LocalTokens(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BenchError, match="--tokenizer") as caught:
        LocalTokens(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "http://", "http://h:99999", "ftp://h", "http://[1"]
)
def test_urls_that_are_none_are_told(url: str) -> None:
    with pytest.raises(BenchError, match="is no server's URL"):
        open_tokens(Target(base_url=url, model="m"))


def test_a_key_that_http_forbids_is_not_shown() -> None:
    with serving(TokenServer(byte_bpe())) as real:
        target = real.target(api_key="secret\nkey")
        with pytest.raises(BenchError, match="characters that HTTP forbids") as caught:
            ServerTokens(target)
    assert "secret" not in str(caught.value)


def test_pool_words_are_one_token_each() -> None:
    with serving(TokenServer(byte_bpe())) as real:
        pool = ServerTokens(real.target()).pool()
    assert pool.ids is not None
    assert 32 < len(pool.words) < 1500  # the others are several tokens
    for word, token_id in zip(pool.words, pool.ids, strict=True):
        assert byte_bpe().encode(f" {word}").ids == [token_id]


def test_tokens_that_span_words_are_refused() -> None:
    with serving(TokenServer(word_spanning())) as real:
        tokens = ServerTokens(real.target())
        with pytest.raises(BenchError, match="no exact prompt lengths"):
            tokens.pool()


def test_extra_body_changes_the_template() -> None:
    with serving(TokenServer(byte_bpe())) as real:
        plain = ServerTokens(real.target("chat")).overhead("chat")
        extra = {"chat_template_kwargs": {"think": True}, "min_tokens": 9}
        more = ServerTokens(real.target("chat", extra_body=extra)).overhead("chat")
        assert more == plain + 7
        assert "min_tokens" not in real.seen[-1][1]


def test_key_and_headers_are_sent_and_a_wrong_key_is_told() -> None:
    with serving(TokenServer(byte_bpe(), key="k")) as real:
        ServerTokens(real.target(api_key="k")).pool()
        with pytest.raises(BenchError, match="refuses the key: HTTP 401 wrong key") as caught:
            open_tokens(real.target(api_key="other"))
        assert caught.value.exit_code == 4


def test_no_usage_is_told() -> None:
    with serving(TokenServer(byte_bpe(), usage=False)) as real:
        tokens = ServerTokens(real.target("chat"))
        with pytest.raises(BenchError, match=r"usage\.prompt_tokens"):
            tokens.overhead("chat")


def test_nobody_there_is_unreachable() -> None:
    with serving(TokenServer(byte_bpe())) as real:
        target = real.target()
    with pytest.raises(BenchError, match="no answer from") as caught:
        open_tokens(target)
    assert caught.value.exit_code == 4


def test_a_kept_connection_that_was_closed_is_opened_again() -> None:
    with serving(TokenServer(byte_bpe())) as real:
        tokens = ServerTokens(real.target())
        tokens.encode("Text: a")
        tokens._http._local.connection.sock.close()
        assert tokens.encode("Text: a")


# Sharing


def test_prefixes_are_shared_within_a_group_only() -> None:
    fields = {**SPECS["prefix-repetition"], "prompt_form": "ids"}
    jobs = jobs_of(fields, FakeTokens(), count=30)
    heads: dict[str, set[tuple[int, ...]]] = {}
    for job in jobs:
        heads.setdefault(job.label, set()).add(tuple(job.turns[0].prompt[:30]))
    assert set(heads) == {"prefix 0", "prefix 1", "prefix 2"}
    assert all(len(head) == 1 for head in heads.values())
    assert len(set.union(*heads.values())) == 3
    tails = {tuple(job.turns[0].prompt[30:]) for job in jobs}
    assert len(tails) == len(jobs)


def test_each_prefix_is_taken_equally_often() -> None:
    fields = {**SPECS["prefix-repetition"], "num_prefixes": 5}
    labels = [job.label for job in jobs_of(fields, FakeTokens(), count=50)]
    assert set(Counter(labels).values()) == {10}
    for first in range(0, 50, 5):  # in each round once, in changing order
        assert len(set(labels[first : first + 5])) == 5
    assert labels[:5] != labels[5:10] or labels[5:10] != labels[10:15]


def test_chat_prompts_share_their_prefix_too() -> None:
    fields = {**SPECS["shared prefix"], "endpoint": "chat"}
    texts = [job.turns[0].messages[0]["content"] for job in jobs_of(fields, FakeTokens())]
    heads = {tuple(words_of(text)[:40]) for text in texts}
    assert len(heads) == 1
    assert len({words_of(text)[40] for text in texts}) > 6
    assert {len(words_of(text)) for text in texts} == {40 + 90 - 32}


@pytest.mark.parametrize("seed", [8, 7 + 1_000_003])
def test_another_seed_shares_no_prompt(seed: int) -> None:
    ours = jobs_of(SPECS["shared prefix"], FakeTokens())
    theirs = jobs_of(SPECS["shared prefix"], FakeTokens(), seed=seed)
    for job in ours:
        for other in theirs:
            same = [a == b for a, b in zip(job.turns[0].prompt, other.turns[0].prompt, strict=True)]
            assert sum(same[:16]) < 3  # no block of a prefix cache


# Lengths


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10000), st.floats(0, 0.999))
def test_conventions_are_those_of_their_tools(length: int, ratio: float) -> None:
    low, high = bounds(length, ratio, "vllm")
    assert low == pytest.approx(max(1, length * (1 - ratio)), abs=1)
    assert high == pytest.approx(length * (1 + ratio), abs=1)
    for name in ("inferencex", "sglang"):
        low, high = bounds(length, ratio, name)  # type: ignore[arg-type]
        assert low == max(1, int(length * ratio + 1e-6))
        assert high == length


def test_bounds_are_not_moved_by_rounding() -> None:
    assert bounds(1000, 0.1, "vllm") == (900, 1100)  # 1000 * 1.1 is a little more than 1100
    assert bounds(100, 0.29, "inferencex") == (29, 100)  # 100 * 0.29 is a little less than 29
    assert bounds(8, None, None) == (8, 8)


def test_lengths_are_uniform_and_independent() -> None:
    fields = {"input_len": 4, "output_len": 4, "range_ratio": 0.25, "length_convention": "sglang"}
    jobs = jobs_of(fields, FakeTokens(), count=4000)
    pairs = Counter((job.turns[0].input_len, job.turns[0].max_tokens) for job in jobs)
    assert len(pairs) == 16
    expected = 4000 / 16
    chi2 = sum((count - expected) ** 2 / expected for count in pairs.values())
    assert chi2 < 37.7  # 15 degrees of freedom, p = 0.001


def test_what_came_out_is_told() -> None:
    jobs = jobs_of(SPECS["random"], FakeTokens(), count=100)
    told = realised(jobs)
    inputs = [job.turns[0].input_len for job in jobs]
    assert told.input == (min(inputs), sum(inputs) / 100, max(inputs))
    assert str(told).startswith(f"input min {min(inputs)}, mean ")
    exact = realised(jobs_of({"input_len": 50, "output_len": 9}, FakeTokens()))
    assert str(exact) == "input 50, output 9 tokens"
    turns = realised(jobs_of({**SPECS["multi-turn"], "turns": 2, "turns_max": 2}, FakeTokens()))
    assert (turns.requests, turns.known_inputs) == (24, 12)
    assert "of 12 first turns among 24" in str(turns)
    assert str(realised([])) == "no requests"


def test_range_is_told_with_its_convention() -> None:
    workload = make_workload(WorkloadSpec(**SPECS["random"]), FakeTokens(), 0)
    assert workload.notes == [
        "lengths: input 45 to 90, output 10 to 20 tokens "
        "(uniform; ratio 0.5 as inferencex means it)"
    ]


def test_too_short_for_the_template_is_refused() -> None:
    fields = {"input_len": 32, "endpoint": "chat"}
    with pytest.raises(BenchError, match="template alone takes 32; ask for at least 33"):
        jobs_of(fields, FakeTokens())
    job = jobs_of({**fields, "input_len": 33}, FakeTokens())[0]
    assert len(words_of(job.turns[0].messages[0]["content"])) == 1


def test_context_is_kept() -> None:
    fits = {"input_len": 90, "prefix_len": 10, "output_len": 28, "max_len": 128}
    assert jobs_of(fits, FakeTokens())
    with pytest.raises(BenchError, match="context of 127"):
        jobs_of({**fits, "max_len": 127}, FakeTokens())


# Conversations


def test_later_turns_add_as_many_words_as_asked() -> None:
    fields = {**SPECS["multi-turn"], "endpoint": "chat", "think_time_s": 2.0}
    jobs = jobs_of(fields, FakeTokens(), count=60)
    assert {len(job.turns) for job in jobs} == {2, 3, 4}
    for job in jobs:
        first, *later = job.turns
        assert first.delay_s == 0
        assert first.input_len is not None
        for turn in later:
            assert turn.input_len is None  # depends on the answers
            assert turn.delay_s == 2.0
            (message,) = turn.messages
            assert message["role"] == "user"
            assert 35 <= len(message["content"].split(" ")) <= 70


def test_completions_conversations_go_on_with_a_space() -> None:
    job = jobs_of(SPECS["multi-turn"], FakeTokens())[0]
    assert isinstance(job.turns[0].prompt, str)
    assert job.turns[1].prompt.startswith(" ")
    assert not job.turns[1].prompt.startswith("  ")


def test_think_times_have_their_mean() -> None:
    fields = {**SPECS["multi-turn"], "turns": 6, "turns_max": 6}
    fields |= {"think_time_s": 3.0, "think_time": "exponential"}
    jobs = jobs_of(fields, FakeTokens(), count=600)
    delays = [turn.delay_s for job in jobs for turn in job.turns[1:]]
    mean = sum(delays) / len(delays)
    assert mean == pytest.approx(3.0, rel=0.06)
    assert len(set(delays)) == len(delays)
    assert sum(d > 3 for d in delays) / len(delays) == pytest.approx(0.368, abs=0.03)


# Reproducibility


@pytest.mark.parametrize("name", SPECS)
def test_job_depends_on_seed_and_number_alone(name: str) -> None:
    tokens = FakeTokens()
    spec = WorkloadSpec(**SPECS[name])
    jobs = list(islice(make_workload(spec, tokens, 7).jobs(), 20))
    assert [job.index for job in jobs] == list(range(20))
    late = make_workload(spec, tokens, 7)
    assert list(islice(late.jobs(13), 7)) == jobs[13:]
    assert list(islice(late.jobs(), 3)) == jobs[:3]
    assert all(a.turns != b.turns for a, b in pairwise(jobs))


GOLDEN = {
    "random": "d000a529afe2a227",
    "shared prefix": "044c6e9283b798b1",
    "prefix-repetition": "44a97d29047c9af6",
    "multi-turn": "4502f8411735d974",
    "sonnet": "84460410a91e6ce6",
}


@pytest.mark.parametrize("name", SPECS)
def test_prompts_are_the_same_bytes_everywhere(name: str) -> None:
    assert digest(jobs_of(SPECS[name], FakeTokens(), seed=42, count=50)) == GOLDEN[name]


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_other_processes_make_the_same_prompts(hash_seed: str) -> None:
    code = (
        "from test_workloads_synthetic import SPECS, jobs_of, digest, FakeTokens\n"
        "for name in SPECS:\n"
        "    print(name, digest(jobs_of(SPECS[name], FakeTokens(), seed=42, count=50)))"
    )
    here = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{name} {value}" for name, value in GOLDEN.items()]


def test_provenance_names_what_matters() -> None:
    told = make_workload(WorkloadSpec(**SPECS["multi-turn"]), FakeTokens(), 7).describe()
    assert told["seed"] == 7
    notes = make_workload(WorkloadSpec(**SPECS["multi-turn"]), FakeTokens(), 7).notes
    assert notes[-1].startswith("conversations of 2 to 4 turns")
    assert told["input_range"] == [35, 70]
    assert told["turns"] == [2, 4]
    assert told["prompt_form"] == "text"
    assert told["word_pool_hash"] == FakeTokens().pool().digest
    again = make_workload(WorkloadSpec(**SPECS["multi-turn"]), FakeTokens(), 8).describe()
    assert {k: v for k, v in again.items() if k != "seed"} == {
        k: v for k, v in told.items() if k != "seed"
    }


def test_ids_need_a_server_that_takes_them() -> None:
    with serving(TokenServer(byte_bpe(), takes_ids=False)) as real:
        tokens = ServerTokens(real.target())
        workload = make_workload(WorkloadSpec(input_len=20), tokens, 0)
        assert "sent as text" in workload.notes[0]
        assert isinstance(next(workload.jobs()).turns[0].prompt, str)
        with pytest.raises(BenchError, match="prompt must be a text"):
            make_workload(WorkloadSpec(input_len=20, prompt_form="ids"), tokens, 0)

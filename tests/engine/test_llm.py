"""`LLM` on a tiny checkpoint: prompts in, texts out, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tiny import EOS, reference_greedy, tiny_checkpoint

from atom import LLM, SamplingParams
from atom.engine.core import EngineCore
from atom.errors import ConfigError, NeverFitError, RequestError

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def greedy(**fields: Any) -> SamplingParams:
    return msgspec.structs.replace(GREEDY, **fields)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    path = str(tiny_checkpoint("llama3"))
    with LLM(path, dtype="float32", num_kvcache_blocks=64, max_num_seqs=16, num_threads=1) as model:
        yield model


@pytest.fixture(autouse=True)
def _nothing_is_left(llm: LLM) -> Iterator[None]:
    yield
    assert not llm.core.has_work
    llm.core.check_invariants()
    assert llm.core.stats().num_used_blocks == 0


def text_of(llm: LLM, token_ids: list[int]) -> str:
    return llm.tokenizer.decode(token_ids)


def test_text_and_ids_single_and_many(llm: LLM) -> None:
    ids = llm.tokenizer.encode("hello")
    expected = reference_greedy(tiny_checkpoint("llama3"), ids, 12)
    by_text = llm.generate("hello", GREEDY)
    by_ids = llm.generate(ids, GREEDY)
    many = llm.generate(["hello", ids, "other"], GREEDY)
    for output in (by_text[0], by_ids[0], many[0], many[1]):
        assert output.prompt_token_ids == ids
        assert output.outputs[0].token_ids == expected
        assert output.outputs[0].text == text_of(llm, expected)
        assert output.outputs[0].finish_reason == "length"
        assert output.outputs[0].stop_reason is None
    assert by_text[0].prompt == "hello"
    assert by_ids[0].prompt is None
    assert many[2].prompt == "other"
    assert llm.generate([], GREEDY) == []


def test_sampling_per_prompt_and_defaults(llm: LLM) -> None:
    outputs = llm.generate(["a", "b"], [greedy(max_tokens=3), greedy(max_tokens=5)])
    assert [len(o.outputs[0].token_ids) for o in outputs] == [3, 5]
    with pytest.raises(RequestError, match="1 sampling parameters for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY])
    assert llm.default_sampling(max_tokens=2).max_tokens == 2
    assert len(llm.generate("a")[0].outputs[0].token_ids) <= 64


def test_choices(llm: LLM) -> None:
    sampling = SamplingParams(n=3, seed=5, max_tokens=8, ignore_eos=True)
    first, again = llm.generate(["xyz", "xyz"], sampling)
    assert [c.index for c in first.outputs] == [0, 1, 2]
    tokens = [c.token_ids for c in first.outputs]
    assert tokens == [c.token_ids for c in again.outputs]
    assert len({tuple(t) for t in tokens}) == 3


def test_stop_strings_are_trimmed_and_end_the_sequence(llm: LLM) -> None:
    whole = llm.generate("hello", greedy(max_tokens=40))[0].outputs[0]
    stop = next(whole.text[i : i + 2] for i in range(8, 30) if whole.text[i : i + 2].isascii())
    at = whole.text.index(stop)
    cut = llm.generate("hello", greedy(max_tokens=40, stop=(stop,)))[0].outputs[0]
    assert (cut.text, cut.finish_reason, cut.stop_reason) == (whole.text[:at], "stop", stop)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert len(cut.token_ids) < 40
    kept = greedy(max_tokens=40, stop=(stop,), include_stop_str_in_output=True)
    assert llm.generate("hello", kept)[0].outputs[0].text == whole.text[:at] + stop


def test_stop_tokens_end_the_sequence_and_are_no_text(llm: LLM) -> None:
    whole = llm.generate("hello", GREEDY)[0].outputs[0]
    token_id = whole.token_ids[5]
    first = whole.token_ids.index(token_id)
    cut = llm.generate("hello", greedy(stop_token_ids=(token_id,)))[0].outputs[0]
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", token_id)
    assert cut.text == text_of(llm, whole.token_ids[:first])


def test_eos_ends_the_sequence(llm: LLM) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=9, logit_bias={EOS: 100.0})
    output = llm.generate("hello", sampling)[0].outputs[0]
    assert (output.token_ids, output.text) == ([EOS], "")
    assert (output.finish_reason, output.stop_reason) == ("stop", EOS)
    later = llm.generate("hello", msgspec.structs.replace(sampling, min_tokens=4))[0].outputs[0]
    assert later.token_ids[4:] == [EOS]


def test_logprobs_of_output_and_prompt(llm: LLM) -> None:
    output = llm.generate("hello", greedy(logprobs=2, prompt_logprobs=1))[0]
    choice = output.outputs[0]
    assert choice.logprobs is not None
    assert [entry.token_ids[0] for entry in choice.logprobs] == choice.token_ids
    assert all(entry.rank == 1 for entry in choice.logprobs)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    entries = [entry for entry in output.prompt_logprobs[1:] if entry is not None]
    assert [entry.token_ids[0] for entry in entries] == output.prompt_token_ids[1:]
    plain = llm.generate("hello", GREEDY)[0]
    assert plain.outputs[0].logprobs is None
    assert plain.prompt_logprobs is None


def test_the_prefix_cache_and_the_durations_are_reported(llm: LLM) -> None:
    llm.core.reset_prefix_cache()
    prompt = "a prompt that is longer than two blocks of sixteen tokens"
    cold, warm = (llm.generate(prompt, GREEDY)[0] for _ in range(2))
    assert cold.num_cached_tokens == 0
    assert warm.num_cached_tokens == (len(warm.prompt_token_ids) - 1) // 16 * 16 > 0
    assert cold.outputs[0].token_ids == warm.outputs[0].token_ids
    for output in (cold, warm):
        assert 0 < output.ttft_s <= output.latency_s
        assert 0 < output.tpot_s < output.latency_s


def test_chat_renders_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (one,) = llm.chat(messages, GREEDY)
    assert one.prompt == llm.tokenizer.apply_chat_template(messages)
    assert one.prompt_token_ids == llm.tokenizer.encode(one.prompt, add_special_tokens=False)
    two = llm.chat([messages, messages], GREEDY)
    assert [o.outputs[0].token_ids for o in two] == [one.outputs[0].token_ids] * 2


def test_a_wrong_prompt_is_named_and_nothing_runs(llm: LLM) -> None:
    before = llm.core.stats().steps
    with pytest.raises(NeverFitError, match=r"prompts\[1\]: the prompt has 2000 tokens"):
        llm.generate(["fine", [1] * 2000], GREEDY)
    with pytest.raises(RequestError, match=r"^the prompt is empty"):
        llm.generate([[]], GREEDY)
    with pytest.raises(RequestError, match="lone surrogate"):
        llm.generate("\ud800", GREEDY)
    with pytest.raises(RequestError, match="outside the vocabulary"):
        llm.generate([[10**6]], GREEDY)
    with pytest.raises(RequestError, match="top_p"):
        llm.generate("a", greedy(top_p=2.0))
    assert llm.core.stats().steps == before


def test_an_interrupt_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = llm.core.step, []

    def step() -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(llm.core, "step", step)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], GREEDY)
    monkeypatch.undo()
    assert isinstance(llm.core, EngineCore)
    assert len(llm.generate("a", GREEDY)[0].outputs[0].token_ids) == 12


def test_progress_goes_to_stderr(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], greedy(max_tokens=2), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err


def test_an_unknown_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="max_num_seqs"):
        LLM(str(tiny_checkpoint("llama3")), max_num_seq=4)


def test_the_device_starts_before_everything_is_queued(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[i, *range(1, 20)] for i in range(8)]
    expected = [r.outputs[0].token_ids for r in llm.generate(prompts, GREEDY)]
    path = str(tiny_checkpoint("llama3"))
    settings: dict[str, Any] = {"dtype": "float32", "num_kvcache_blocks": 64, "num_threads": 1}
    with LLM(path, overlap=True, max_num_batched_tokens=40, **settings) as other:
        order: list[str] = []
        add, step = other.core.add, other.core.step
        monkeypatch.setattr(other.core, "add", lambda r: (order.append("add"), add(r)))
        monkeypatch.setattr(other.core, "step", lambda: (order.append("step"), step())[1])
        got = [r.outputs[0].token_ids for r in other.generate(prompts, GREEDY)]
        assert got == expected
        # A step's worth is two prompts; the other six are queued while it runs.
        assert order[:10] == ["add", "add", "step", *["add"] * 6, "step"]
        with pytest.raises(NeverFitError, match=r"prompts\[2\]"):
            other.generate([[1], [2], [3] * 2000], GREEDY)
        assert not other.core.has_work

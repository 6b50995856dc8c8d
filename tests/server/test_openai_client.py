"""OpenAI's own Python client against the server: sync, async, streams, n, logprobs, stop."""

from __future__ import annotations

import asyncio

import openai
import pytest
from fake_client import EOS, REPLY
from serverkit import Served

HELLO = [{"role": "user", "content": "Hello"}]


def text_after(prompt: bytes, length: int, seed: int = 0, bos: bool = True) -> str:
    start = (sum(prompt) + (258 if bos else 0) + 7 * seed) % len(REPLY)
    return (REPLY[start:] + REPLY * 9)[:length]


def test_completion(served: Served) -> None:
    answer = served.openai().completions.create(model="fake-model", prompt="abc", max_tokens=12)
    assert answer.object == "text_completion"
    assert answer.model == "fake-model"
    assert answer.choices[0].text == text_after(b"abc", 12)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 12)
    assert answer.usage.total_tokens == 16
    extras = answer.usage.model_dump()
    assert 0 < extras["ttft_s"] <= extras["latency_s"]
    assert extras["tpot_s"] >= 0
    assert extras["queue_s"] == 0.01


def test_completion_defaults_to_sixteen_tokens(served: Served) -> None:
    answer = served.openai().completions.create(model="fake-model", prompt="abc")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_prompts_as_text_ids_and_batches(served: Served) -> None:
    create = served.openai().completions.create
    ids = list(b"abc")
    one = create(model="fake-model", prompt=ids, max_tokens=5).choices
    assert [c.text for c in one] == [text_after(b"abc", 5, bos=False)]
    texts = create(model="fake-model", prompt=["abc", "xy"], max_tokens=5).choices
    assert [c.text for c in texts] == [text_after(b"abc", 5), text_after(b"xy", 5)]
    batch = create(model="fake-model", prompt=[ids, list(b"xy")], max_tokens=5)
    assert [c.index for c in batch.choices] == [0, 1]
    assert batch.choices[1].text == text_after(b"xy", 5, bos=False)
    assert batch.usage is not None
    assert batch.usage.prompt_tokens == 5


def test_chat(served: Served) -> None:
    answer = served.openai().chat.completions.create(
        model="fake-model", messages=HELLO, max_completion_tokens=7
    )
    assert answer.object == "chat.completion"
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content is not None
    assert len(choice.message.content) == 7
    prompt = served.client.requests[-1].prompt_token_ids
    # <end> is one token, and the template writes BOS itself if it wants one.
    assert bytes(t for t in prompt if t < 256) == b"[user]Hello[assistant]"
    assert prompt.count(257) == 1
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == len(prompt) // 16 * 16


def test_chat_takes_what_the_context_holds_by_default(served: Served) -> None:
    served.openai().chat.completions.create(model="fake-model", messages=HELLO, stop="z")
    request = served.client.requests[-1]
    assert request.sampling.max_tokens == 2048 - len(request.prompt_token_ids)


def test_stream(served: Served) -> None:
    stream = served.openai().chat.completions.create(
        model="fake-model", messages=HELLO, max_tokens=9, stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    whole = served.openai().chat.completions.create(
        model="fake-model", messages=HELLO, max_tokens=9
    )
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage(served: Served) -> None:
    stream = served.openai().completions.create(
        model="fake-model",
        prompt="abc",
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert "".join(c.choices[0].text for c in chunks[:-1]) == text_after(b"abc", 9)


def test_continuous_usage(served: Served) -> None:
    stream = served.openai().completions.create(
        model="fake-model",
        prompt="abc",
        max_tokens=5,
        stream=True,
        extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    )
    counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage]
    assert counts == [1, 2, 3, 4, 5, 5]


def test_n_choices_differ_by_seed_and_repeat(served: Served) -> None:
    def ask() -> list[str]:
        answer = served.openai().completions.create(
            model="fake-model", prompt="abc", max_tokens=9, n=3, seed=4
        )
        assert [c.index for c in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 27)
        return [c.text for c in answer.choices]

    assert ask() == [text_after(b"abc", 9, seed) for seed in (4, 5, 6)] == ask()


def test_streamed_choices_of_several_prompts_are_told_apart(served: Served) -> None:
    stream = served.openai().completions.create(
        model="fake-model", prompt=["abc", "xy"], max_tokens=9, n=2, seed=0, stream=True
    )
    texts = ["", "", "", ""]
    reasons: list[str | None] = [None] * 4
    for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason
    expected = [(b"abc", 0), (b"abc", 1), (b"xy", 0), (b"xy", 1)]
    assert texts == [text_after(prompt, 9, seed) for prompt, seed in expected]
    assert reasons == ["length"] * 4


def test_stop_strings_are_trimmed_and_end_the_sequence(served: Served) -> None:
    prompt = "?" * 5
    full = text_after(b"?????", 200)
    stop = [full[20:26], "never"]
    create = served.openai().completions.create
    answer = create(model="fake-model", prompt=prompt, max_tokens=200, stop=stop)
    assert answer.choices[0].text == full[:20]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 26
    assert served.client.aborted == [served.client.requests[-1].request_id]
    stream = create(model="fake-model", prompt=prompt, max_tokens=200, stop=stop, stream=True)
    pieces = [chunk.choices[0].text for chunk in stream]
    assert "".join(pieces) == full[:20]
    kept = create(
        model="fake-model",
        prompt=prompt,
        max_tokens=200,
        stop=stop,
        extra_body={"include_stop_str_in_output": True},
    )
    assert kept.choices[0].text == full[:26]


def test_a_possible_stop_is_flushed_at_the_end(served: Served) -> None:
    full = text_after(b"abc", 12)
    answer = served.openai().completions.create(
        model="fake-model", prompt="abc", max_tokens=12, stop=full[8:12] + "~"
    )
    assert answer.choices[0].text == full
    assert answer.choices[0].finish_reason == "length"


def test_end_tokens_are_no_text(served: Served) -> None:
    served.client.script = lambda _: [*b"ok", EOS, *b"more"]
    answer = served.openai().completions.create(model="fake-model", prompt="abc")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("ok", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    for shown, text in ((False, "ok"), (True, "ok<eos>")):
        answer = served.openai().completions.create(
            model="fake-model",
            prompt="abc",
            extra_body={"skip_special_tokens": False, "include_stop_str_in_output": shown},
        )
        assert answer.choices[0].text == text
    answer = served.openai().completions.create(
        model="fake-model", prompt="abc", max_tokens=5, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].text == "okmo"


def test_stop_token_ids(served: Served) -> None:
    served.client.script = lambda _: list(b"one two three")
    answer = served.openai().completions.create(
        model="fake-model", prompt="abc", extra_body={"stop_token_ids": [ord("t")]}
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("one ", "stop")


def test_characters_of_several_tokens_are_never_torn(served: Served) -> None:
    text = "naïve 東京 🦊 end"
    served.client.script = lambda _: list(text.encode())
    stream = served.openai().chat.completions.create(
        model="fake-model", messages=HELLO, max_tokens=len(text.encode()), stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_chat_logprobs(served: Served) -> None:
    answer = served.openai().chat.completions.create(
        model="fake-model", messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=2
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert "".join(entry.token for entry in content) == choice.message.content
    for entry in content:
        assert entry.bytes == list(entry.token.encode())
        assert len(entry.top_logprobs) == 2
        assert [t.logprob for t in entry.top_logprobs] == [-0.5, -1.0]
        even = ord(entry.token) % 2 == 0
        assert entry.logprob == (-0.5 if even else -1.0)
        assert entry.top_logprobs[0 if even else 1].token == entry.token


def test_chat_logprobs_stream_and_keep_stop_strings_secret(served: Served) -> None:
    served.client.script = lambda _: list(b"abcSTOPdef")
    stream = served.openai().chat.completions.create(
        model="fake-model",
        messages=HELLO,
        max_tokens=10,
        logprobs=True,
        stop="STOP",
        stream=True,
    )
    tokens = [
        entry.token
        for chunk in stream
        if (logprobs := chunk.choices[0].logprobs) is not None
        for entry in logprobs.content or []
    ]
    assert tokens == ["a", "b", "c"]


def test_completion_logprobs(served: Served) -> None:
    answer = served.openai().completions.create(
        model="fake-model", prompt="abc", max_tokens=6, logprobs=1
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list(choice.text)
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4, 5]
    assert choice.logprobs.top_logprobs is not None
    for token, value, top in zip(
        choice.text,
        choice.logprobs.token_logprobs or [],
        choice.logprobs.top_logprobs,
        strict=True,
    ):
        assert top[token] == value
        assert max(top.values()) == -0.5
        assert len(top) == (1 if value == -0.5 else 2)  # the best one, and always the chosen


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_with_logprobs_as_lm_eval_asks(served: Served, as_ids: bool, max_tokens: int) -> None:
    prompt: str | list[int] = list(b"abcd") if as_ids else "abcd"
    answer = served.openai().completions.create(
        model="fake-model", prompt=prompt, max_tokens=max_tokens, echo=True, logprobs=1, seed=1234
    )
    choice = answer.choices[0]
    assert choice.text[:4] == "abcd"
    assert len(choice.text) == 4 + max_tokens
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    values, top = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
    assert values is not None
    assert top is not None
    count = 4 + max_tokens + (not as_ids)  # BOS has an entry, and no text
    assert len(values) == len(top) == len(choice.logprobs.tokens or []) == count
    assert values[0] is None
    assert top[0] is None
    assert values[-1 - max_tokens] == -0.5  # "d" is even
    assert max(top[-1 - max_tokens].values()) == -0.5
    offsets = choice.logprobs.text_offset
    assert offsets == ([] if as_ids else [0]) + list(range(4 + max_tokens))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == max_tokens


def test_echo_in_a_stream(served: Served) -> None:
    stream = served.openai().completions.create(
        model="fake-model", prompt="abcd", max_tokens=3, echo=True, n=2, seed=1, stream=True
    )
    texts = ["", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["abcd" + text_after(b"abcd", 3, seed) for seed in (1, 2)]


def test_prompt_logprobs(served: Served) -> None:
    answer = served.openai().completions.create(
        model="fake-model", prompt="abc", max_tokens=1, n=2, extra_body={"prompt_logprobs": 1}
    )
    for choice in answer.choices:
        rows = choice.model_dump()["prompt_logprobs"]
        assert rows[0] is None
        assert rows[1] == {  # "a" is odd: the second best
            "97": {"logprob": -1.0, "rank": 2, "decoded_token": "a"},
            "98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"},
        }
        assert rows[2] == {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}
    assert [r.sampling.prompt_logprobs for r in served.client.requests] == [1, None]


def test_impossible_tokens_have_a_finite_logprob(served: Served) -> None:
    answer = served.openai().chat.completions.create(
        model="fake-model", messages=HELLO, max_tokens=1, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert content[0].top_logprobs[2].logprob == -9999.0


def test_every_sampling_field_reaches_the_engine(served: Served) -> None:
    served.openai().completions.create(
        model="fake-model",
        prompt="abc",
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"97": 5},
        seed=11,
        max_tokens=20,
        stop=["x", "y"],
        extra_body={
            "top_k": 7,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "min_tokens": 2,
            "stop_token_ids": [3, 3],
            "ignore_eos": True,
            "skip_special_tokens": False,
            "cache_salt": "mine",
            "add_special_tokens": False,
        },
    )
    request = served.client.requests[-1]
    sampling = request.sampling
    assert request.cache_salt == "mine"
    assert request.prompt_token_ids == list(b"abc")
    assert sampling.temperature == 0.5
    assert sampling.top_p == 0.25
    assert sampling.top_k == 7
    assert sampling.min_p == 0.125
    assert sampling.repetition_penalty == 1.5
    assert sampling.presence_penalty == 1.0
    assert sampling.frequency_penalty == -1.0
    assert sampling.logit_bias == {97: 5.0}
    assert sampling.seed == 11
    assert (sampling.min_tokens, sampling.max_tokens) == (2, 20)
    assert sampling.stop_token_ids == (3,)
    assert sampling.ignore_eos
    assert not sampling.skip_special_tokens


async def test_async_client(served: Served) -> None:
    client = served.async_openai()
    answers = await asyncio.gather(
        *(
            client.completions.create(model="fake-model", prompt=f"p{i}", max_tokens=6)
            for i in range(20)
        )
    )
    assert [a.choices[0].text for a in answers] == [
        text_after(f"p{i}".encode(), 6) for i in range(20)
    ]
    stream = await client.chat.completions.create(
        model="fake-model", messages=HELLO, max_tokens=6, stream=True
    )
    text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert len(text) == 6
    await client.close()


def test_models(served: Served) -> None:
    client = served.openai()
    assert [model.id for model in client.models.list()] == ["fake-model"]
    assert client.models.retrieve("fake-model").model_dump()["max_model_len"] == 2048
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("other")


def test_errors_become_the_clients_exceptions(served: Served) -> None:
    client = served.openai()
    with pytest.raises(openai.NotFoundError) as not_found:
        client.completions.create(model="other", prompt="abc")
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="fake-model", prompt="abc", temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="fake-model", prompt="abc", max_tokens=5000)
    assert long.value.code == "context_length_exceeded"
    assert "5000" in str(long.value)
    assert "2048" in str(long.value)

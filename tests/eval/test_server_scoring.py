"""What an evaluation needs of the server: scores of a prompt's end, exact tokens, stop strings.

The engine is a fake one: tokens are bytes; even ones have log-probability -0.5 and are the
likeliest, odd ones have -1.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_client import BOS, EOS, FakeClient
from serverkit import Served, error_of, make_source, serving

SCORE = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(client=FakeClient()) as found:
        yield found


def choices(served: Served, **body: Any) -> list[dict[str, Any]]:
    answer = served.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["choices"]
    return found


def refusal(served: Served, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    answer = served.post(path, body)
    assert answer.status_code == 400, answer.text
    return error_of(answer)


# -- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_batch_of_token_ids(served: Served, max_tokens: int) -> None:
    prompts = [list(b"abcdef"), list(b"ab"), list(b"q")]
    body = {**SCORE, "max_tokens": max_tokens, "prompt": prompts}
    for number, (choice, prompt) in enumerate(zip(choices(served, **body), prompts, strict=True)):
        assert choice["index"] == number
        found = choice["logprobs"]
        for column in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert len(found[column]) == len(prompt) + max_tokens, column
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        values = [-0.5 if token % 2 == 0 else -1.0 for token in prompt]
        assert found["token_logprobs"][1 : len(prompt)] == values[1:]
        for value, top in zip(values[1:], found["top_logprobs"][1:], strict=False):
            assert max(top.values()) == -0.5
            assert len(top) == (1 if value == -0.5 else 2)  # and the chosen one, where it is not
        assert choice["text"][: len(prompt)] == bytes(prompt).decode()


@pytest.mark.parametrize("given", [4, [4, 2]], ids=["one for all", "one each"])
def test_only_the_end_is_scored(served: Served, given: int | list[int]) -> None:
    prompts = [list(b"abcdef"), list(b"bbbbb")]
    served.client.requests.clear()
    found = choices(served, **SCORE, prompt=prompts, logprobs_start=given)
    starts = [given] * 2 if isinstance(given, int) else given
    assert [r.sampling.logprobs_start for r in served.client.requests] == starts
    for choice, start, prompt in zip(found, starts, prompts, strict=True):
        shown = choice["logprobs"]
        assert shown["token_logprobs"][:start] == shown["top_logprobs"][:start] == [None] * start
        assert None not in shown["token_logprobs"][start:]
        assert None not in shown["top_logprobs"][start:]
        assert shown["tokens"][: len(prompt)] == [chr(token) for token in prompt]
        assert shown["text_offset"] == list(range(len(prompt) + 1))


def test_the_start_of_prompt_logprobs(served: Served) -> None:
    body = {"prompt": list(b"abc"), "max_tokens": 0, "prompt_logprobs": 0, "logprobs_start": 2}
    (choice,) = choices(served, **body)
    assert choice["prompt_logprobs"][:2] == [None, None]
    assert list(choice["prompt_logprobs"][2]) == [str(ord("c"))]


def test_both_ends_of_the_start(served: Served) -> None:
    for start, nulls in ((0, 1), (1, 1), (3, 3)):
        body = {**SCORE, "max_tokens": 0, "prompt": list(b"abc"), "logprobs_start": start}
        (choice,) = choices(served, **body)
        assert choice["logprobs"]["token_logprobs"].count(None) == nulls


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"logprobs_start": 4}, "at most 3, the tokens of prompt 0, got 4"),
        ({"logprobs_start": -1}, "greater than or equal to 0"),
        ({"logprobs_start": []}, "at least 1 item"),
        ({"logprobs_start": [0, 0]}, "2 numbers for 1 prompts"),
        ({"logprobs_start": 1, "echo": False}, "needs echo with logprobs, or prompt_logprobs"),
        ({"logprobs_start": 1, "logprobs": None}, "needs echo with logprobs"),
    ],
    ids=["beyond", "negative", "empty", "too many", "no echo", "no logprobs"],
)
def test_a_wrong_start_is_named(served: Served, body: dict[str, Any], words: str) -> None:
    error = refusal(served, **{**SCORE, "prompt": list(b"abc"), **body})
    assert words in error["message"]
    assert error["param"].startswith("logprobs_start")


def test_a_wrong_start_in_a_list_names_its_prompt(served: Served) -> None:
    error = refusal(served, **SCORE, prompt=["abc", list(b"ab")], logprobs_start=[3, 3])
    assert error["message"] == "logprobs_start[1] must be at most 2, the tokens of prompt 1, got 3."


def test_the_start_has_no_meaning_for_chats(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "logprobs_start": 1}
    error = refusal(served, "/v1/chat/completions", **body)
    assert error["code"] == "unsupported_parameter"


# -- tokens ---------------------------------------------------------------------------------------


def test_many_texts_are_tokenised_at_once(served: Served) -> None:
    texts = ["añ", "", "<eos>x", "long " * 1000]  # the last one leaves the event loop
    with served.http() as http:
        for special in (False, True):
            body = {"prompt": texts, "add_special_tokens": special, "return_token_strs": True}
            found = http.post("/tokenize", json=body).json()
            alone = [http.post("/tokenize", json={**body, "prompt": text}).json() for text in texts]
            for column in ("tokens", "count", "token_strs"):
                assert found[column] == [one[column] for one in alone], column
    assert found["tokens"][:3] == [[BOS, 97, 0xC3, 0xB1], [BOS], [BOS, EOS, ord("x")]]
    assert found["count"][3] == 5001


def test_texts_that_cannot_be_tokenised(served: Served) -> None:
    assert "at least 1 item" in refusal(served, "/tokenize", prompt=[])["message"]
    error = refusal(served, "/tokenize", prompt=["a"], messages=[{"role": "user", "content": "a"}])
    assert error["param"] == "prompt"
    assert refusal(served, "/tokenize", prompt=["a", 7])["param"].startswith("prompt")


def test_what_the_tokenizer_is(served: Served) -> None:
    with served.http() as http:
        found = http.get("/tokenizer_info").json()
    assert found["bos_token_id"] == BOS
    assert found["eos_token_id"] == EOS
    assert (found["add_bos_token"], found["add_eos_token"]) == (True, False)
    assert found["model_max_length"] == 2048
    assert found["chat_template"].startswith("{%- for m in messages")


def test_a_model_without_a_tokenizer_says_so() -> None:
    from atom.engine.text.tokenizer import Tokenizer

    with serving(tokenizer=Tokenizer(None, vocab_size=300), source=make_source()) as bare:
        with bare.http() as http:
            found = http.get("/tokenizer_info").json()
        assert found["eos_token"] is None
        assert found["chat_template"] is None
        (choice,) = choices(bare, **SCORE, prompt=list(b"ab"), logprobs_start=1)
        assert choice["logprobs"]["token_logprobs"][1] == -0.5


# -- until ----------------------------------------------------------------------------------------


def test_stops_of_any_number_and_across_tokens(served: Served) -> None:
    (free,) = choices(served, prompt="a", max_tokens=40, ignore_eos=True)
    text = free["text"]
    stops = [f"never {i}" for i in range(8)] + [text[12:15], text[20:22]]  # a token is one byte
    (cut,) = choices(served, prompt="a", max_tokens=40, stop=stops)
    assert cut["text"] == text[: text.index(text[12:15])]
    assert cut["finish_reason"] == "stop"

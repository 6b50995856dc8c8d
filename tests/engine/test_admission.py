"""The door's arithmetic, against plain search; and the fan-out of n."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.engine.admission import check_fits, fan_out
from atom.engine.sampling_params import MAX_SEED, SamplingParams
from atom.errors import NeverFitError, RequestError


class Size(NamedTuple):
    max_model_len: int
    block_size: int
    num_blocks: int


def fits(prompt: int, max_tokens: int, size: Size) -> bool:
    """All tokens within the context, and a slot for each token that is ever computed."""
    computed = prompt + max(0, max_tokens - 1)
    blocks = -(-computed // size.block_size)
    return prompt + max_tokens <= size.max_model_len and blocks <= size.num_blocks


@given(
    prompt=st.integers(1, 60),
    max_tokens=st.integers(0, 60),
    size=st.builds(Size, st.integers(1, 60), st.sampled_from([1, 4, 16]), st.integers(1, 16)),
)
def test_refuses_exactly_what_cannot_fit(prompt: int, max_tokens: int, size: Size) -> None:
    sampling = SamplingParams(max_tokens=max_tokens)
    if fits(prompt, max_tokens, size):
        assert check_fits(prompt, sampling, size) == max_tokens
    else:
        with pytest.raises(NeverFitError):
            check_fits(prompt, sampling, size)


@given(
    prompt=st.integers(1, 60),
    size=st.builds(Size, st.integers(1, 60), st.sampled_from([1, 4, 16]), st.integers(1, 16)),
)
def test_none_means_as_many_as_fit(prompt: int, size: Size) -> None:
    best = max((m for m in range(1, 300) if fits(prompt, m, size)), default=None)
    if best is None:
        with pytest.raises(NeverFitError):
            check_fits(prompt, SamplingParams(max_tokens=None), size)
    else:
        assert check_fits(prompt, SamplingParams(max_tokens=None), size) == best


def test_min_tokens_must_fit_too() -> None:
    with pytest.raises(NeverFitError, match="room for 2 of the 3 wanted"):
        check_fits(8, SamplingParams(max_tokens=None, min_tokens=3), Size(10, 16, 10))


def test_messages_name_the_field_the_numbers_and_the_way_out() -> None:
    size = Size(100, 16, 100)
    with pytest.raises(RequestError, match="empty") as empty:
        check_fits(0, SamplingParams(), size)
    assert empty.value.param == "prompt"
    with pytest.raises(NeverFitError, match=r"101 tokens.*context of 100.*max_model_len") as long:
        check_fits(101, SamplingParams(), size)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(NeverFitError, match=r"90 .* 20 = 110 .* 100 tokens.* at most 10") as want:
        check_fits(90, SamplingParams(max_tokens=20), size)
    assert want.value.param == "max_tokens"


def test_one_choice_is_the_request_itself() -> None:
    sampling = SamplingParams(seed=3)
    (request,) = fan_out("id", [1, 2], sampling, "salt")
    assert (request.request_id, request.sampling, request.cache_salt) == ("id", sampling, "salt")


def test_choices_have_their_own_ids_and_seeds_and_share_the_prompts_logprobs() -> None:
    requests = fan_out("id", [1], SamplingParams(n=3, seed=MAX_SEED - 1, prompt_logprobs=2))
    assert [r.request_id for r in requests] == ["id-0", "id-1", "id-2"]
    assert [r.sampling.seed for r in requests] == [MAX_SEED - 1, MAX_SEED, -MAX_SEED - 1]
    assert [r.sampling.prompt_logprobs for r in requests] == [2, None, None]
    assert all(r.sampling.n == 1 for r in requests)
    for request in requests:
        request.sampling.validate()
    assert [r.sampling.seed for r in fan_out("id", [1], SamplingParams(n=2))] == [None, None]

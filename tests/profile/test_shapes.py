"""Shapes as they are written, and whether they can run: the limit is named, and what moves it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.profile.errors import ProfileError
from atom.profile.shapes import Counts, Shape, check, default_shapes, parse, runs_here


@dataclass
class Limits:
    max_model_len: int = 2048
    block_size: int = 16
    num_blocks: int = 1024
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 8192


def test_how_they_are_written() -> None:
    assert parse(["1x512,4x2048", " 1x512 "], ["1,32@4096", "8"], 1024) == [
        Shape("prefill", 1, 512),
        Shape("prefill", 4, 2048),
        Shape("decode", 1, 1024),
        Shape("decode", 32, 4096),
        Shape("decode", 8, 1024),
    ]
    assert [str(s) for s in parse(["4x20"], ["3"], 9)] == ["prefill 4x20", "decode 3@9"]


@pytest.mark.parametrize("text", ["512", "x512", "0x512", "1x0", "1 x 2", "-1x2", "1x2x3", "ax2"])
def test_a_prefill_that_is_none(text: str) -> None:
    with pytest.raises(ProfileError, match=r"^--prefill .*: write PROMPTSxTOKENS, e\.g\. 1x512"):
        parse([text], [], 1024)


@pytest.mark.parametrize("text", ["0", "32@", "@32", "1x2", "-1", "many"])
def test_a_decode_that_is_none(text: str) -> None:
    with pytest.raises(ProfileError, match=r"^--decode .*: write BATCH or BATCH@CONTEXT"):
        parse([], [text], 1024)


@pytest.mark.parametrize(
    ("shape", "limits", "said"),
    [
        (Shape("decode", 65, 64), Limits(), "--decode 65@64: a batch of 65, and at most 64 "
         "sequences run at once; raise --max-num-seqs"),
        (Shape("prefill", 8, 1025), Limits(), "--prefill 8x1025: 8200 tokens in one step, and at "
         "most 8192 are computed in one; raise --max-num-batched-tokens"),
        (Shape("prefill", 1, 2048), Limits(), "--prefill 1x2048: prompts of 2048 tokens and one "
         "more, and a sequence holds at most 2048 (max_model_len)"),
        (Shape("prefill", 3, 1), Limits(), "--prefill 3x1: a step of one token of each sequence "
         "is a decode; write --decode"),
        (Shape("decode", 2, 2041), Limits(), "--decode 2@2041: a context of 2041, 8 steps: 2049 "
         "tokens, and a sequence holds at most 2048 (max_model_len)"),
        (Shape("decode", 2, 3), Limits(), "--decode 2@3: a context below 4 tokens has no room for "
         "2 warm-up steps"),
        (Shape("decode", 64, 512), Limits(), "--decode 64@512: it needs 2112 KV blocks of 16 "
         "tokens, and there are 1024; a smaller batch or context, or more KV cache (atom doctor "
         "shows what decides it)"),
    ],
)  # fmt: skip
def test_what_cannot_run_names_the_limit(shape: Shape, limits: Limits, said: str) -> None:
    with pytest.raises(ProfileError) as error:
        check([shape], limits, Counts())
    assert str(error.value) == said
    assert not runs_here(shape, limits, Counts())


def test_at_its_limits_a_shape_runs() -> None:
    edge = Limits(max_model_len=64, num_blocks=16, max_num_seqs=4, max_num_batched_tokens=126)
    check([Shape("prefill", 2, 63), Shape("decode", 3, 56)], edge, Counts())
    for shape in (Shape("prefill", 2, 64), Shape("prefill", 3, 63), Shape("decode", 3, 57)):
        assert not runs_here(shape, edge, Counts())


@given(
    st.builds(
        Limits,
        max_model_len=st.integers(16, 4096),
        block_size=st.sampled_from([1, 16, 64]),
        num_blocks=st.integers(64, 2000),
        max_num_seqs=st.integers(1, 600),
        max_num_batched_tokens=st.integers(4, 20000),
    ),
    st.sampled_from(["cpu", "cuda:0"]),
)
def test_the_defaults_fit_any_engine(limits: Limits, device: str) -> None:
    counts = Counts()
    shapes = default_shapes(device, limits, counts)
    check(shapes, limits, counts)
    assert {s.kind for s in shapes} == {"prefill", "decode"}


def test_the_defaults_where_all_fits() -> None:
    large = Limits(num_blocks=4096, max_num_batched_tokens=16384)
    assert [str(s) for s in default_shapes("cuda:0", large, Counts())] == [
        "prefill 1x512",
        "decode 1@1024",
        "decode 32@1024",
    ]

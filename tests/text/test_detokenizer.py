"""Streaming text: whatever the tokens and chunks, the deltas are the whole text, and no more."""

from __future__ import annotations

import codecs
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fuzz_text import random_chunks, random_text
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.engine.text.detokenizer import Detokenizer
from atom.engine.text.gguf_tokenizer import tokenizer_from_gguf
from atom.engine.text.pieces import BYTE_ALPHABET
from atom.engine.text.stop_matcher import StopMatcher
from atom.engine.text.tokenizer import Tokenizer

BYTE_OF_ID = [BYTE_ALPHABET[c] for c in sorted(BYTE_ALPHABET)]
ID_OF_BYTE = {b: i for i, b in enumerate(BYTE_OF_ID)}
SPECIAL, WORD = 256, 257


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    """Ids 0..255 are bytes, 256 is the special `<|end|>`, 257 the word "stop"."""
    return BYTES


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """0 <unk>, 1 <s>, 2 </s>, 3..258 bytes, 259 "▁", 260 "▁a", 261 "b", 262 "▁▁"."""
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, "▁", "▁a", "b", "▁▁"]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1, 1]
    return make(model="llama", tokens=tokens, token_type=types, scores=[0.0] * len(tokens))


def make(**metadata: Any) -> Tokenizer:
    prefixed = {f"tokenizer.ggml.{k}": v for k, v in metadata.items()}
    return Tokenizer(tokenizer_from_gguf(SimpleNamespace(metadata=prefixed, path=Path("x"))))


BYTES = make(
    model="gpt2",
    pre="gpt-2",
    tokens=[*sorted(BYTE_ALPHABET), "<|end|>", "stop"],
    token_type=[1] * 256 + [3, 4],
    merges=[],
)


AB = make(model="gpt2", pre="gpt-2", tokens=["a", "b"], merges=[], token_type=[1, 1])
LETTERS = make(
    model="gpt2", pre="gpt-2", tokens=["a", "b", "c", "ab", "bca"], merges=[], token_type=[4] * 5
)


def ids_of(text: str | bytes) -> list[int]:
    return [ID_OF_BYTE[b] for b in (text.encode() if isinstance(text, str) else text)]


def stream(
    tokenizer: Tokenizer, chunks: Iterable[Sequence[int]], *stops: str, **options: Any
) -> tuple[str, str | None, int]:
    """(all deltas and the rest, the stop string, tokens used); checks what each step promises."""
    prompt = options.pop("prompt_ids", ())
    one = Detokenizer(tokenizer, prompt, stops, **options)
    text, used = "", 0
    for chunk in chunks:
        delta = one.push(chunk)
        text += delta.text
        used += delta.num_tokens_used
        assert (delta.stop_str is not None) or delta.num_tokens_used == len(chunk)
        if delta.stop_str is not None:
            assert one.push([0, 1]) == ("", delta.stop_str, 0)
            assert one.finish() == ""
            return text, delta.stop_str, used
    return text + one.finish(), one.stop_str, used


def one_by_one(ids: Sequence[int]) -> list[list[int]]:
    return [[i] for i in ids]


# Without stop strings


def test_embedded_stream_is_the_whole_decoding(embedded_tokenizer: Tokenizer) -> None:
    """Random ids, most of them not UTF-8 together, cut at random."""
    rng = random.Random(0)
    for _ in range(1500):
        ids = [rng.randrange(rng.choice((300, 49152))) for _ in range(rng.randint(0, 30))]
        for skip in (True, False):
            text, _, used = stream(
                embedded_tokenizer, random_chunks(rng, ids), skip_special_tokens=skip
            )
            assert text == embedded_tokenizer.decode(ids, skip)
            assert used == len(ids)


def test_real_text_is_never_broken(embedded_tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for _ in range(500):
        text = random_text(rng).replace("\ufffd", "")
        ids = embedded_tokenizer.encode(text)
        if embedded_tokenizer.decode(ids, False) != text:
            continue  # bytes that this vocabulary lacks
        one = Detokenizer(embedded_tokenizer, (), (), skip_special_tokens=False)
        deltas = [one.push([i]).text for i in ids]
        assert "".join(deltas) == text
        assert not any("\ufffd" in delta for delta in deltas)
        assert one.finish() == ""


def test_a_character_is_sent_when_its_last_byte_is_there(small: Tokenizer) -> None:
    one = Detokenizer(small, (), ())
    assert [one.push([i]).text for i in ids_of("é😀a")] == ["", "é", "", "", "", "😀", "a"]


def test_bytes_that_never_become_a_character(small: Tokenizer) -> None:
    one = Detokenizer(small, (), ())
    assert one.push(ids_of(b"\xf0\x9f\x98")).text == ""
    assert one.finish() == "\ufffd"
    one = Detokenizer(small, (), ())
    assert one.push(ids_of(b"\xe6\x97")).text == ""
    assert one.push(ids_of(b"a")).text == "\ufffda"
    assert one.push(ids_of(b"\xff")).text == "\ufffd"
    assert one.finish() == ""


def test_special_tokens(small: Tokenizer) -> None:
    ids = [*ids_of("a"), SPECIAL, *ids_of("b")]
    assert stream(small, [ids])[0] == "ab"
    assert stream(small, [ids], skip_special_tokens=False)[0] == "a<|end|>b"


def test_ids_without_a_token_are_nothing(small: Tokenizer) -> None:
    assert stream(small, [[*ids_of("a"), 5000, *ids_of("b")]]) == ("ab", None, 3)


# What the prompt changes


def test_sentencepiece_first_space(sentencepiece: Tokenizer) -> None:
    a, space, two = 260, 259, 262
    assert stream(sentencepiece, [[a], [a]])[0] == "a a"
    assert stream(sentencepiece, [[1], [a]])[0] == "a"  # <s> is not text
    assert stream(sentencepiece, [[a]], prompt_ids=[1])[0] == "a"
    assert stream(sentencepiece, [[a]], prompt_ids=[1, a])[0] == " a"
    assert stream(sentencepiece, [[1], [a]], skip_special_tokens=False)[0] == "<s> a"
    assert stream(sentencepiece, [[two], [a]])[0] == "  a"
    assert stream(sentencepiece, [[space], [261]])[0] == "b"
    rng = random.Random(2)
    for _ in range(500):
        ids = [rng.randrange(1, 263) for _ in range(rng.randint(0, 8))]
        assert stream(sentencepiece, random_chunks(rng, ids))[0] == sentencepiece.decode(ids)


def test_a_character_that_the_prompt_began(small: Tokenizer) -> None:
    whole = "日😀é"
    for cut in range(len(whole.encode()) + 1):
        prompt, rest = ids_of(whole.encode()[:cut]), ids_of(whole.encode()[cut:])
        known = whole.encode()[:cut].decode("utf-8", "ignore")
        text = stream(small, one_by_one(rest), prompt_ids=[*prompt, SPECIAL])[0]
        assert known + text == whole
        assert "\ufffd" not in text


@given(st.binary(max_size=8), st.binary(max_size=4))
def test_any_bytes_of_a_prompt(prompt: bytes, rest: bytes) -> None:
    """What was unfinished in the prompt is all that the stream inherits of it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(prompt)
    expected = decoder.decode(rest, final=True)
    got, _, _ = stream(BYTES, one_by_one(ids_of(rest)), prompt_ids=ids_of(prompt))
    assert got == expected


# Stop strings


def first_stop(text: str, stops: Sequence[str]) -> tuple[str, int, str] | None:
    """Told plainly: read character by character; (text before, end, stop) of the first to end."""
    for end in range(len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], end, longest
    return None


@settings(max_examples=600, deadline=None)
@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_text_is_cut_at_the_first_stop(
    text: str, stops: list[str], include: bool, rng: random.Random
) -> None:
    tokenizer = make(
        model="gpt2",
        pre="gpt-2",
        tokens=["a", "b", "c", "ab", "bca"],
        merges=[],
        token_type=[4] * 5,
    )
    ids = tokenizer.encode(text)
    chunks = random_chunks(rng, ids)
    got, stop, used = stream(tokenizer, chunks, *stops, include_stop_str_in_output=include)
    expected = first_stop(text, stops)
    if expected is None:
        assert (got, stop, used) == (text, None, len(ids))
    else:
        before, end, which = expected
        assert stop == which
        assert got == (text[:end] if include else before)
        assert len(tokenizer.decode(ids[:used])) >= end > len(tokenizer.decode(ids[: used - 1]))


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab", max_size=25),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_no_more_is_held_than_must_be(text: str, stops: list[str]) -> None:
    """After each character: sent is all but the longest end that begins some stop string."""
    tokenizer = AB
    one = Detokenizer(tokenizer, (), tuple(stops))
    sent = ""
    for length, token_id in enumerate(tokenizer.encode(text), 1):
        delta = one.push([token_id])
        sent += delta.text
        if delta.stop_str is not None:
            return
        so_far = text[:length]
        hold = max(n for s in stops for n in range(len(s)) if so_far.endswith(s[:n]))
        assert sent == so_far[: length - hold]


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab", max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 12),
    st.randoms(use_true_random=False),
)
def test_min_tokens(text: str, stops: list[str], least: int, rng: random.Random) -> None:
    """A stop that ends within the first `min_tokens` tokens does not count, and is not lost."""
    tokenizer = AB
    chunks = random_chunks(rng, tokenizer.encode(text))
    got, stop, used = stream(tokenizer, chunks, *stops, min_tokens=least)
    for end in range(least + 1, len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            assert (got, stop, used) == (text[: end - len(longest)], longest, end)
            return
    assert (got, stop, used) == (text, None, len(text))


def test_a_stop_is_never_leaked_and_never_late(small: Tokenizer) -> None:
    one = Detokenizer(small, (), ("END", "ENOUGH"))
    deltas = [one.push([i]).text for i in ids_of("an END")]
    assert deltas == ["a", "n", " ", "", "", ""]
    assert one.stop_str == "END"
    one = Detokenizer(small, (), ("END", "ENOUGH"))
    assert [one.push([i]).text for i in ids_of("ENx")] == ["", "", "ENx"]
    one = Detokenizer(small, (), ("END",))
    assert one.push(ids_of("EN")).text == ""
    assert one.finish() == "EN"


def test_a_stop_inside_one_chunk(small: Tokenizer) -> None:
    one = Detokenizer(small, (), ("stop",))
    delta = one.push([*ids_of("x"), WORD, *ids_of("yz")])
    assert delta == ("x", "stop", 2)
    assert one.num_tokens == 2


def test_including_the_stop_needs_no_holding(small: Tokenizer) -> None:
    one = Detokenizer(small, (), ("END",), include_stop_str_in_output=True)
    assert [one.push([i]).text for i in ids_of("aEND")] == ["a", "E", "N", "D"]
    assert one.stop_str == "END"


def test_a_stop_made_of_broken_characters(small: Tokenizer) -> None:
    text, stop, _ = stream(small, one_by_one(ids_of("aé日b")), "é日")
    assert (text, stop) == ("a", "é日")
    text, stop, _ = stream(small, one_by_one(ids_of("a" + "日" * 3)), "日日日日")
    assert (text, stop) == ("a日日日", None)
    text, stop, _ = stream(small, [ids_of(b"a\xe6")], "\ufffd")
    assert (text, stop) == ("a", "\ufffd")


def test_special_tokens_and_stops(small: Tokenizer) -> None:
    ids = [*ids_of("a"), SPECIAL, *ids_of("b")]
    assert stream(small, one_by_one(ids), "<|end|>") == ("ab", None, 3)
    assert stream(small, one_by_one(ids), "<|end|>", skip_special_tokens=False) == (
        "a",
        "<|end|>",
        2,
    )
    assert stream(small, one_by_one(ids), "ab") == ("", "ab", 3)


def test_embedded_with_random_stops(embedded_tokenizer: Tokenizer) -> None:
    rng = random.Random(5)
    stopped = 0
    for _ in range(1000):
        ids = embedded_tokenizer.encode(random_text(rng))
        text = embedded_tokenizer.decode(ids)
        stops = [random_text(rng, 2) or "x" for _ in range(rng.randint(1, 4))]
        if text and rng.random() < 0.5:
            start = rng.randrange(len(text))
            stops.append(text[start : start + rng.randint(1, 6)])
        got, stop, _ = stream(embedded_tokenizer, random_chunks(rng, ids), *stops)
        expected = first_stop(text, stops)
        assert (got, stop) == ((text, None) if expected is None else (expected[0], expected[2]))
        stopped += stop is not None
    assert stopped > 300


def test_long_stops_that_share_their_beginning() -> None:
    stops = ["a" * 255 + c for c in "bcdefghijklmnop"]
    matcher = StopMatcher(stops)
    state = matcher.skip(0, "a" * 5000)
    assert matcher.hold(state) == 255
    assert matcher.scan(state, "xp") == (0, 2, -1)
    assert matcher.scan(state, "px")[1:] == (1, stops.index("a" * 255 + "p"))

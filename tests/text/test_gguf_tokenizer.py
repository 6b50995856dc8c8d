"""Vocabularies written into GGUF metadata, against plain re-tellings of the algorithms."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fuzz_text import random_text
from tokenizers import pre_tokenizers

from atom.engine.text.gguf_tokenizer import tokenizer_from_gguf
from atom.engine.text.tokenizer import Tokenizer
from atom.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def make(**metadata: Any) -> Tokenizer:
    prefixed = {k if "." in k else f"tokenizer.ggml.{k}": v for k, v in metadata.items()}
    return Tokenizer(tokenizer_from_gguf(SimpleNamespace(metadata=prefixed, path=Path("x.gguf"))))


def byte_level(**more: Any) -> Tokenizer:
    tokens = [*ALPHABET, "he", "hel", "<|end|>", "<tool>"]
    types = [NORMAL] * 258 + [CONTROL, USER_DEFINED]
    base = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": types}
    return make(**{**base, "merges": ["h e", "he l"], **more})


def test_byte_level() -> None:
    made = byte_level(eos_token_id=258)
    assert made.encode("hello") == [257, *made.encode("lo")]
    assert made.encode("a<|end|><tool>") == [*made.encode("a"), 258, 259]
    assert made.decode([258, 259]) == "<tool>"
    assert made.decode([258, 259], skip_special_tokens=False) == "<|end|><tool>"
    assert made.special_token_ids == {258}
    assert (made.eos_token_ids, made.bos_token_id) == ((258,), None)
    rng = random.Random(3)
    for _ in range(300):
        text = random_text(rng)
        assert made.decode(made.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "it's 12345  x\n\n y", ["it", "'s", " 12345", " ", " x", "\n\n", " y"]),
        ("smollm", "it's 123  x", ["it", "'s", " ", "1", "2", "3", " ", " x"]),
        ("smollm", "a½ 2", ["a", "½", " ", "2"]),
        ("llama-bpe", "It'S 12345  x", ["It", "'S", " ", "123", "45", " ", " x"]),
        ("llama-bpe", "x\n\n y.\n", ["x", "\n\n", " y", ".\n"]),
        ("qwen2", "It'S 123 x", ["It", "'S", " ", "1", "2", "3", " x"]),
        ("llama3", "(a)!!\r\n b", ["(a", ")!!\r\n", " b"]),
    ],
)
def test_how_each_family_cuts(pre: str, text: str, words: list[str]) -> None:
    """Every run of the text's bytes is a token, so only the cut decides where tokens end."""
    spelled = ["".join(_spell(b) for b in w.encode()) for w in words]
    whole = "".join(spelled)
    pieces = {whole[i:j] for i in range(len(whole)) for j in range(i + 2, len(whole) + 1)}
    tokens = [*ALPHABET, *sorted(pieces, key=lambda p: (len(p), p))]
    merges = [f"{p[:cut]} {p[cut:]}" for p in tokens[256:] for cut in range(1, len(p))]
    made = make(
        model="gpt2", pre=pre, tokens=tokens, token_type=[NORMAL] * len(tokens), merges=merges
    )
    assert [made.token_bytes(i).decode() for i in made.encode(text)] == words


def _spell(byte: int) -> str:
    """GPT-2's alphabet, told as its authors do: bytes that print are themselves, the others get
    the next free code point from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return chr(byte) if byte in printable else chr(256 + others.index(byte))


@pytest.mark.parametrize(
    ("more", "ids"),
    [
        ({}, [71]),
        ({"add_bos_token": True}, [258, 71]),
        ({"add_bos_token": True, "add_eos_token": True}, [258, 71, 259]),
        ({"pre": "llama-bpe"}, [258, 71]),  # that family begins with BOS unless told otherwise
        ({"pre": "llama-bpe", "add_bos_token": False}, [71]),
    ],
)
def test_who_adds_bos(more: dict[str, Any], ids: list[int]) -> None:
    made = byte_level(bos_token_id=258, eos_token_id=259, **more)
    assert made.encode("h") == ids
    assert made.encode("h", add_special_tokens=False) == [71]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"pre": "tekken"}, "pre-tokenizer 'tekken' is not known"),
        ({"pre": None}, "names no pre-tokenizer"),
        ({"model": "bert"}, "tokenizer model 'bert' is not supported"),
        ({"tokens": "abc"}, r"tokenizer\.ggml\.tokens is not an array"),
        ({"tokens": []}, "0 tokens"),
        ({"token_type": [1]}, "260 tokens with 1 types"),
        ({"merges": ["no such"]}, "its vocabulary cannot be used"),
        ({"merges": ["h"]}, "its vocabulary cannot be used"),
    ],
)
def test_what_cannot_be_used_is_named(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        byte_level(**more)
    assert "x.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_way_out_of_an_unknown_cut() -> None:
    with pytest.raises(ModelError, match="give another tokenizer with --tokenizer"):
        byte_level(pre="unheard-of")


def test_no_vocabulary() -> None:
    assert not make(model="no_vocab").has_text
    assert not make().has_text


def test_templates_by_name() -> None:
    more = {"chat_template": "D{{ messages }}", "chat_template.tool_use": "T{{ tools }}"}
    made = byte_level(**{f"tokenizer.{name}": text for name, text in more.items()})
    assert made.apply_chat_template([{}]) == "D[{}]"
    assert made.apply_chat_template([], tools=[1]) == "T[1]"


# SentencePiece


class SentencePiece:
    """The algorithm told plainly: join the neighbours whose union scores best, leftmost first."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores

    def tokens(self, text: str) -> list[str]:
        parts = list(("▁" + text.replace(" ", "▁")) if text else "")
        while True:
            best = None
            for i, (left, right) in enumerate(itertools.pairwise(parts)):
                score = self.scores.get(left + right)
                if score is not None and (best is None or score > best[0]):
                    best = (score, i)
            if best is None:
                break
            i = best[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        out: list[str] = []
        for part in parts:
            known = part in self.scores
            out += [part] if known else [f"<0x{b:02X}>" for b in part.encode()]
        return out


def random_vocabulary(rng: random.Random) -> dict[str, float]:
    """Single characters, and unions of what is already there, with distinct scores."""
    pieces = ["▁", *"abcd"]
    while len(pieces) < 60:
        union = rng.choice(pieces) + rng.choice(pieces)
        if len(union) <= 6 and union not in pieces:
            pieces.append(union)
    scores = rng.sample(range(1000), len(pieces))
    return {piece: -float(score) for piece, score in zip(pieces, scores, strict=True)}


@pytest.mark.parametrize("seed", range(10))
def test_sentencepiece_agrees_with_the_plain_algorithm(seed: int) -> None:
    rng = random.Random(seed)
    scores = random_vocabulary(rng)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens = [*first, *scores]
    made = make(
        model="llama",
        tokens=tokens,
        scores=[0.0] * len(first) + list(scores.values()),
        token_type=[UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(scores)],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    plain = SentencePiece(scores)
    for _ in range(200):
        text = "".join(rng.choice("aabbccdd  é日") for _ in range(rng.randint(0, 14)))
        ids = made.encode(text)
        assert ids[0] == 1  # this family begins with BOS
        assert [tokens[i] for i in ids[1:]] == plain.tokens(text), repr(text)
        assert made.decode(ids) == text
    assert made.encode("a</s>b")[-3 if "▁b" not in scores else -2] == 2
    assert made.strips_first_space


def test_sentencepiece_without_prefix_space() -> None:
    made = make(
        model="llama",
        tokens=["<unk>", "▁", "a", "▁a"],
        scores=[0.0, -1.0, -2.0, -3.0],
        token_type=[UNKNOWN, NORMAL, NORMAL, NORMAL],
        add_space_prefix=False,
        add_bos_token=False,
    )
    assert made.encode("a a") == [2, 3]
    assert made.decode([3, 2]) == " aa"


def test_sentencepiece_needs_scores() -> None:
    with pytest.raises(ModelError, match="2 tokens with 1 scores"):
        make(model="llama", tokens=["a", "b"], scores=[0.0], token_type=[1, 1])

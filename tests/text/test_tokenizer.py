"""Tokenizers of GGUF files and of Hugging Face directories."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from fuzz_text import random_text
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from atom.engine.text.pieces import BYTE_ALPHABET
from atom.engine.text.tokenizer import Tokenizer, load_tokenizer
from atom.errors import ModelError, RequestError
from atom.models.hf_config import HFConfig
from atom.models.source import ModelSource

SPECIALS = ["<|bos|>", "<|eos|>", "<|user|>"]


def source(path: Path, **config: Any) -> ModelSource:
    return ModelSource("m", path, "safetensors", HFConfig({"vocab_size": 300, **config}))


def save_byte_level(path: Path, config: dict[str, Any] | None = None, **extra: Any) -> Path:
    """A directory with a byte-level tokenizer.json of 256 bytes, 2 merges and 3 special tokens."""
    path.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, "he", "Ġt"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("h", "e"), ("Ġ", "t")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    for name, value in extra.items():
        setattr(backend, name, value)
    backend.save(str(path / "tokenizer.json"))
    base = {"bos_token": "<|bos|>", "eos_token": {"__type": "AddedToken", "content": "<|eos|>"}}
    (path / "tokenizer_config.json").write_text(json.dumps({**base, **(config or {})}))
    return path


# The embedded model


def test_embedded_agrees_with_transformers(
    embedded_tokenizer: Tokenizer, reference_tokenizer: Any
) -> None:
    vocabulary = reference_tokenizer.get_vocab()
    known = {byte for char, byte in BYTE_ALPHABET.items() if char in vocabulary}
    assert len(known) == 256 - 21  # the vocabulary lacks some control bytes and rare lead bytes
    rng = random.Random(0)
    round_trips = 0
    for _ in range(4000):
        text = random_text(rng)
        ids = embedded_tokenizer.encode(text)
        assert ids == reference_tokenizer.backend_tokenizer.encode(text).ids, repr(text)
        if set(text.encode()) <= known:
            round_trips += 1
            assert embedded_tokenizer.decode(ids, skip_special_tokens=False) == text
        visible = reference_tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)
        assert embedded_tokenizer.decode(ids) == visible, repr(text)
    assert round_trips > 3000


def test_embedded_agrees_on_random_ids(
    embedded_tokenizer: Tokenizer, reference_tokenizer: Any
) -> None:
    """Also where the bytes are not UTF-8."""
    rng = random.Random(1)
    backend = reference_tokenizer.backend_tokenizer
    for _ in range(1000):
        ids = [rng.randrange(rng.choice((300, 49152))) for _ in range(rng.randint(0, 12))]
        for skip in (True, False):
            ours = embedded_tokenizer.decode(ids, skip)
            assert ours == backend.decode(ids, skip_special_tokens=skip), ids


def test_embedded_facts(embedded_tokenizer: Tokenizer) -> None:
    assert embedded_tokenizer.vocab_size == 49152
    assert embedded_tokenizer.eos_token_ids == (2,)
    assert embedded_tokenizer.bos_token_id == 1
    assert embedded_tokenizer.has_text
    assert embedded_tokenizer.has_chat_template
    assert embedded_tokenizer.encode("Hi")[0] != 1  # the file says: no BOS
    assert embedded_tokenizer.special_token_ids == frozenset(range(17))
    assert embedded_tokenizer.encode("<|im_end|>") == [2]
    assert embedded_tokenizer.decode([2]) == ""
    assert embedded_tokenizer.decode([2], skip_special_tokens=False) == "<|im_end|>"


def test_tokens_one_by_one(embedded_tokenizer: Tokenizer) -> None:
    text = "naïve 日本 😀"
    ids = embedded_tokenizer.encode(text)
    assert b"".join(embedded_tokenizer.token_bytes(i) for i in ids) == text.encode()
    assert embedded_tokenizer.token_bytes(2) == b"<|im_end|>"
    assert embedded_tokenizer.token_str(embedded_tokenizer.encode(" the")[0]) == " the"
    parts = [i for i in ids if b"\xf0" in embedded_tokenizer.token_bytes(i)]
    assert parts
    assert "\ufffd" in embedded_tokenizer.token_str(parts[0])


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "x" * 100 + "\udc80"])
def test_a_lone_surrogate_is_refused(embedded_tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(RequestError, match="lone surrogate") as caught:
        embedded_tokenizer.encode(text, param="messages")
    assert caught.value.param == "messages"
    assert str(caught.value).isascii()


def test_ids_outside_the_vocabulary(embedded_tokenizer: Tokenizer) -> None:
    for wrong in (-1, 49152, 2**40):
        with pytest.raises(RequestError, match=f"token id {wrong} is outside") as caught:
            embedded_tokenizer.decode([5, wrong])
        assert caught.value.param == "tokens"
    assert embedded_tokenizer.token_str(-1) == embedded_tokenizer.token_str(2**40) == ""
    assert embedded_tokenizer.decode([]) == ""


# Hugging Face directories


def test_byte_level_directory(tmp_path: Path) -> None:
    path = save_byte_level(tmp_path)
    made = load_tokenizer(source(path))
    raw = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    rng = random.Random(2)
    for _ in range(500):
        text = random_text(rng)
        ids = made.encode(text)
        assert ids == raw.encode(text).ids
        assert made.decode(ids, skip_special_tokens=False) == text
    assert made.vocab_size == 300  # the model's, padded
    assert (made.bos_token_id, made.eos_token_ids) == (258, (259,))
    assert made.token_str(299) == made.decode([299]) == ""
    assert not made.has_chat_template


def test_eos_of_the_model_comes_first(tmp_path: Path) -> None:
    path = save_byte_level(tmp_path)
    assert load_tokenizer(source(path, eos_token_id=[7, 8])).eos_token_ids == (7, 8)


BOS_FIRST = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 258)])


@pytest.mark.parametrize("post", [processors.ByteLevel(), BOS_FIRST])
@pytest.mark.parametrize(
    "config",
    [{}, {"add_bos_token": False}, {"add_bos_token": True}, {"add_eos_token": True}],
)
def test_tokenizer_json_says_what_is_added(
    tmp_path: Path, config: dict[str, Any], post: Any
) -> None:
    from transformers import AutoTokenizer

    path = save_byte_level(tmp_path, config, post_processor=post)
    made = load_tokenizer(source(path))
    expected = AutoTokenizer.from_pretrained(str(path))("h").input_ids
    assert made.encode("h") == expected == ([258, 71] if post is BOS_FIRST else [71])
    assert made.encode("h", add_special_tokens=False) == [71]


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        ({}, [71]),
        ({"add_bos_token": False}, [71]),
        ({"add_bos_token": True}, [258, 71]),
        ({"add_bos_token": True, "add_eos_token": True}, [258, 71, 259]),
        ({"add_bos_token": True, "bos_token": None}, [71]),
    ],
)
def test_llamas_class_added_bos_itself(
    tmp_path: Path, config: dict[str, Any], ids: list[int]
) -> None:
    """As DeepSeek's files want it: tokenizer.json says nothing, the class and the flag do."""
    config = {"tokenizer_class": "LlamaTokenizerFast", **config}
    path = save_byte_level(tmp_path, config, post_processor=processors.ByteLevel())
    assert load_tokenizer(source(path)).encode("h") == ids


def test_tokens_that_only_the_small_files_call_special(tmp_path: Path) -> None:
    config = {
        "additional_special_tokens": ["he", "nowhere"],
        "added_tokens_decoder": {"257": {"content": "Ġt", "special": False}},
    }
    made = load_tokenizer(source(save_byte_level(tmp_path, config)))
    assert made.encode("he") == [256]
    assert made.decode([256]) == ""
    assert made.decode([256], skip_special_tokens=False) == "he"
    assert 256 in made.special_token_ids
    assert 257 not in made.special_token_ids
    assert len(made.encode("nowhere")) > 1  # the model has no embedding for it


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    path = save_byte_level(tmp_path)
    raw = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=8)
    raw.save(str(path / "tokenizer.json"))
    made = load_tokenizer(source(path))
    assert len(made.encode("xyzw" * 5)) == 20
    assert len(made.encode("x")) == 1


def save_sentencepiece(path: Path, decoder: Any, normalizer: Any, pre: Any = None) -> Path:
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {t: i for i, t in enumerate(vocab)},
            [("▁", "a")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizer
    if pre is not None:
        backend.pre_tokenizer = pre
    backend.decoder = decoder
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    path.mkdir(exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    return path


def llama_decoder(*more: Any) -> Any:
    return decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more]
    )


@pytest.mark.parametrize("kind", ["strip", "keep", "metaspace"])
def test_sentencepiece_directories(tmp_path: Path, kind: str) -> None:
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if kind == "strip":
        path = save_sentencepiece(tmp_path, llama_decoder(decoders.Strip(" ", 1, 0)), prepend)
    elif kind == "keep":
        path = save_sentencepiece(tmp_path, llama_decoder(), normalizers.Replace(" ", "▁"))
    else:
        metaspace = pre_tokenizers.Metaspace("▁", "first", split=False)
        path = save_sentencepiece(
            tmp_path, decoders.Metaspace("▁", "first"), normalizers.NFC(), metaspace
        )
    made = load_tokenizer(source(path))
    raw = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    for text in ("a", "a b", " a", "  b a", "aé日", "b\n"):
        ids = made.encode(text)
        assert ids == raw.encode(text).ids
        if kind == "metaspace" and text.startswith(" "):
            continue  # that pre-tokenizer adds no space to one that is there
        assert made.decode(ids) == text
        if kind != "metaspace":  # that decoder does not know bytes
            assert raw.decode(ids) == text
    assert made.token_str(raw.token_to_id("▁a")) == " a"
    assert made.token_bytes(3 + 0xE9) == b"\xe9"


def test_a_decoder_that_is_not_known(tmp_path: Path) -> None:
    path = save_byte_level(tmp_path, decoder=decoders.WordPiece())
    with pytest.raises(ModelError, match="decodes with WordPiece, which is not supported"):
        load_tokenizer(source(path))


def test_damaged_tokenizer_json(tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(source(tmp_path))


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    made = load_tokenizer(source(tmp_path, eos_token_id=2))
    assert not made.has_text
    assert (made.vocab_size, made.eos_token_ids) == (300, (2,))
    with pytest.raises(RequestError, match="give the prompt as token ids") as caught:
        made.encode("text")
    assert caught.value.param == "prompt"
    with pytest.raises(RequestError, match="no chat template"):
        made.apply_chat_template([])
    assert made.decode([1, 2, 3]) == made.token_str(1) == ""
    with pytest.raises(ModelError, match="a chat template needs a tokenizer"):
        load_tokenizer(source(tmp_path), chat_template="any.jinja")


def test_another_tokenizer_and_template(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    other = save_byte_level(tmp_path / "other")
    template = tmp_path / "t.jinja"
    template.write_text("{{ bos_token }}{{ messages[0].content }}")
    made = load_tokenizer(source(tmp_path / "model"), str(other), str(template))
    assert made.apply_chat_template([{"content": "x"}]) == "<|bos|>x"
    with pytest.raises(ModelError, match="cannot read the chat template"):
        load_tokenizer(source(other), chat_template=str(tmp_path / "none.jinja"))
    with pytest.raises(ModelError, match="there is no tokenizer in"):
        load_tokenizer(source(other), str(tmp_path / "model"))


def test_old_vocabulary_files_go_through_transformers(tmp_path: Path) -> None:
    """vocab.json and merges.txt, from before tokenizer.json."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, "he", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer"})
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    made = load_tokenizer(source(tmp_path))
    ids = made.encode("he said é")
    assert ids[0] == 256
    assert made.decode(ids) == "he said é"


def test_imports_are_light(embedded_gguf: Path, tmp_path: Path) -> None:
    """Neither to import nor to use."""
    code = (
        "import sys, atom.engine.text.detokenizer\n"
        "from atom.engine.text.tokenizer import *\n"
        "from atom.models.source import *\n"
        "made = load_tokenizer(resolve_source(ModelConfig()))\n"
        "made.apply_chat_template([{'role': 'user', 'content': made.decode(made.encode('x'))}])\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

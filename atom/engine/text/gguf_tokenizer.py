"""The tokenizer that a GGUF file describes in its metadata.

`tokenizer.ggml.model` is `gpt2` (byte-level BPE: the text is first cut as `tokenizer.ggml.pre`
says) or `llama` (SentencePiece BPE: pieces with scores). A cut that is not known here is an error:
a wrong one would tokenise almost everything right and some texts silently wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from atom.engine.text.backend import TokenizerParts, bos_eos_processor, literal_token
from atom.engine.text.pieces import SPACE, Spelling
from atom.errors import ModelError
from atom.models.gguf import GGUFFile

# Token types of the format.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

# How each family cuts text into words, as regular expressions over Unicode classes.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_CUT = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2_CUT = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"

_FAMILIES = {
    "default": "gpt2",
    "gpt-2": "gpt2",
    "gpt2": "gpt2",
    "smollm": "smollm",
    "llama-bpe": "llama3",
    "llama-v3": "llama3",
    "llama3": "llama3",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
}


def _pre_tokenizer(family: str) -> pre_tokenizers.PreTokenizer:
    if family in ("llama3", "qwen2"):
        cut = Regex(_LLAMA3_CUT if family == "llama3" else _QWEN2_CUT)
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(cut, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if family == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    return words


class _Vocabulary:
    """The arrays of the metadata, checked against each other."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.tokens = self._array("tokens", str)
        count = len(self.tokens)
        self.types = self._array("token_type", int) or [_NORMAL] * count
        if not count or len(self.types) != count:
            raise ModelError(
                f"{file.path}: {count} tokens with {len(self.types)} types are no vocabulary"
            )

    def get(self, key: str) -> Any:
        return self.file.metadata.get(f"tokenizer.ggml.{key}")

    def _array(self, key: str, kind: type) -> list[Any]:
        values = self.get(key)
        if values is None:
            return []
        if not isinstance(values, list) or (values and not isinstance(values[0], kind)):
            raise ModelError(f"{self.file.path}: tokenizer.ggml.{key} is not an array as expected")
        return values

    def strings(self, key: str) -> list[str]:
        return self._array(key, str)

    def scores(self) -> list[float]:
        values = self._array("scores", float)
        if len(values) != len(self.tokens):
            raise ModelError(
                f"{self.file.path}: {len(self.tokens)} tokens with {len(values)} scores"
            )
        return values

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        return default if value is None else bool(value)

    def token_id(self, key: str) -> int | None:
        value = self.get(f"{key}_token_id")
        if not isinstance(value, int) or isinstance(value, bool):
            return None
        return value if 0 <= value < len(self.tokens) else None

    def by_text(self) -> dict[str, int]:
        ids: dict[str, int] = {}
        for token_id, token in enumerate(self.tokens):
            ids.setdefault(token, token_id)
        return ids

    def of_type(self, *types: int) -> dict[int, str]:
        return {i: self.tokens[i] for i, kind in enumerate(self.types) if kind in types}


def tokenizer_from_gguf(file: GGUFFile) -> TokenizerParts | None:
    """The parts of the file's tokenizer; None if it has none. Raises `ModelError`."""
    model = file.metadata.get("tokenizer.ggml.model")
    if model is None or model == "no_vocab":
        return None
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if model not in builders:
        raise ModelError(
            f"{file.path}: tokenizer model {model!r} is not supported (gpt2 and llama are);"
            " give another tokenizer with --tokenizer"
        )
    vocabulary = _Vocabulary(file)
    try:
        backend, add_bos, strips = builders[model](vocabulary)
        return _parts(vocabulary, model, backend, add_bos, strips)
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library refuses with bare Exceptions
        raise ModelError(f"{file.path}: its vocabulary cannot be used: {error}") from None


def _byte_level(vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool, bool]:
    """(backend, whether BOS is put first by default, whether decoding strips a first space)."""
    pre = vocabulary.get("pre")
    family = _FAMILIES.get(pre) if isinstance(pre, str) else None
    if family is None:
        said = "names no pre-tokenizer" if pre is None else f"pre-tokenizer {pre!r} is not known"
        raise ModelError(
            f"{vocabulary.file.path}: {said} (tokenizer.ggml.pre; known:"
            f" {', '.join(sorted(_FAMILIES))}); give another tokenizer with --tokenizer"
        )
    merges = [m.partition(" ")[::2] for m in vocabulary.strings("merges")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary.by_text(), merges, ignore_merges=family == "llama3")
    )
    if family == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(family)
    backend.decoder = decoders.ByteLevel()
    return backend, family == "llama3", False


def _sentencepiece(vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool, bool]:
    prefix = vocabulary.flag("add_space_prefix", True)
    unknown = vocabulary.token_id("unknown")
    ids = vocabulary.by_text()
    backend = tokenizers.Tokenizer(
        models.BPE(
            ids,
            sentencepiece_merges(vocabulary.tokens, vocabulary.scores(), vocabulary.types),
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    return backend, True, prefix


def sentencepiece_merges(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """The merges that make a SentencePiece vocabulary: SentencePiece joins the neighbours whose
    union has the best score, so every way of cutting a piece in two is a merge of its score."""
    normal = {t: i for i, t in enumerate(tokens) if types[i] == _NORMAL}
    found = [
        (-scores[i], i, cut)
        for token, i in normal.items()
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    return [(tokens[i][:cut], tokens[i][cut:]) for _, i, cut in sorted(found)]


def _parts(
    vocabulary: _Vocabulary, model: str, backend: tokenizers.Tokenizer, add_bos: bool, strips: bool
) -> TokenizerParts:
    special = vocabulary.of_type(_CONTROL, _UNKNOWN)
    named = {key: vocabulary.token_id(key) for key in ("bos", "eos", "unknown", "padding")}
    literal = special | vocabulary.of_type(_USER_DEFINED)
    backend.add_tokens([literal_token(t, i in special) for i, t in literal.items() if t])
    tokens = vocabulary.tokens
    bos, eos = named["bos"], named["eos"]
    with_bos = bos is not None and vocabulary.flag("add_bos_token", add_bos)
    with_eos = eos is not None and vocabulary.flag("add_eos_token", False)
    backend.post_processor = bos_eos_processor(
        (tokens[bos], bos) if with_bos and bos is not None else None,
        (tokens[eos], eos) if with_eos and eos is not None else None,
    )
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    return TokenizerParts(
        backend=backend,
        spelling=Spelling.BYTE_LEVEL if model == "gpt2" else Spelling.SENTENCEPIECE,
        strips_first_space=strips,
        size=len(tokens),
        added=literal,
        special=frozenset(special),
        bos_token_id=bos,
        eos_token_id=eos,
        special_tokens={names[k]: tokens[i] for k, i in named.items() if i is not None},
        templates=_templates(vocabulary.file),
    )


def _templates(file: GGUFFile) -> dict[str, str]:
    """`tokenizer.chat_template`, and `tokenizer.chat_template.NAME` for the others."""
    prefix = "tokenizer.chat_template"
    found = {"default": file.metadata.get(prefix)}
    for key, value in file.metadata.items():
        if key.startswith(prefix + ".") and isinstance(value, str):
            found[key.removeprefix(prefix + ".")] = value
    return {name: text for name, text in found.items() if isinstance(text, str)}

"""The tokenizer of a Hugging Face directory: tokenizer.json and the small files round it.

tokenizer.json is used as it is. Without one, `transformers` (imported only then) makes it from
what is there; code in a checkpoint is never run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import tokenizers

from atom.engine.text.backend import TokenizerParts, bos_eos_processor, literal_token
from atom.engine.text.pieces import SPACE, Spelling
from atom.errors import ModelError
from atom.models.hf_config import read_json_object

# Files from which `transformers` can make a tokenizer.
_SLOW_FILES = ("tokenizer.model", "vocab.json", "tiktoken.model", "spiece.model", "tekken.json")
NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def tokenizer_from_directory(path: Path) -> TokenizerParts | None:
    """The parts of the tokenizer in `path`; None if there is none. Raises `ModelError`."""
    config = _optional_json(path / "tokenizer_config.json")
    named = _optional_json(path / "special_tokens_map.json") | config
    if (path / "tokenizer.json").is_file():
        try:
            backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exceptions
            reason = str(error).splitlines()[0]
            raise ModelError(f"{path / 'tokenizer.json'} cannot be read: {reason}") from None
    elif any((path / name).is_file() for name in _SLOW_FILES):
        backend = _made_by_transformers(path)
    else:
        return None
    backend.no_truncation()
    backend.no_padding()
    special_tokens = {name: t for name in NAMED_TOKENS if (t := _text(named.get(name)))}
    _add_missing(backend, config, named, special_tokens)
    _add_bos_eos(backend, config, special_tokens)
    spelling, strips = _spelling(backend, path)
    added = backend.get_added_tokens_decoder()
    bos, eos = special_tokens.get("bos_token"), special_tokens.get("eos_token")
    return TokenizerParts(
        backend=backend,
        spelling=spelling,
        strips_first_space=strips,
        size=1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1),
        added={i: token.content for i, token in added.items()},
        special=frozenset(i for i, token in added.items() if token.special),
        bos_token_id=backend.token_to_id(bos) if bos else None,
        eos_token_id=backend.token_to_id(eos) if eos else None,
        special_tokens=special_tokens,
        templates=_templates(path, config),
        class_name=_text(config.get("tokenizer_class")),
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _text(token: Any) -> str | None:
    """A token as it is written in configs: a string, or an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _add_missing(
    backend: tokenizers.Tokenizer,
    config: dict[str, Any],
    named: dict[str, Any],
    special_tokens: dict[str, str],
) -> None:
    """Tokens that only the small files call special. None gets an id that the model lacks."""
    known = {t.content: t.special for t in backend.get_added_tokens_decoder().values()}
    wanted: dict[str, bool] = {}
    for entry in (config.get("added_tokens_decoder") or {}).values():
        if (text := _text(entry)) is not None:
            wanted[text] = bool(isinstance(entry, dict) and entry.get("special"))
    more = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
    for entry in [*special_tokens.values(), *(more.values() if isinstance(more, dict) else more)]:
        if (text := _text(entry)) is not None:
            wanted[text] = True
    new = [
        literal_token(text, special)
        for text, special in wanted.items()
        if (text not in known or (special and not known[text]))
        and backend.token_to_id(text) is not None
    ]
    if new:
        backend.add_tokens(new)


def _add_bos_eos(
    backend: tokenizers.Tokenizer, config: dict[str, Any], special_tokens: dict[str, str]
) -> None:
    """tokenizer.json says what is put round a text. One exception: files that were written for
    Llama's own tokenizer class, which put BOS there by itself (DeepSeek's do), say it only by
    `add_bos_token`."""
    by_class = str(config.get("tokenizer_class")).startswith("LlamaTokenizer")
    if not by_class or backend.num_special_tokens_to_add(False) > 0:
        return
    ends: list[tuple[str, int] | None] = []
    for flag, name in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
        text = special_tokens.get(name)
        token_id = backend.token_to_id(text) if text and config.get(flag) else None
        ends.append((text, token_id) if text and token_id is not None else None)
    backend.post_processor = bos_eos_processor(ends[0], ends[1])


def _spelling(backend: tokenizers.Tokenizer, path: Path) -> tuple[Spelling, bool]:
    """How tokens spell bytes, and whether decoding drops a first space: read off the decoder."""
    decoder = backend.decoder
    state: dict[str, Any] = {"type": "nothing"}
    if decoder is not None:
        state = json.loads(cast(bytes, decoder.__getstate__()))
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return Spelling.BYTE_LEVEL, False
    if kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"} and "Replace" in kinds:
        return Spelling.SENTENCEPIECE, any(
            step["type"] == "Strip" and step.get("start", 0) > 0 for step in steps
        )
    if kinds == {"Metaspace"} and steps[0].get("replacement") == SPACE:
        return Spelling.SENTENCEPIECE, steps[0].get("prepend_scheme", "always") != "never"
    raise ModelError(
        f"the tokenizer in {path} decodes with {'+'.join(sorted(kinds))}, which is not supported;"
        " byte-level and SentencePiece vocabularies are"
    )


def _templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name. A .jinja file comes before tokenizer_config.json."""
    found: dict[str, str] = {}
    given = config.get("chat_template")
    if isinstance(given, str):
        found["default"] = given
    elif isinstance(given, list):
        for entry in given:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                found[str(entry.get("name"))] = entry["template"]
    files = [("default", path / "chat_template.jinja")]
    files += [(p.stem, p) for p in sorted((path / "additional_chat_templates").glob("*.jinja"))]
    for name, file in files:
        if file.is_file():
            found[name] = read_template(file)
    return found


def read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot read the chat template {path}: {reason}") from None


def _made_by_transformers(path: Path) -> tokenizers.Tokenizer:
    """For a checkpoint from before tokenizer.json. Slow to import, so only here."""
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # anything may be wrong with old vocabulary files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"transformers cannot make a tokenizer of {path}: {reason}") from None
    backend = getattr(made, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(
            f"the tokenizer in {path} ({type(made).__name__}) has no fast form; give another"
            " tokenizer with --tokenizer"
        )
    return backend

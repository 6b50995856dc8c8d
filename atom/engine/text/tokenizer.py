"""Text to token ids and back, and chats to prompts: what the process that owns text asks for.

Neither torch nor transformers is imported; a tokenizer is ready in well under a second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from atom.engine.text.backend import TokenizerParts
from atom.engine.text.chat_template import ChatTemplate
from atom.engine.text.gguf_tokenizer import tokenizer_from_gguf
from atom.engine.text.hf_tokenizer import read_template, tokenizer_from_directory
from atom.engine.text.pieces import PieceTable
from atom.errors import ModelError, RequestError
from atom.models import hub
from atom.models.gguf import GGUFFile
from atom.models.source import ModelSource


class Tokenizer:
    """The tokenizer of one model. Safe to share between threads.

    `parts` None: the checkpoint has no tokenizer; then only token ids can be used (`has_text` is
    False, text raises `RequestError`, every id decodes to nothing).
    """

    def __init__(
        self,
        parts: TokenizerParts | None,
        *,
        vocab_size: int = 0,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        """`vocab_size` of the model, which may be padded beyond the tokenizer's own."""
        self._parts = parts
        self.has_text = parts is not None
        self.vocab_size = max(vocab_size, parts.size if parts else 0)
        self.bos_token_id = parts.bos_token_id if parts else None
        own = parts.eos_token_id if parts else None
        self.eos_token_ids = tuple(eos_token_ids) or (() if own is None else (own,))
        self.strips_first_space = bool(parts and parts.strips_first_space)
        self.eos_token_id = own
        self.class_name = parts.class_name if parts else None
        self.special_tokens: Mapping[str, str] = parts.special_tokens if parts else {}
        self.special_token_ids: frozenset[int] = parts.special if parts else frozenset()
        self._all, self._visible = _piece_tables(parts)
        self._templates: dict[str, ChatTemplate] = {}
        if parts is not None:
            for name, template in parts.templates.items():
                self._templates[name] = ChatTemplate(template, parts.special_tokens)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    @property
    def chat_template(self) -> str | None:
        """The default template's source."""
        found = self._templates.get("default")
        return found.source if found else None

    def adds(self) -> tuple[bool, bool]:
        """Whether `encode` puts BOS before a text, and EOS behind it."""
        if self._parts is None:
            return False, False
        ids = self._parts.backend.encode("a", add_special_tokens=True).ids
        bos, eos = self.bos_token_id, self.eos_token_id
        return bos is not None and ids[0] == bos, eos is not None and ids[-1] == eos

    def encode(
        self, text: str, add_special_tokens: bool = True, *, param: str = "prompt"
    ) -> list[int]:
        """Token ids of `text`; control tokens that are spelled out in it count as such.

        `add_special_tokens` puts BOS (or EOS) where the model wants it; a rendered chat template
        already holds them. Raises `RequestError(param)` for text that is not Unicode.
        """
        backend = self._checked(text, param)
        ids: list[int] = backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True, *, param: str = "prompt"
    ) -> list[list[int]]:
        """`encode` of each of at least one text, on several cores."""
        for number, text in enumerate(texts):
            backend = self._checked(text, f"{param}[{number}]")
        encoded = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [one.ids for one in encoded]

    def _checked(self, text: str, param: str) -> tokenizers.Tokenizer:
        if self._parts is None:
            raise RequestError(
                "this model has no tokenizer: give the prompt as token ids", param=param
            )
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise RequestError(
                    f"{param} holds a lone surrogate (U+{ord(text[error.start]):04X} at character"
                    f" {error.start}), which is not text",
                    param=param,
                ) from None
        return self._parts.backend

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids` (without the spaces that some libraries clean up). Bytes that are not
        UTF-8 become U+FFFD. Raises `RequestError("tokens")` for an id outside the vocabulary."""
        pieces = self.pieces(skip_special_tokens)
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise RequestError(
                f"token id {wrong} is outside the vocabulary of {self.vocab_size}", param="tokens"
            )
        text = b"".join([pieces[i] for i in ids]).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_first_space else text

    def pieces(self, skip_special_tokens: bool) -> Mapping[int, bytes]:
        """id -> bytes, for any id."""
        return self._visible if skip_special_tokens else self._all

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, special ones included; may be a part of a character."""
        return self._all[token_id]

    def token_str(self, token_id: int) -> str:
        """One token as text, with U+FFFD where it is a part of a character."""
        return self._all[token_id].decode("utf-8", "replace")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt of a chat; encode it with `add_special_tokens=False`.

        `variables` (tools, documents, enable_thinking, ...) must be ones that the template reads.
        Raises `RequestError`.
        """
        if not self._templates:
            raise RequestError(
                "this model has no chat template: start the server with --chat-template FILE or"
                " use /v1/completions",
                param="messages",
            )
        name = "tool_use" if variables.get("tools") and "tool_use" in self._templates else "default"
        if name not in self._templates:
            known = ", ".join(sorted(self._templates))
            raise RequestError(
                f"this model has no default chat template, only {known}; start the server with"
                " --chat-template FILE",
                param="messages",
            )
        return self._templates[name].render(messages, add_generation_prompt, **variables)


def _piece_tables(parts: TokenizerParts | None) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """(all tokens, without the special ones)."""
    if parts is None:
        return _Nothing(), _Nothing()
    token_of = parts.backend.id_to_token
    return (
        PieceTable(token_of, parts.spelling, parts.added),
        PieceTable(token_of, parts.spelling, parts.added, hidden=parts.special),
    )


class _Nothing(dict[int, bytes]):
    def __missing__(self, token_id: int) -> bytes:
        return b""


def load_tokenizer(
    source: ModelSource, tokenizer: str | None = None, chat_template: str | None = None
) -> Tokenizer:
    """The tokenizer of `source`, or the one that `tokenizer` names (a directory, a .gguf file or a
    Hugging Face id). `chat_template` is a Jinja file that replaces the templates.

    Raises `ModelError` in one line. A checkpoint without any tokenizer is not an error: see
    `Tokenizer`.
    """
    parts = _read(source.path) if tokenizer is None else _read_named(tokenizer)
    if chat_template is not None:
        if parts is None:
            raise ModelError("a chat template needs a tokenizer, and this model has none")
        template = read_template(Path(os.path.expanduser(chat_template)))
        parts = replace(parts, templates={"default": template})
    return Tokenizer(parts, vocab_size=source.config.vocab_size, eos_token_ids=source.eos_token_ids)


def _read(path: Path) -> TokenizerParts | None:
    if path.is_dir():
        return tokenizer_from_directory(path)
    return tokenizer_from_gguf(GGUFFile(path))


def _read_named(name: str) -> TokenizerParts:
    path = Path(os.path.expanduser(name))
    if not name or not os.path.exists(path):
        path = hub.download(name, None, hub.TOKENIZER_PATTERNS)
    parts = _read(path)
    if parts is None:
        raise ModelError(f"there is no tokenizer in {name}")
    return parts

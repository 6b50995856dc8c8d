"""What a tokenizer is made of, however it was stored; and the parts that both origins share."""

from __future__ import annotations

from dataclasses import dataclass, field

import tokenizers

from atom.engine.text.pieces import Spelling


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParts:
    """A tokenizer as read from files, before it serves.

    `added` holds the tokens whose text is literal (control tokens and the like), `special` those
    of them that `skip_special_tokens` hides. `templates` are chat templates by name ("default").
    """

    backend: tokenizers.Tokenizer
    spelling: Spelling
    strips_first_space: bool
    size: int  # ids are below this
    added: dict[int, str]
    special: frozenset[int]
    bos_token_id: int | None
    eos_token_id: int | None
    special_tokens: dict[str, str] = field(default_factory=dict)  # "bos_token" -> "<s>"
    templates: dict[str, str] = field(default_factory=dict)
    class_name: str | None = None  # that transformers would use, where the files say it


def literal_token(text: str, special: bool) -> tokenizers.AddedToken:
    """A token that is cut out of the text before anything else sees it."""
    return tokenizers.AddedToken(text, special=special, normalized=False)


def bos_eos_processor(
    bos: tuple[str, int] | None, eos: tuple[str, int] | None
) -> tokenizers.processors.TemplateProcessing:
    """Puts the beginning and the end of a text round it; either may be left out."""
    single = [f"{bos[0]}:0"] if bos else []
    single += ["$A:0"]
    single += [f"{eos[0]}:0"] if eos else []
    return tokenizers.processors.TemplateProcessing(
        single=single, pair=None, special_tokens=[t for t in (bos, eos) if t]
    )

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atom.config.schema import ModelConfig
from atom.engine.text.tokenizer import Tokenizer, load_tokenizer
from atom.models.source import resolve_source


@pytest.fixture(scope="session")
def embedded_tokenizer(embedded_gguf: Path) -> Tokenizer:
    return load_tokenizer(resolve_source(ModelConfig()))


@pytest.fixture(scope="session")
def reference_tokenizer(embedded_gguf: Path) -> Any:
    """transformers' reading of the embedded GGUF, with the cut into words that it forgets: digits
    one by one, then GPT-2's words."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(str(embedded_gguf.parent), gguf_file=embedded_gguf.name)
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return made

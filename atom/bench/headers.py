"""Pairs that a user writes in one text each: headers, metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence

from atom.bench.errors import BenchError


def read_headers(texts: Sequence[str], where: str) -> dict[str, str]:
    """NAME=VALUE or 'NAME: VALUE' each. Raises `BenchError`, which never shows a value."""
    headers = {}
    for text in whole_pairs(texts, ":="):
        match = re.fullmatch(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+)\s*[:=]\s*(\S.*)", text.strip())
        if match is None:
            raise BenchError(f"{where}: write NAME=VALUE (a value is not shown here)")
        headers[match[1]] = match[2]
    return headers


def whole_pairs(texts: Sequence[str], signs: str) -> list[str]:
    """Pairs whose values hold commas, which lists are cut at, put together again."""
    whole: list[str] = []
    for text in texts:
        if whole and not any(sign in text for sign in signs):
            whole[-1] += f",{text}"
        else:
            whole.append(text)
    return whole

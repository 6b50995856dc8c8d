"""Takes secrets out of command lines, recipes and addresses before they are stored or shown.

By name: an option, key or header whose name says key, token, secret, password or the like. By
place: user and password in an address. What is no secret stays as it was.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REDACTED = "<redacted>"
UNREADABLE = "# left out: it holds a secret that could not be cut from it\n"

_WORDS = r"api[-_]?key|token|secret|passw(?:or)?d|passphrase|credential|authorization|auth|cookie"
# "token" alone or at the end of a name is a secret; "tokens", "tokenizer", "token_counts" are not.
_SECRET_NAME = re.compile(rf"(?:^|[-_. ])(?:{_WORDS})s?$|^x-api-key$|^hf_token$", re.IGNORECASE)
_NEVER_SECRET = re.compile(r"(?:^|[-_])(?:max|min|num|batched|input|output)[-_].*tokens?$|tokens$")
_ADDRESS_USER = re.compile(r"(?<=://)[^/\s@\"']+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',;]+")
_KNOWN_FORMS = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,})"
)
_HEADER_OPTIONS = frozenset({"-H", "--header", "--headers"})


def is_secret_name(name: str) -> bool:
    """Whether a value under this name must not be stored."""
    bare = name.lstrip("-")
    return bool(_SECRET_NAME.search(bare)) and not _NEVER_SECRET.search(bare)


def text(value: str) -> str:
    """Free text without the secrets that are known by their form."""
    value = _ADDRESS_USER.sub(f"{REDACTED}@", value)
    value = _BEARER.sub(lambda m: f"{m[1]} {REDACTED}", value)
    return _KNOWN_FORMS.sub(REDACTED, value)


def argv(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets: `--api-key X`, `--api-key=X`, `-H "Authorization: ..."`."""
    return list(_arguments(arguments))


def _arguments(arguments: Sequence[str]) -> Iterator[str]:
    hide_next = header_next = False
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            yield REDACTED
        elif header_next:
            yield header(argument)
        elif argument.startswith("-") and sign and is_secret_name(name):
            yield f"{name}={REDACTED}"
        elif name in _HEADER_OPTIONS and sign:
            yield f"{name}={header(value)}"
        elif sign and is_secret_name(name):  # metadata: KEY=VALUE, or a variable before a command
            yield f"{name}={REDACTED}"
        else:
            yield text(argument)
        hide_next = argument.startswith("-") and not sign and is_secret_name(argument)
        header_next = argument in _HEADER_OPTIONS


def header(line: str) -> str:
    """One header: its name stays, its value goes, unless it is known to be harmless."""
    name, sign, _ = line.partition(":" if ":" in line else "=")
    return f"{name}{sign} {REDACTED}" if sign else REDACTED


def recipe(source: str) -> str:
    """A recipe without the values of its secret keys; all else byte for byte.

    Nothing of a recipe is kept from which they could not be cut: an unusual way to write a string.
    """
    try:
        secrets = sorted(set(_secrets(tomllib.loads(source))), key=len, reverse=True)
        for secret in secrets:
            for quote in ('"', "'"):
                source = source.replace(f"{quote}{secret}{quote}", f'"{REDACTED}"')
        kept = set(_secrets(tomllib.loads(source)))
    except tomllib.TOMLDecodeError:
        return UNREADABLE
    return text(source) if kept <= {REDACTED} else UNREADABLE


def _secrets(tree: Any, hidden: bool = False) -> Iterator[str]:
    """The texts under keys that are secret."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _secrets(value, hidden or is_secret_name(str(key)))
    elif isinstance(tree, list):
        for value in tree:
            yield from _secrets(value, hidden)
    elif hidden and isinstance(tree, str) and tree:
        yield tree


def mapping(values: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of settings without secrets."""
    return {key: _value(str(key), value) for key, value in values.items()}


def _value(key: str, value: Any) -> Any:
    if value is not None and value != "" and is_secret_name(key):
        return REDACTED
    if isinstance(value, Mapping):
        return mapping(value)
    if isinstance(value, list | tuple):
        return [_value("", item) for item in value]
    return text(value) if isinstance(value, str) else value

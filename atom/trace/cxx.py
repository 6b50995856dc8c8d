"""C++ names of kernels: demangling, and the parts of a demangled name.

Knows nothing of which kernels there are.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any, NamedTuple

# What a mangled name is made of, as far as it takes to find the types below in it: literals,
# substitutions, template parameters, arrays, identifiers with their length in front.
_PIECES = re.compile(
    r"L[a-z]n?\d+E|S[0-9A-Z]*_|T\d*_|A\d+_|(?P<bf16>DF16b)|(?P<half>DF16_)|(?P<word>\d+)"
)
# Types that older demanglers do not know, by standard ones that no kernel uses. Builtin types
# are never substituted, so the numbers of the other substitutions stay.
_STAND_INS = {"bf16": ("Dd", "decimal64", "__bf16"), "half": ("De", "decimal128", "_Float16")}


class CxxName(NamedTuple):
    """`ns::name<args>(parameters)`: without return type, parameters and anonymous namespaces."""

    head: str  # "at::native::reduce_kernel"
    args: tuple[str, ...]  # of the last template argument list, as written


@lru_cache(maxsize=65536)
def demangle(name: str) -> str:
    """The C++ name as a person writes it; anything but a mangled name comes back as it is.

    Where the system's demangler does not know the name (newer rules, or none is installed), the
    result is put together of the name, its identifiers and its literals: `ns::kernel<half, 64>`.
    """
    if not name.startswith("_Z"):
        return name
    text = _with_stand_ins(name)
    found = _system(text)
    if found is None:
        return _by_hand(name)
    for _, stand_in, meant in _STAND_INS.values() if text != name else ():
        found = found.replace(stand_in, meant)
    return found


@cache
def _library() -> Any:
    try:
        import cxxfilt
    except Exception:  # it raises an error of its own where the C++ runtime is missing
        return None
    return cxxfilt


def _system(name: str) -> str | None:
    library = _library()
    if library is None:
        return None
    try:
        return str(library.demangle(name))
    except library.Error:
        return None


def _with_stand_ins(name: str) -> str:
    out, at = [], 0
    while found := _PIECES.search(name, at):
        out.append(name[at : found.start()])
        kind = found.lastgroup
        end = found.end()
        if kind in _STAND_INS:
            out.append(_STAND_INS[kind][0])
        else:
            end += int(found["word"]) if kind == "word" else 0
            out.append(name[found.start() : end])
        at = end
    return "".join([*out, name[at:]])


def _by_hand(name: str) -> str:
    scopes, at = [], 3 if name.startswith("_ZN") else 2
    while found := re.compile(r"\d+").match(name, at):
        at = found.end() + int(found[0])
        scopes.append(name[found.end() : at])
    if not scopes or at > len(name) or (name.startswith("_ZN") and name[at : at + 1] not in "IE"):
        return name
    scopes = [s for s in scopes if not s.startswith("_GLOBAL__N")]
    head = "::".join(scopes)
    if name[at : at + 1] != "I":
        return head
    # The end of the arguments is where the function's encoding begins, "EEv" (void) as a rule.
    rest = name[at + 1 :].partition("EEv")[0]
    found_args, at = [], 0
    pattern = re.compile(r"L[a-z](n?\d+)E|DF16b|DF16_|S[0-9A-Z]*_|T\d*_|(\d+)")
    while piece := pattern.search(rest, at):
        at = piece.end()
        if piece[2]:
            at += int(piece[2])
            found_args.append(rest[piece.end() : at])
        elif piece[1]:
            found_args.append(piece[1].replace("n", "-"))
        elif piece[0].startswith("DF"):
            found_args.append("__bf16" if piece[0] == "DF16b" else "_Float16")
    return f"{head}<{', '.join(found_args)}>"


@lru_cache(maxsize=65536)
def parse(demangled: str) -> CxxName:
    """The parts of a demangled name; a name that is no C++ (triton, Tensile, copies) is a head."""
    text = demangled.replace("(anonymous namespace)::", "")
    if text.endswith(")"):
        opening = _opening(text, len(text) - 1, "(", ")")
        # A copy's name, "Memcpy DtoH (Device -> Host)", has a space there.
        if opening > 0 and text[opening - 1] != " ":
            text = text[:opening]
    args: tuple[str, ...] = ()
    if text.endswith(">"):
        opening = _opening(text, len(text) - 1, "<", ">")
        if opening > 0:
            args = split_args(text[opening + 1 : -1])
            text = text[:opening].rstrip()
    if "::" in text or args or text.startswith("void "):
        text = _without_args(text)
        text = text.rpartition(" ")[2] or text
    return CxxName(text, args)


def split_args(text: str) -> tuple[str, ...]:
    """At commas outside of brackets."""
    parts, depth, begin = [], 0, 0
    for at, char in enumerate(text):
        if char in "<({[":
            depth += 1
        elif char in ")}]" or (char == ">" and text[at - 1 : at] != "-"):
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    last = text[begin:].strip()
    return tuple([*parts, last] if last or parts else [])


def _opening(text: str, end: int, left: str, right: str) -> int:
    """Index of the bracket that the one at `end` closes; -1 if there is none."""
    depth = 0
    for at in range(end, -1, -1):
        if text[at] == right and text[at - 1 : at] != "-":
            depth += 1
        elif text[at] == left:
            depth -= 1
            if depth == 0:
                return at
    return -1


def _without_args(text: str) -> str:
    """`enable_if<(a > b), void>::type ns<1>::f` -> `enable_if::type ns::f`."""
    out, depth = [], 0
    for at, char in enumerate(text):
        if char == "<":
            depth += 1
        elif char == ">" and depth:
            depth -= 1 if text[at - 1] != "-" else 0
        elif depth == 0:
            out.append(char)
    return "".join(out)

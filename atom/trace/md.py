"""Pieces of Markdown: tables, figures, text that is safe in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from atom.trace.words import duration


def figure(plots: dict[str, str], stem: str, text: str) -> list[str]:
    return [f"![{text}]({plots[stem]})", ""] if stem in plots else []


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> list[str]:
    rules = ["---:" if side == "r" else "---" for side in align]
    lines = [list(columns), rules, *([_cell(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def escaped(text: str) -> str:
    """Names of kernels in a sentence: no HTML, no emphasis."""
    for char in "\\<>*_|`":
        text = text.replace(char, "\\" + char)
    return text


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def cpu_span(ns: float) -> str:
    return duration(ns) if ns > 0 else ""

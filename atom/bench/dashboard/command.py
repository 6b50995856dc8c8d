"""The command that reproduces one run: its own, with this point's load and seed in place of a
sweep's, a search's or a drawn seed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from atom.bench.types import RunResult

# Flags that make points, with the words that follow them; the point's own load replaces them.
_LOAD = {"--concurrency": 1, "-c": 1, "--request-rate": 1, "-r": 1}
_SEARCH = {"--find-max": 0, "--no-find-max": 0, "--max-runs": 1}
_CAP = {"--max-concurrency": 1}  # alone it is the concurrency, with a rate it is a cap
_SEED = {"--seed": 1}


def command(run: RunResult) -> str:
    """A line for a shell; "" where the run does not tell how it was started (an imported one)."""
    argv = run.provenance.get("argv")
    if not isinstance(argv, list) or not argv:
        return ""
    words = [str(word) for word in argv]
    if PurePath(words[0]).name == "atom":  # a whole argv; ours hold the arguments alone
        del words[0]
    if run.kind != "bench":
        return shlex.join(["atom", *words])
    concurrency, rate = run.load.get("concurrency"), run.load.get("request_rate")
    if concurrency is not None:
        words = _without(words, {**_LOAD, **_SEARCH, **_CAP})
        words += ["--concurrency", f"{concurrency:g}"]
    elif rate is not None:
        words = _without(words, {**_LOAD, **_SEARCH})
        words += ["--request-rate", rate if isinstance(rate, str) else f"{rate:g}"]
    seed = run.repeats[0].seed if run.repeats else run.provenance.get("seed")
    if seed is not None:
        words = [*_without(words, _SEED), "--seed", f"{seed}"]
    return shlex.join(["atom", *words])


def _without(words: Sequence[str], flags: Mapping[str, int]) -> list[str]:
    """The words without these flags, however they are spelled: --a b, --a=b, --a_b, -c 8, -c8."""
    kept: list[str] = []
    skip = 0
    for word in words:
        name = _name(word)
        if skip:
            skip -= 1
        elif name in flags:
            attached = "=" in word or (not word.startswith("--") and len(word) > len(name))
            skip = 0 if attached else flags[name]
        else:
            kept.append(word)
    return kept


def _name(word: str) -> str:
    if word.startswith("--"):
        return "--" + word[2:].partition("=")[0].replace("_", "-")
    return word[:2] if word.startswith("-") else ""

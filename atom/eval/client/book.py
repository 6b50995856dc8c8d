"""What is known of a run: answers of this process and of the journal, counts, where it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from atom.eval.journal import Journal
from atom.eval.types import Counts, Generated, OnProgress, Progress, Scored

A = TypeVar("A", Scored, Generated)


@dataclass(slots=True)
class _Phase:
    name: str
    total: int | None
    detail: str = ""
    done: int = 0
    kept: int = 0
    tokens: int = 0
    retries_before: int = 0
    times: Counter[str] = field(default_factory=Counter)  # how many items have a key
    began_s: float = field(default_factory=time.monotonic)


class Book:
    """Written by the client's loop, read by the thread that waits for it."""

    def __init__(self, journal: Journal | None, on_progress: OnProgress) -> None:
        self.counts = Counts()
        self.notes: list[str] = []
        self._journal = journal
        self._on_progress = on_progress
        self._answers: dict[str, Scored | Generated] = {}
        self._from_journal: set[str] = set()
        self._phase = _Phase("scoring", None)
        self._cut = 0

    def begin(self, phase: str, keys: Sequence[str], kind: type[A], detail: str) -> list[int]:
        """A phase of one item per key. Returns the items without an answer, one of equal ones."""
        self._phase = _Phase(phase, len(keys), detail, retries_before=self.counts.retries)
        self._phase.times = Counter(keys)
        missing: dict[str, int] = {}
        for number, key in enumerate(keys):
            if not self._look_up(key, kind):
                missing.setdefault(key, number)
                continue
            self._phase.done += 1
            self._phase.kept += key in self._from_journal
        self.counts.items += self._phase.done
        self.counts.kept += self._phase.kept
        self.show()
        return list(missing.values())

    def begin_plain(self, phase: str, total: int, detail: str) -> None:
        """A phase whose answers are not kept."""
        self._phase = _Phase(phase, total, detail, retries_before=self.counts.retries)

    def advance(self, count: int) -> None:
        self._phase.done += count

    def _look_up(self, key: str, kind: type[A]) -> bool:
        if key in self._answers:
            return True
        found = None
        if self._journal is not None:
            look = self._journal.scored if kind is Scored else self._journal.generated
            found = look(key)
        if found is None:
            return False
        self._answers[key] = found
        self._from_journal.add(key)
        return True

    def keep(
        self, answers: Mapping[str, Scored | Generated], prompt_tokens: int, output_tokens: int
    ) -> None:
        """Written down first: what is counted as done survives."""
        if self._journal is not None:
            self._journal.add(answers)
        self._answers.update(answers)
        items = sum(self._phase.times[key] for key in answers)
        self._phase.done += items
        self._phase.tokens += prompt_tokens + output_tokens
        self.counts.items += items
        self.counts.prompt_tokens += prompt_tokens
        self.counts.output_tokens += output_tokens

    def answers(self, keys: Sequence[str], kind: type[A]) -> list[A]:
        """All of them; `begin` and `keep` have seen to that."""
        out: list[A] = []
        for key in keys:
            answer = self._answers[key]
            assert isinstance(answer, kind), key
            out.append(answer)
        return out

    def count_cut(self, prompts: int, limit: int | None) -> None:
        """Prompts that were longer than the context; one note for all."""
        if not prompts:
            return
        if self._cut:
            self.notes.remove(self._cut_note(limit))
        self._cut += prompts
        self.notes.append(self._cut_note(limit))

    def _cut_note(self, limit: int | None) -> str:
        prompts = "1 prompt was" if self._cut == 1 else f"{self._cut} prompts were"
        return (
            f"{prompts} longer than the context of {limit} tokens: cut from the left, "
            "as lm-eval does"
        )

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def show(self) -> None:
        phase = self._phase
        self._on_progress(
            Progress(
                phase=phase.name,
                done=phase.done,
                total=phase.total,
                kept=phase.kept,
                retries=self.counts.retries - phase.retries_before,
                elapsed_s=time.monotonic() - phase.began_s,
                tokens=phase.tokens,
                detail=phase.detail,
            )
        )

    def where(self) -> str:
        """How far it came and what is left of it, for the line of an error."""
        phase = self._phase
        total = "" if phase.total is None else f" of {phase.total}"
        came = f"after {phase.done}{total} requests ({phase.name})"
        if self._journal is None:
            return f"{came}; nothing is kept"
        return f"{came}; {len(self._journal)} answers are kept, go on with: atom eval --resume"

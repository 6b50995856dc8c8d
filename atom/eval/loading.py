"""Tasks and their data, loaded while a recipe's server starts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atom.eval.tasks import Loaded, TaskSpec


class Loading:
    """The tasks with their data. lm-eval takes seconds to load, which a starting server takes, too.

    They are loaded in a thread of their own once the server's process is there: what is told to
    Hugging Face's libraries through our environment must not reach it.
    """

    def __init__(self, specs: Sequence[TaskSpec], seed: int | None) -> None:
        self.specs = specs
        self._seed = seed
        self._thread: threading.Thread | None = None
        self._loaded: Loaded | None = None
        self._error: BaseException | None = None

    def begun_and_failed(self) -> bool:
        """Begins, where it has not; whether it has come to a bad end already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._load, name="tasks", daemon=True)
            self._thread.start()
        return self._error is not None

    def result(self) -> Loaded:
        """Waits for it; raises what went wrong."""
        self.begun_and_failed()
        assert self._thread is not None
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._loaded is not None
        return self._loaded

    def _load(self) -> None:
        try:
            from atom.eval.tasks import load_tasks

            self._loaded = load_tasks(self.specs, seed=self._seed)
        except BaseException as error:
            self._error = error

"""Ctrl-C while something is being recorded: what is whole is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def gentle(told: Callable[[str], None]) -> Iterator[threading.Event]:
    """Within: the first Ctrl-C or SIGTERM sets the event, the next one is a `KeyboardInterrupt`.

    Outside of the main thread, which gets all signals, the event is only an event.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        told("stopping after this step, what was recorded is kept; once more ends at once")

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

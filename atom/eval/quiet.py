"""lm-eval at our service: off the terminal, off the network where told so, and in less time."""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from urllib.parse import urlsplit
from urllib.request import getproxies

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
# lm-eval's warnings about what was asked for anyway, or about what atom does in its own way.
_UNINTERESTING = re.compile(
    r"Custom kwargs can be passed"
    r"|Overwriting default num_fewshot"
    r"|aggregation is not\. using default"
    r"|higher_is_better is not\. using default"
    r"|No `until` specified"
    r"|No `generation_kwargs` specified"
    r"|Both target_delimiter"
)
_LONGEST = 300
_HUB_TIMEOUT_S = 5.0
_TRUE = {"1", "ON", "YES", "TRUE"}


class _Notes(logging.Handler):
    """Warnings become notes, each once and in one line."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if _UNINTERESTING.search(text):
            return
        note = f"lm-eval: {text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}"
        if note not in self._notes:
            self._notes.append(note)


@contextmanager
def quiet(notes: list[str]) -> Iterator[None]:
    """What lm-eval logs goes to `notes` from warnings on; what tasks print goes to stderr."""
    with (
        _logged("lm_eval", [_Notes(notes)]),
        _logged("huggingface_hub", []),  # its retries
        _logged("datasets", []),
        warnings.catch_warnings(),
        redirect_stdout(sys.stderr),
        _no_bars(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _logged(name: str, handlers: list[logging.Handler]) -> Iterator[None]:
    """What `name` logs goes to `handlers` alone."""
    logger = logging.getLogger(name)
    kept = logger.handlers[:], logger.propagate, logger.level
    logger.handlers, logger.propagate = handlers or [logging.NullHandler()], False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = kept[0], kept[1]
        logger.setLevel(kept[2])


@contextmanager
def _no_bars() -> Iterator[None]:
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


@contextmanager
def compiled_once() -> Iterator[None]:
    """lm-eval compiles a prompt's template anew for each document, which is most of its time."""
    from lm_eval.utils import env

    env.from_string = functools.lru_cache(1024)(env.from_string)
    try:
        yield
    finally:
        del env.from_string  # the class has it


def hub_is_away() -> bool:
    """Whether no connection to the Hugging Face hub can be made; nothing is asked of it.

    Its own client would find out after half a minute of retries, for each data set.
    """
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    told = any(os.environ.get(name, "").upper() in _TRUE for name in OFFLINE[:2])
    if told or hub.hostname is None or hub.scheme in getproxies():
        return False  # its client knows what to do
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname, port), _HUB_TIMEOUT_S).close()
    except OSError:
        return True
    return False


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Tells Hugging Face's libraries to stay off the network, while this lasts.

    Nothing that bundled tasks do would ask it. The variables are read when the libraries are
    imported: this is a second lock on the door, the first is that the rows are in memory.
    """
    before = {name: os.environ.get(name) for name in OFFLINE}
    if wanted:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
    try:
        yield
    finally:
        for name, value in before.items() if wanted else ():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

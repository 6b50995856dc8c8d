"""Where atom keeps what it downloads or builds, and how concurrent processes share it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atom.errors import ConfigError


def cache_dir(kind: str) -> Path:
    """The folder of one kind of thing ("models", "kernels"), made if it is missing.

    `ATOM_CACHE_DIR`, else `$XDG_CACHE_HOME/atom`, else `~/.cache/atom`. Raises `ConfigError` if it
    cannot be made or written.
    """
    given = os.environ.get("ATOM_CACHE_DIR")
    xdg = os.environ.get("XDG_CACHE_HOME")
    root = Path(given).expanduser() if given else Path(xdg or "~/.cache").expanduser() / "atom"
    path = root / kind
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot make the cache folder {path}: {reason}; set ATOM_CACHE_DIR to another"
        ) from None
    return path


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on `path` (made if missing) among processes of this machine.

    The lock ends with the process that holds it, so nobody waits for the dead. `on_wait` is called
    once if somebody else holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

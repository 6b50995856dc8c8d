"""What can be wrong with a trace, or with what is asked of it. One line each, exit code 2."""

from __future__ import annotations

from atom.errors import AtomError

SLOWER = 3  # exit code of `atom trace diff --fail-above` when B is slower than that


class TraceError(AtomError):
    """The file is no trace, or it has not what was asked for; the message says what it has."""


class NoGpuWork(TraceError):
    """The traces hold operators of the host, and none of a GPU's work."""

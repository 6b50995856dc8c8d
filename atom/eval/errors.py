"""What goes wrong in an evaluation, said in one line."""

from __future__ import annotations

from atom.errors import AtomError


class EvalError(AtomError):
    """A task, a server, data or a setting that cannot be used; the message says the way out."""

    exit_code = 2


class ServerGone(EvalError):
    """The server stopped answering in the middle. What was answered is kept for `--resume`."""

    exit_code = 1


class EvalStopped(EvalError):
    """The user stopped it. What was answered is kept for `--resume`."""

    exit_code = 130

"""What goes wrong in an evaluation, said in one line."""

from __future__ import annotations

from atom.errors import AtomError


class EvalError(AtomError):
    """A task, a server, data or a setting that cannot be used; the message says the way out."""

    exit_code = 2


class ServerGone(EvalError):
    """No server answers, or it stopped in the middle; what was answered is kept for `--resume`."""

    exit_code = 1


class EvalStopped(EvalError):
    """The user stopped it. What was answered is kept for `--resume`."""

    exit_code = 130

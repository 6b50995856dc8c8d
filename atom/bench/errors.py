"""What can go wrong in a benchmark, each with the exit code that scripts rely on.

0 fine, 2 usage (`AtomError`), 3 regression or objective missed, 4 server unreachable, 5 too many
errors, 6 the client was the bottleneck, 130 interrupted.
"""

from __future__ import annotations

from atom.errors import AtomError

REGRESSION = 3
UNREACHABLE = 4
TOO_MANY_ERRORS = 5
CLIENT_BOUND = 6
INTERRUPTED = 130


class BenchError(AtomError):
    """A mistake in what was asked of the benchmark: a flag, a data set, a file."""


class ServerUnreachable(BenchError):
    """No server answers there, it refuses the key, or it has not the model."""

    exit_code = UNREACHABLE


class TooManyErrors(BenchError):
    """More requests failed than --max-error-rate allows, or the warm-up failed whole."""

    exit_code = TOO_MANY_ERRORS

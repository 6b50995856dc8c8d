"""The errors that a user can meet. Anything else that escapes is a bug of ours."""

from __future__ import annotations


class AtomError(Exception):
    """A mistake in what the user gave. The message is one line that says how to mend it."""

    exit_code = 2


class ConfigError(AtomError):
    """A recipe, environment variable or flag is wrong."""


class ModelError(AtomError):
    """A model cannot be found, read or supported."""


class RequestError(AtomError):
    """One request is wrong; `param` names its field. The engine is not affected."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NeverFitError(RequestError):
    """The request can never run here: context or KV cache is too small for it."""

    def __init__(self, message: str, *, param: str | None = "prompt") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class NoBackend(AtomError):
    """No implementation of an operation accepts what the model asks of it."""


class OutOfMemory(AtomError):
    """A device's memory did not suffice for the settings; the message says which free how much."""


class EngineDeadError(AtomError):
    """The engine core has ended; every running request is lost."""

    exit_code = 70

"""What can be wrong with what is asked of `atom profile`. One line each, exit code 2."""

from __future__ import annotations

from atom.errors import AtomError


class ProfileError(AtomError):
    """A shape that cannot run here, a folder that cannot be written, a server that records none."""

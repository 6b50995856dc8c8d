"""Recipe, environment and flags, resolved once to one frozen tree. Imports no torch."""

from atom.config.schema import Config

__all__ = ["Config"]

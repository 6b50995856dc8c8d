"""Recipe, environment and flags, resolved once to one frozen tree. Imports no torch."""

from atom.config.resolve import (
    Resolved,
    ResolvedTool,
    Source,
    resolve,
    resolve_arguments,
    resolve_tool,
    resolve_with_sources,
)
from atom.config.schema import Config

__all__ = [
    "Config",
    "Resolved",
    "ResolvedTool",
    "Source",
    "resolve",
    "resolve_arguments",
    "resolve_tool",
    "resolve_with_sources",
]

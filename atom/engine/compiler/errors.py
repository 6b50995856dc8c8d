"""Why a forward cannot be compiled in pieces."""

from __future__ import annotations


class CannotCompile(Exception):
    """The forward runs eagerly instead, and the reason is logged."""

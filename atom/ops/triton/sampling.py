"""Logits to token ids on a device, without a sort and without looking at a value on the host."""

from __future__ import annotations

from atom.ops.triton.argmax import argmax

__all__ = ["argmax"]

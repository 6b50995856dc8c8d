"""Achieved bytes/s and FLOP/s of products and attention, against what the device could do."""

from atom.trace.roofline.devices import Ceilings, ceilings_of
from atom.trace.roofline.report import Roofline, RooflineRow, roofline

__all__ = ["Ceilings", "Roofline", "RooflineRow", "ceilings_of", "roofline"]

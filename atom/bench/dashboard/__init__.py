"""The dashboard of the run history: a folder of static pages, built and served.

It reads the history and what `atom.bench.compare` says of it; it measures and changes nothing.
"""

from atom.bench.dashboard.build import build

__all__ = ["build"]

"""Kernels that a graph replays, back to the modules that recorded them; layers without any scope.

How to use it (`atom.trace.analysis` does), `place` being whatever number says "same module":

    templates = capture_templates(capture, place)      # place: I32 [R], of capture.runtime; -1 none
    templates += eager_templates(trace, place, eager_steps)     # fallback: eager steps of the run
    found = map_replays(trace, replays, templates)              # one Replay per step
    for row, template, node: templates[template].launch[node] is the row of
        templates[template].source.runtime whose scope, operator and shapes are the kernel's

    blocks = map_blocks(trace, [rows of a step, ...])  # nothing has scopes: guesses, called so
        .layer, .part  I32 [N] parallel to trace.gpu, -1 none; .parts list[str]; .num_layers; .notes
    forwards = find_forwards(trace)      # no labels either: list[Forward(rows: I64, blocks: int)]

It knows kernels' names, their order and their streams, not what a label or a scope means.
"""

from __future__ import annotations

from atom.trace.mapping.blocks import Blocks, find_layers
from atom.trace.mapping.capture import capture_templates, eager_templates
from atom.trace.mapping.forwards import Forward, find_forwards
from atom.trace.mapping.layers import MappedBlocks, map_blocks
from atom.trace.mapping.replay import map_replays
from atom.trace.mapping.types import EagerStep, Mapped, Replay, Template

__all__ = [
    "Blocks",
    "EagerStep",
    "Forward",
    "Mapped",
    "MappedBlocks",
    "Replay",
    "Template",
    "capture_templates",
    "eager_templates",
    "find_forwards",
    "find_layers",
    "map_blocks",
    "map_replays",
]

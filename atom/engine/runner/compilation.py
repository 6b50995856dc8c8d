"""Compile levels: what runs the model, and why.

| level | what runs |
|---|---|
| 0 | eager |
| 1 | `torch.compile` as it is: guards kept, recompiled as shapes ask for it |
| 2 | one Dynamo pass with a dynamic token count, guards dropped afterwards |
| 3 | pieces between the attention operators, each compiled and kept on disk (`engine.compiler`) |

On CPU with native kernels, level 3 is a recorded native program where every operation is native,
and eager where one is not: either is faster than pieces of torch's operations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from atom.config.schema import Config
from atom.engine.marks import Marks
from atom.engine.module_marks import mark_modules
from atom.errors import ConfigError
from atom.layers.context import ForwardContext, set_forward_context
from atom.layers.mixer import Mixer
from atom.ops.contracts import AttentionMetadata
from atom.ops.cpu import build

if TYPE_CHECKING:
    from atom.ops.cpu.program import Program

log = logging.getLogger("atom.runner")
Forward = Callable[[Tensor, Tensor], Tensor]
COMPILED = ("torch.compile", "compiled once")  # modes whose first runs compile


class Choice(NamedTuple):
    """`program` runs a step from input ids to logits; `forward` serves where there is none, and the
    steps for which it has no room or which need the hidden states."""

    forward: Forward
    program: Program | None
    mode: str  # "eager", "torch.compile", "compiled once", "compiled in pieces", "native program"
    reason: str
    warmup_tokens: tuple[int, ...]  # token counts whose first run is slow


def level_of(config: Config) -> int:
    return 0 if config.compile.enforce_eager else config.compile.level


def needs_tracing(config: Config, device: torch.device) -> bool:
    """Whether the model must be built from operators that torch's compiler can see through."""
    level = level_of(config)
    return level in (1, 2) or (level == 3 and _why_no_pieces(device) is None)


def _why_no_pieces(device: torch.device) -> str | None:
    """None: level 3 is pieces on this device."""
    if device.type != "cpu":
        return None
    try:
        build.compiler()  # Inductor needs one, too
    except build.CannotBuild as why:
        return str(why)
    try:
        build.library_path()
    except build.CannotBuild:
        return None
    return "native kernels are faster"


def choose(model: Any, config: Config, device: torch.device) -> Choice:
    """What runs the model. On CPU its caches must be bound: a recorded program holds them."""
    forward = model.forward
    if config.compile.enforce_eager:
        return Choice(forward, None, "eager", "enforce_eager", (4,))
    match config.compile.level:
        case 0:
            return Choice(forward, None, "eager", "level 0", (4,))
        case 1:
            # A first length, another one (which makes it dynamic), and the one that is special.
            compiled = _compiled(model, config, torch.compile)
            return Choice(compiled, None, "torch.compile", "level 1", (4, 6, 1))
        case 2:
            compiled = _compiled(model, config, _compile_once)
            return Choice(compiled, None, "compiled once", "level 2", (4,))
        case _:
            reason = _why_no_pieces(device)
            return (
                _choose_program(model, config, reason)
                if reason
                else _in_pieces(model, config, device)
            )


def can_select_rows(config: Config, device: torch.device) -> bool:
    """Whether the last block may leave out the rows that nobody samples: torch.compile would take
    their number for that of the tokens, and CPU programs are recorded without."""
    return device.type != "cpu" and level_of(config) in (0, 3)


def _in_pieces(model: Any, config: Config, device: torch.device) -> Choice:
    from atom.engine.compiler.compiler import compile_forward
    from atom.engine.compiler.errors import CannotCompile

    try:
        compiled = compile_forward(model, device, config.scheduler.max_num_batched_tokens)
    except (CannotCompile, ConfigError, OSError) as why:  # the last two: no place for the cache
        reason = f"level 3, but the forward cannot be compiled in pieces: {why}"
        log.warning("compile: %s; it runs eagerly", reason)
        return Choice(model.forward, None, "eager", reason, (4,))
    return Choice(compiled.forward, None, "compiled in pieces", f"level 3: {compiled}", (4,))


def _choose_program(model: Any, config: Config, why_no_pieces: str) -> Choice:
    """The whole step as one native program, if every operation of the model is native."""

    def eager(why: object) -> Choice:
        reason = f"level 3, but there is no native program: {why}; no pieces: {why_no_pieces}"
        return Choice(model.forward, None, "eager", reason, (4,))

    mixers = {type(m).__name__: None for m in model.modules() if isinstance(m, Mixer)}
    if mixers:
        return eager(f"{', '.join(mixers)}: of torch's operations")
    try:  # its module binds the kernels, which a machine without a compiler has not
        from atom.ops.cpu.program import CannotRecord, Program
    except build.CannotBuild as why:
        return eager(why)

    def forward(input_ids: Tensor, positions: Tensor, attention: AttentionMetadata) -> Tensor:
        with set_forward_context(ForwardContext(attention)):
            hidden: Tensor = model.forward(input_ids, positions)
            return hidden

    marks = Marks()
    mark_modules(marks, model)
    try:
        with marks.during(lambda _: nullcontext()):
            program = Program.record(
                forward,
                model.compute_logits,
                max_tokens=config.scheduler.max_num_batched_tokens,
                max_seqs=config.scheduler.max_num_seqs,
                # Outside of the modules, the rows are selected that have logits.
                scope_of=lambda: marks.innermost or "logits",
            )
    except CannotRecord as why:
        return eager(why)
    reason = f"level 3: {program.num_nodes} operations"
    return Choice(model.forward, program, "native program", reason, (4,))


def _compiled(model: Any, config: Config, make: Callable[..., Forward]) -> Forward:
    """`make(model.forward)`. A `MarkedForward` with --mark-trace, where this torch allows it."""
    if config.profile.mark_trace:
        from atom.engine.compiled_marks import MarkedForward
        from atom.engine.compiler import scopes

        if scopes.why_not() is None:
            return MarkedForward(model, make)
    return make(model.forward)


def _drop_all(guards: Any) -> list[bool]:
    return [False for _ in guards]


def _compile_once(forward: Forward, **options: Any) -> Forward:
    """Compiled at its first call, for any number of tokens; later calls check nothing.

    What the guards would watch cannot change: the model is frozen, and its inputs are two int64
    vectors of one length.
    """
    unguarded: dict[str, Any] = {"guard_filter_fn": _drop_all}
    # Not dynamic=True, which takes the model's own numbers for unknowns, too: shapes that are made
    # of many of those take minutes.
    compiled: Forward = torch.compile(forward, fullgraph=True, options=unguarded, **options)
    first = True

    def run(input_ids: Tensor, positions: Tensor) -> Tensor:
        nonlocal first
        if first:
            torch._dynamo.mark_dynamic(input_ids, 0)
            torch._dynamo.mark_dynamic(positions, 0)
            first = False
        return compiled(input_ids, positions)

    return run

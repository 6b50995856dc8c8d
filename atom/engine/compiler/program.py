"""A plan made ready to run: weights and layers looked up once, then one list of calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atom.engine.compiler.errors import CannotCompile
from atom.engine.compiler.inductor import Call
from atom.engine.compiler.plan import (
    FIRST_WEIGHT,
    INPUT_IDS,
    NUM_TOKENS,
    POSITIONS,
    OpaqueCall,
    PieceCall,
    Plan,
)
from atom.engine.compiler.split import ALIGNMENT
from atom.engine.compiler.structure import follow

# What an operator `atom::*` calls on its layer, and whether that may overwrite its first input.
METHODS = {"attention": ("step", True), "experts": ("run", False), "all_reduce": ("run", True)}


class Step(NamedTuple):
    call: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...]  # values that nobody reads any more
    is_piece: bool


class Program:
    """`program(input_ids, positions)` -> hidden [T, H]."""

    def __init__(self, plan: Plan, model: Any, calls: Mapping[str, Call]) -> None:
        """Raises LookupError or AttributeError if the plan is not one of this model."""
        weights = [follow(model, tuple(path)) for path in plan.weights]
        self._start: list[Any] = [None] * plan.num_values
        self._start[FIRST_WEIGHT : FIRST_WEIGHT + len(weights)] = weights
        self._result = plan.result
        self._steps = _make_steps(plan, model, calls)
        if any(weight.is_cuda and weight.data_ptr() % ALIGNMENT for weight in weights):
            raise CannotCompile("a weight does not start at a multiple of 16 bytes")

    def __call__(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        values = self._start.copy()
        values[INPUT_IDS] = _aligned(input_ids)
        values[POSITIONS] = positions
        values[NUM_TOKENS] = input_ids.shape[0]
        for call, inputs, outputs, dead, is_piece in self._steps:
            args = [values[i] for i in inputs]
            for i in dead:
                values[i] = None
            if is_piece:
                for i, value in zip(outputs, call(args), strict=True):
                    values[i] = value
            else:
                values[outputs[0]] = call(*args)
        result: Tensor = values[self._result]
        return result


def _aligned(input_ids: Tensor) -> Tensor:
    """Kernels of a piece count on aligned inputs; these may be part of a larger tensor."""
    return input_ids.clone() if input_ids.data_ptr() % ALIGNMENT else input_ids


def _make_steps(plan: Plan, model: Any, calls: Mapping[str, Call]) -> list[Step]:
    """Also who reads each value last, so that its memory is free from then on."""
    steps: list[Step] = []
    live = {plan.result, *range(FIRST_WEIGHT + len(plan.weights))}
    for step in reversed(plan.steps):
        dead = tuple(dict.fromkeys(i for i in step.inputs if i not in live))
        live.update(step.inputs)
        inputs = tuple(step.inputs)
        if isinstance(step, PieceCall):
            steps.append(Step(calls[step.piece], inputs, tuple(step.outputs), dead, True))
        else:
            steps.append(Step(_opaque(step, model, dead), inputs, (step.output,), dead, False))
    return steps[::-1]


def _opaque(step: OpaqueCall, model: Any, dead: tuple[int, ...]) -> Callable[..., Any]:
    name, consumes = METHODS[step.op]
    method: Callable[..., Any] = getattr(follow(model, tuple(step.layer)), name)
    if not consumes or step.inputs[0] in dead:
        return method

    def keep_input(first: Tensor, *rest: Tensor) -> Any:
        return method(first.clone(memory_format=torch.contiguous_format), *rest)

    return keep_input

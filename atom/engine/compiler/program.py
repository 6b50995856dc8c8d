"""A plan made ready to run: weights and layers looked up once, then one list of calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atom.engine.compiler.errors import CannotCompile
from atom.engine.compiler.inductor import Call
from atom.engine.compiler.plan import (
    ALIGNMENT,
    FIRST_WEIGHT,
    INPUT_IDS,
    LAYER_OPS,
    NUM_TOKENS,
    POSITIONS,
    SAMPLED_ROWS,
    VIEW,
    Argument,
    OpCall,
    PieceCall,
    Plan,
)
from atom.engine.compiler.structure import follow
from atom.engine.marks import Marks


class Step(NamedTuple):
    call: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...]  # values that nobody reads any more
    is_piece: bool  # takes its arguments in a list, and always returns a tuple


class Program:
    """`program(input_ids, positions)` -> hidden [T, H]."""

    def __init__(self, plan: Plan, model: Any, calls: Mapping[str, Call]) -> None:
        """`calls`: the plan's pieces by key. Raises `CannotCompile`."""
        self.plan = plan
        self._model, self._calls = model, calls
        weights = [follow(model, tuple(path)) for path in plan.weights]
        # The values before the first step; behind those of the plan, what nobody reads, literals.
        self._start: list[Any] = [None] * (plan.num_values + 1)
        self._start[FIRST_WEIGHT : FIRST_WEIGHT + len(weights)] = weights
        self._unread = plan.num_values
        self._result = plan.result
        self._steps: list[Step] = []
        kept = {plan.result, *range(FIRST_WEIGHT + len(weights))}
        for step in reversed(plan.steps):
            dead = tuple(dict.fromkeys(i for i in step.inputs if i not in kept))
            kept.update(step.inputs)
            if isinstance(step, PieceCall):
                self._steps.append(self._piece(step, dead))
            else:
                self._steps.append(self._operator(step, dead))
        self._steps.reverse()
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
            results = call(args) if is_piece else call(*args)
            if is_piece or len(outputs) > 1:
                for i, value in zip(outputs, results, strict=True):
                    values[i] = value
            else:
                values[outputs[0]] = results
        result: Tensor = values[self._result]
        return result

    def mark(self, marks: Marks) -> None:
        """Run the steps within the scopes of their modules while `marks` are on."""
        plain = self._steps
        scopes = [step.scope for step in self.plan.steps]
        marked = [
            step._replace(call=marks.wrapped(scope, step.call)) if scope else step
            for step, scope in zip(plain, scopes, strict=True)
        ]

        def change(is_on: bool) -> None:
            self._steps = marked if is_on else plain

        marks.call_on_change(change)

    def _piece(self, step: PieceCall, dead: tuple[int, ...]) -> Step:
        return Step(
            self._calls[step.piece], tuple(step.inputs), tuple(step.outputs), dead, is_piece=True
        )

    def _operator(self, step: OpCall, dead: tuple[int, ...]) -> Step:
        outputs = [self._unread if number is None else number for number in step.outputs]
        arguments, call = step.arguments, Tensor.view
        if step.layer is not None:
            behind = LAYER_OPS[step.op]
            call = getattr(follow(self._model, tuple(step.layer)), behind.method)
            arguments = arguments[: behind.num_arguments]
        elif step.op != VIEW:
            call = _kernel(step.op)
        counts = [None if a.values is None else len(a.values) for a in arguments]
        call = call if all(count is None for count in counts) else _with_lists(call, counts)
        inputs = tuple(i for argument in arguments for i in self._argument(argument))
        call = _with_copies(call, step.copied) if step.copied else call
        if step.op == SAMPLED_ROWS:
            call, outputs = _counted(call), [*outputs, NUM_TOKENS]
        return Step(call, inputs, tuple(outputs), dead, is_piece=False)

    def _argument(self, argument: Argument) -> list[int]:
        if argument.values is not None:
            return argument.values
        if argument.value is not None:
            return [argument.value]
        literal = argument.literal
        self._start.append(literal if argument.dtype is None else getattr(torch, argument.dtype))
        return [len(self._start) - 1]


def _kernel(op: str) -> Callable[..., Any]:
    """The function behind an operator of atom's kernels."""
    from atom.ops.triton import support

    return support.direct[op.partition("::")[2]]


def _aligned(input_ids: Tensor) -> Tensor:
    """Kernels of a piece count on aligned inputs; these may be part of a larger tensor."""
    return input_ids.clone() if input_ids.data_ptr() % ALIGNMENT else input_ids


def _counted(call: Callable[..., Any]) -> Callable[..., Any]:
    """With the number of rows behind the results."""

    def run(*args: Any) -> Any:
        results = call(*args)
        return *results, results[0].shape[0]

    return run


def _with_lists(call: Callable[..., Any], counts: list[int | None]) -> Callable[..., Any]:
    """Takes lists of so many values one by one; None: an argument that is no list."""

    def run(*values: Any) -> Any:
        args, at = list[Any](), 0
        for count in counts:
            args.append(values[at] if count is None else list(values[at : at + count]))
            at += 1 if count is None else count
        return call(*args)

    return run


def _with_copies(call: Callable[..., Any], which: list[int]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return call(*(arg.clone() if i in which else arg for i, arg in enumerate(args)))

    return run

"""Graphs without a GPU: what is recorded on CPU tensors is executed again at each replay.

`record` keeps the function and runs it again over the same static buffers, its result copied to
where the first one lies. Between `begin` and `end` torch's operations themselves are recorded, with
their tensors, so that a replay sees what it would see on a device: the memory of the recording, and
nothing of the Python around it. Recording computes, too, on whatever the buffers hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from serving import make_runner
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from atom.config.schema import Config
from atom.engine.runner import graph_plan, graphs, started_runner
from atom.engine.runner.decode_graphs import StepKernels
from atom.engine.runner.model_runner import ModelRunner
from atom.ops import registry

T = TypeVar("T")


class Rerun:
    def __init__(self, body: Callable[[], Tensor], result: Tensor) -> None:
        self._body = body
        self._result = result

    def replay(self) -> None:
        self._result.copy_(self._body())


class Tape:
    """Operations in order, each with the tensors it got and gave."""

    def __init__(self) -> None:
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def add(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        self._calls.append((function, args, kwargs, result))

    def replay(self) -> None:
        for function, args, kwargs, result in self._calls:
            if function.is_view:
                continue  # the same memory as in the recording
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.tape: Tape | None = None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self.tape is not None:
            self.tape.add(function, args, kwargs, result)
        return result


class FakeRecorder:
    """Implements `capture.Recorder`. Nothing is freed, so an alias is the tensor itself."""

    def __init__(self) -> None:
        self._mode = _Recording()
        self.graphs = 0

    @contextmanager
    def session(self) -> Iterator[None]:
        yield

    def record(self, body: Callable[[], T]) -> tuple[Any, T]:
        """Cut inside, it is a recording of operations; else the function is run again."""
        before = self.graphs
        with self._mode:
            self.begin()
            result = body()
            tape = self.end()
        if self.graphs > before + 1:
            return tape, result
        assert isinstance(result, Tensor)
        return Rerun(body, result), result  # type: ignore[arg-type]

    def begin(self) -> None:
        assert self._mode.tape is None
        self._mode.tape = Tape()

    def end(self) -> Tape:
        tape, self._mode.tape = self._mode.tape, None
        assert tape is not None
        self.graphs += 1
        return tape

    def alias(self, tensor: Tensor) -> Tensor:
        return tensor

    def used_bytes(self) -> int:
        return 1000 * self.graphs


def prepare_decode(
    rows: Tensor,
    computed: Tensor,
    token_pool: Tensor,
    block_table: Tensor,
    block_size: int,
    *,
    input_ids: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    seq_lens: Tensor,
    step_table: Tensor,
    new_blocks: Tensor,
) -> None:
    """Entries of the step's table that hold no block become nonsense, for nobody may read them."""
    for row, at, block in zip(rows.tolist(), computed.tolist(), new_blocks.tolist(), strict=True):
        if block >= 0:
            assert row >= 0
            block_table[row, at // block_size] = block
    step_table.fill_(1 << 30)
    for s, (row, at) in enumerate(zip(rows.tolist(), computed.tolist(), strict=True)):
        input_ids[s], positions[s], slot_mapping[s], seq_lens[s] = 0, 0, -1, 0
        if row >= 0:
            blocks = -(-(at + 1) // block_size)
            step_table[s, :blocks] = block_table[row, :blocks]
            input_ids[s], positions[s] = token_pool[row, at], at
            slot_mapping[s] = block_table[row, at // block_size] * block_size + at % block_size
            seq_lens[s] = at + 1


def finish_decode(
    logits: Tensor,
    rows: Tensor,
    computed: Tensor,
    token_pool: Tensor,
    slot: Tensor,
    landing: Tensor,
) -> None:
    tokens = logits.argmax(-1)
    put_tokens(tokens, rows, computed, token_pool)
    landing[int(slot[0]), : len(tokens)] = tokens


def put_tokens(tokens: Tensor, rows: Tensor, computed: Tensor, token_pool: Tensor) -> None:
    for token, row, at in zip(tokens.tolist(), rows.tolist(), computed.tolist(), strict=True):
        if row >= 0:
            token_pool[row, at + 1] = token


KERNELS = StepKernels(prepare_decode, finish_decode, put_tokens)


def with_graphs(config: Config, patch: pytest.MonkeyPatch) -> ModelRunner:
    """A runner on CPU that plans, records and replays as on a GPU, all operations in torch."""

    def make(plan: graph_plan.GraphPlan, source: graphs.Source) -> graphs.Graphs | None:
        return None if plan.mode == "none" else graphs.Graphs(plan, source, FakeRecorder(), KERNELS)

    patch.setitem(registry.PREFERENCE, "cpu", ("reference",))
    patch.setattr(started_runner, "uncapturable", lambda model: "")
    patch.setattr(started_runner, "make_graphs", make)
    patch.setattr(
        started_runner,
        "plan_graphs",
        lambda config, device, why_not, bound: graph_plan.plan_graphs(config, "cuda", why_not),
    )
    return make_runner(config)

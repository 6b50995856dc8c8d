"""Tensor parallelism: one runner of several ranks.

Rank 0 lives in the core's process; the others are processes of `tp_worker`. All get the same small
plans and keep identical state. Logits are gathered on every rank and sampling is a pure function,
so each rank samples the same tokens into its own token pool and none are sent round.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch.distributed as dist

from atom.config.schema import Config
from atom.engine.plan import StepHandle, StepOutput, StepPlan
from atom.engine.runner import plan_wire, settle
from atom.engine.runner.model_runner import ModelRunner
from atom.engine.runner.profiler import Writer
from atom.engine.runner.tp_workers import Workers, WorkerSetup
from atom.parallel.rendezvous import listen, rendezvous
from atom.parallel.state import ParallelState

if TYPE_CHECKING:
    from atom.models.source import ModelSource

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def make_runner(config: Config, source: ModelSource) -> ModelRunner:
    """The runner that `config.parallel` asks for."""
    if config.parallel.tensor_parallel_size == 1:
        return ModelRunner(config, source)
    return TensorParallelRunner(config, source)


class TensorParallelRunner(ModelRunner):
    """Rank 0, which owns the other ranks' processes. Their death raises `EngineDeadError`."""

    def __init__(self, config: Config, source: ModelSource) -> None:
        size = config.parallel.tensor_parallel_size
        settle.resolve_device(config, size - 1)  # is there a device for the last rank?
        device = settle.resolve_device(config, 0)
        listener = listen(config.parallel.master_addr, config.parallel.master_port)
        port = listener.getsockname()[1]
        model = dataclasses.replace(config.model, model=str(source.path))
        setup = WorkerSetup(dataclasses.replace(config, model=model), source.name, port)
        self._workers = Workers(setup, size, exit_if_stuck=device.type != "cpu")
        try:
            parallel = rendezvous(
                0,
                size,
                addr=config.parallel.master_addr,
                port=port,
                timeout_s=config.parallel.rendezvous_timeout_s,
                backend=BACKENDS[device.type],
                listener=listener,
            )
            super().__init__(config, source, parallel)
        except RuntimeError as error:
            reason = self._workers.explain(error)
            self._end()
            raise reason from error
        except BaseException:
            self._end()
            raise

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of ranks 1 and up."""
        return self._workers.pids

    def launch(self, plan: StepPlan) -> StepHandle:
        # What warms up and measures runs on every rank by itself: steps of requests count from 1.
        if plan.step > 0:
            self._workers.send(plan_wire.encode(plan))
        try:
            return _Watched(super().launch(plan), self._workers)
        except RuntimeError as error:
            raise self._workers.explain(error) from error

    def start_profile(self, stamp: str) -> None:
        super().start_profile(stamp)  # what it refuses never reaches the others
        self._workers.send(plan_wire.encode_profile(stamp))

    def stop_profile(self) -> Writer:
        own = super().stop_profile()
        self._workers.send(plan_wire.encode_profile(""))

        def write() -> list[str]:
            try:
                paths = own()
            finally:
                others = self._workers.traces()  # heard in any case: the next ones follow them
            return paths + others

        return write

    def shutdown(self) -> None:
        super().shutdown()
        self._end()

    def _end(self) -> None:
        self._workers.stop()
        leave()


class _Watched:
    """A step whose failure on the device may be a worker's death."""

    __slots__ = ("_step", "_workers")

    def __init__(self, step: StepHandle, workers: Workers) -> None:
        self._step = step
        self._workers = workers

    def wait(self) -> StepOutput:
        try:
            return self._step.wait()
        except RuntimeError as error:
            raise self._workers.explain(error) from error


def join(config: Config, rank: int, port: int) -> ParallelState:
    """A worker's way to the others."""
    device = settle.resolve_device(config, rank)
    return rendezvous(
        rank,
        config.parallel.tensor_parallel_size,
        addr=config.parallel.master_addr,
        port=port,
        timeout_s=config.parallel.rendezvous_timeout_s,
        backend=BACKENDS[device.type],
    )


def leave() -> None:
    """Give the process group up; the next one may be another."""
    if dist.is_initialized():
        dist.destroy_process_group()

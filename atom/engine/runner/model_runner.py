"""`ModelRunner`: step plans to sampled tokens, on one device.

It owns the model, the KV pool, the persistent batch and the sampler. It knows nothing of requests,
policies or text. `launch` enqueues a step and reads nothing back.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from atom.engine.plan import StepHandle, StepPlan
from atom.engine.runner import (
    profiler,
    prompt_logprobs,
)
from atom.engine.runner.block_tables import apply_edits
from atom.engine.runner.decode_graphs import DecodeGraphs
from atom.engine.runner.decode_slots import Slot
from atom.engine.runner.inputs import StagedStep, StepInputs
from atom.engine.runner.logprobs import LogprobTensors
from atom.engine.runner.prompt_logprobs import PromptStep
from atom.engine.runner.sampler import Sampled
from atom.engine.runner.sampling_rows import PROMPT_LOGPROBS, SamplingStep
from atom.engine.runner.started_runner import StartedRunner
from atom.engine.runner.steps import DeviceStep, HostStep, StepResult
from atom.engine.runner.upload import Upload
from atom.errors import RequestError
from atom.layers.context import ForwardContext, set_forward_context

if TYPE_CHECKING:
    pass

log = logging.getLogger("atom.runner")


class ModelRunner(StartedRunner):
    """One rank. Every rank is given the same plans and samples the same tokens: logits are gathered
    on all of them, and sampling is a pure function of logits, seeds and positions."""

    @property
    def graph_counts(self) -> Mapping[str, int]:
        """Replays by kind and size ("decode 8", "piecewise 64", "full 64"), and "eager" steps."""
        return {} if self._graphs is None else self._graphs.counts

    @property
    def graph_steps(self) -> int:
        """Steps whose forward was a replay."""
        counts = self.graph_counts
        return sum(counts.values()) - counts.get("eager", 0)

    @property
    def graphs(self) -> str:
        """What is captured, or why nothing is."""
        return str(self.graph_plan)

    # -- a step ---------------------------------------------------------------------------------

    def launch(self, plan: StepPlan) -> StepHandle:
        """Enqueue a step of at least one sequence; nothing is read back before `wait`."""
        try:
            return self._launch(plan)
        except torch.OutOfMemoryError as error:
            raise self._oom.in_step(plan, error) from error

    @torch.inference_mode()
    def _launch(self, plan: StepPlan) -> StepHandle:
        for new in plan.new_rows:
            self._sampling.enter(new)
        if plan.restores:
            self._caches.copy_states(plan.restores)
        handle = self._launch_step(plan)
        if plan.saves:
            self._caches.copy_states(plan.saves)
        return handle

    def _launch_step(self, plan: StepPlan) -> StepHandle:
        if self._graphs is None:
            return self._launch_any(plan, 0)
        size = self._graphs.decode_size(plan)
        if size:
            return self._launch_decode(plan, size)
        if not prompt_logprobs.due(plan, self._sampling):
            size = self._graphs.token_size(plan)
        if not size:
            self._graphs.counts["eager"] += 1
        return self._launch_any(plan, size)

    def _launch_decode(self, plan: StepPlan, size: int) -> StepHandle:
        """A step that is one graph. Greedy tokens are the graph's own; any other sampling takes its
        logits."""
        made = self._graphs
        assert made is not None
        assert made.decode is not None
        decode = made.decode
        made.counts[f"decode {size}"] += 1
        fresh = plan.new_blocks or plan.new_window_blocks
        if plan.new_rows or (fresh and not self._batch.begins_blocks(plan)):
            self._edit(plan)
            plan = plan._replace(new_rows=[], new_blocks=[], new_window_blocks=())
        slot, logits = decode.replay(plan, size)
        if not int(np.bitwise_or.reduce(self._sampling.flags[plan.rows])) & ~PROMPT_LOGPROBS:
            return decode.ring.deliver(slot, size, len(plan.rows))
        return self._sample_decode(decode, plan, size, slot, logits)

    def _sample_decode(
        self, decode: DecodeGraphs, plan: StepPlan, size: int, slot: Slot, logits: Tensor
    ) -> StepHandle:
        """Other tokens than the argmax, or log-probabilities, of a graph's logits."""
        upload = Upload(self._device)
        rows = plan.rows.astype(np.int64)
        sampling = self._sampling.stage(rows, plan.num_computed.astype(np.int64) + 1, upload)
        upload.send()
        best = slot.views[size].tokens[: len(rows)]
        tokens, columns = self._sampler(logits, self._batch.token_pool, sampling, best)
        if tokens is not best:
            decode.put_tokens(tokens, size)
        if columns is None:
            return decode.ring.deliver(slot, size, len(rows), tokens)
        handle = self._handle(tokens, columns, sampling)
        decode.ring.hold(slot)  # `best` may be what is being copied
        return handle

    def _edit(self, plan: StepPlan) -> None:
        """Bring the tables up to date by themselves."""
        upload = Upload(self._device)
        edits = self._batch.stage_edits(plan, upload)
        upload.send()
        apply_edits(edits)

    def _launch_any(self, plan: StepPlan, size: int) -> StepHandle:
        """Any other step. `size`: that of the graphs that run its forward, 0 if none do."""
        staged, sampling, prompts, inputs = self._prepare(plan, size)
        logits, prompt_columns = self._run_model(inputs, staged, prompts, size)
        tokens, columns = self._no_tokens, None
        if logits is not None:
            tokens, columns = self._sample(logits, staged, sampling)
        return self._handle(tokens, columns, sampling, prompt_columns, prompts)

    def _prepare(
        self, plan: StepPlan, size: int
    ) -> tuple[StagedStep, SamplingStep, PromptStep | None, StepInputs]:
        upload = Upload(self._device)
        staged = self._batch.stage(plan, upload, size)
        sampling = self._sampling.stage(staged.sample_rows, staged.sample_positions, upload)
        prompts = prompt_logprobs.stage(plan, staged, self._sampling, self._batch, upload)
        upload.send()
        return staged, sampling, prompts, self._batch.gather(staged)

    def _sample(self, logits: Tensor, staged: StagedStep, sampling: SamplingStep) -> Sampled:
        sampled = self._sampler(logits, self._batch.token_pool, sampling)
        self._batch.put_tokens(staged, sampled.token_ids)
        return sampled

    def _handle(
        self,
        tokens: Tensor,
        columns: LogprobTensors | None,
        sampling: SamplingStep,
        prompt_columns: LogprobTensors | None = None,
        prompts: PromptStep | None = None,
    ) -> StepHandle:
        result = StepResult(
            tokens,
            columns,
            sampling.logprob_rows,
            sampling.logprob_counts,
            prompt_columns,
            prompts,
        )
        return HostStep(result) if self._copies is None else DeviceStep(result, self._copies)

    def _run_model(
        self, inputs: StepInputs, staged: StagedStep, prompts: PromptStep | None, size: int
    ) -> tuple[Tensor | None, LogprobTensors | None]:
        """(logits [L, V] of the rows that sample, None without any; prompt log-probabilities).

        `size`: that of the graphs that run the forward, 0 if none do.
        """
        attention, index = inputs.attention, staged.logits_indices
        samples = len(staged.sample_rows) > 0
        program = self.program
        if program is not None and program.fits(attention.num_tokens, attention.num_seqs):
            if prompts is not None:
                program.run_hidden(inputs.input_ids, inputs.positions, attention)
                columns = self._prompt_logprobs(prompts, program.logits, program.max_seqs)
                return program.logits(index) if samples else None, columns
            logits = program.run(inputs.input_ids, inputs.positions, attention, index)
            return logits if samples else None, None
        if size:
            assert self._graphs is not None
            hidden = self._graphs.run(size, inputs)[: staged.num_tokens]
        else:
            rows = index if self.model.selects_rows and samples and prompts is None else None
            with set_forward_context(ForwardContext(attention, rows=rows)):
                hidden = self.forward(inputs.input_ids, inputs.positions)
            if rows is not None:
                index = None  # they are selected
        return self._logits(hidden, index, prompts, samples)

    def _logits(
        self, hidden: Tensor, index: Tensor | None, prompts: PromptStep | None, samples: bool
    ) -> tuple[Tensor | None, LogprobTensors | None]:
        """Of `_run_model`. `index`: rows of `hidden`, None for all."""
        compute_logits, columns = self.model.compute_logits, None
        if prompts is not None:
            columns = self._prompt_logprobs(
                prompts, lambda rows: compute_logits(hidden[rows]), len(hidden)
            )
        if not samples:
            return None, columns
        return compute_logits(hidden if index is None else hidden[index]), columns

    def _prompt_logprobs(
        self, prompts: PromptStep, logits_of: Callable[[Tensor], Tensor], most_rows: int
    ) -> LogprobTensors:
        pool = self._batch.token_pool
        return prompt_logprobs.compute(prompts, pool, logits_of, self.vocab_size, most_rows)

    # -- profiling ------------------------------------------------------------------------------

    def start_profile(self, stamp: str) -> None:
        """Record from the next step on, for files whose names hold `stamp`."""
        if self._profiler is None:
            raise RequestError("the profiler is off (--torch-profiler-dir)", code="profiler_off")
        self._profiler.start(stamp)

    def stop_profile(self) -> profiler.Writer:
        """Stop recording. The files of all ranks are there when the writer has returned; call it
        on another thread, and steps go on."""
        if self._profiler is None:
            raise RequestError("the profiler is off (--torch-profiler-dir)", code="profiler_off")
        return self._profiler.stop()

    def shutdown(self) -> None:
        """Let go of the model and its caches."""
        if self._profiler is not None:
            self._profiler.close()
            self._profiler = None  # its marks hold the model, too
        if self._graphs is not None:
            gc.unfreeze()
        self.model = self.program = self._graphs = None
        del self._caches
        self.forward = _gone


def _gone(*_: Any) -> Any:
    raise AssertionError("the runner was shut down")

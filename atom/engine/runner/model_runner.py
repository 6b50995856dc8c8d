"""`ModelRunner`: step plans to sampled tokens, on one device.

It owns the model, the KV pool, the persistent batch and the sampler. It knows nothing of requests,
policies or text. `launch` enqueues a step and reads nothing back.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from atom.config.schema import Config
from atom.config.support import refuse_unsupported, without_effect
from atom.engine.plan import StepHandle, StepPlan
from atom.engine.runner import (
    capacity,
    compilation,
    dummy,
    kv_cache,
    oom,
    profiler,
    prompt_logprobs,
    recording,
    settle,
    threads,
)
from atom.engine.runner.block_tables import apply_edits
from atom.engine.runner.decode_graphs import DecodeGraphs
from atom.engine.runner.decode_slots import Slot
from atom.engine.runner.graph_plan import GraphPlan, plan_graphs
from atom.engine.runner.graphs import (
    Graphs,
    Source,
    launch_bound_tokens,
    make_graphs,
    uncapturable,
)
from atom.engine.runner.inputs import InputBatch, StagedStep, StepInputs
from atom.engine.runner.logprobs import LogprobTensors
from atom.engine.runner.prompt_logprobs import PromptStep
from atom.engine.runner.sampler import Sampled, Sampler
from atom.engine.runner.sampling_rows import PROMPT_LOGPROBS, SamplingRows, SamplingStep
from atom.engine.runner.steps import DeviceStep, HostStep, StepResult
from atom.engine.runner.upload import Upload
from atom.errors import RequestError
from atom.layers.context import ForwardContext, set_forward_context
from atom.models.loader import load_model, resolve_dtype
from atom.models.registry import resolve
from atom.ops import registry
from atom.parallel.state import SINGLE, ParallelState

if TYPE_CHECKING:
    from atom.models.source import ModelSource
    from atom.ops.cpu.program import Program

log = logging.getLogger("atom.runner")


class ModelRunner:
    """One rank. Every rank is given the same plans and samples the same tokens: logits are gathered
    on all of them, and sampling is a pure function of logits, seeds and positions."""

    def __init__(
        self, config: Config, source: ModelSource, parallel: ParallelState = SINGLE
    ) -> None:
        """Load the model and make everything ready for `launch`; takes seconds to minutes.

        Raises `AtomError` for what the user can mend: settings, model, memory.
        """
        self.startup_s: dict[str, float] = {}
        self.memory_bytes: dict[str, int] = {}
        self.memory_notes: dict[str, str] = {}  # what decided each
        self._device = settle.resolve_device(config, parallel.tp_rank)
        self.device = str(self._device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        refuse_unsupported(config)
        multiple = resolve(source.config.architecture).block_multiple(source.config)
        config = settle.settle_block_size(config, self._device.type, multiple)
        self.block_size = config.engine.block_size
        for row in without_effect(config, self._device.type):
            log.warning("%s has no effect: %s", row.setting, row.reason)
        self._parallel = parallel
        self._profiler: profiler.RankProfiler | None = None
        if config.profile.torch_profiler_dir is not None:
            profiler.check_folder(config.profile.torch_profiler_dir)
            self._profiler = profiler.RankProfiler(
                config.profile, parallel.tp_rank, source.name, self._device
            )
        self._set_threads(config, parallel.tp_size)
        dtype = resolve_dtype(config, source, self._device)
        self.dtype = str(dtype).removeprefix("torch.")
        self.kv_cache_dtype = kv_cache.settled_kv_dtype(
            config, source.config, self._device.type, dtype
        )
        self.max_model_len = settle.resolve_max_model_len(config, source)
        self.config = settle.settle(config, self.kv_cache_dtype, self.max_model_len)
        self._oom = oom.Explainer(self.config, source.config, self._device, self.memory_bytes)
        self.vocab_size = source.config.vocab_size
        self.eos_token_ids = source.eos_token_ids
        with self._phase("load"):
            self.model: Any = load_model(
                source,
                self.config,
                self._device,
                dtype,
                parallel=parallel,
                traceable=compilation.needs_tracing(config, self._device),
                selects_rows=compilation.can_select_rows(config, self._device),
            )
        if self._device.type != "cpu":  # the CPU's kernels say so themselves
            for backend, why in registry.unusable(self._device.type).items():
                log.warning("no %s kernels, slower ones serve: %s", backend, why)
        self.memory_bytes["weights"] = self.model.weight_bytes
        self.forward: compilation.Forward = self.model.forward
        self.program: Program | None = None
        with self._oom.during("tables"):
            self._make_state()
        self._graphs: Graphs | None = None
        self.graph_plan = self._plan_graphs()
        if self._device.type != "cpu":  # so that memory is measured with what will run
            self._choose_forward()
        self.cache_layout, self._caches = self._make_kv_cache()
        self.num_blocks = self.cache_layout.num_blocks
        if self._device.type == "cpu":  # a recorded program holds the caches
            self._choose_forward()
        self._warm_up()
        self._capture()
        self.backends = settle.chosen_backends()

    # -- start ----------------------------------------------------------------------------------

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        with self._oom.during(name):
            yield
        self.startup_s[name] = self.startup_s.get(name, 0.0) + time.monotonic() - started

    def _set_threads(self, config: Config, num_ranks: int) -> None:
        self.num_threads = 0
        if self._device.type == "cpu":
            self.num_threads = threads.model_threads(config.engine.num_threads, num_ranks)
            threads.use(self.num_threads)
            log.info("%d threads", self.num_threads)

    def _make_state(self) -> None:
        rows = self.config.scheduler.max_num_seqs
        sizes = kv_cache.cache_bytes(self.model.cache_layers())
        self._batch = InputBatch(
            rows,
            self.max_model_len,
            self.block_size,
            self._device,
            has_window=sizes.window > 0,
            has_state=sizes.slot > 0,
        )
        self._sampling = SamplingRows(rows, self.vocab_size)
        self._sampler = Sampler(self.vocab_size, self._device)
        self._no_tokens = torch.zeros(0, dtype=torch.int64, device=self._device)
        self._copies: torch.cuda.Stream | None = None
        if self._device.type != "cpu":
            self._copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def _make_kv_cache(self) -> capacity.Made:
        layers, room = self.model.cache_layers(), None
        if self._device.type != "cpu":
            with self._phase("profile"):
                room = capacity.measure(
                    self.config,
                    layers,
                    self._device,
                    max_model_len=self.max_model_len,
                    run=lambda plan: self.launch(plan).wait(),
                    graph_bytes=self._measure_graphs,
                )
        with self._phase("kv_cache"):
            return capacity.make_kv_cache(
                self.config,
                layers,
                self._device,
                self._parallel,
                max_model_len=self.max_model_len,
                room=room,
                memory_bytes=self.memory_bytes,
                memory_notes=self.memory_notes,
            )

    def _choose_forward(self) -> None:
        with self._phase("compile"):
            choice = compilation.choose(self.model, self.config, self._device)
        self.forward, self.program = choice.forward, choice.program
        self._warmup_tokens = choice.warmup_tokens
        self.mode = choice.mode
        log.info("forward: %s (%s)", choice.mode, choice.reason)

    def _warm_up(self) -> None:
        with self._phase("compile" if self.mode in compilation.COMPILED else "warm_up"):
            for num_tokens in self._warmup_tokens:
                for plan in dummy.warm_up(num_tokens, self.max_model_len, self.cache_layout):
                    self.launch(plan).wait()

    def _plan_graphs(self) -> GraphPlan:
        why_not, launch_bound = uncapturable(self.model), launch_bound_tokens(self.model)
        plan = plan_graphs(self.config, self._device.type, why_not, launch_bound)
        asked = self.config.compile.cudagraph_capture_sizes
        if asked and plan.mode == "none" and self._device.type != "cpu":
            log.warning("cudagraph_capture_sizes has no effect: no graphs, %s", plan.reason)
        return plan

    def _make_graphs(self) -> Graphs | None:
        compute_logits = self.model.compute_logits
        source = Source(self._batch, self.max_model_len, self.forward, compute_logits, self._copies)
        return make_graphs(self.graph_plan, source)

    def _measure_graphs(self) -> int:
        made = self._make_graphs()
        return 0 if made is None else made.measure()

    def _capture(self) -> None:
        made = self._make_graphs()
        if self._profiler is not None:
            recording.prepare(self._profiler, self, made)
        if made is None:
            log.info("graphs: %s", self.graph_plan)
            return
        with self._phase("graphs"), recording.of_capture(self._profiler):
            self.memory_bytes["graphs"] = made.capture()
        self._graphs = made
        gc.freeze()  # capturing has collected; what remains is not to be walked in mid-step

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

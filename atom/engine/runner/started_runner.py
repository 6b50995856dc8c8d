"""How a runner starts: settings made definite, the model loaded, memory measured, graphs captured.

`StartedRunner` has everything that `ModelRunner`'s steps need. It runs steps itself, to measure
what they take and so that no request is the first.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

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
    recording,
    settle,
    threads,
)
from atom.engine.runner.graph_plan import GraphPlan, plan_graphs
from atom.engine.runner.graphs import (
    Graphs,
    Source,
    launch_bound_tokens,
    make_graphs,
    uncapturable,
)
from atom.engine.runner.inputs import InputBatch
from atom.engine.runner.sampler import Sampler
from atom.engine.runner.sampling_rows import SamplingRows
from atom.models.loader import load_model, resolve_dtype
from atom.models.registry import resolve
from atom.ops import registry
from atom.parallel.state import SINGLE, ParallelState

if TYPE_CHECKING:
    from atom.models.source import ModelSource
    from atom.ops.cpu.program import Program

log = logging.getLogger("atom.runner")


class StartedRunner:
    """What there is before the first step; `ModelRunner` adds the steps."""

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
        self._settle(config, source)
        with self._phase("load"):
            self.model: Any = self._load(source)
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

    def _settle(self, config: Config, source: ModelSource) -> None:
        """What the settings leave to the model and the device."""
        self._dtype = dtype = resolve_dtype(config, source, self._device)
        self.dtype = str(dtype).removeprefix("torch.")
        self.kv_cache_dtype = kv_cache.settled_kv_dtype(
            config, source.config, self._device.type, dtype
        )
        self.max_model_len = settle.resolve_max_model_len(config, source)
        self.config = settle.settle(config, self.kv_cache_dtype, self.max_model_len)
        self._oom = oom.Explainer(self.config, source.config, self._device, self.memory_bytes)
        self.vocab_size = source.config.vocab_size
        self.eos_token_ids = source.eos_token_ids

    def _load(self, source: ModelSource) -> Any:
        config, device = self.config, self._device
        return load_model(
            source,
            config,
            device,
            self._dtype,
            parallel=self._parallel,
            traceable=compilation.needs_tracing(config, device),
            selects_rows=compilation.can_select_rows(config, device),
        )

    def launch(self, plan: StepPlan) -> StepHandle:
        """Enqueue a step of at least one sequence; nothing is read back before `wait`."""
        raise NotImplementedError

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

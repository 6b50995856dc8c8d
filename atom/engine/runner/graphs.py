"""The graphs of a runner: captured once at the start, chosen for each step, counted.

`decode_graphs` holds steps that are one graph from the host's packet to the next tokens;
`piecewise` and `full_graphs` hold forwards of a padded number of tokens. All share one memory pool
and are captured over the KV cache at its final address.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atom.engine.marks import Scope
from atom.engine.plan import StepPlan
from atom.engine.runner.capture import CudaRecorder, Recorder
from atom.engine.runner.decode_graphs import DecodeGraphs, StepKernels, device_kernels
from atom.engine.runner.full_graphs import FullGraphs
from atom.engine.runner.graph_plan import GraphPlan
from atom.engine.runner.inputs import InputBatch, StepInputs
from atom.engine.runner.piecewise import Forward, PiecewiseGraphs
from atom.layers.linear import LinearBase
from atom.layers.moe import FusedMoE

log = logging.getLogger("atom.runner")

_RESERVE = 64 << 20  # the driver's own, beyond what two graphs of a kind let us measure


class Source(NamedTuple):
    """What is captured, and over which tables."""

    batch: InputBatch
    max_model_len: int
    forward: Forward
    compute_logits: Callable[[Tensor], Tensor]
    copies: torch.cuda.Stream | None


class Graphs:
    """What `plan` asks for. Every rank makes the same ones, in the same order, and chooses alike,
    so collectives meet inside graphs as they do outside."""

    def __init__(
        self,
        plan: GraphPlan,
        source: Source,
        recorder: Recorder,
        kernels: StepKernels,
    ) -> None:
        self.plan = plan
        self.counts: Counter[str] = Counter()  # replays by kind and size; "eager": steps without
        self._recorder = recorder
        self.decode: DecodeGraphs | None = None
        self.tokens: PiecewiseGraphs | FullGraphs | None = None
        batch, length, forward = source.batch, source.max_model_len, source.forward
        if plan.decode_sizes:
            self.decode = DecodeGraphs(
                plan.decode_sizes,
                batch,
                length,
                forward=forward,
                compute_logits=source.compute_logits,
                kernels=kernels,
                recorder=recorder,
                copies=source.copies,
            )
        if plan.token_sizes and plan.kind == "full":
            self.tokens = FullGraphs(plan.token_sizes, batch, length, forward, recorder)
        elif plan.token_sizes:
            self.tokens = PiecewiseGraphs(plan.token_sizes, forward, recorder, batch.device)

    @property
    def _kinds(self) -> list[DecodeGraphs | PiecewiseGraphs | FullGraphs]:
        return [kind for kind in (self.decode, self.tokens) if kind is not None]

    @torch.inference_mode()
    def capture(self) -> int:
        """Record all of them, the largest first, so that the smaller ones find room in the pool;
        returns the bytes they took."""
        started, before = time.monotonic(), self._recorder.used_bytes()
        count = 0
        with self._recorder.session():
            for kind in self._kinds:
                for size in reversed(kind.sizes):
                    at = time.monotonic()
                    with Scope(f"capture_graph_{kind.counts_in}_{size}"):
                        kind.capture(size)
                    log.debug("captured %s %d in %.3f s", kind.kind, size, time.monotonic() - at)
                    count += 1
        taken = max(0, self._recorder.used_bytes() - before)
        static = sum(kind.static_bytes for kind in self._kinds)
        log.info(
            "graphs: %s; %d sizes in %.1f s, %.2f GiB",
            self.plan,
            count,
            time.monotonic() - started,
            (taken + static) / 2**30,
        )
        return taken + static

    @torch.inference_mode()
    def measure(self) -> int:
        """Bytes that `capture` would take: two graphs of each kind say what the first costs, and
        what each further one adds. The graphs are of no further use."""
        used = self._recorder.used_bytes
        total = _RESERVE
        with self._recorder.session():
            for kind in self._kinds:
                total += kind.static_bytes
                marks = [used()]
                for size in list(reversed(kind.sizes))[:2]:
                    kind.capture(size)
                    marks.append(used())
                total += max(0, marks[1] - marks[0])
                total += max(0, marks[-1] - marks[1]) * (len(kind.sizes) - 1)
        return total

    # -- a step ---------------------------------------------------------------------------------

    def decode_size(self, plan: StepPlan) -> int:
        """The size of the decode graph that serves `plan`; 0: none does."""
        return 0 if self.decode is None else self.decode.size_for(plan)

    def token_size(self, plan: StepPlan) -> int:
        """The size to which the tensors of `plan` are padded for `run`; 0: eager."""
        if self.tokens is None:
            return 0
        return self.tokens.size_for(plan.num_tokens, len(plan.rows))

    def run(self, size: int, inputs: StepInputs) -> Tensor:
        """hidden [size, H]."""
        assert self.tokens is not None
        self.counts[f"{self.tokens.kind} {size}"] += 1
        return self.tokens.run(size, inputs)


def make_graphs(plan: GraphPlan, source: Source) -> Graphs | None:
    """None where nothing is to be captured."""
    if plan.mode == "none":
        return None
    return Graphs(plan, source, CudaRecorder(source.batch.device), device_kernels())


# On the machine of an H200: host time of an eager layer, and how fast its products are.
_LAYER_LAUNCH_S = 0.4e-3
_OPERATIONS_PER_S = 450e12


def launch_bound_tokens(model: Any) -> int:
    """Tokens of a step that takes about as long to launch eagerly as to compute. The same on every
    rank: shares of a layer are equal."""
    operations = 1.0  # of a token: two for each weight that it meets, so one for each byte
    for module in model.modules():
        if isinstance(module, FusedMoE):
            share = module.top_k / module.num_experts
            if module.weight_format == "mxfp4":  # 17 bytes of 32 weights
                share *= 64 / 17
            operations += module.weight_bytes * share
        elif isinstance(module, LinearBase):
            operations += module.weight_bytes
    launch_s = len(model.cache_layers()) * _LAYER_LAUNCH_S
    return int(launch_s * _OPERATIONS_PER_S / operations)


# Where the reference backend has operations that read values on the host, by module; and those of
# them that do not.
_READ_BACK = tuple(
    f"atom.ops.reference.{name}" for name in ("attention", "delta", "mla", "moe", "sparse", "v4")
)
_HARMLESS = ("topk_softmax", "topk_route")


def uncapturable(model: Any) -> str:
    """Why `model` cannot be captured: which operations read values on the host. Empty: it can."""
    found = set()
    for module in model.modules():
        for kernel in vars(module).values():
            name = getattr(kernel, "__name__", "")
            if getattr(kernel, "__module__", None) in _READ_BACK and name not in _HARMLESS:
                found.add(name)
    if not found:
        return ""
    names = ", ".join(sorted(found))
    return f"the reference backend serves {names}, and reads values on the host"

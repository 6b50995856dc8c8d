"""Traces of a small model for the tests of the comparison, with something planted in B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synthetic import TraceBuilder

BODY = (
    ("input_layernorm", "rms_norm_kernel", 1.5),
    ("self_attn.qkv_proj", "nvjet_tst_192x8_64x8", 5.0),
    ("self_attn.attn", "flash_fwd_splitkv_kernel", 6.0),
    ("self_attn.o_proj", "nvjet_tst_64x8_64x16", 4.0),
    ("mlp.gate_up_proj", "nvjet_tst_256x8_64x4", 9.0),
    ("mlp.down_proj", "nvjet_tst_128x8_64x8", 5.5),
)


@dataclass
class Program:
    """Layers of `BODY`, then lm_head. `us` and `names` replace those of a module, or of a module
    of one layer ("3.self_attn.o_proj"); `host_us` is spent on the host before its launch."""

    layers: int = 4
    us: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # one more kernel after
    host_us: Mapping[str, float] = field(default_factory=dict)
    factor: float = 1.0  # of every kernel
    jitter: float = 0.01

    def write(
        self,
        path: Path,
        *,
        steps: int = 8,
        label: str = "decode[bs=8 tok=8 d=8 sk=800]",
        rank: int = 0,
        world_size: int = 1,
        scopes: bool = True,
    ) -> Path:
        run = TraceBuilder(rank=rank, world_size=world_size, launch_us=1.0, latency_us=1.0)
        for i in range(steps):
            with run.step(label):
                self._step(run, 1 + self.jitter * ((i * 7 % 5) - 2) / 2, scopes)
            run.wait()
        return run.write(path)

    def _step(self, run: TraceBuilder, noise: float, scopes: bool) -> None:
        for layer in range(self.layers):
            for module, kernel, us in BODY:
                self._one(run, f"{layer}.{module}", module, kernel, us * noise, scopes)
        self._one(run, "lm_head", "lm_head", "nvjet_tst_512x8_64x3", 20.0 * noise, scopes)

    def _one(
        self, run: TraceBuilder, place: str, module: str, kernel: str, us: float, scopes: bool
    ) -> None:
        path = place if module == "lm_head" else f"model.layers.{place}"
        run.advance(self.host_us.get(module, 0.0))
        with run.scope(path if scopes else "x", us=0.1), run.op("aten::mm", us=0.1):
            planned = self.us.get(place, self.us.get(module))
            us = us if planned is None else planned
            run.kernel(self.names.get(module, kernel), us * self.factor)
            if module in self.extra:
                name, more = self.extra[module]
                run.kernel(name, more)

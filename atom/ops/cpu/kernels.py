"""Backend "cpu": native kernels where they can be compiled, else torch's fastest linears.

Importing this module registers what this machine can serve, and for the rest the reason why not.
"""

from __future__ import annotations

import logging

from atom.ops.cpu import delta, mla
from atom.ops.cpu.build import CannotBuild
from atom.ops.registry import OpQuery, register

logger = logging.getLogger(__name__)

NATIVE_OPS = (
    "embedding",
    "rms_norm",
    "add_rms_norm",
    "rotary",
    "reshape_and_cache",
    "paged_attention",
    "silu_and_mul",
)


def _register_native() -> None:
    from atom.ops.cpu import attention as attend
    from atom.ops.cpu import delta_native, elementwise, limits, linear, moe, native

    register("linear", "cpu", limits.linear)(linear.NativeLinear)
    register("embedding", "cpu", limits.embedding)(linear.embedding)
    register("rms_norm", "cpu", limits.float32)(elementwise.rms_norm)
    register("add_rms_norm", "cpu", limits.float32)(elementwise.add_rms_norm)
    register("rotary", "cpu", limits.float32)(elementwise.rotary)
    register("silu_and_mul", "cpu", limits.float32)(elementwise.silu_and_mul)
    register("reshape_and_cache", "cpu", limits.cache)(attend.reshape_and_cache)
    register("paged_attention", "cpu", limits.attention)(attend.paged_attention)
    register("gated_delta_net", "cpu")(delta_native.gated_delta_net)
    register("fused_experts", "cpu", moe.declines, variants=None)(moe.fused_experts)
    logger.info("CPU kernels: native, %s", native.features())


def _register_torch(reason: str) -> None:
    from atom.ops.cpu import torch_linear

    def declines(_: OpQuery) -> str:
        return f"no native kernels: {reason}"

    for name in NATIVE_OPS:
        register(name, "cpu", declines)(_unavailable)
    register("linear", "cpu", torch_linear.declines)(torch_linear.pack)
    register("gated_delta_net", "cpu")(delta.gated_delta_net)
    logger.warning("CPU kernels: %s (native kernels: %s)", torch_linear.describe(), reason)


def _unavailable() -> None:
    raise AssertionError("declined for every query")


register("mla_prefill", "cpu")(mla.mla_prefill)
try:
    from atom.ops.cpu import native as _native

    _native.load()
except CannotBuild as _error:
    _register_torch(str(_error))
else:
    _register_native()

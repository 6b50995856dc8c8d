"""What all kernels of this backend share: the machine's facts, and custom operators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton import knobs

IS_ROCM: bool = torch.version.hip is not None
# Under the interpreter kernels run on CPU tensors: how they are tested where there is no GPU.
INTERPRETED: bool = knobs.runtime.interpret

# The functions behind `atom_triton::*` by name, for callers that need no dispatcher.
direct: dict[str, Callable[..., Any]] = {}
_library = torch.library.Library("atom_triton", "DEF")  # type: ignore[no-untyped-call]


@functools.cache
def num_sms(index: int) -> int:
    """Multiprocessors (compute units on ROCm) of GPU `index`; a stand-in under the interpreter."""
    if INTERPRETED:
        return 4
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


@functools.cache
def supports_pdl(index: int) -> bool:
    """Whether a kernel may start before the one before it has ended (Hopper and later)."""
    if IS_ROCM or INTERPRETED:
        return False
    return torch.cuda.get_device_capability(index) >= (9, 0)


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether kernels may use what only compute capability 9.0 has."""
    if IS_ROCM or INTERPRETED or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) == (9, 0)


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register `atom_triton::<schema>` for torch.compile, and return the operator.

    `fake` gives tensors of the right shape and dtype. An operator may not return its inputs.
    """
    name = schema.partition("(")[0]
    direct[name] = run
    _library.define(schema)  # type: ignore[no-untyped-call]
    _library.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"atom_triton::{name}", fake, lib=_library)
    return getattr(torch.ops.atom_triton, name).default


def next_power_of_2(n: int) -> int:
    power: int = triton.next_power_of_2(n)
    return power

"""A `StepPlan` as bytes, for ranks in other processes: ids and counts, never full tables.

The same way goes, between two plans, the word to start or stop the profiler.
"""

from __future__ import annotations

import msgspec
import numpy as np

from atom.engine.plan import NewRow, RowBlocks, StateCopy, StepPlan


class _Plan(msgspec.Struct, array_like=True):
    """Arrays are their bytes: int32 and bool, in the machine's own order (ranks share it)."""

    step: int
    new_rows: list[NewRow]
    new_blocks: list[RowBlocks]
    free_rows: list[int]
    rows: bytes
    num_computed: bytes
    num_scheduled: bytes
    samples: bytes
    new_window_blocks: tuple[RowBlocks, ...]
    restores: tuple[StateCopy, ...]
    saves: tuple[StateCopy, ...]


_PROFILE = b"profile "  # no plan begins so: it is an array

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Plan).decode


def encode(plan: StepPlan) -> bytes:
    return _encode(
        _Plan(
            plan.step,
            plan.new_rows,
            plan.new_blocks,
            plan.free_rows,
            plan.rows.tobytes(),
            plan.num_computed.tobytes(),
            plan.num_scheduled.tobytes(),
            plan.samples.tobytes(),
            plan.new_window_blocks,
            plan.restores,
            plan.saves,
        )
    )


def encode_profile(stamp: str) -> bytes:
    """Start a profile with that stamp; stop it, for an empty one."""
    return _PROFILE + stamp.encode()


def profile_stamp(data: bytes) -> str | None:
    """What was given to `encode_profile`; None for a plan."""
    return data[len(_PROFILE) :].decode() if data.startswith(_PROFILE) else None


def decode(data: bytes) -> StepPlan:
    plan = _decode(data)
    return StepPlan(
        plan.step,
        plan.new_rows,
        plan.new_blocks,
        plan.free_rows,
        np.frombuffer(plan.rows, np.int32),
        np.frombuffer(plan.num_computed, np.int32),
        np.frombuffer(plan.num_scheduled, np.int32),
        np.frombuffer(plan.samples, np.bool_),
        plan.new_window_blocks,
        plan.restores,
        plan.saves,
    )

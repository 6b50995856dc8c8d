"""A `StepPlan` as bytes, for ranks in other processes: ids and counts, never full tables."""

from __future__ import annotations

import msgspec
import numpy as np

from atom.engine.plan import NewRow, RowBlocks, StepPlan


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
        )
    )


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
    )

"""What steps are called in traces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.engine.plan import StepPlan
from atom.engine.runner.labels import step_label
from atom.trace.labels import parse_label


def plan(*rows: tuple[int, int], step: int = 1) -> StepPlan:
    """Of (tokens computed before, tokens computed now)."""
    computed, scheduled = np.array(rows, np.int32).reshape(-1, 2).T
    return StepPlan(
        step=step,
        new_rows=[],
        new_blocks=[],
        free_rows=[],
        rows=np.arange(len(rows), dtype=np.int32),
        num_computed=computed,
        num_scheduled=scheduled,
        samples=np.ones(len(rows), np.bool_),
    )


@pytest.mark.parametrize(
    ("given", "graph", "label"),
    [
        (
            plan((0, 115)),
            128,
            "prefill[bs=1 tok=115 ctx=115 sk=115 sqsk=13225 sqsq=13225 graph=128]",
        ),
        (plan((0, 115)), 0, "prefill[bs=1 tok=115 ctx=115 sk=115 sqsk=13225 sqsq=13225]"),
        (plan((100, 15)), 0, "prefill[bs=1 tok=15 ctx=115 sk=115 sqsk=1725 sqsq=225]"),
        (plan((4, 1), (9, 1)), 2, "decode[bs=2 tok=2 d=2 sk=15 graph=2]"),
        (
            plan((0, 64), (0, 65), (899, 1)),
            0,
            "prefill[bs=3 tok=130 p=2 d=1 ctx=[64,65,900] sk=1029 sqsk=9221 sqsq=8322]",
        ),
        (plan(*[(0, 2)] * 5), 0, "prefill[bs=5 tok=10 ctx=[2,2,2,2,2] sk=10 sqsk=20 sqsq=20]"),
        (plan(*[(0, 2)] * 6), 0, "prefill[bs=6 tok=12 ctx=[2,2,2,+3] sk=12 sqsk=24 sqsq=24]"),
        (plan((0, 4), step=0), 0, "dummy_prefill[bs=1 tok=4 ctx=4 sk=4 sqsk=16 sqsq=16]"),
        (plan((4, 1), step=0), 0, "dummy_decode[bs=1 tok=1 d=1 sk=5]"),
    ],
)
def test_labels(given: StepPlan, graph: int, label: str) -> None:
    assert step_label(given, graph) == label


LENGTHS = st.tuples(st.integers(0, 2**20), st.integers(1, 2**16))


@settings(deadline=None)  # the first example imports the reader
@given(st.lists(LENGTHS, min_size=1, max_size=40), st.integers(0, 512), st.integers(0, 3))
def test_the_reader_reads_what_the_engine_writes(
    rows: list[tuple[int, int]], graph: int, step: int
) -> None:
    """Sums beyond 32 bits included."""
    label = parse_label(step_label(plan(*rows, step=step), graph))
    assert label is not None
    fields = label.fields
    q, k = [now for _, now in rows], [before + now for before, now in rows]
    prompts = sum(now > 1 for now in q)
    assert (fields["bs"], fields["tok"], fields["sk"]) == (len(rows), sum(q), sum(k))
    assert fields.get("graph", 0) == graph
    if step == 0:
        assert label.kind == "dummy"
    else:
        mixed = 0 < prompts < len(rows)
        assert label.kind == ("mixed" if mixed else "prefill" if prompts else "decode")
    if prompts:
        assert fields["sqsk"] == sum(a * b for a, b in zip(q, k, strict=True))
        assert fields["sqsq"] == sum(a * a for a in q)
    if prompts and prompts < len(rows):
        assert (fields["p"], fields["d"]) == (prompts, len(rows) - prompts)

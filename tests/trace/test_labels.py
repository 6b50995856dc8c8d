"""Names of annotations: which are steps, of which kind, with which fields."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from atom.engine.runner.labels import step_label
from atom.trace.labels import parse_label
from atom.trace.types import STEP_KINDS

OURS = [
    (
        "prefill[bs=1 tok=115 ctx=115 sk=115 sqsk=13225 sqsq=13225 graph=128]",
        "prefill",
        {"bs": 1, "tok": 115, "ctx": 115, "sk": 115, "sqsk": 13225, "sqsq": 13225, "graph": 128},
    ),
    (
        "prefill[bs=3 tok=130 p=2 d=1 ctx=[64,65,900]]",
        "mixed",
        {"bs": 3, "tok": 130, "p": 2, "d": 1, "ctx": [64, 65, 900]},
    ),
    (
        "prefill[bs=9 tok=90 ctx=[1,2,3,+6]]",
        "prefill",
        {"bs": 9, "tok": 90, "ctx": "[1,2,3,+6]"},
    ),
    (
        "decode[bs=30 tok=30 d=30 sk=32785 graph=32]",
        "decode",
        {"bs": 30, "tok": 30, "d": 30, "sk": 32785, "graph": 32},
    ),
    ("draft[1/3 bs=30]", "draft", {"i": 1, "k": 3, "bs": 30}),
    ("dummy_decode[bs=32 tok=32]", "dummy", {"bs": 32, "tok": 32}),
    ("dummy_prefill[bs=1 tok=8192]", "dummy", {"bs": 1, "tok": 8192}),
    ("capture_graph_bs_32", "capture", {"bs": 32}),
    ("capture_graph_tok_64", "capture", {"tok": 64}),
]
UPSTREAM = [
    (
        "decode[bs=30/32 tok=30 p=2 d=28 spec=3]",
        "mixed",
        {"bs": 30, "graph": 32, "tok": 30, "p": 2, "d": 28, "spec": 3},
    ),
    ("decode[bs=128 tok=128 d=128 tbo=1]", "decode", {"bs": 128, "tok": 128, "d": 128, "tbo": 1}),
    ("eager_decode[bs=4 tok=4]", "decode", {"bs": 4, "tok": 4, "eager": 1}),
    ("dummy_eager_decode[bs=4 tok=4]", "dummy", {"bs": 4, "tok": 4, "eager": 1}),
]
FOREIGN = [
    (
        "execute_context_2(600)_generation_3(3)",
        "mixed",
        {"bs": 5, "tok": 603, "p": 2, "d": 3},
    ),
    ("execute_context_1(512)_generation_0(0)", "prefill", {"bs": 1, "tok": 512, "p": 1}),
    ("execute_context_0(0)_generation_64(64)", "decode", {"bs": 64, "tok": 64, "d": 64}),
    ("execute_context_0(0)_generation_0(0)", "dummy", {"bs": 0, "tok": 0}),
    (
        "execute_32_context_0(sq0sk0sqsq0sqsk0)_generation_32(sq32sk32785sqsq32sqsk32785)",
        "decode",
        {"bs": 32, "tok": 32, "d": 32, "sk": 32785, "sqsk": 32785, "sqsq": 32},
    ),
    (
        "execute_12_context_1(sq10sk30sqsq100sqsk300)_generation_2(sq2sk50sqsq2sqsk50)",
        "mixed",
        {"bs": 3, "tok": 12, "p": 1, "d": 2, "sk": 80, "sqsk": 350, "sqsq": 102},
    ),
    ("step[EXTEND bs=2 toks=8192]", "prefill", {"mode": "EXTEND", "bs": 2, "tok": 8192}),
    ("step[DECODE bs=32]", "decode", {"mode": "DECODE", "bs": 32, "tok": 32}),
    ("step[MIXED bs=4 toks=70]", "mixed", {"mode": "MIXED", "bs": 4, "tok": 70}),
    ("step[TARGET_VERIFY bs=4]", "decode", {"mode": "TARGET_VERIFY", "bs": 4}),
    ("step[DRAFT_EXTEND bs=4]", "draft", {"mode": "DRAFT_EXTEND", "bs": 4}),
    ("step[IDLE bs=0]", "dummy", {"mode": "IDLE", "bs": 0}),
    ("step[NEW_MODE bs=4]", "step", {"mode": "NEW_MODE", "bs": 4}),
    ("capture_32_DECODE", "capture", {"bs": 32, "mode": "DECODE"}),
    ("capture_8_PIECEWISE", "capture", {"bs": 8, "mode": "PIECEWISE"}),
]


@pytest.mark.parametrize(("name", "kind", "fields"), [*OURS, *UPSTREAM, *FOREIGN])
def test_a_label_is_read(name: str, kind: str, fields: dict[str, object]) -> None:
    label = parse_label(name)
    assert label is not None
    assert label.name == name
    assert label.kind == kind
    assert label.kind in STEP_KINDS
    assert label.fields == fields


@pytest.mark.parametrize(
    "name",
    [
        "",
        "prefill",
        "decode",
        "decode[bs=4",
        "my decode[bs=4]",
        "decoder[bs=4]",
        "model.layers.3.self_attn.qkv_proj",
        "capture_graph",
        "capture_graph_bs_",
        "ProfilerStep#134",
        "Optimizer.step#SGD.step",
        "execute_context_1_generation_2",
        "step[]",
        "warm_up",
        "record",
    ],
)
def test_other_names_are_no_labels(name: str) -> None:
    assert parse_label(name) is None


def test_what_a_dummy_runs_is_still_told() -> None:
    label = parse_label("dummy_draft[2/3 bs=8]")
    assert label is not None
    assert (label.kind, label.fields) == ("dummy", {"i": 2, "k": 3, "bs": 8})


def test_our_engine_writes_what_is_read() -> None:
    plan = SimpleNamespace(
        step=3, num_scheduled=np.array([1, 5, 1]), num_computed=np.array([9, 3, 0])
    )
    label = parse_label(step_label(plan, graph=16))  # type: ignore[arg-type]
    assert label is not None
    assert label.kind == "mixed"
    assert label.fields == {
        "bs": 3, "tok": 7, "p": 1, "d": 2, "ctx": [10, 8, 1], "sk": 19,
        "sqsk": 10 + 40 + 1, "sqsq": 1 + 25 + 1, "graph": 16,
    }  # fmt: skip

"""Traces of our engine on an H200: the graphed step is mapped as the eager one is, sums are the
JSON's. See h200/README.md for what they are."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from openpyxl import load_workbook

from atom.cli.main import main
from atom.trace.analysis import load
from atom.trace.roofline import ceilings_of, roofline
from atom.trace.types import Match, RankModel, Step

DATA = Path(__file__).parent / "h200"
MODELS = ("llama", "moe")
AROUND = ("prepare", "logits", "sample")  # a graph does these by other kernels


def model_of(name: str) -> RankModel:
    return load([DATA / name]).first


def raw_events(name: str) -> list[dict[str, Any]]:
    (path,) = (DATA / name / "rank_0").glob(f"{name.partition('_')[0]}_ts_*")
    with gzip.open(path) as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return events


def sequence(model: RankModel, step: Step) -> list[tuple[int, str]]:
    """(layer, module) of the model's kernels in time order, contiguous ones once."""
    places = ((int(model.layer[row]), model.module_name(row)) for row in step.rows.tolist())
    return [place for place, _ in groupby(p for p in places if p[1] not in AROUND)]


@pytest.mark.parametrize("name", MODELS)
def test_a_replayed_step_has_the_modules_of_an_eager_one(name: str) -> None:
    graphs, eager = model_of(f"{name}_graphs"), model_of(f"{name}_eager")
    assert len(graphs.steps) == len(eager.steps) == 6
    expected = sequence(eager, eager.steps[0])
    assert len(expected) > 4 * 4
    assert {layer for layer, _ in expected} == {-1, 0, 1, 2, 3}
    for step in graphs.steps:
        assert step.graph_launches == 1
        assert sequence(graphs, step) == expected


@pytest.mark.parametrize("name", MODELS)
def test_every_kernel_has_a_module(name: str) -> None:
    graphs, eager = model_of(f"{name}_graphs").report, model_of(f"{name}_eager").report
    assert (graphs.rate, eager.rate) == (1.0, 1.0)
    assert {kind for kind, rows in eager.rows.items() if rows} == {Match.LAUNCH}
    assert {kind for kind, rows in graphs.rows.items() if rows} == {Match.LAUNCH, Match.CAPTURE}
    assert graphs.rows[Match.CAPTURE] > 10 * graphs.rows[Match.LAUNCH]


@pytest.mark.parametrize("name", [f"{m}_{way}" for m in MODELS for way in ("graphs", "eager")])
def test_sums_of_steps_are_those_of_the_json(name: str) -> None:
    """By other means: launches within a label's time, GPU events by correlation."""
    events = raw_events(name)
    labels = [
        e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("decode[")
    ]
    label_of = {}
    for event in events:
        if event.get("cat") in ("cuda_runtime", "cuda_driver"):
            for i, label in enumerate(labels):
                if label["ts"] <= event["ts"] < label["ts"] + label["dur"]:
                    label_of[event["args"]["correlation"]] = i
    sums: dict[int, int] = defaultdict(int)
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            sums[label_of.get(event["args"]["correlation"], -1)] += round(event["dur"] * 1000)
    model = model_of(name)
    assert [step.sum_ns for step in model.steps] == [sums[i] for i in range(len(labels))]
    assert len(labels) == 6


@pytest.mark.parametrize("name", MODELS)
def test_the_workbook_totals_its_step(name: str, tmp_path: Path) -> None:
    folder = DATA / f"{name}_graphs"
    arguments = ["trace", "parse", str(folder), "--layer", "2", "--output-dir", str(tmp_path)]
    assert main(arguments) == 0
    book = load_workbook(tmp_path / "decode_breakdown.xlsx")

    def total(sheet: str) -> float:
        rows = list(book[sheet].iter_rows(values_only=True))
        assert "TOTAL" in rows[-1]
        column = "total_duration_us" if sheet == "kernel_summary" else "duration_us"
        value = rows[-1][rows[0].index(column)]
        assert isinstance(value, float)
        return value

    model = model_of(f"{name}_graphs")
    (step,) = (s for s in model.steps if s.sum_ns == round(total("step") * 1000))
    layer = [row for row in step.rows.tolist() if model.layer[row] == 2]
    assert round(total("decode") * 1000) == int(model.trace.gpu.dur[layer].sum())
    assert total("kernel_summary") == total("step")


def test_graphs_save_idle_time_and_the_diff_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = str(DATA / "llama_eager"), str(DATA / "llama_graphs")
    assert main(["trace", "diff", before, after, "--fail-above", "5%"]) == 0
    verdict = capsys.readouterr().out.splitlines()[0]
    assert "decode bs=8" in verdict
    assert "idle" in verdict
    assert main(["trace", "diff", after, before, "--fail-above", "5%"]) == 3


def test_products_of_a_small_batch_are_near_the_memory_ceiling() -> None:
    """What tells a right unit from a wrong one: weights are read at 1 to 4.8 TB/s, never faster."""
    found = roofline(model_of("llama_graphs"), ceilings_of("NVIDIA H200"))
    products = [row for row in found.rows if row.kind == "gemm"]
    assert {row.module for row in products} >= {"lm_head", "mlp.down_proj", "self_attn.o_proj"}
    assert all(row.bound == "memory" and 1e12 < row.bytes_per_s < 4.8e12 for row in products)
    assert found.covered_ns > 0.9 * found.total_ns

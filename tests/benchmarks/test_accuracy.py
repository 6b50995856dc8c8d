"""The judge of the accuracy benchmark: its metrics of the truth, its limits, what it prints."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import accuracy_tools  # noqa: E402
import accuracy_truth  # noqa: E402
import bench_accuracy  # noqa: E402


def truth(start: float, chunks: list[float], counts: list[int], outcome: str = "ok") -> Any:
    return {
        "arrived_s": start,
        "started_s": start,
        "chunk_s": [start + c for c in chunks],
        "chunk_tokens": counts,
        "ended_s": start + (chunks[-1] if chunks else 0.001),
        "outcome": outcome,
        "blocked": False,
    }


def test_metrics_of_two_requests_by_hand() -> None:
    truths = [
        truth(10.0, [0.1, 0.2, 0.5], [1, 1, 3]),  # 5 tokens: tpot 0.1, gaps 0.1, 3 x 0.1
        truth(10.5, [0.3, 0.7], [2, 2]),  # 4 tokens: tpot 0.4 / 3, gaps 2 x 0.2
        truth(10.6, [], [], "http 503"),
    ]
    found = accuracy_truth.metrics(truths)
    expected = {
        "mean_ttft_ms": 200.0,
        "mean_e2el_ms": 600.0,
        "mean_tpot_ms": (100 + 400 / 3) / 2,
        "mean_itl_ms": (4 * 100 + 2 * 200) / 6,
        "median_itl_ms": 100.0,
        "mean_chunk_gap_ms": (100 + 300 + 400) / 3,
        "completed": 2,
        "failed": 1,
        "total_output_tokens": 9,
        "output_throughput": 9 / 1.2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_peak_concurrency_counts_what_overlaps() -> None:
    truths = [truth(s, [d], [1]) for s, d in ((0.0, 1.0), (0.5, 1.0), (1.2, 0.1), (1.4, 1.0))]
    assert accuracy_truth.peak_concurrency(truths) == 2


@pytest.mark.parametrize(
    ("name", "measured", "real", "right"),
    [
        ("mean_ttft_ms", 203.0, 200.0, True),
        ("mean_ttft_ms", 203.1, 200.0, False),
        ("mean_ttft_ms", 196.9, 200.0, False),
        ("output_throughput", 101.0, 100.0, True),
        ("output_throughput", 101.1, 100.0, False),
        ("completed", 99, 100, False),
        ("completed", 100, 100, True),
    ],
)
def test_the_limits(name: str, measured: float, real: float, right: bool) -> None:
    assert accuracy_truth.within(name, measured, real) == right


def test_the_table_marks_what_is_wrong_and_invents_nothing() -> None:
    real = accuracy_truth.metrics([truth(0.0, [0.2, 0.25], [1, 1])])
    base = {"cpu_s": 1.0, "peak_concurrency": 1, "truth": real}
    good = {**base, "measured": dict(real)}
    bad = {**base, "measured": {"mean_ttft_ms": 300.0}}
    text = bench_accuracy.table({"good": good, "bad": bad, "broken": {"error": "exit status 1"}})
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "+100.00!" in lines["mean_ttft_ms"]
    assert "!" not in lines["mean_e2el_ms"]
    assert lines["mean_e2el_ms"].split()[-2:] == ["-", "-"]
    assert f"good: {len(real)} of {len(real)} figures right" in text
    assert "bad: 0 of 1 figures right" in text
    assert "broken: exit status 1" in text


def test_the_peers_tokenizer_is_found_by_name_offline(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "model.safetensors").write_text("not taken along")
    env = accuracy_tools.environment(source, tmp_path)
    assert env["HF_HUB_OFFLINE"] == "1"
    cached = Path(env["HF_HOME"]) / "hub" / "models--local--tokenizer"
    commit = (cached / "refs" / "main").read_text()
    assert [p.name for p in (cached / "snapshots" / commit).iterdir()] == ["tokenizer.json"]


def test_atom_against_the_truth_in_small(tmp_path: Path) -> None:
    """The whole way at a size that says nothing of accuracy: counts are exact, all is reported."""
    out = tmp_path / "out.json"
    shape = ["--streams", "4", "--tokens", "12", "--token-rate", "400", "--ttft-ms", "5"]
    which = ["--scenarios", "steady,errors", "--rounds", "10", "--out", str(out)]
    bench_accuracy.main([*shape, *which])
    report = json.loads(out.read_text())
    steady = report["scenarios"]["steady"]["tools"]["atom"]
    compared = bench_accuracy.compare(steady)
    assert set(compared) == set(steady["truth"])
    assert compared["total_output_tokens"]["truth"] == 4 * 10 * 12
    for scenario in report["scenarios"].values():
        found = bench_accuracy.compare(scenario["tools"]["atom"])
        assert all(found[name]["right"] for name in accuracy_truth.COUNTS)
        assert all(math.isfinite(entry["measured"]) for entry in found.values())
    assert report["scenarios"]["errors"]["tools"]["atom"]["truth"]["failed"] == 2 + 2 + 2

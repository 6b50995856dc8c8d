"""The client against `atom serve` itself: what only a real server says."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_helpers import make_jobs
from cli_helpers import serving

from atom.bench.client import run_load
from atom.bench.client.probe import probe
from atom.bench.client.profile import profile
from atom.bench.errors import BenchError
from atom.bench.metrics import MetricOptions, summarize
from atom.bench.types import Load, Target


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def target(traces: Path) -> Iterator[Target]:
    """The embedded model; two places, so that of three requests one waits."""
    flags = ["--num-threads", "1", "--max-num-seqs", "2", "--max-model-len", "512"]
    with serving(*flags, "--torch-profiler-dir", str(traces)) as url:
        info = probe(url)
        assert (info.kind, info.has_tokenize) == ("atom", True)
        yield Target(base_url=url, model=info.model)


def test_the_server_tells_how_long_a_request_was_queued(target: Target) -> None:
    outcome = run_load(target, make_jobs(6, 24), Load(concurrency=3, workers=1))
    assert [record.error for record in outcome.records] == [None] * 6
    for record in outcome.records:
        assert (record.output_tokens, record.counted_by) == (24, "continuous_usage")
        assert 0 <= record.server["queue_s"] <= record.server["ttft_s"]
    metrics = summarize(outcome, MetricOptions(closed=True)).metrics
    waited = max(record.server["queue_s"] for record in outcome.records)
    assert metrics["p99_server_queue_ms"] is not None
    # One of three waits until one of the two others has made all of its 24 tokens.
    ran = min(record.server["latency_s"] - record.server["ttft_s"] for record in outcome.records)
    assert waited > ran / 2


def test_a_profile_around_a_load(target: Target, traces: Path) -> None:
    with pytest.raises(BenchError, match="No profile is running"):
        profile(target, "stop")
    profile(target, "start")
    with pytest.raises(BenchError, match="A profile is running"):
        profile(target, "start")
    outcome = run_load(target, make_jobs(2, 8), Load(concurrency=2, workers=1))
    assert [record.error for record in outcome.records] == [None] * 2
    (path,) = profile(target, "stop")["traces"]
    assert Path(path).parent == traces / "rank_0"
    with gzip.open(path) as file:
        trace = json.load(file)
    assert trace["atom"]["model"] == target.model
    assert any(event.get("cat") == "cpu_op" for event in trace["traceEvents"])

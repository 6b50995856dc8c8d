"""Runs, samples and foreign result files for the tests of the history."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from atom.bench.history import new_run_id
from atom.bench.types import ClientHealth, Interval, RepeatResult, RequestRecord, RunResult

FIRST = datetime(2026, 11, 1, 12, 0, 0, tzinfo=timezone.utc)


def health() -> ClientHealth:
    return ClientHealth(
        workers=1,
        cpu_share=[0.25],
        lag_p50_ms=0.1,
        lag_p99_ms=0.5,
        lag_max_ms=1.5,
        send_delay_p99_ms=0.2,
        chunks_per_s=100.0,
        machine_cpu_share=0.5,
    )


def make_run(number: int = 0, **changed: Any) -> RunResult:
    """A run; each number begins an hour after the one before it."""
    moment = FIRST + timedelta(hours=number)
    metrics = {"output_throughput": Interval(100.0 + number, 95.0, 105.0)}
    facts: dict[str, Any] = {
        "run_id": new_run_id(moment, f"{number:06x}"),
        "kind": "bench",
        "name": "tiny",
        "model": "org/tiny",
        "load": {"mode": "closed", "concurrency": 8, "num_requests": 40},
        "workload": {"dataset": "random", "input_len": 128, "output_len": 32, "seed": number},
        "provenance": {"server": {"kind": "atom"}, "hardware": {"num_gpus": 0, "gpus": []}},
        "fingerprint": "f00d",
        "repeats": [
            RepeatResult(
                seed=number,
                started_at=moment.isoformat(),
                duration_s=12.5,
                metrics={"output_throughput": 100.0 + number, "acceptance_rate": None},
                errors={},
                health=health(),
                window_s=(1.0, 11.0),
            )
        ],
        "metrics": metrics,
        "legacy": {"request_rate": "inf", "output_throughput": 100.0 + number},
    }
    return RunResult(**{**facts, **changed})


def make_records(count: int) -> list[RequestRecord]:
    return [
        RequestRecord(
            index=i,
            sent_s=i * 0.1,
            ended_s=i * 0.1 + 1 / 3,
            token_times_s=[i * 0.1 + 0.2, i * 0.1 + 1 / 3],
            token_counts=[1, 2],
            output_tokens=3,
        )
        for i in range(count)
    ]


def make_samples(count: int) -> list[dict[str, Any]]:
    """Samples of an evaluation, as the history holds them."""
    return [
        {
            "task": "gsm8k",
            "doc_id": i,
            "doc_hash": f"{i:064x}",
            "prompt": f"Question: {i} + 1?\nAnswer:",
            "target": str(i + 1),
            "metrics": {"exact_match,strict-match": float(i % 3 == 0)},
            "answers": [{"text": f" {i + 1} é"}],
        }
        for i in range(count)
    ]


SERVING: dict[str, Any] = {
    "date": "20260807-101112",
    "backend": "vllm",
    "model_id": "deepseek-ai/DeepSeek-R1",
    "tokenizer_id": "deepseek-ai/DeepSeek-R1",
    "best_of": 1,
    "num_prompts": 40,
    "request_rate": "inf",
    "burstiness": 1.0,
    "max_concurrency": 4,
    "duration": 20.0,
    "completed": 38,
    "total_input_tokens": 38000,
    "total_output_tokens": 19000,
    "request_throughput": 1.9,
    "request_goodput:": 1.5,
    "output_throughput": 950.0,
    "total_token_throughput": 2850.0,
    "mean_ttft_ms": 120.0,
    "median_ttft_ms": 110.0,
    "std_ttft_ms": 10.0,
    "p99_ttft_ms": 300.0,
    "mean_tpot_ms": 20.0,
    "p99.9_itl_ms": 44.0,
    "mean_e2el_ms": 2100.0,
    "accept_length": 2.5,
    "acceptance_rate": 75.0,
    "random_input_len": 1024,
    "random_output_len": "512",
    "random_range_ratio": 0.8,
    "tensor_parallel_size": "8",
    "gpu_name": "AMD Instinct MI355X",
    "gpu_vram_gb": "288",
    "rocm_version": "7.2.4",
    "docker_image": "image:1",
}

# As `vllm bench serve --save-detailed` writes it; seconds of perf_counter, gaps between chunks.
DETAILED: dict[str, Any] = {
    **{k: v for k, v in SERVING.items() if not k.startswith("random_")},
    "backend": "openai",
    "max_concurrency": None,
    "request_rate": 2.0,
    "completed": 2,
    "failed": 1,
    "num_prompts": 3,
    "start_times": [1000.0, 1000.5, 1001.0],
    "ttfts": [0.1, 0.2, 0.0],
    "itls": [[0.01, 0.02], [0.03], []],
    "input_lens": [10, 11, 12],
    "output_lens": [3, 2, 0],
    "generated_texts": ["a", "b", ""],
    "errors": ["", "", "Traceback:\nValueError: boom"],
    "spec_decode_acceptance_rate": 0.9,
}

SGLANG: dict[str, Any] = {
    "backend": "sglang",
    "dataset_name": "sharegpt",
    "request_rate": 5.0,
    "max_concurrency": 256,
    "sharegpt_output_len": None,
    "random_input_len": 1024,
    "random_output_len": 1024,
    "random_range_ratio": 0.0,
    "duration": 204.5,
    "completed": 1000,
    "total_input_tokens": 302118,
    "total_output_tokens": 195775,
    "request_throughput": 4.889,
    "output_throughput": 957.16,
    "mean_e2e_latency_ms": 2409.5,
    "mean_ttft_ms": 91.7,
    "mean_tpot_ms": 11.8,
    "concurrency": 11.78,
    "accept_length": None,
}

LM_EVAL: dict[str, Any] = {
    "results": {
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.94,
            "exact_match_stderr,strict-match": 0.0065,
            "exact_match,flexible-extract": 0.995,
            "exact_match_stderr,flexible-extract": 0.01,
            "bypass,none": "N/A",
        }
    },
    "groups": {"mmlu": {"acc,none": 0.7, "acc_stderr,none": "N/A", "alias": "mmlu"}},
    "configs": {"gsm8k": {}},
    "versions": {"gsm8k": 3.0},
    "n-shot": {"gsm8k": 3},
    "n-samples": {"gsm8k": {"original": 1319, "effective": 1319}},
    "config": {
        "model": "local-completions",
        "model_args": "model=/models/org/Big-R1,base_url=http://u:pw@host:8000/v1,num_concurrent=65",
        "limit": None,
    },
    "date": 1786097627.5,
    "lm_eval_version": "0.4.9",
    "total_evaluation_time_seconds": "612.5",
}


def bench(name: str, value: float, extra: str = "") -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "", **({"extra": extra} if extra else {})}


_EXTRA = "Run: https://ci/1 | GPU: AMD Instinct MI355X | VRAM: 288GB | ROCm: 7.2.4 | Docker: img"
_POINT = {
    **{"backend": "mesh", "completed": 80, "concurrency": 16, "isl": 8192, "osl": 1024},
    **{"output_tput": 800.0, "total_tput": 7200.0, "tpot_ms": 20.0, "ttft_ms": 400.0},
    **{"total_gpu": 16, "ratio": 0.8, "duration": 99.5, "hardware": "mi350x", "ttft_p99": 900.0},
}


def data_js() -> str:
    """github-action-benchmark's file: two commits, each with what ATOM's dashboard has in it."""
    commits = []
    for position, sha in enumerate(("a" * 40, "b" * 40)):
        series = "ATOM::DeepSeek-V4-Pro 1024/1024 c=128"
        entries = [
            bench(f"{series} throughput (tok/s)", 2839.36 + position, _EXTRA),
            bench(f"{series} Total Tput (tok/s)", 5684.96, _EXTRA),
            bench(f"{series} TTFT (ms)", 449.04, _EXTRA),
            bench(f"{series} TPOT (ms)", 40.0, _EXTRA),
            bench(f"{series} _gpu_count", 8),
            bench(f"{series} _tp", 8),
            # Two variants under one name, as older files have them.
            bench("DeepSeek-R1 0/0 c=128 throughput (tok/s)", 4348.28),
            bench("DeepSeek-R1 0/0 c=128 TPOT (ms)", 28.32),
            bench("DeepSeek-R1 0/0 c=128 throughput (tok/s)", 5380.99),
            bench("DeepSeek-R1 0/0 c=128 TPOT (ms)", 22.46),
            # A failed one.
            bench("ATOM::gpt-oss-120b 1024/1024 c=4 throughput (tok/s)", 0),
            bench("ATOM::gpt-oss-120b 1024/1024 c=4 TPOT (ms)", 0),
            bench(
                "ATOM::DeepSeek-R1 MTP accuracy (GSM8K)",
                0.9492,
                "Run: https://ci/1 | Threshold: 0.94 | ROCm: unknown | strict-match: 0.9439 "
                "| fewshot: 3",
            ),
            bench("ATOM::DeepSeek-R1 MTP MTP acceptance (%)", 67.14),
            bench("ATOM::DeepSeek-R1 MTP avg toks/fwd (tok/fwd)", 3.01),
            bench(
                "Atomesh::V4 mi350x_1p1d 8192/1024 c=16 perf point",
                50.0,
                f"precision=FP4 | perf_point={quote(json.dumps(_POINT), safe='')}",
            ),
            bench("somebody's unit test", 1.5),
        ]
        commits.append(
            {
                "commit": {"id": sha, "message": "perf: one\n\nmore", "url": f"https://git/{sha}"},
                "date": 1786097627794 + position * 86_400_000,
                "tool": "customBiggerIsBetter",
                "benches": entries,
            }
        )
    tree = {"lastUpdate": 1, "repoUrl": "https://git/atom", "entries": {"Benchmark": commits}}
    return f"window.BENCHMARK_DATA = {json.dumps(tree, indent=2)}\n"


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path

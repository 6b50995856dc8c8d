"""Runs that never ran, for the dashboard's tests and pictures: plausible, seeded, of any number."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from atom.bench.types import ClientHealth, Interval, RepeatResult, RunResult

START = datetime(2026, 8, 1, 2, 0, tzinfo=timezone.utc)


def bench_run(
    *,
    model: str = "meta-llama/Llama-3.3-70B-Instruct",
    name: str = "",
    backend: str = "atom",
    gpu: str = "AMD Instinct MI300X",
    num_gpus: int = 8,
    tp: int | None = 8,
    input_len: int = 1024,
    output_len: int = 1024,
    concurrency: int | None = 16,
    request_rate: float | None = None,
    at: datetime = START,
    speed: float = 1.0,
    noise: float = 0.012,
    status: str = "ok",
    seed: int = 0,
    commit: str = "",
    repeats: int = 3,
    **more: Any,
) -> RunResult:
    """A run of a server whose step time grows with its load; `speed` scales everything."""
    rng = random.Random(f"{model}{backend}{input_len}{concurrency}{request_rate}{at}{seed}")
    level = concurrency or max(1, round((request_rate or 1.0) * 8))
    values = [
        _measured(rng, level, input_len, output_len, num_gpus, speed, noise) for _ in range(repeats)
    ]
    load: dict[str, Any] = {"mode": "closed" if concurrency else "open", "num_requests": 5 * level}
    load |= {"concurrency": concurrency} if concurrency else {"request_rate": request_rate}
    workload = {"dataset": "random", "input_len": input_len, "output_len": output_len}
    key = f"{model}{backend}{gpu}{num_gpus}{input_len}{output_len}{concurrency}{request_rate}"
    return RunResult(
        run_id=f"{at:%Y%m%d-%H%M%S}-{rng.randrange(16**6):06x}",
        kind="bench",
        name=name or model.rpartition("/")[2],
        model=model,
        load=load,
        workload=workload,
        provenance=provenance(backend, gpu, num_gpus, tp, at, commit or digits(rng), load),
        fingerprint=f"{abs(hash_of(key)):012x}"[:12],
        repeats=[_repeat(v, seed + i, at + timedelta(minutes=i)) for i, v in enumerate(values)],
        metrics=_intervals(values),
        legacy={},
        status=status,
        **more,
    )


def hash_of(text: str) -> int:
    """The same in every process, unlike `hash`."""
    value = 0
    for byte in text.encode():
        value = (value * 1000003 ^ byte) % 2**61
    return value


def digits(rng: random.Random) -> str:
    return f"{rng.randrange(16**12):012x}"


def provenance(
    backend: str,
    gpu: str,
    num_gpus: int,
    tp: int | None,
    at: datetime,
    commit: str,
    load: Mapping[str, Any],
) -> dict[str, Any]:
    flag = ["--concurrency", "1-256*4"] if "concurrency" in load else ["--request-rate", "1,2,4"]
    hardware: dict[str, Any] = {"cpu": "AMD EPYC 9654", "usable_cpus": 96}
    hardware |= {"num_gpus": num_gpus, "gpus": [{"name": gpu}] * num_gpus}
    server = {"kind": backend, "version": "0.4.0", "commit": commit, "dirty": False}
    recipe = {"name": "llama-3.3-70b", "path": "recipes/llama-3.3-70b.toml", "sha256": "3f1c"}
    return {
        "argv": ["bench", "recipes/llama-3.3-70b.toml", *flag, "--num-prompts", "640"],
        "time": at.isoformat(),
        "seed": 0,
        "atom": {"version": "0.4.0"},
        "server": {**server, "config": {"tensor_parallel_size": tp}},
        "recipe": {**recipe, "text": "[model]\nmodel = 'x'\n"},
        "hardware": hardware,
        "driver": "rocm 7.2.0",
        "python": "3.12.4",
        "packages": {"torch": "2.9.1", "aiohttp": "3.13.2"},
    }


def eval_run(
    *,
    model: str = "deepseek-ai/DeepSeek-R1-0528",
    backend: str = "atom",
    score: float = 0.9545,
    at: datetime = START,
    threshold: float | None = 0.94,
    samples: int = 1319,
    **more: Any,
) -> RunResult:
    """A GSM8K evaluation, as imported from lm-eval."""
    rng = random.Random(f"{model}{backend}{at}")
    spread = 1.96 * math.sqrt(score * (1 - score) / samples)
    metric = "gsm8k/exact_match,flexible-extract"
    strict = score - rng.uniform(0.0, 0.004)
    return RunResult(
        run_id=f"{at:%Y%m%d-%H%M%S}-{rng.randrange(16**6):06x}",
        kind="eval",
        name=model.rpartition("/")[2],
        model=model,
        load={},
        workload={"dataset": "gsm8k", "num_fewshot": 5, "samples": samples},
        provenance={
            "time": at.isoformat(),
            "server": {"kind": backend},
            "hardware": {"num_gpus": 8},
        },
        fingerprint=f"{hash_of(model + backend):012x}"[:12],
        repeats=[],
        metrics={
            metric: Interval(score, score - spread, score + spread),
            "gsm8k/exact_match,strict-match": Interval(strict, strict - spread, strict + spread),
        },
        legacy={},
        slo={} if threshold is None else {metric: threshold},
        **more,
    )


MODELS = (
    # model, GPUs, relative speed
    ("deepseek-ai/DeepSeek-R1-0528", "AMD Instinct MI355X", 8, 0.7),
    ("meta-llama/Llama-3.3-70B-Instruct", "AMD Instinct MI300X", 4, 1.0),
    ("openai/gpt-oss-120b", "AMD Instinct MI300X", 1, 0.6),
)


def nightly(nights: int = 30, *, regression_at: int = 22) -> Iterator[RunResult]:
    """Three models, two servers, two shapes, a sweep a night; the second model gets 9 % slower."""
    for night in range(nights):
        at = START + timedelta(days=night)
        commit = digits(random.Random(night))
        for position, (model, gpu, gpus, speed) in enumerate(MODELS):
            slower = 0.91 if position == 1 and night >= regression_at else 1.0
            for number, level in enumerate((1, 4, 16, 64, 256)):
                for shape in ((1024, 1024), (8192, 1024)):
                    yield bench_run(
                        model=model, gpu=gpu, num_gpus=gpus, tp=gpus, concurrency=level,
                        input_len=shape[0], output_len=shape[1], speed=speed * slower,
                        at=at + timedelta(minutes=7 * number, hours=position), commit=commit,
                        sweep_id=f"sweep-{night}-{position}-{shape[0]}",
                    )  # fmt: skip
        if night == nights - 1:
            for level in (1, 4, 16, 64, 256):
                yield bench_run(
                    backend="vllm", num_gpus=4, tp=4, concurrency=level, at=at, speed=0.93
                )
        if night % 5 == 0:
            yield eval_run(at=at, score=0.9545 - 0.0004 * night)
            yield eval_run(model="openai/gpt-oss-120b", at=at, score=0.41, threshold=0.39)


def many(count: int) -> Iterator[RunResult]:
    """A long history: `count` runs of 40 configurations."""
    for i in range(count):
        number = i % 40
        yield bench_run(
            model=f"org{number % 5}/model-{number % 10}-instruct",
            backend=("atom", "vllm")[number % 2],
            concurrency=2 ** (number // 5 % 8),
            at=START + timedelta(hours=i // 2, minutes=number),
            repeats=2,
        )


def _measured(
    rng: random.Random, level: int, into: int, out: int, gpus: int, speed: float, noise: float
) -> dict[str, float]:
    jitter = math.exp(rng.gauss(0.0, noise))
    tpot = (6.0 + 0.11 * level + 0.0004 * into) / speed * jitter
    ttft = (25.0 + 0.02 * into + 0.9 * level) / speed * math.exp(rng.gauss(0.0, 2 * noise))
    e2el = ttft + tpot * (out - 1)
    requests = level / e2el * 1000
    found = {
        "request_throughput": requests,
        "output_throughput": requests * out,
        "total_token_throughput": requests * (into + out),
        "steady_output_throughput": requests * out * 1.04,
        "steady_total_token_throughput": requests * (into + out) * 1.04,
        "output_throughput_per_user": 1000 / tpot,
        "error_rate": 0.0,
        "completed": 5.0 * level,
        "failed": 0.0,
        "mean_concurrency": level * 0.97,
    }
    if gpus:
        found["output_throughput_per_gpu"] = requests * out / gpus
        found["total_token_throughput_per_gpu"] = requests * (into + out) / gpus
    for what, mean in (("ttft", ttft), ("tpot", tpot), ("itl", tpot), ("e2el", e2el)):
        for statistic, factor in (("mean", 1.0), ("median", 0.97), ("p90", 1.2), ("p99", 1.6)):
            found[f"{statistic}_{what}_ms"] = mean * factor
    return found


def _intervals(values: list[dict[str, float]]) -> dict[str, Interval]:
    found = {}
    for name in values[0]:
        column = [v[name] for v in values]
        mean = sum(column) / len(column)
        spread = math.sqrt(sum((v - mean) ** 2 for v in column) / max(1, len(column) - 1))
        half = 2.0 * spread / math.sqrt(len(column))
        found[name] = Interval(mean, mean - half, mean + half)
    return found


def _repeat(values: dict[str, float], seed: int, at: datetime) -> RepeatResult:
    health = ClientHealth(
        workers=1, cpu_share=[0.12], lag_p50_ms=0.1, lag_p99_ms=0.4, lag_max_ms=1.2,
        send_delay_p99_ms=0.3, chunks_per_s=900.0, machine_cpu_share=0.2, reason="12 % of one core",
    )  # fmt: skip
    return RepeatResult(
        seed=seed, started_at=at.isoformat(), duration_s=60.0, metrics=dict(values), errors={},
        health=health, window_s=(4.0, 55.0),
    )  # fmt: skip

"""Results of the benchmark_serving family: ATOM's, `vllm bench serve`'s and SGLang's JSON.

One flat object with the same names in all three, give or take some. vLLM appends further runs to
the file as further objects; SGLang writes JSON lines without a date or, mostly, a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from itertools import accumulate
from typing import Any

from atom.bench import names
from atom.bench.history.documents import Loaded
from atom.bench.history.importers.build import (
    Origin,
    derived,
    gpu_hardware,
    make_run,
    without_nothing,
)
from atom.bench.history.importers.reading import number, whole
from atom.bench.types import RequestRecord

TOOL = "benchmark_serving"
# Their name -> ours, where they differ.
_RENAMED = {
    "request_goodput:": "request_goodput",  # with the colon, as ATOM and older vLLM write it
    "concurrency": "mean_concurrency",
    "accept_length": "accept_length",
    "spec_decode_acceptance_length": "accept_length",
    "spec_decode_acceptance_rate": "acceptance_rate",
    "total_throughput": "total_token_throughput",
}
_LATENCY = re.compile(r"(mean|median|std|p\d+(?:\.\d+)?)_(ttft|tpot|itl|e2el|e2e_latency)_ms")
_DATE = re.compile(r"\d{8}-\d{6}")
_PERCENT = 100.0
# Settings and identity, which have places of their own; other flat fields are metadata.
_RUN_FIELDS = (
    *("date", "backend", "endpoint_type", "model_id", "tokenizer_id", "label", "tag", "seed"),
    *("best_of", "num_prompts", "request_rate", "burstiness", "max_concurrency"),
    *("duration", "completed", "failed", "dataset_name", "server_info"),
    *("random_input_len", "random_output_len", "random_range_ratio", "sharegpt_output_len"),
)


def knows(tree: Any) -> bool:
    return (
        isinstance(tree, Mapping)
        and "duration" in tree
        and "completed" in tree
        and ("request_throughput" in tree or "output_throughput" in tree)
    )


def read(tree: Mapping[str, Any], origin: Origin) -> Iterator[Loaded]:
    moment, notes = _moment(tree, origin)
    model = str(tree.get("model_id") or tree.get("model") or origin.model or "unknown")
    metrics = _metrics(tree)
    hardware = _hardware(tree)
    metrics.update(derived(metrics, hardware["num_gpus"]))
    ok = number(tree.get("completed")) and not metrics.get("failed")
    run = make_run(
        tool=TOOL,
        origin=origin,
        content=tree,
        moment=moment,
        kind="bench",
        name=model.rpartition("/")[2],
        model=model,
        load=_load(tree),
        workload=_workload(tree, metrics),
        provenance=_provenance(tree, hardware),
        metrics=metrics,
        duration_s=number(tree.get("duration")) or 0.0,
        legacy=dict(tree),
        status="ok" if ok else "errors",
        seed=int(number(tree.get("seed")) or 0),
        notes=notes,
    )
    yield Loaded(run, _records(tree))


def _moment(tree: Mapping[str, Any], origin: Origin) -> tuple[datetime, list[str]]:
    """When it was measured. Their dates have no zone; files without one have their own age."""
    date = str(tree.get("date") or "")
    if _DATE.fullmatch(date):
        moment = datetime.strptime(date, "%Y%m%d-%H%M%S").replace(tzinfo=timezone.utc)
        return moment, ["imported: the file's date has no time zone and is taken for UTC"]
    return origin.modified(), ["imported: the file has no date; it is that of its last change"]


def _metrics(tree: Mapping[str, Any]) -> dict[str, float]:
    """What has a name of ours. Without a completed request their latencies of 0 mean nothing."""
    found: dict[str, float] = {}
    nothing_done = not number(tree.get("completed"))
    for key, given in tree.items():
        value = number(given)
        name = _name(key)
        if value is None or name is None:
            continue
        if nothing_done and (name.endswith("_ms") or value == 0):
            continue
        found[name] = value
    rate = found.get("acceptance_rate")
    if rate is not None and (rate > 1 or "spec_decode_acceptance_rate" in tree):
        found["acceptance_rate"] = rate / _PERCENT  # vLLM gives percent
    found.update(_counts(tree))
    return found


def _name(key: str) -> str | None:
    match = _LATENCY.fullmatch(key)
    if match is not None:
        return f"{match[1]}_{match[2].replace('e2e_latency', 'e2el')}_ms"
    name = _RENAMED.get(key, key)
    return name if names.is_name(name) else None


def _counts(tree: Mapping[str, Any]) -> dict[str, float]:
    completed, asked = number(tree.get("completed")), number(tree.get("num_prompts"))
    failed = number(tree.get("failed"))
    if failed is None and completed is not None and asked is not None:
        failed = max(0.0, asked - completed)
    found: dict[str, float] = {}
    if completed is not None and failed is not None and completed + failed > 0:
        found |= {"completed": completed, "failed": failed}
        found["error_rate"] = failed / (completed + failed)
    for side in ("input", "output"):
        total = number(tree.get(f"total_{side}_tokens"))
        if completed and total is not None:
            found[f"mean_{side}_tokens"] = total / completed
    return found


def _load(tree: Mapping[str, Any]) -> dict[str, Any]:
    rate, places = tree.get("request_rate"), tree.get("max_concurrency")
    count = tree.get("num_prompts")
    if number(rate) is None:  # inf: all at once, as far as the places reach
        if number(places) is None:
            return without_nothing(mode="open", request_rate="inf", num_requests=whole(count))
        return without_nothing(mode="closed", concurrency=whole(places), num_requests=whole(count))
    return without_nothing(
        mode="open",
        request_rate=number(rate),
        burstiness=number(tree.get("burstiness")),
        max_in_flight=whole(places),
        num_requests=whole(count),
    )


def _workload(tree: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """vLLM's files do not tell the data set: the mean lengths then tell workloads apart."""
    given = "random" if number(tree.get("random_input_len")) is not None else None
    if given is None:
        means = {side: metrics.get(f"mean_{side}_tokens") for side in ("input", "output")}
        return without_nothing(
            dataset=tree.get("dataset_name") or "unknown",
            **{f"mean_{side}_len": round(n) for side, n in means.items() if n is not None},
            output_len=whole(tree.get("sharegpt_output_len")),
        )
    return without_nothing(
        dataset=tree.get("dataset_name") or given or "unknown",
        input_len=whole(tree.get("random_input_len")),
        output_len=whole(tree.get("random_output_len")),
        range_ratio=number(tree.get("random_range_ratio")),
    )


def _hardware(tree: Mapping[str, Any]) -> dict[str, Any]:
    """ATOM's CI writes these among its metadata."""
    tp = number(tree.get("tensor_parallel_size") or tree.get("num_gpus"))
    rocm = str(tree.get("rocm_version") or "")
    return gpu_hardware(
        name=str(tree.get("gpu_name") or ""),
        count=int(tp) if tp else None,
        memory_gb=whole(tree.get("gpu_vram_gb")),
        driver=f"ROCm {rocm}" if rocm and rocm != "unknown" else "",
    )


def _provenance(tree: Mapping[str, Any], hardware: Mapping[str, Any]) -> dict[str, Any]:
    """The flat texts and numbers that are neither metrics nor settings were given as metadata."""
    rest = {
        key: value
        for key, value in tree.items()
        if isinstance(value, str | int | float)
        and not isinstance(value, bool)
        and key not in _RUN_FIELDS
        and _name(key) is None
        and not key.startswith(("total_", "max_", "spec_decode_", "ramp_up_"))
    }
    backend = str(tree.get("benchmark_backend") or tree.get("backend") or "unknown").lower()
    return {
        # "openai" is the protocol, whoever spoke it.
        "server": {"kind": "unknown" if backend.startswith("openai") else backend},
        "hardware": dict(hardware),
        "driver": hardware.get("driver", ""),
        "metadata": rest,
    }


def _records(tree: Mapping[str, Any]) -> list[list[RequestRecord]]:
    """Samples of a detailed result, if it says when requests began (vLLM's does).

    ttfts and itls are between chunks, which those tools do not tell from tokens.
    """
    lists = [tree.get(key) for key in ("start_times", "ttfts", "itls", "input_lens", "output_lens")]
    if not all(isinstance(values, list) and values for values in lists):
        return []
    starts, ttfts, gaps, inputs, outputs = (list(values or ()) for values in lists)
    if len({len(starts), len(ttfts), len(gaps), len(inputs), len(outputs)}) != 1:
        return []
    errors = tree.get("errors") or [""] * len(starts)
    zero = min(starts)
    records = []
    for i, start in enumerate(starts):
        sent = start - zero
        times = list(accumulate(gaps[i], initial=sent + ttfts[i]))
        failed = bool(i < len(errors) and errors[i])
        records.append(
            RequestRecord(
                index=i,
                intended_s=sent,
                dispatched_s=sent,
                sent_s=sent,
                ended_s=times[-1],
                token_times_s=[] if failed else times,
                counted_by="" if failed else "chunks",
                input_tokens=inputs[i],
                output_tokens=None if failed else outputs[i],
                error="stream" if failed else None,
                message=str(errors[i]).strip().rpartition("\n")[2] if failed else "",
            )
        )
    return [records]

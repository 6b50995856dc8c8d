"""Streaming load on any OpenAI-compatible server; prints one JSON object.

    python benchmarks/openai_load.py --base-url http://127.0.0.1:8000 --workload W2
    python benchmarks/openai_load.py --base-url http://127.0.0.1:8000 \
        --num-prompts 32 --input-len 128 --output-len 64 --concurrency 16 --seed 1

Prompts come from the seed alone, so every server reads the same text: common English words that
are one token each in SmolLM2's vocabulary (and in most byte-level BPE ones). What the server
counted is reported as prompt_tokens. Give each repeat its own --seed, or a prefix cache answers
the second one.

Measured per request, on this client's clock:
  TTFT  request sent to the first streamed token
  ITL   gap between successive token events (tokens_per_event > 1: the server groups tokens)
  TPOT  (last token event - first) / (output tokens - 1)
  e2e   request sent to the end of the stream

Exit status: 0 if every request succeeded, 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import aiohttp

_VOCABULARY = """
that with are can from was not this have your their which more other has man about but per out one
were also part who into some how when our his may time under there than over people like such been
use help new what would need through work any many used only first child system between two where
sur could should her well every high world even form water just make years set data call see then
those way each because while during found art count long after using return read lead fact test
life family very being own she find right person back both follow does grow car main before study
level great food start children good might school within class often around made said show pop
same power research design small example down take day support human treat now state called point
build play did must plan want met three cell pass don social real known without change public
still better hand another material report place learning interest present project list product
feel light energy open mean keep others best include direct various name history create top
perform home stand move among mark look things type large air function against law group rest
control here provide several based women area due object old current try program early together
access last print possible low say impact key period run case since specific local head post along
value order come text across why cost times areas able toward problem view major course model else
hard line tool special future natural plant language role until second country men young works
always exist
"""
WORDS = _VOCABULARY.split()


@dataclass(frozen=True, slots=True)
class Workload:
    num_prompts: int
    input_len: int
    output_len: int
    concurrency: int
    prefix_len: int = 0


WORKLOADS = {
    "W1": Workload(num_prompts=16, input_len=128, output_len=64, concurrency=1),
    "W2": Workload(num_prompts=32, input_len=128, output_len=64, concurrency=16),
    "W3": Workload(num_prompts=32, input_len=32, output_len=32, concurrency=8, prefix_len=512),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and how its requests differ from the plain one."""

    base_url: str
    model: str = ""
    extra_body: dict[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    timeout_s: float = 600.0

    def url(self, path: str) -> str:
        return f"{self.base_url.rstrip('/').removesuffix('/v1')}/v1/{path}"

    def body(self, prompt: str, output_len: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": output_len,
            "min_tokens": output_len,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body.update(self.extra_body)
        return {key: value for key, value in body.items() if key not in self.drop}


@dataclass(slots=True)
class Trace:
    """One request as the client saw it; times are perf_counter seconds."""

    sent_at: float
    ended_at: float = 0.0
    token_times: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    error: str | None = None


def make_prompts(load: Workload, seed: int) -> list[str]:
    rng = random.Random(seed)

    def draw(length: int) -> str:
        return "".join(" " + rng.choice(WORDS) for _ in range(length))

    prefix = draw(load.prefix_len)
    return [prefix + draw(load.input_len) for _ in range(load.num_prompts)]


def open_session(timeout_s: float) -> aiohttp.ClientSession:
    # One connection a request: llama.cpp's server closes kept-alive ones unasked, which loses
    # requests, and on loopback a new connection costs well under a millisecond.
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
    )


def is_token(choice: dict[str, Any]) -> bool:
    # A token whose bytes do not end a character yet arrives as empty text: it counts too.
    return bool(choice.get("text")) or (
        choice.get("text") == "" and not choice.get("finish_reason")
    )


def read_event(event: dict[str, Any], now: float, trace: Trace) -> None:
    if error := event.get("error"):
        message = error.get("message") if isinstance(error, dict) else error
        raise RuntimeError(str(message))
    trace.usage = event.get("usage") or trace.usage
    for choice in event.get("choices") or ():
        if is_token(choice):
            trace.token_times.append(now)
        trace.finish_reason = choice.get("finish_reason") or trace.finish_reason


def sse_payloads(lines: Sequence[bytes]) -> Iterator[bytes]:
    for line in lines:
        if line.startswith(b"data:"):
            yield line[5:].strip()


async def read_stream(response: aiohttp.ClientResponse, trace: Trace) -> None:
    rest, done = b"", False
    async for chunk in response.content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + chunk).split(b"\n")
        for payload in sse_payloads(lines):
            if payload == b"[DONE]":
                done = True
            else:
                read_event(json.loads(payload), now, trace)
    if not trace.token_times or not (done or trace.finish_reason):
        trace.error = "the stream ended without tokens or without an end"


async def send(
    session: aiohttp.ClientSession, target: Target, prompt: str, output_len: int
) -> Trace:
    trace = Trace(time.perf_counter())
    try:
        body = target.body(prompt, output_len)
        async with session.post(target.url("completions"), json=body) as response:
            if response.status == 200:
                await read_stream(response, trace)
            else:
                trace.error = f"HTTP {response.status}: {(await response.text())[:300]}"
    except (aiohttp.ClientError, asyncio.TimeoutError, RuntimeError, ValueError, OSError) as error:
        trace.error = f"{type(error).__name__}: {error}"[:300]
    trace.ended_at = time.perf_counter()
    return trace


async def first_model(session: aiohttp.ClientSession, target: Target) -> str:
    async with session.get(target.url("models")) as response:
        response.raise_for_status()
        return str((await response.json())["data"][0]["id"])


async def closed_loop(
    session: aiohttp.ClientSession, target: Target, load: Workload, prompts: list[str]
) -> list[Trace]:
    """`concurrency` workers: each sends its next request when its last has ended."""
    todo = iter(prompts)
    traces: list[Trace] = []

    async def worker() -> None:
        for prompt in todo:
            traces.append(await send(session, target, prompt, load.output_len))

    await asyncio.gather(*(worker() for _ in range(load.concurrency)))
    return traces


async def drive(
    target: Target, load: Workload, seed: int, num_warmup: int
) -> tuple[list[Trace], float]:
    """The traces of one run and its wall time; warm-up requests are in neither."""
    async with open_session(target.timeout_s) as session:
        if not target.model:
            target = replace(target, model=await first_model(session, target))
        if num_warmup:
            warm = replace(load, num_prompts=num_warmup, concurrency=num_warmup)
            prompts = make_prompts(warm, seed + 1_000_003)
            traces = await closed_loop(session, target, warm, prompts)
            if all(trace.error for trace in traces):
                raise SystemExit(f"warm-up failed: {traces[0].error}")
        prompts = make_prompts(load, seed)
        started_at = time.perf_counter()
        traces = await closed_loop(session, target, load, prompts)
        return traces, time.perf_counter() - started_at


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100.0
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def spread_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    values = [second * 1e3 for second in seconds]
    summary = {"mean": statistics.fmean(values), "max": max(values)}
    summary |= {f"p{p}": percentile(values, p) for p in (50, 90, 99)}
    return {name: round(value, 3) for name, value in summary.items()}


def num_output(trace: Trace) -> int:
    return int(trace.usage.get("completion_tokens") or len(trace.token_times))


def num_cached(trace: Trace) -> int:
    details = trace.usage.get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)


def summarize(load: Workload, seed: int, traces: list[Trace], wall_s: float) -> dict[str, Any]:
    good = [trace for trace in traces if not trace.error]
    sent = load.prefix_len + load.input_len
    num_in = sum(int(trace.usage.get("prompt_tokens") or sent) for trace in good)
    num_out = sum(num_output(trace) for trace in good)
    num_events = sum(len(trace.token_times) for trace in good)
    spans = [(t.token_times[0], t.token_times[-1], num_output(t)) for t in good]
    gaps = [b - a for t in good for a, b in zip(t.token_times, t.token_times[1:], strict=False)]
    return asdict(load) | {
        "seed": seed,
        "ok": len(good),
        "failed": len(traces) - len(good),
        "short": sum(num_output(trace) < load.output_len for trace in good),
        "errors": dict(Counter(str(trace.error) for trace in traces if trace.error)),
        "wall_s": round(wall_s, 4),
        "prompt_tokens": num_in,
        "cached_tokens": sum(num_cached(trace) for trace in good),
        "output_tokens": num_out,
        "counted_by": "usage" if all(t.usage.get("completion_tokens") for t in good) else "events",
        "tokens_per_event": round(num_out / num_events, 3) if num_events else None,
        "output_tok_per_s": round(num_out / wall_s, 2),
        "total_tok_per_s": round((num_in + num_out) / wall_s, 2),
        "ttft_ms": spread_ms([t.token_times[0] - t.sent_at for t in good]),
        "tpot_ms": spread_ms([(last - first) / (n - 1) for first, last, n in spans if n > 1]),
        "itl_ms": spread_ms(gaps),
        "e2e_ms": spread_ms([t.ended_at - t.sent_at for t in good]),
    }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8000", help="with or without /v1")
    add("--model", default="", help="default: the first that /v1/models names")
    add("--workload", choices=sorted(WORKLOADS), help="a standing workload (sets the five below)")
    add("--num-prompts", type=int, default=16)
    add("--input-len", type=int, default=128, help="tokens of each prompt's own")
    add("--prefix-len", type=int, default=0, help="tokens that all prompts share, put first")
    add("--output-len", type=int, default=64)
    add("--concurrency", type=int, default=1)
    add("--seed", type=int, default=0)
    add("--warmup", type=int, default=0, help="requests sent first, together, and not counted")
    add("--extra-body", type=json.loads, default={}, help="JSON merged into each request")
    add("--drop", nargs="*", default=[], help="request fields to leave out (a strict server)")
    add("--timeout-s", type=float, default=600.0, help="seconds for one request")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    load = (
        WORKLOADS[args.workload]
        if args.workload
        else Workload(
            args.num_prompts, args.input_len, args.output_len, args.concurrency, args.prefix_len
        )
    )
    target = Target(args.base_url, args.model, args.extra_body, tuple(args.drop), args.timeout_s)
    traces, wall_s = asyncio.run(drive(target, load, args.seed, args.warmup))
    summary = summarize(load, args.seed, traces, wall_s)
    print(json.dumps(summary))
    return 1 if summary["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""CPU time that the server process spends on each streamed token.

The engine is the real one, in its own process, on the fake runner with a fixed step time; so each
token of each stream is one event, as in service. The server's user and system time comes from the
operating system, the client runs in this process.

    python benchmarks/server_tokens.py --streams 64 --tokens 400 --step-ms 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from multiprocessing.connection import Connection

import psutil


def _serve(model_dir: str, step_s: float, streams: int, ready: Connection) -> None:
    from atom.config.schema import Config, ModelConfig, SchedulerConfig, ServerConfig
    from atom.engine.client import EngineClient
    from atom.engine.runner.fake import FakeOptions
    from atom.server import run

    fake = FakeOptions(
        vocab_size=49152, first_token=300, step_s=step_s, verify=False, num_blocks=1 << 16
    )
    bind = run.bind

    def bind_and_tell(door: ServerConfig) -> object:
        listener = bind(door)
        ready.send(listener.getsockname()[1])
        return listener

    run.bind = bind_and_tell  # type: ignore[assignment]
    config = Config(
        model=ModelConfig(model=model_dir or None, load_dummy=bool(model_dir)),
        scheduler=SchedulerConfig(max_num_seqs=streams),
        server=ServerConfig(port=0, log_level="warning"),
    )
    run.serve(config, lambda c, s: EngineClient(c, s, runner=fake))


def _request(path: str, body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + data


async def _stream(port: int, request: bytes) -> int:
    """Events received."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    data = await reader.read(-1)
    writer.close()
    assert b"200 OK" in data[:40], data[:300]
    return data.count(b"data: ") - 1


async def _wait_ready(port: int) -> None:
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            if b"200 OK" in await reader.read(-1):
                return
        except OSError:
            pass
        await asyncio.sleep(0.05)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def _measure(args: argparse.Namespace, port: int, server: psutil.Process) -> None:
    await _wait_ready(port)
    cases = {
        "completions": ("/v1/completions", {"prompt": "Hello there"}),
        "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        "chat, stop strings": (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Hello"}], "stop": ["\n\n\n\n", "###"]},
        ),
    }
    print(f"{'case':20} {'events':>8} {'tokens/s':>9} {'us CPU per token':>17}")
    for name, (path, body) in cases.items():
        extra = {"max_tokens": args.tokens, "stream": True, "ignore_eos": True, "temperature": 1}
        request = _request(path, {**body, **extra})
        await _stream(port, request)
        for _ in range(args.rounds):
            before, began = _cpu_s(server), time.perf_counter()
            events = sum(
                await asyncio.gather(*(_stream(port, request) for _ in range(args.streams)))
            )
            spent, wall = _cpu_s(server) - before, time.perf_counter() - began
            tokens = args.streams * args.tokens
            print(
                f"{name:20} {events:8} {tokens / wall:9.0f} {1e6 * spent / tokens:17.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model-dir", default="", help="default: the embedded model's tokenizer")
    args = parser.parse_args()
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(
        target=_serve, args=(args.model_dir, args.step_ms / 1e3, args.streams, there)
    )
    process.start()
    try:
        port = here.recv()
        asyncio.run(_measure(args, port, psutil.Process(process.pid)))
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()

"""The whole server as users run it: a process, the engine's process, signals and exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serverkit import TEMPLATE, make_tokenizer

CLI = [sys.executable, "-c", "import sys; from atom.cli.main import main; sys.exit(main())"]
LIMIT_S = 60


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's directory without weights: enough for the server's side."""
    folder = tmp_path_factory.mktemp("bytes-model")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300}
    (folder / "config.json").write_text(json.dumps(config))
    parts = make_tokenizer()._parts
    assert parts is not None
    parts.backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "bos_token": "<bos>", "eos_token": "<eos>"})
    )
    return folder


class Process:
    """A server process; what it says on stderr is kept."""

    def __init__(self, model_dir: Path, **options: Any) -> None:
        script = Path(__file__).with_name("serve_fake.py")
        options.setdefault("fake", {})
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(model_dir), json.dumps(options)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = re.search(r"http://\S+", self.wait_line("listening on "))[0]  # type: ignore[index]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self.lines.append("<end>")
            self._changed.notify_all()

    def wait_line(self, part: str) -> str:
        def found() -> str | None:
            return next((line for line in self.lines if part in line or line == "<end>"), None)

        with self._changed:
            line = self._changed.wait_for(found, LIMIT_S)
        assert line is not None
        assert part in line, self.lines
        return line

    @property
    def core_pid(self) -> int:
        children = psutil.Process(self.process.pid).children(recursive=True)
        (core,) = [c for c in children if "atom.engine.core_process" in " ".join(c.cmdline())]
        return core.pid

    def wait(self) -> int:
        status = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return status

    def metrics(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics", timeout=LIMIT_S).text
        rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def wait_metrics(self, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Asks until the condition holds."""
        give_up = time.monotonic() + LIMIT_S
        while not condition(found := self.metrics()):
            assert time.monotonic() < give_up, found
        return found


@contextmanager
def running(model_dir: Path, **options: Any) -> Iterator[Process]:
    process = Process(model_dir, **options)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.wait()


def idle(metrics: dict[str, float]) -> bool:
    return (
        metrics["atom:num_requests_running"] == 0
        and metrics["atom:num_requests_waiting"] == 0
        and metrics["atom:kv_cache_usage_perc"] == 0
    )


def make_http(process: Process) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=process.url, timeout=LIMIT_S, limits=httpx.Limits(max_connections=None)
    )


def body(number: int = 0, **changes: Any) -> dict[str, Any]:
    prompt = f"request number {number}, with a prefix of its own"
    return {"prompt": prompt, "max_tokens": 20, "seed": number, "stream": True, **changes}


async def data_of(response: httpx.Response) -> AsyncIterator[Any]:
    async for line in response.aiter_lines():
        if line:
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


async def read_stream(http: httpx.AsyncClient, request: dict[str, Any]) -> list[Any]:
    async with http.stream("POST", "/v1/completions", json=request) as response:
        assert response.status_code == 200, await response.aread()
        return [data async for data in data_of(response)]


def text_of(events: list[Any]) -> str:
    return "".join(event["choices"][0]["text"] for event in events[:-1])


async def first_event(http: httpx.AsyncClient, request: dict[str, Any]) -> httpx.Response:
    """An open stream, of which the first event has come."""
    built = http.build_request("POST", "/v1/completions", json=request)
    response = await http.send(built, stream=True)
    assert response.status_code == 200
    return response


async def test_two_hundred_streams_at_once(model_dir: Path) -> None:
    with running(model_dir, scheduler={"max_num_seqs": 64}) as process:
        async with make_http(process) as http:
            alone = [await read_stream(http, body(n)) for n in range(3)]
            found = await asyncio.gather(*(read_stream(http, body(n)) for n in range(200)))
            for events in found:
                assert events[-1] == "[DONE]"
                assert events[-2]["choices"][0]["finish_reason"] == "length"
                assert len(text_of(events)) == 20
            assert [text_of(e) for e in found[:3]] == [text_of(e) for e in alone]
            assert len({text_of(e) for e in found}) == 200
            metrics = process.wait_metrics(idle)
        assert metrics['atom:request_success_total{finished_reason="length"}'] == 203
        assert metrics["atom:prefix_cache_hits_total"] > 0
        process.process.terminate()
        assert process.wait() == 0


async def test_clients_that_leave_leave_nothing_behind(model_dir: Path) -> None:
    with running(model_dir, fake={"step_s": 0.002, "num_blocks": 16384}) as process:
        async with make_http(process) as http:
            long = {"max_tokens": 3000}
            opened = await asyncio.gather(*(first_event(http, body(n, **long)) for n in range(64)))
            reading = [data_of(response) for response in opened]
            for data in reading:
                await anext(data)
            assert process.wait_metrics(lambda m: m["atom:num_requests_running"] == 64)
            for response in opened:
                await response.aclose()
            metrics = process.wait_metrics(idle)
            assert metrics['atom:request_success_total{finished_reason="abort"}'] == 64
            assert metrics["atom:client_disconnects_total"] == 64
            assert text_of(await read_stream(http, body()))


async def test_the_death_of_the_core_ends_the_server(model_dir: Path) -> None:
    with running(model_dir, fake={"step_s": 0.005}) as process:
        async with make_http(process) as http:
            response = await first_event(http, body(max_tokens=3000))
            data = data_of(response)
            await anext(data)
            os.kill(process.core_pid, signal.SIGKILL)
            rest = [event async for event in data]
            assert rest[-1] == "[DONE]"
            assert rest[-2]["error"]["code"] == "engine_dead"
        assert process.wait() == 70
        assert any("the engine has died" in line and "SIGKILL" in line for line in process.lines)
        assert not any("Traceback" in line for line in process.lines)


async def test_a_failing_step_ends_the_server(model_dir: Path) -> None:
    with running(model_dir, fake={"fail_at_step": 5}) as process:
        async with make_http(process) as http:
            events = await read_stream(http, body())
            assert events[-2]["error"]["code"] == "engine_dead"
        assert process.wait() == 70


async def test_sigterm_drains(model_dir: Path) -> None:
    with running(model_dir, fake={"step_s": 0.005}) as process:
        async with make_http(process) as http:
            response = await first_event(http, body(max_tokens=200))
            data = data_of(response)
            await anext(data)
            process.process.send_signal(signal.SIGTERM)
            process.wait_line("shutting down: 1 requests")
            refused = await http.post("/v1/completions", json=body())
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert (await http.get("/ready")).status_code == 503
            assert (await http.get("/health")).status_code == 200
            rest = [event async for event in data]
            assert rest[-1] == "[DONE]"
            assert rest[-2]["choices"][0]["finish_reason"] == "length"
        assert process.wait() == 0


@pytest.mark.parametrize("how", ["timeout", "second signal"])
async def test_the_drain_has_an_end(model_dir: Path, how: str) -> None:
    limit_s = 0.2 if how == "timeout" else 1000.0
    options = {"fake": {"step_s": 0.005}, "server": {"drain_timeout_s": limit_s}}
    with running(model_dir, **options) as process:
        async with make_http(process) as http:
            response = await first_event(http, body(max_tokens=3000))
            data = data_of(response)
            await anext(data)
            process.process.send_signal(signal.SIGINT)
            process.wait_line("shutting down: 1 requests")
            if how == "second signal":
                process.process.send_signal(signal.SIGINT)
            rest = [event async for event in data]
            assert rest[-2]["error"]["code"] == "shutdown"
            assert rest[-1] == "[DONE]"
        assert process.wait() == 0


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def one_error(result: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in result.stderr
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("atom: error: ")]
    assert result.stderr.rstrip().endswith(line)
    return line


def test_a_port_in_use_is_one_line(model_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_cli("serve", str(model_dir), "--load-dummy", "--port", str(port))
    assert result.returncode == 2
    assert f"port {port} of 127.0.0.1 is in use" in one_error(result)


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = run_cli("serve", str(tmp_path / "nothing.gguf"), "--port", "0")
    assert result.returncode == 2
    one_error(result)


def test_a_model_that_the_engine_refuses_is_one_line(tmp_path: Path, model_dir: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Unheard"]}))
    result = run_cli("serve", str(tmp_path), "--load-dummy", "--port", "0")
    assert result.returncode == 2
    assert "the engine could not start" in one_error(result)

"""A server in a thread, on a real socket, with a fake engine and a byte-level tokenizer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import tokenizers
import uvicorn
from fake_client import BOS, END_OF_TURN, EOS, VOCAB_SIZE, FakeClient
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI

from atom.config.schema import Config, ModelConfig, SchedulerConfig, ServerConfig
from atom.engine.text.backend import TokenizerParts
from atom.engine.text.pieces import BYTE_ALPHABET, Spelling
from atom.engine.text.tokenizer import Tokenizer
from atom.models.hf_config import HFConfig
from atom.models.source import ModelSource
from atom.server.app import create_app
from atom.server.http_protocol import QuietServer, limited_protocol
from atom.server.run import bind, url_of
from atom.server.state import ServerState

T = TypeVar("T")

TEMPLATE = (
    "{%- for m in messages %}[{{ m.role }}{{ '/' + m.name if m.name else '' }}]{{ m.content }}"
    "<end>{% endfor -%}{% if add_generation_prompt %}[assistant]{% endif %}"
    "{% if shout %}!{% endif %}"
)


def make_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    """One token per byte, so that texts and tokens are easily told from each other."""
    vocab = dict(BYTE_ALPHABET)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = {EOS: "<eos>", END_OF_TURN: "<end>", BOS: "<bos>"}
    backend.add_special_tokens(list(special.values()))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=["<bos>:0", "$A:0"], pair=None, special_tokens=[("<bos>", BOS)]
    )
    parts = TokenizerParts(
        backend=backend,
        spelling=Spelling.BYTE_LEVEL,
        strips_first_space=False,
        size=259,
        added=special,
        special=frozenset(special),
        bos_token_id=BOS,
        eos_token_id=EOS,
        templates={} if template is None else {"default": template},
    )
    return Tokenizer(parts, vocab_size=VOCAB_SIZE)


def make_source(**generation_config: Any) -> ModelSource:
    return ModelSource(
        "fake-model",
        Path("fake-model"),
        "safetensors",
        HFConfig({"architectures": ["Fake"], "vocab_size": VOCAB_SIZE}),
        generation_config,
    )


def make_config(
    *, model: dict[str, Any] | None = None, scheduler: dict[str, Any] | None = None, **door: Any
) -> Config:
    return Config(
        model=ModelConfig(**(model or {})),
        scheduler=SchedulerConfig(**(scheduler or {})),
        server=ServerConfig(**{"port": 0, **door}),
    )


@dataclass
class Served:
    """A running server and ways to reach into its thread."""

    url: str
    app: FastAPI
    client: FakeClient
    loop: asyncio.AbstractEventLoop

    @property
    def state(self) -> ServerState:
        return self.app.state.server

    def inside(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return self.inside(run())

    def http(self, **kwargs: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **kwargs)

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        with self.http() as http:
            return http.post(path, json=body, **kwargs)

    def openai(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def async_openai(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def metric(self, line: str) -> float:
        """The value of a sample, such as 'atom:engine_up'."""
        with self.http() as http:
            text = http.get("/metrics").text
        return next(float(x.rpartition(" ")[2]) for x in text.splitlines() if x.startswith(line))


@contextmanager
def serving(
    config: Config | None = None,
    client: FakeClient | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    source: ModelSource | None = None,
    ready: bool = True,
) -> Iterator[Served]:
    config = config or make_config()
    client = client or FakeClient()
    app = create_app(config, client, tokenizer or make_tokenizer(), source or make_source())  # type: ignore[arg-type]
    if ready:
        app.state.server.set_ready()
    listener = bind(config.server)
    url = url_of(listener)
    settings = uvicorn.Config(
        app,
        http=limited_protocol(config.server.max_header_bytes),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = QuietServer(settings)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(server.serve(sockets=[listener])), daemon=True
    )
    thread.start()  # the socket already listens: clients wait in its backlog
    try:
        yield Served(url, app, client, loop)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        loop.close()


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object; checks its shape."""
    body = response.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]

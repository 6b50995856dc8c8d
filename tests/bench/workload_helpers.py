"""Tokenizers and small servers for the tests of workloads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from atom.bench.types import Job, Target
from atom.bench.workloads.pool import STARTER, Pool, candidates
from atom.bench.workloads.tokens import Form


class FakeTokens:
    """Every candidate word is one token; overheads as given."""

    name = "fake"

    def __init__(self, ids: int = 0, text: int = 2, chat: int = 32) -> None:
        self.overheads: dict[Form, int] = {"ids": ids, "text": text, "chat": chat}
        words = candidates()
        self._pool = Pool(words, tuple(range(1000, 1000 + len(words))))
        self.asked = 0

    def pool(self) -> Pool:
        return self._pool

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Words of each text."""
        self.asked += len(texts)
        return [len(text.split()) for text in texts]

    def overhead(self, form: Form) -> int:
        return self.overheads[form]


_LETTERS = [*map(chr, range(32, 127)), "\n"]


def _corpus() -> list[str]:
    # Not all words, so that some of the candidates are several tokens.
    return [" ".join(candidates()[:1500])] * 3 + ["Text: I am, you are; it is.\n The end\n"] * 20


@lru_cache(maxsize=1)
def byte_bpe() -> tokenizers.Tokenizer:
    """A byte-level BPE as GPT's, without BOS."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2600, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    made.train_from_iterator(_corpus(), trainer)
    return made


@lru_cache(maxsize=1)
def newline_bpe() -> tokenizers.Tokenizer:
    """A byte-level BPE as Llama 3's or Qwen's: a full stop and the line's end are one token."""
    made = tokenizers.Tokenizer(models.BPE())
    cut = tokenizers.Regex(
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(cut, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([*_corpus(), "a.\nA b,\nB c;\nC d:\nD e?\nE f\nF" * 9], trainer)
    return made


@lru_cache(maxsize=1)
def sentence_bpe() -> tokenizers.Tokenizer:
    """One as Llama 2's: spaces are letters, a first one is added, text begins with BOS."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split("\u2581", "merged_with_next"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2600,
        initial_alphabet=_LETTERS,
        special_tokens=["<unk>", "<s>"],
        show_progress=False,
    )
    made.train_from_iterator(_corpus(), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


@lru_cache(maxsize=1)
def word_spanning() -> tokenizers.Tokenizer:
    """One whose tokens span words: no word keeps its token."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.FixedLength(length=3)
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=_LETTERS, show_progress=False)
    made.train_from_iterator(_corpus(), trainer)
    return made


@dataclass
class TokenServer:
    """What a server's API says about tokens. `dialect` of its /tokenize: vllm, llama or none."""

    tokenizer: tokenizers.Tokenizer
    dialect: str = "vllm"
    takes_ids: bool = True
    strips: bool = False  # the template trims contents, as Llama 3's
    limit: int | None = None  # tokens of a prompt
    usage: bool = True
    key: str | None = None
    url: str = ""
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def target(self, endpoint: str = "completions", **more: Any) -> Target:
        return Target(base_url=self.url, model="m", endpoint=endpoint, **more)  # type: ignore[arg-type]

    def prompt_tokens(self, path: str, body: dict[str, Any]) -> int:
        encode = self.tokenizer.encode
        if path == "/v1/completions":
            prompt = body["prompt"]
            return len(prompt) if isinstance(prompt, list) else len(encode(prompt).ids)
        total = 7 if body.get("chat_template_kwargs", {}).get("think") else 0
        for message in body["messages"]:
            text = message["content"].strip() if self.strips else message["content"]
            turn = f"I am {message['role']}\n{text}\n The end"
            total += len(encode(turn, add_special_tokens=False).ids)
        return total + 1

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.seen.append((path, body))
        if path == "/tokenize":
            return self._tokenize(body)
        if isinstance(body.get("prompt"), list) and not self.takes_ids:
            return 400, {"error": {"message": "prompt must be a text"}}
        tokens = self.prompt_tokens(path, body)
        if self.limit is not None and tokens > self.limit:
            return 400, {"error": {"message": f"{tokens} tokens exceed {self.limit}"}}
        return 200, {"usage": {"prompt_tokens": tokens}} if self.usage else {}

    def _tokenize(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.dialect == "none":
            return 404, {"error": {"message": "no such route"}}
        text = body.get("content", "") if self.dialect == "llama" else body.get("prompt")
        if not isinstance(text, str):
            return 400, {"error": {"message": "no prompt"}}
        return 200, {"tokens": self.tokenizer.encode(text, add_special_tokens=False).ids}


@contextlib.contextmanager
def serving(server: TokenServer) -> Iterator[TokenServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body leave together, or each answer waits 40 ms for an ACK

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                status, answer = 401, {"error": {"message": "wrong key"}}
            else:
                status, answer = server.answer(self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def request_of(job: Job) -> tuple[str, dict[str, Any]]:
    """Path and body of a job's first turn."""
    turn = job.turns[0]
    if turn.messages is not None:
        return "/v1/chat/completions", {"messages": turn.messages}
    return "/v1/completions", {"prompt": turn.prompt}


def digest(jobs: Sequence[Job]) -> str:
    return hashlib.sha256(msgspec.json.encode(jobs)).hexdigest()[:16]


def write_lines(path: Path, rows: Sequence[object]) -> str:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return str(path)


def words_of(text: str) -> list[str]:
    """The words of a synthetic text, without its begin."""
    head, *words = text.split(" ")
    assert head == STARTER
    return words

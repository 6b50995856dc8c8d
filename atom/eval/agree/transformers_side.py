"""transformers as a side: the model in a process of its own, the tokenizer here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from atom.eval.agree.types import Continuation, OnCount, Position, Prompt, Side
from atom.eval.errors import EvalError

PREFIX = "hf:"
DTYPES = ("float32", "bfloat16", "float16", "auto")
# It can tell every token's probability; so many are nearly always more than the other side tells.
WIDER = 5
STOP_S = 10.0


class Named(NamedTuple):
    """hf:PATH,dtype=...,device=..."""

    path: str
    dtype: str = "float32"
    device: str = "auto"


def parse(text: str) -> Named:
    """Raises `EvalError` for an option that is none."""
    path, *options = text.removeprefix(PREFIX).split(",")
    found = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in ("dtype", "device") or not value:
            raise EvalError(f"{text}: {option!r} is no option; write hf:PATH,dtype=..,device=..")
        found[key] = value
    named = Named(path, **found)
    if named.dtype not in DTYPES:
        raise EvalError(f"{text}: dtype {named.dtype} is none of {', '.join(DTYPES)}")
    if not path:
        raise EvalError("hf: needs a model's folder or its name on the hub: hf:PATH")
    return named


class TransformersSide:
    """See `atom.eval.agree.types.Model`; a context manager that ends the process."""

    def __init__(self, name: str, top_k: int, on_count: OnCount) -> None:
        self._named = parse(name)
        self._folder = _folder(self._named.path)
        self._count = on_count
        self._tokenizer = _tokenizer(self._folder)
        self._written = _written(self._tokenizer)
        self.texts: dict[int, str] = {}
        self.notes: list[str] = []
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the side
        command = [sys.executable, "-m", "atom.eval.agree.hf_process"]
        self._process = subprocess.Popen(
            [*command, str(self._folder), self._named.dtype, self._named.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            facts = self._read()
        except BaseException:
            self.close()
            raise
        self._eos = set(facts["eos"])
        self.side = Side(
            name=name,
            model=self._named.path,
            kind="transformers",
            version=facts["version"],
            precision=facts["dtype"],
            top_k=min(max(top_k * WIDER, 100), facts["vocab_size"]),
            max_model_len=facts["max_model_len"],
            details={"device": facts["device"]},
        )

    def __enter__(self) -> TransformersSide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def tokenize(self, texts: Sequence[str], special: bool = True) -> list[list[int]] | None:
        return [self._tokenizer.encode(text, special) for text in texts]

    def continue_(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Continuation]:
        answers = []
        for number, ids in enumerate(prompts, 1):
            told = self._ask({"continue": list(ids), "tokens": max_tokens, "top": self.side.top_k})
            positions = self._positions(told)
            chosen = [position.tokens[0] for position in positions]
            ended = bool(chosen) and chosen[-1] in self._eos
            text = self._tokenizer.decode([int(token) for token in chosen])
            answers.append(Continuation(text, positions, "stop" if ended else "length"))
            self._count("continued", number, len(prompts))
        return answers

    def output_ids(
        self, prompts: Sequence[Prompt], continued: Sequence[Continuation]
    ) -> tuple[list[list[int]], int]:
        return [[int(p.tokens[0]) for p in answer.positions] for answer in continued], 0

    def score(self, texts: Sequence[Sequence[int]]) -> list[list[Position]]:
        scored = []
        for number, ids in enumerate(texts, 1):
            scored.append(self._positions(self._ask({"score": list(ids), "top": self.side.top_k})))
            self._count("scored", number, len(texts))
        return scored

    def _positions(self, told: list[Any]) -> list[Position]:
        for tokens, _ in told:
            for token in tokens:
                if token not in self.texts:
                    self.texts[token] = self._written.string(token)
        return [Position(tokens, logprobs) for tokens, logprobs in told]

    def _ask(self, asked: dict[str, Any]) -> list[Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        told: list[Any] = self._read()
        return told

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        value = json.loads(line)
        if isinstance(value, dict) and "error" in value:
            raise EvalError(f"transformers cannot load {self._named.path}: {value['error']}")
        return value

    def _died(self) -> EvalError:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last = lines[-1].strip() if lines else "without a word"
        return EvalError(f"the process of hf:{self._named.path} ended with code {code}: {last}")


def _folder(path: str) -> Path:
    """A folder as it is; a hub's name as transformers' cache has it or fetches it."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        return Path(snapshot_download(path, allow_patterns=patterns))
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise EvalError(
            f"hf:{path} is no folder, and the hub does not give it ({said}); "
            "download the model and name its folder"
        ) from error


def _tokenizer(folder: Path) -> Any:
    from atom.config.schema import ModelConfig
    from atom.engine.text.tokenizer import load_tokenizer
    from atom.models.source import resolve_source

    return load_tokenizer(resolve_source(ModelConfig(model=str(folder))))


def _written(tokenizer: Any) -> Any:
    """Token texts as atom's server writes them."""
    from atom.server.logprobs import TokenText

    return TokenText(tokenizer)

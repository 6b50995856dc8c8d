"""Texts to token ids and back, and chats to prompts: by the server, or by files (--tokenizer)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from atom.bench.client.errand import Answer
from atom.errors import AtomError
from atom.eval.client.link import Link
from atom.eval.client.thread import in_parallel
from atom.eval.errors import EvalError
from atom.eval.types import Message, SpecialTokens

if TYPE_CHECKING:
    from atom.engine.text.chat_template import ChatTemplate
    from atom.engine.text.tokenizer import Tokenizer

T = TypeVar("T")

MOST_TEXTS = 256  # of one request
MOST_CHARACTERS = 200_000
NO_TOKENIZER = "name the model's tokenizer: --tokenizer FOLDER"


class Remote:
    """The tokenizer behind a server. Its methods run on the link's loop."""

    def __init__(self, link: Link, model: str, kind: str, server: str, concurrency: int) -> None:
        self._link = link
        self._model = model
        self._llama = kind == "llama.cpp"
        self._server = server
        self._concurrency = concurrency
        self._lists = kind == "atom"  # many texts in a request; given up when it is refused

    async def tokenize(
        self, texts: Sequence[str], add_special: bool, done: Callable[[int], None]
    ) -> list[list[int]]:
        """`done` is called with the number of texts of each answer."""
        wanted = list(dict.fromkeys(texts))
        known: dict[str, list[int]] = {}
        if not add_special:
            known[""] = []

        async def several(chunk: list[str]) -> None:
            if not self._lists:
                return
            answer = await self._post("/tokenize", self._body(chunk, add_special))
            if answer.status in (400, 422):
                self._lists = False
                return
            rows = self._rows(answer, len(chunk))
            known.update(zip(chunk, rows, strict=True))
            done(len(chunk))

        async def single(text: str) -> None:
            answer = await self._post("/tokenize", self._body(text, add_special))
            known[text] = self._rows(answer, None)[0]
            done(1)

        chunks = _chunks([text for text in wanted if text not in known])
        await several(chunks[0]) if chunks else None  # refused: known before many are sent
        await in_parallel(several, chunks[1:], self._concurrency)
        await in_parallel(single, (t for t in wanted if t not in known), self._concurrency)
        return [known[text] for text in texts]

    def _body(self, prompt: str | list[str], add_special: bool) -> dict[str, Any]:
        if self._llama:
            return {"content": prompt, "add_special": add_special, "parse_special": True}
        return {"model": self._model, "prompt": prompt, "add_special_tokens": add_special}

    async def _post(self, path: str, body: Mapping[str, Any]) -> Answer:
        answer = await self._link.post(path, msgspec.json.encode(body))
        if answer.status in (404, 405, 501):
            raise EvalError(f"{self._server} has no {path}: {NO_TOKENIZER}")
        return answer

    def _rows(self, answer: Answer, count: int | None) -> list[list[int]]:
        """Of `count` texts that were sent as a list, or of a single one (None)."""
        tokens = _member(answer, "tokens")
        try:
            rows = msgspec.convert(tokens if count is not None else [tokens], list[list[int]])
        except msgspec.ValidationError:
            rows = []
        if answer.status != 200 or len(rows) != (1 if count is None else count):
            raise self._refused("/tokenize", answer)
        return rows

    def _refused(self, path: str, answer: Answer) -> EvalError:
        return EvalError(f"{self._server}: {path} gave HTTP {answer.status}: {answer.error}")

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        body: dict[str, Any] = {"tokens": list(token_ids)}
        if not self._llama:
            body["model"] = self._model
        answer = await self._post("/detokenize", body)
        text = _member(answer, "content" if self._llama else "prompt")
        if answer.status != 200 or not isinstance(text, str):
            raise self._refused("/detokenize", answer)
        return text

    async def chat_prompt(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """By way of the tokens, where the server does not tell its template."""
        body = {
            "model": self._model,
            "messages": list(messages),
            "add_generation_prompt": generation_prompt,
            "continue_final_message": not generation_prompt,
            "add_special_tokens": False,
        }
        answer = await self._post("/tokenize", body)
        return await self.detokenize(self._rows(answer, None)[0])

    async def special_tokens(self) -> tuple[SpecialTokens, dict[str, str]]:
        """And the spellings: "bos_token" -> "<s>"."""
        answer = await self._link.get("/tokenizer_info")
        info = answer.json if answer.status == 200 else None
        if not isinstance(info, dict):
            return SpecialTokens(await self._seen_bos(), None), {}
        named = {k: t for k in ("bos_token", "eos_token") if (t := _spelling(info.get(k)))}
        ids = {name: await self._only_id(text) for name, text in named.items()}
        template = info.get("chat_template")
        return (
            SpecialTokens(
                ids["bos_token"] if "bos_token" in ids else await self._seen_bos(),
                ids.get("eos_token"),
                template if isinstance(template, str) and template else None,
            ),
            named,
        )

    async def _only_id(self, text: str) -> int | None:
        rows = await self.tokenize([text], False, lambda _: None)
        return rows[0][0] if len(rows[0]) == 1 else None

    async def _seen_bos(self) -> int | None:
        """What the tokenizer puts before a text."""
        bare = (await self.tokenize(["a"], False, lambda _: None))[0]
        whole = (await self.tokenize(["a"], True, lambda _: None))[0]
        return whole[0] if whole[1 : 1 + len(bare)] == bare and whole != bare else None


class Local:
    """A tokenizer in files: a folder, its tokenizer.json, or a GGUF file. Raises `EvalError`."""

    def __init__(self, path: Path) -> None:
        from atom.engine.text.tokenizer import Tokenizer

        parts = _said(lambda: _read(path))
        if parts is None:
            raise EvalError(f"--tokenizer {path}: there is no tokenizer (tokenizer.json)")
        self.path = path
        self.spellings: dict[str, str] = parts.special_tokens
        self._templates: dict[str, str] = parts.templates
        self._eos = parts.eos_token_id
        self._tokenizer: Tokenizer = Tokenizer(parts)

    def tokenize(self, texts: Sequence[str], add_special: bool) -> list[list[int]]:
        encode = self._tokenizer.encode
        return _said(lambda: [encode(text, add_special) for text in texts])

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return _said(lambda: self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def special_tokens(self) -> SpecialTokens:
        bos = self._tokenizer.bos_token_id
        return SpecialTokens(bos, self._eos, self._templates.get("default"))


def render(
    template: str, spellings: Mapping[str, str], messages: Sequence[Message], opens: bool
) -> str:
    """As transformers does it. `opens`: with the start of the assistant's answer; else up to the
    end of the last message, which is to be continued."""
    compiled = _compiled(template, tuple(spellings.items()))
    text = _said(lambda: compiled.render(messages, opens))
    if opens:
        return text
    content = str(messages[-1].get("content") or "")
    for ending in (content, content.strip()):
        place = text.rfind(ending) if ending else -1
        if place >= 0:
            return text[: place + len(ending)]
    raise EvalError("the chat template changes the last message, so that it cannot be continued")


@lru_cache(maxsize=8)  # a task renders it for each of its documents
def _compiled(template: str, spellings: tuple[tuple[str, str], ...]) -> ChatTemplate:
    from atom.engine.text.chat_template import ChatTemplate

    return _said(lambda: ChatTemplate(template, dict(spellings)))


def _read(path: Path) -> Any:
    from atom.engine.text.gguf_tokenizer import tokenizer_from_gguf
    from atom.engine.text.hf_tokenizer import tokenizer_from_directory
    from atom.models.gguf import GGUFFile

    if not path.exists():
        raise EvalError(f"--tokenizer {path}: there is no such file or folder")
    if path.is_dir():
        return tokenizer_from_directory(path)
    if path.name == "tokenizer.json":
        return tokenizer_from_directory(path.parent)
    if path.suffix == ".gguf":
        return tokenizer_from_gguf(GGUFFile(path))
    raise EvalError(f"--tokenizer {path}: name a folder, a tokenizer.json or a .gguf file")


def _said(work: Callable[[], T]) -> T:
    """What the engine's text part refuses is an error of the evaluation."""
    try:
        return work()
    except EvalError:
        raise
    except AtomError as error:
        raise EvalError(str(error)) from None


def _chunks(texts: Sequence[str]) -> list[list[str]]:
    """Not more than a server takes in one body."""
    out: list[list[str]] = []
    room = 0
    for text in texts:
        if not out or len(out[-1]) == MOST_TEXTS or len(text) > room:
            out.append([])
            room = MOST_CHARACTERS
        out[-1].append(text)
        room -= len(text)
    return out


def _member(answer: Answer, name: str) -> Any:
    said = answer.json
    return said.get(name) if isinstance(said, dict) else None


def _spelling(token: Any) -> str | None:
    """vLLM gives a text, others transformers' object with its content."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None

"""`LLM`: the engine in this process, from prompts to texts. No HTTP, no second process."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from atom.config import resolve_arguments
from atom.config.schema import Config
from atom.engine import startup
from atom.engine.admission import check_fits, fan_out
from atom.engine.core import EngineCore, EngineRunner
from atom.engine.messages import GenerateRequest, TokenChunk, TokenLogprobs
from atom.engine.sampling_defaults import SamplingDefaults
from atom.engine.sampling_params import SamplingParams
from atom.engine.text.detokenizer import Detokenizer
from atom.engine.text.tokenizer import Tokenizer, load_tokenizer
from atom.errors import RequestError
from atom.models.source import ModelSource, resolve_source

log = logging.getLogger("atom.engine")

# Nobody reads along: without stop strings, tokens become text this many at a time.
_TEXT_BATCH = 16

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


@dataclass(slots=True)
class CompletionOutput:
    """One choice. `stop_reason` is the stop string or stop token id that ended it, if one did."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None  # "stop" or "length"
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None


@dataclass(slots=True)
class RequestOutput:
    """What became of one prompt. Durations are seconds since it was queued, tpot_s per token."""

    prompt: str | None  # None if token ids were given
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    ttft_s: float = 0.0  # to the first token of any choice
    tpot_s: float = 0.0  # mean time per token after the first, over the choices
    latency_s: float = 0.0  # to the end of the last choice


class LLM:
    """A model, ready to generate. Settings are the configuration's names, for example
    `LLM("model-id", max_model_len=4096, dtype="float32")`; without a model, the embedded one.

    Raises `AtomError` in one line for whatever the caller can mend. Close it, or use it as a
    context manager, to give the memory back.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        config = _offline(resolve_arguments({"model": model, **settings}, os.environ))
        source = resolve_source(config.model)
        tokenizer = load_tokenizer(source, config.model.tokenizer, config.model.chat_template)
        # Imported here: it brings torch.
        began = time.monotonic()
        from atom.engine.runner.tp import make_runner

        before_s = {"import": time.monotonic() - began}
        self._set_up(config, source, tokenizer, make_runner(config, source), before_s)
        for line in startup.report(self._core.info):
            log.info("%s", line)

    def _set_up(
        self,
        config: Config,
        source: ModelSource,
        tokenizer: Tokenizer,
        runner: EngineRunner,
        before_s: Mapping[str, float] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        architecture = source.config.architecture
        self._core = EngineCore(
            config, runner, model=source.name, architecture=architecture, before_s=before_s
        )
        own = config.model.generation_config == "auto"
        values = source.generation_config if own else {}
        self._defaults = SamplingDefaults.from_generation_config(values)
        self._ids = itertools.count()

    @property
    def core(self) -> EngineCore:
        """The engine: its `info`, `stats()` and utilities."""
        return self._core

    def default_sampling(self, **fields: Any) -> SamplingParams:
        """The model's own sampling defaults, with `fields` in their place."""
        return SamplingParams(**{**self._defaults._asdict(), **fields})

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Complete one prompt or many: texts or lists of token ids. Outputs keep their order.

        `sampling` is for all prompts or one for each; None means the model's defaults. Raises
        `RequestError` before anything runs if one of them is wrong.
        """
        many = _as_list(prompts)
        chosen = self._per_prompt(sampling, len(many))
        jobs = []
        for index, (prompt, params) in enumerate(zip(many, chosen, strict=True)):
            with _naming(index, len(many)):
                jobs.append(self._prepare(prompt, params))
        self._run(jobs, progress)
        return [job.output for job in jobs]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        progress: bool = False,
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, rendered with the model's chat template."""
        single = bool(messages) and isinstance(messages[0], Mapping)
        chats: list[Any] = [messages] if single else list(messages)
        prompts: list[list[int]] = []
        texts: list[str] = []
        for index, chat in enumerate(chats):
            with _naming(index, len(chats), "messages"):
                text = self.tokenizer.apply_chat_template(
                    chat, add_generation_prompt, **template_variables
                )
            texts.append(text)
            prompts.append(self.tokenizer.encode(text, add_special_tokens=False))
        outputs = self.generate(prompts, sampling, progress=progress)
        for output, text in zip(outputs, texts, strict=True):
            output.prompt = text
        return outputs

    def close(self) -> None:
        self._core.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one call -------------------------------------------------------------------------------

    def _per_prompt(
        self, sampling: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if sampling is None:
            return [self.default_sampling()] * count
        if isinstance(sampling, SamplingParams):
            return [sampling] * count
        if len(sampling) != count:
            raise RequestError(
                f"{len(sampling)} sampling parameters for {count} prompts: give one, or one each",
                param="sampling",
            )
        return list(sampling)

    def _prepare(self, prompt: Prompt, sampling: SamplingParams) -> _Job:
        info = self._core.info
        text = prompt if isinstance(prompt, str) else None
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        sampling.validate(info.vocab_size)
        if sampling.stop and not self.tokenizer.has_text:
            raise RequestError("stop needs a tokenizer, and this model has none", param="stop")
        check_fits(len(token_ids), sampling, info)
        self._core.check_prompt(token_ids)
        requests = fan_out(f"llm-{next(self._ids)}", token_ids, sampling)
        return _Job(text, token_ids, requests, self.tokenizer)

    def _run(self, jobs: list[_Job], progress: bool) -> None:
        choices = {c.request.request_id: c for job in jobs for c in job.choices}
        try:
            with _progress(len(jobs), progress) as advance:
                self._queue(choices, advance)
                while choices:
                    self._step(choices, advance)
        finally:  # an error or an interrupt leaves nothing of this call behind
            self._core.abort(list(choices))
            while self._core.has_work:
                self._core.step()

    def _queue(self, choices: dict[str, _Choice], advance: Callable[[], None]) -> None:
        """Add all of them. A device that works by itself gets the first step as soon as its prompts
        are there, and the rest are hashed and queued meanwhile."""
        alone = self._core.overlap
        tokens, enough = 0, self._core.info.max_num_batched_tokens
        for choice in list(choices.values()):
            self._core.add(choice.request)
            tokens += len(choice.request.prompt_token_ids)
            if alone and tokens >= enough:
                alone = False
                self._step(choices, advance)

    def _step(self, choices: dict[str, _Choice], advance: Callable[[], None]) -> None:
        stopped = []
        for chunk in self._core.step():
            choice = choices.get(chunk.request_id)
            if choice is None:
                continue  # it ended with a stop string; this is what was under way
            choice.take(chunk)
            if choice.output.finish_reason is None:
                continue
            del choices[chunk.request_id]
            if chunk.finish_reason is None:
                stopped.append(chunk.request_id)
            if choice.job.settle():
                advance()
        if stopped:
            self._core.abort(stopped)


class _Job:
    """One prompt on its way through a call."""

    def __init__(
        self,
        prompt: str | None,
        token_ids: list[int],
        requests: list[GenerateRequest],
        tokenizer: Tokenizer,
    ) -> None:
        self.queued_t = time.monotonic()
        self.choices = [_Choice(self, i, r, tokenizer) for i, r in enumerate(requests)]
        self.output = RequestOutput(prompt, token_ids, [c.output for c in self.choices])

    def settle(self) -> bool:
        """When the last choice has ended, the request's own figures; returns whether it has."""
        if any(choice.output.finish_reason is None for choice in self.choices):
            return False
        output, now = self.output, time.monotonic()
        output.prompt_logprobs = self.choices[0].prompt_logprobs
        output.num_cached_tokens = self.choices[0].num_cached_tokens
        output.latency_s = now - self.queued_t
        output.ttft_s = min(choice.first_t or now for choice in self.choices) - self.queued_t
        rest = sum(max(0, len(choice.output.token_ids) - 1) for choice in self.choices)
        spans = sum(choice.last_t - choice.first_t for choice in self.choices)
        output.tpot_s = spans / rest if rest else 0.0
        return True


class _Choice:
    """One sequence: tokens in, text out."""

    def __init__(
        self, job: _Job, index: int, request: GenerateRequest, tokenizer: Tokenizer
    ) -> None:
        sampling = request.sampling
        self.job = job
        self.request = request
        self.output = CompletionOutput(index, logprobs=None if sampling.logprobs is None else [])
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.num_cached_tokens = 0
        self.first_t = self.last_t = 0.0
        self._texts: list[str] = []
        self._unread: list[int] = []  # tokens that are not in `_texts` yet
        self._watches = bool(sampling.stop)  # a stop string must be seen at once
        self._detokenizer = Detokenizer(
            tokenizer,
            request.prompt_token_ids,
            sampling.stop,
            sampling.skip_special_tokens,
            sampling.include_stop_str_in_output,
            sampling.min_tokens,
        )

    def take(self, chunk: TokenChunk) -> None:
        assert chunk.finish_reason not in ("error", "abort"), chunk
        if chunk.prompt_logprobs is not None:
            self.prompt_logprobs = chunk.prompt_logprobs
        if chunk.num_cached_tokens:
            self.num_cached_tokens = max(self.num_cached_tokens, chunk.num_cached_tokens)
        tokens, output = chunk.token_ids, self.output
        if tokens:
            self.last_t = time.monotonic()
            self.first_t = self.first_t or self.last_t
        self._unread += tokens
        used = len(tokens)
        if chunk.finish_reason or self._watches or len(self._unread) >= _TEXT_BATCH:
            used = self._read(chunk)
        output.token_ids += tokens if used == len(tokens) else tokens[:used]
        if output.logprobs is not None:
            output.logprobs += (chunk.logprobs or [])[:used]
        if output.finish_reason is not None:
            output.text = "".join(self._texts)

    def _read(self, chunk: TokenChunk) -> int:
        """Turn what has come into text; returns how many of the chunk's tokens count."""
        output, used = self.output, len(chunk.token_ids)
        # A token that ended the sequence is no text, unless it was asked for.
        hidden = (
            chunk.stop_token_id is not None and not self.request.sampling.include_stop_str_in_output
        )
        delta = self._detokenizer.push(self._unread[:-1] if hidden else self._unread)
        self._unread.clear()
        self._texts.append(delta.text)
        if delta.stop_str is not None:
            used = delta.num_tokens_used
            output.finish_reason, output.stop_reason = "stop", delta.stop_str
        elif chunk.finish_reason is not None:
            self._texts.append(self._detokenizer.finish())
            output.finish_reason, output.stop_reason = chunk.finish_reason, chunk.stop_token_id
            if self._detokenizer.stop_str is not None:
                output.finish_reason, output.stop_reason = "stop", self._detokenizer.stop_str
        return used


def _offline(config: Config) -> Config:
    """Nobody watches a stream here: `policy` auto means throughput."""
    if config.scheduler.policy != "auto":
        return config
    scheduler = dataclasses.replace(config.scheduler, policy="throughput")
    return dataclasses.replace(config, scheduler=scheduler)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


@contextmanager
def _naming(index: int, count: int, what: str = "prompts") -> Iterator[None]:
    """With several prompts, an error says which one it is about."""
    try:
        yield
    except RequestError as error:
        if count > 1:
            error.args = (f"{what}[{index}]: {error}",)
        raise


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar on stderr that counts finished prompts; yields what advances it."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("generating"), *Progress.get_default_columns()[1:2])
    with Progress(
        *columns, MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("generating", total=total)
        yield lambda: bar.advance(task)

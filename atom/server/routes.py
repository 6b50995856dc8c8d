"""The routes: what each reads, and who answers."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from atom._version import __version__
from atom.server import openapi
from atom.server.body import read_object
from atom.server.errors import bad_request
from atom.server.middleware import request_id
from atom.server.prepare import chat_job, completion_job
from atom.server.prompts import check_prompts
from atom.server.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    TokenizeBody,
    parse,
)
from atom.server.respond import GenerationResponse, Job
from atom.server.sampling import check_caps
from atom.server.state import Phase, ServerState, Ticket
from atom.server.tokens import tokenizer_facts, tokens_of

B = TypeVar("B", bound=BaseModel)


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()
    _add_generation(router, state)
    _add_tokens(router, state)
    _add_models(router, state)
    _add_status(router, state)
    _add_profiler(router, state)
    return router


async def _read(request: Request, model: type[B], state: ServerState) -> B:
    state.require_ready()
    body = await read_object(request, state.config.server.max_body_bytes)
    parsed = parse(model, body)
    state.resolve_model(getattr(parsed, "model", None))
    return parsed


def _note_user(request: Request, body: GenerationBody) -> None:
    """Who asked, for the access log."""
    noted = {"user": body.user, "safety_identifier": getattr(body, "safety_identifier", None)}
    request.scope["atom.noted"] = {k: v for k, v in noted.items() if v is not None}


def _add_generation(router: APIRouter, state: ServerState) -> None:
    limits = state.config.server

    def respond(request: Request, job: Job, ticket: Ticket) -> Response:
        return GenerationResponse(state, job, ticket, request_id(request.scope))

    @router.post("/v1/completions", **openapi.generation("completions", CompletionBody))
    async def completions(request: Request) -> Response:
        """Continue a prompt."""
        arrival = time.perf_counter()
        body = await _read(request, CompletionBody, state)
        _note_user(request, body)
        check_caps(body, limits)
        prompts = check_prompts(body.prompt, limits.max_prompts, state.info.vocab_size)
        ticket = state.admission.admit(len(prompts) * (body.n or 1))
        try:
            return respond(request, await completion_job(state, body, prompts, arrival), ticket)
        except BaseException:
            ticket.release()
            raise

    @router.post("/v1/chat/completions", **openapi.generation("chat", ChatBody))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        arrival = time.perf_counter()
        body = await _read(request, ChatBody, state)
        _note_user(request, body)
        check_caps(body, limits)
        ticket = state.admission.admit(body.n or 1)
        try:
            return respond(request, await chat_job(state, body, arrival), ticket)
        except BaseException:
            ticket.release()
            raise


def _add_tokens(router: APIRouter, state: ServerState) -> None:
    @router.post("/tokenize", **openapi.plain("tokenize", TokenizeBody))
    async def tokenize_text(request: Request) -> Response:
        """The token ids of a text, of several texts, or of a conversation."""
        body = await _read(request, TokenizeBody, state)
        return _json(await tokens_of(state, body))

    @router.post("/detokenize", **openapi.plain("detokenize", DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        """The text of token ids."""
        body = await _read(request, DetokenizeBody, state)
        size = state.info.vocab_size
        for place, token_id in enumerate(body.tokens):
            if token_id >= size:
                raise bad_request(f"tokens[{place}] must be a token id in [0, {size}).", "tokens")
        text = state.tokenizer.decode(body.tokens, bool(body.skip_special_tokens))
        return _json({"prompt": text})

    @router.get("/tokenizer_info", **openapi.plain("tokenizer_info"))
    async def tokenizer_info() -> Response:
        """The special tokens and the chat template of the model."""
        state.require_started()
        return _json(tokenizer_facts(state))


def _add_models(router: APIRouter, state: ServerState) -> None:
    def card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": state.created,
            "owned_by": "atom",
            "root": state.names[0],
            "max_model_len": state.info.max_model_len,
        }

    @router.get("/v1/models", **openapi.plain("models"))
    async def models() -> Response:
        """The served models."""
        state.require_started()
        return _json({"object": "list", "data": [card(name) for name in state.names]})

    @router.get("/v1/models/{model:path}", **openapi.plain("model"))
    async def model(model: str) -> Response:
        """One served model."""
        state.require_started()
        return _json(card(state.resolve_model(model)))


def _add_status(router: APIRouter, state: ServerState) -> None:
    @router.get("/health", **openapi.plain("health"))
    async def health() -> Response:
        """Whether the process lives: 200 unless the engine has died."""
        if state.phase is Phase.DEAD:
            state.require_ready()
        return _json({"status": "ok"})

    @router.get("/ready", **openapi.plain("ready"))
    async def ready() -> Response:
        """Whether new requests are taken: 503 while starting, draining or dead."""
        state.require_ready()
        return _json({"status": "ready"})

    @router.get("/metrics", **openapi.metrics())
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(
            state.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @router.get("/version", **openapi.plain("version"))
    async def version() -> Response:
        """The version of atom."""
        return _json({"version": __version__})


def _add_profiler(router: APIRouter, state: ServerState) -> None:
    @router.post("/start_profile", **openapi.profile("start_profile"))
    async def start_profile() -> Response:
        """Record the engine's steps from now on (--torch-profiler-dir)."""
        state.require_ready()
        return _json({"status": "profiling", "directory": await state.profiler.start()})

    @router.post("/stop_profile", **openapi.profile("stop_profile"))
    async def stop_profile() -> Response:
        """Stop recording; answers when the traces are complete."""
        state.require_started()
        return _json({"traces": await state.profiler.stop()})

"""Puts the application together: routes, keys, CORS, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from atom._version import __version__
from atom.config.schema import Config
from atom.errors import AtomError
from atom.server import openapi
from atom.server.errors import ApiError, from_exception
from atom.server.middleware import Observe, RequireKey
from atom.server.routes import make_router
from atom.server.sampling import SamplingDefaults
from atom.server.state import ServerState

if TYPE_CHECKING:
    from atom.engine.client import EngineClient
    from atom.engine.text.tokenizer import Tokenizer
    from atom.models.source import ModelSource


def make_state(
    config: Config, client: EngineClient, tokenizer: Tokenizer, source: ModelSource
) -> ServerState:
    """Raises `ModelError` for a generation config that cannot be sampled with."""
    defaults = SamplingDefaults()
    if config.model.generation_config == "auto":
        defaults = SamplingDefaults.from_generation_config(source.generation_config)
    names = config.model.served_model_name or (source.name,)
    return ServerState(config, client, tokenizer, names, defaults)


def create_app(
    config: Config, client: EngineClient, tokenizer: Tokenizer, source: ModelSource
) -> FastAPI:
    """The application; `app.state.server` is its `ServerState`, which starts as not ready."""
    state = make_state(config, client, tokenizer, source)
    app = FastAPI(
        title="atom",
        version=__version__,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = state
    app.include_router(make_router(state))
    openapi.install(app, state)
    app.add_exception_handler(HTTPException, _on_http_error)
    for kind in (ApiError, AtomError):
        app.add_exception_handler(kind, _on_known_error)
    # The last one added is the outermost.
    if config.server.api_key:
        app.add_middleware(RequireKey, keys=config.server.api_key)
    if config.server.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.server.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Observe, state=state)
    return app


async def _on_known_error(_: Request, error: Exception) -> Response:
    known = from_exception(error)
    assert known is not None
    return known.response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405 in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:200]}"
    match error.status_code:
        case 404:
            message, code = f"There is no route {what}.", "unknown_url"
        case 405:
            allowed = (error.headers or {}).get("Allow", "")
            message, code = f"{what} is not possible here; allowed: {allowed}.", "bad_method"
        case _:
            message, code = error.detail, "http_error"
    return ApiError(error.status_code, message, code=code, headers=error.headers).response()

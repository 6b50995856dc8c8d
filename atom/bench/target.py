"""What was asked for becomes the server that is spoken to: the request, its key, its `Target`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atom.bench.client import ServerInfo, probe
from atom.bench.settings import Settings
from atom.bench.types import Target
from atom.config import resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for, beside the settings."""

    settings: Settings
    recipe: Path | None = None
    history: Path | None = None
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def own_server(self) -> bool:
        """Whether the recipe's server is started here."""
        return self.recipe is not None and self.settings.base_url is None


def ask(request: Request, base_url: str) -> ServerInfo:
    """Who is there; raises `ServerUnreachable`."""
    server = request.settings.config.server
    return probe(
        base_url,
        api_key(request),
        headers=request.settings.headers,
        model=server.model,
        verify_tls=server.verify_tls,
    )


def make_target(request: Request, base_url: str, info: ServerInfo) -> Target:
    server = request.settings.config.server
    return Target(
        base_url=base_url,
        model=info.model,
        endpoint=request.settings.endpoint(),
        api_key=api_key(request),
        headers=request.settings.headers,
        extra_body=request.settings.extra_body,
        ignore_eos=request.settings.ignore_eos(),
        temperature=server.temperature,
        timeout_s=server.timeout_s,
        continuous_usage=server.continuous_usage,
        verify_tls=server.verify_tls,
    )


def api_key(request: Request) -> str | None:
    """As asked, else the recipe's or ATOM_API_KEY's first, else OPENAI_API_KEY."""
    asked = request.settings.config.server.api_key
    if asked is not None:
        return asked
    recipe = request.recipe if request.own_server else None
    keys = resolve(recipe, request.env).server.api_key
    if keys:
        return keys[0]
    return request.env.get("OPENAI_API_KEY") or None


def short_model(model: str) -> str:
    """llama.cpp calls a model by its file's whole path."""
    return Path(model).name if model.startswith("/") else model


def describe_server(info: ServerInfo) -> str:
    """For people: "vllm 0.11.0", "a server of unknown make"."""
    if info.kind == "unknown":
        return "a server of unknown make"
    return f"{info.kind} {info.version or ''}".strip()

"""What every tool that speaks to a server asks about it, declared once."""

from __future__ import annotations

from dataclasses import dataclass

from atom.config.schema import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlace:
    """The server, and how it is spoken to."""

    base_url: str | None = setting(
        None,
        "The server, without /v1 (default: http://127.0.0.1:8000, or the recipe's own)",
        aliases=("--url",),
    )
    model: str | None = setting(
        None, "Model to ask for (default: the only one the server has)", aliases=("-m",)
    )
    api_key: str | None = setting(
        None,
        "The server's key (default: ATOM_API_KEY, then OPENAI_API_KEY)",
        secret=True,
    )
    header: tuple[str, ...] = setting(
        (), "A header for every request, NAME=VALUE or 'NAME: VALUE'", secret=True
    )
    verify_tls: bool = setting(True, "Check the certificate of an https server")
    timeout_s: float = setting(600.0, "Longest time of one request", gt=0, aliases=("--timeout",))
    ready_timeout_s: float | None = setting(
        None,
        "How long a server may take to answer (default: 1200 for a recipe's own, 0 for a running "
        "one)",
        ge=0,
        aliases=("--ready-check-timeout-sec",),
    )
    num_gpus: int | None = setting(
        None, "GPUs the server uses (default: those of this machine that are in use)", ge=0
    )
    server_args: str | None = setting(
        None, "More flags of atom serve for the recipe's server, in one text"
    )

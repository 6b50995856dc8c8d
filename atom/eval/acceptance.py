"""Speculative decoding during an evaluation: how many of the draft tokens the model took.

A model whose drafts are never accepted answers as well as ever, only slowly: no score shows it. So
the server's counters are read before and after, and the share stands beside the scores. Figures
that the server does not tell are absent, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from atom.eval.types import Endpoint

Scrape = Callable[[Endpoint], Mapping[str, float]]


def scrape(endpoint: Endpoint) -> dict[str, float]:
    """The server's counters as they are now; empty where it has no metrics page."""
    from atom.bench.client import server_metrics

    return server_metrics(
        endpoint.base_url, endpoint.api_key, endpoint.headers, verify_tls=endpoint.verify_tls
    )


def figures(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What happened between two scrapes, by the names of `atom.bench.names`."""
    from atom.bench.client import delta

    return delta(before, after) if before and after else {}


def told(server: Mapping[str, float]) -> str:
    """In words for people; "" where nothing was speculated."""
    share, length = server.get("acceptance_rate"), server.get("accept_length")
    parts = []
    if share is not None:
        parts.append(f"{share:.1%} of the draft tokens accepted")
    if length is not None:
        parts.append(f"{length:.2f} tokens per forward pass")
    return ", ".join(parts)


def problem(least: float | None, server: Mapping[str, float]) -> str:
    """Why the share of accepted draft tokens is not good enough; "" if it is, or was not asked."""
    if least is None:
        return ""
    found = server.get("acceptance_rate")
    if found is None:
        return (
            f"--min-acceptance {least:g}: the server's metrics page tells nothing about draft "
            "tokens, so it is not met"
        )
    if found >= least:
        return ""
    return f"accepted draft tokens: {found:.1%}, at least {least:.1%} are asked for"

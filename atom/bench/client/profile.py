"""The server's profiler around a run: POST /start_profile and /stop_profile."""

from __future__ import annotations

from typing import Any, Literal

from atom.bench.client.errand import Errand
from atom.bench.errors import BenchError
from atom.bench.types import Target

STOP_TIMEOUT_S = 600.0  # a server answers when its traces are written


def profile(target: Target, action: Literal["start", "stop"]) -> dict[str, Any]:
    """Start or stop the profiler; returns what the server says, e.g. {"traces": [paths]}.

    Raises `BenchError` if the server has no profiler or it is off (with how to enable it), or if
    it refuses; `ServerUnreachable` if nobody answers.
    """
    errand = Errand(
        target.base_url,
        target.api_key,
        target.headers,
        verify_tls=target.verify_tls,
        timeout_s=STOP_TIMEOUT_S,
    )
    answer = errand.post(f"/{action}_profile", {})
    if answer.status in (404, 405):
        raise BenchError(
            f"the server at {errand.url} has no profiler to {action} (HTTP {answer.status}); start "
            "it with --torch-profiler-dir DIR (atom; vLLM: --profiler-config or "
            "VLLM_TORCH_PROFILER_DIR; SGLang: SGLANG_TORCH_PROFILER_DIR)"
        )
    if answer.status != 200:
        raise BenchError(
            f"the server at {errand.url} did not {action} its profiler "
            f"(HTTP {answer.status}): {answer.error}"
        )
    said = answer.json
    if isinstance(said, dict):
        return said
    text = answer.body.decode("utf-8", "replace").strip()
    return {"message": text} if text else {}

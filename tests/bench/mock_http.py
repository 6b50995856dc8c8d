"""The mock's HTTP: reading requests, the routes that are not generation, answers with a length."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from mock_behaviour import Behaviour
from mock_stream import VOCAB_SIZE, Ask, chat_text, decode, encode

if TYPE_CHECKING:
    from mock_server import MockServer


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def read_request(data: bytearray) -> Request | None:
    """The first request in `data`, taken off it; None while it is incomplete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = bytes(data[:end]).decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    size = end + 4 + int(headers.get("content-length", 0))
    if len(data) < size:
        return None
    body = bytes(data[end + 4 : size])
    del data[:size]
    return Request(method, path.partition("?")[0], headers, body)


def answer(status: int, kind: str, body: bytes = b"", mime: str = "application/json") -> bytes:
    if kind == "html":
        body, mime = b"<html><body>It works!</body></html>", "text/html"
    elif status != 200 and not body:
        body = error_body(status, "the mock refuses this one")
    phrase = HTTPStatus(status).phrase
    head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: {mime}\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def error_body(status: int, message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "mock", "code": status}}).encode()


def _json(value: Any) -> bytes:
    return answer(200, "", json.dumps(value).encode())


def _refuse(status: int, message: str) -> bytes:
    return answer(status, "", error_body(status, message))


def route(server: MockServer, request: Request) -> bytes | Ask:
    """The answer, or what is asked to be generated."""
    b, path = server.behaviour, request.path
    locked = path.startswith("/v1/") and b.key is not None
    if locked and request.headers.get("authorization") != f"Bearer {b.key}":
        return _refuse(401, "Incorrect API key provided.")
    if request.method == "GET":
        return _get(server, b, path)
    if request.method != "POST":
        return _refuse(405, "Method not allowed")
    if path in ("/start_profile", "/stop_profile") and b.profiler:
        return _profile(server, path)
    try:
        body = json.loads(request.body) if request.body else {}
    except ValueError as error:
        return _refuse(400, f"The body is not JSON: {error}")
    if path in ("/v1/completions", "/v1/chat/completions"):
        return _ask(server, path, body)
    if b.tokenize and path in ("/tokenize", "/detokenize"):
        return _tokens(b, path, body)
    return _refuse(404, "Not Found")


def _profile(server: MockServer, path: str) -> bytes:
    running = bool(server.profiling) and server.profiling[-1] == "/start_profile"
    if running == (path == "/start_profile"):
        return _refuse(409, "A profile is running." if running else "No profile is running.")
    server.profiling.append(path)
    return _json({"traces": ["rank_0/mock.pt.trace.json.gz"]} if running else {"status": "started"})


def _get(server: MockServer, b: Behaviour, path: str) -> bytes:
    if path in ("/health", "/ready", "/mock/health"):
        return _json({"status": "ok"})
    if path == "/v1/models":
        card: dict[str, Any] = {"id": b.model, "object": "model", "created": 1700000000}
        card["owned_by"] = {"llama.cpp": "llamacpp"}.get(b.kind, b.kind)
        if b.kind == "llama.cpp":
            card["meta"] = {"n_ctx_train": b.max_model_len}
        elif b.kind != "unknown":
            card["max_model_len"] = b.max_model_len
        return _json({"object": "list", "data": [card]})
    if path == "/version" and b.kind in ("atom", "vllm"):
        return _json({"version": "9.9.9"})
    if path == "/props" and b.kind == "llama.cpp":
        settings = {"n_ctx": b.max_model_len}
        return _json({"build_info": "b9999", "default_generation_settings": settings})
    if path == "/get_server_info" and b.kind == "sglang":
        return _json({"version": "9.9.9", "internal_states": [{"avg_spec_accept_length": 1.0}]})
    if path == "/metrics" and b.kind != "unknown":
        return answer(200, "", _metrics(server, b).encode(), "text/plain; version=0.0.4")
    return _refuse(404, "Not Found")


def _metrics(server: MockServer, b: Behaviour) -> str:
    """Counters under the names of the server that is resembled."""
    counters = server.counters
    total = {name: counters.get(name, 0.0) for name in ("requests", "queue_s", "prompt")}
    hits = (b.cached_tokens or 0) * total["requests"]
    drafts = 3.0 * total["requests"]
    accepted = drafts * max(0.0, b.accept_length - 1)
    rows: dict[str, float] = {}
    if b.kind in ("atom", "vllm"):
        rows = {
            "request_queue_time_seconds_sum": total["queue_s"],
            "request_queue_time_seconds_count": total["requests"],
            "prefix_cache_queries_total": total["prompt"],
            "prefix_cache_hits_total": hits,
            "num_preemptions_total": 0.0,
            "num_requests_running": float(server.active),
        }
        if b.accept_length:
            rows["spec_decode_num_drafts_total"] = drafts
            rows["spec_decode_num_draft_tokens_total"] = 2 * drafts
            rows["spec_decode_num_accepted_tokens_total"] = accepted
    elif b.kind == "sglang":
        rows = {"cache_hit_rate": hits / total["prompt"] if total["prompt"] else 0.0}
        rows["num_running_reqs"] = float(server.active)
        if b.accept_length:
            rows["spec_accept_length"] = b.accept_length
    else:
        rows = {"prompt_tokens_total": total["prompt"], "requests_processing": float(server.active)}
    prefix = {"llama.cpp": "llamacpp"}.get(b.kind, b.kind)
    label = f'{{model_name="{b.model}"}}' if b.kind != "llama.cpp" else ""
    return "".join(f"{prefix}:{name}{label} {value}\n" for name, value in rows.items())


def _tokens(b: Behaviour, path: str, body: dict[str, Any]) -> bytes:
    llama = b.kind == "llama.cpp"
    if path == "/detokenize":
        ids = body.get("tokens")
        if not isinstance(ids, list) or any(not 0 <= i < VOCAB_SIZE for i in ids):
            return _refuse(400, f"tokens must be a list of ids below {VOCAB_SIZE}")
        return _json({"content" if llama else "prompt": decode(ids)})
    text = body.get("content" if llama else "prompt")
    if text is None and body.get("messages") and not llama:
        text = chat_text(body["messages"])
    if not isinstance(text, str):
        return _refuse(400, "prompt must be a string")
    ids = encode(text)
    if llama:
        return _json({"tokens": ids})
    return _json({"count": len(ids), "max_model_len": b.max_model_len, "tokens": ids})


def _ask(server: MockServer, path: str, body: dict[str, Any]) -> bytes | Ask:
    chat = path.endswith("chat/completions")
    if body.get("model", server.behaviour.model) != server.behaviour.model:
        return _refuse(404, f"The model `{body['model']}` does not exist.")
    try:
        b = server.behaviour.override(body.get("mock") or {})
    except (TypeError, ValueError) as error:
        return _refuse(400, f"mock: {error}")
    options = body.get("stream_options") or {}
    continuous = bool(options.get("continuous_usage_stats"))
    if continuous and b.usage == "refuse":
        return _refuse(400, "stream_options.continuous_usage_stats: extra fields not permitted")
    prompt = chat_text(body["messages"]) if chat else body.get("prompt", "")
    count = len(encode(prompt)) if isinstance(prompt, str) else len(prompt)
    wanted = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
    if count + wanted > b.max_model_len:
        limit = b.max_model_len
        return _refuse(400, f"{count} prompt tokens + {wanted} exceed the context of {limit}.")
    if body.get("ignore_eos"):
        b = b.override({"eos_at": None})
    server.seen.append(body)
    return Ask(
        index=len(server.truth),
        chat=chat,
        stream=bool(body.get("stream")),
        prompt=(prompt if isinstance(prompt, str) else json.dumps(prompt[:20]))[:60],
        prompt_tokens=count,
        max_tokens=wanted,
        include_usage=bool(options.get("include_usage")),
        continuous=continuous,
        behaviour=b,
    )

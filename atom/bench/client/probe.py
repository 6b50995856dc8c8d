"""Who is there: the model, the server's kind and version, what it can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from atom.bench.client.body import PATHS, common_body, request_body
from atom.bench.client.errand import Answer, Errand
from atom.bench.errors import BenchError, ServerUnreachable
from atom.bench.types import Target, Turn
from atom.config.fields import nearest

_OWNERS = {"atom": "atom", "vllm": "vllm", "llamacpp": "llama.cpp", "sglang": "sglang"}
_PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    base_url: str  # normalised: without /v1
    kind: str  # atom, vllm, llama.cpp, sglang, unknown
    version: str | None
    model: str  # the one that will be asked
    models: tuple[str, ...]  # all that are served
    max_model_len: int | None  # tokens
    has_tokenize: bool  # POST /tokenize answers with tokens
    details: dict[str, Any] = field(default_factory=dict)  # what else it says; for provenance


def probe(
    base_url: str,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    model: str | None = None,
    verify_tls: bool = True,
    timeout_s: float = _PROBE_TIMEOUT_S,
) -> ServerInfo:
    """Ask a server who it is. `model` None: the first one that it lists.

    Raises `ServerUnreachable`, one line: nobody answers, the key is refused, the model is missing
    (with the nearest name), or what answers is no OpenAI-compatible server.
    """
    errand = Errand(base_url, api_key, headers, verify_tls=verify_tls, timeout_s=timeout_s)
    cards = _models(errand, api_key is not None)
    card = _choose(cards, model, errand.url)
    kind = _kind(cards, errand)
    version, details = _version(kind, errand)
    return ServerInfo(
        base_url=errand.url,
        kind=kind,
        version=version,
        model=card["id"],
        models=tuple(c["id"] for c in cards),
        max_model_len=_context(card, details),
        has_tokenize=_has_tokenize(errand, card["id"], kind),
        details=details,
    )


def negotiate(target: Target) -> tuple[Target, list[str]]:
    """One tiny request: proves that the endpoint works; leaves out what the server refuses.

    Returns the target to use and a sentence for each thing that was left out. Raises
    `ServerUnreachable` (nobody there, wrong key, no such model) and `BenchError` (the server
    refuses such requests; its words are in the message).
    """
    errand = Errand(
        target.base_url,
        target.api_key,
        target.headers,
        verify_tls=target.verify_tls,
        timeout_s=target.timeout_s,
    )
    notes: list[str] = []
    while True:
        answer = errand.post(PATHS[target.endpoint], _tiny(target))
        if answer.status == 200:
            return target, notes
        said = answer.error
        _refuse_access(answer, errand.url, target.api_key is not None)
        if answer.status in (400, 422):
            if target.continuous_usage and ("continuous_usage" in said or "stream_opt" in said):
                target = replace(target, continuous_usage=False)
                notes.append("the server refuses usage in every chunk; only the last one has it")
                continue
            if target.ignore_eos and "ignore_eos" in said:
                target = replace(target, ignore_eos=False)
                notes.append("the server refuses ignore_eos; answers may end early")
                continue
        if answer.status == 404:
            raise ServerUnreachable(
                f"{errand.url}{PATHS[target.endpoint]} does not serve the model "
                f"{target.model} (HTTP 404): {said}"
            )
        raise BenchError(
            f"{errand.url}{PATHS[target.endpoint]} refuses a {target.endpoint} request "
            f"(HTTP {answer.status}): {said}"
        )


def _tiny(target: Target) -> Any:
    import msgspec

    chat = target.endpoint == "chat"
    content: Any = [{"role": "user", "content": "Hi"}] if chat else "Hi"
    extra = dict(target.extra_body)
    body = request_body(common_body(target), extra, target.endpoint, content, Turn(max_tokens=2))
    return msgspec.json.decode(body)


def _refuse_access(answer: Answer, url: str, with_key: bool) -> None:
    if answer.status in (401, 403):
        key = "refuses the API key" if with_key else "wants an API key (--api-key)"
        raise ServerUnreachable(f"the server at {url} {key} (HTTP {answer.status}): {answer.error}")


def _models(errand: Errand, with_key: bool) -> list[dict[str, Any]]:
    answer = errand.get("/v1/models")
    _refuse_access(answer, errand.url, with_key)
    if answer.status == 503:
        raise ServerUnreachable(f"the server at {errand.url} is not ready: {answer.error}")
    body = answer.json
    cards = body.get("data") if isinstance(body, dict) else None
    if answer.status != 200 or not isinstance(cards, list):
        raise ServerUnreachable(
            f"what answers at {errand.url} is no OpenAI-compatible server: "
            f"GET /v1/models gave HTTP {answer.status} without a list of models"
        )
    found = [c for c in cards if isinstance(c, dict) and isinstance(c.get("id"), str)]
    if not found:
        raise ServerUnreachable(f"the server at {errand.url} lists no model")
    return found


def _choose(cards: list[dict[str, Any]], model: str | None, url: str) -> dict[str, Any]:
    if model is None:
        return cards[0]
    for card in cards:
        if model == card["id"]:
            return card
    names = [card["id"] for card in cards]
    hint = nearest(model, names)
    if not hint:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        hint = f"; it serves {shown}"
    raise ServerUnreachable(f"the server at {url} has no model {model}{hint}")


def _kind(cards: list[dict[str, Any]], errand: Errand) -> str:
    for card in cards:
        owner = _OWNERS.get(str(card.get("owned_by", "")).lower())
        if owner is not None:
            return owner
    props = _json(errand, "/props")
    return "llama.cpp" if isinstance(props, dict) and "build_info" in props else "unknown"


def _json(errand: Errand, path: str) -> Any:
    """A GET that may fail in any way: None."""
    try:
        answer = errand.get(path)
    except ServerUnreachable:
        return None
    return answer.json if answer.status == 200 else None


def _version(kind: str, errand: Errand) -> tuple[str | None, dict[str, Any]]:
    """Where each kind tells its version, and what it says there besides."""
    if kind == "llama.cpp":
        props = _json(errand, "/props") or {}
        settings = props.get("default_generation_settings") or {}
        details = {
            "n_ctx": settings.get("n_ctx"),
            "total_slots": props.get("total_slots"),
            "model_path": props.get("model_path"),
        }
        return props.get("build_info"), {k: v for k, v in details.items() if v is not None}
    if kind == "sglang":
        info = _json(errand, "/get_server_info") or _json(errand, "/server_info") or {}
        keep = ("tp_size", "dp_size", "attention_backend", "quantization", "kv_cache_dtype")
        return info.get("version"), {k: info[k] for k in keep if info.get(k) is not None}
    info = _json(errand, "/version")
    if not isinstance(info, dict):
        return None, {}
    version = info.get("version")
    rest = {k: v for k, v in info.items() if k != "version"}
    return version if isinstance(version, str) else None, rest


def _context(card: dict[str, Any], details: dict[str, Any]) -> int | None:
    length = card.get("max_model_len") or details.get("n_ctx")
    return length if isinstance(length, int) else None


def _has_tokenize(errand: Errand, model: str, kind: str) -> bool:
    body = {"content": "Hi"} if kind == "llama.cpp" else {"model": model, "prompt": "Hi"}
    try:
        answer = errand.post("/tokenize", body)
    except ServerUnreachable:
        return False
    said = answer.json
    return answer.status == 200 and isinstance(said, dict) and isinstance(said.get("tokens"), list)

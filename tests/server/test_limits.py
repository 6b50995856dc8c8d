"""Caps, malformed bodies, keys, ids: what the door refuses, and how it says so."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from serverkit import Served, error_of, make_config, make_source, make_tokenizer, serving

from atom.errors import ModelError
from atom.server.middleware import OPEN_PATHS
from atom.server.sampling import SamplingDefaults

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def small() -> Iterator[Served]:
    """A server with small caps."""
    config = make_config(
        max_body_bytes=4096,
        max_header_bytes=2048,
        max_n=3,
        max_prompts=4,
        max_stop=2,
        max_stop_bytes=8,
        max_logprobs=2,
        max_logit_bias=2,
    )
    with serving(config) as served:
        yield served


@pytest.mark.parametrize(
    ("field", "most", "beyond", "flag"),
    [
        ("n", 3, 4, "--max-n"),
        ("n", 1, 2**31 - 1, "--max-n"),
        ("prompt", ["a"] * 4, ["a"] * 5, "--max-prompts"),
        ("stop", ["a", "b"], ["a", "b", "c"], "--max-stop"),
        ("stop", "é" * 4, "é" * 4 + "x", "--max-stop-bytes"),
        ("logprobs", 2, 3, "--max-logprobs"),
        ("prompt_logprobs", 2, 3, "--max-logprobs"),
        ("logit_bias", {"1": 1, "2": 1}, {"1": 1, "2": 1, "3": 1}, "--max-logit-bias"),
        ("stop_token_ids", [1, 2], [1, 2, 3], "--max-logit-bias"),
    ],
)
def test_caps_have_a_field_and_a_flag(
    small: Served, field: str, most: Any, beyond: Any, flag: str
) -> None:
    body: dict[str, Any] = {"prompt": "abc", "max_tokens": 1}
    assert small.post("/v1/completions", {**body, field: most}).status_code == 200
    response = small.post("/v1/completions", {**body, field: beyond})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == field
    assert flag in error["message"]


def test_top_logprobs_are_capped(small: Served) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "logprobs": True}
    assert small.post("/v1/chat/completions", {**body, "top_logprobs": 2}).status_code == 200
    response = small.post("/v1/chat/completions", {**body, "top_logprobs": 3})
    assert response.status_code == 400
    assert error_of(response)["param"] == "top_logprobs"


def test_a_body_above_the_cap_is_refused(small: Served) -> None:
    response = small.post("/v1/completions", {"prompt": "a" * 5000})
    assert response.status_code == 413
    assert "--max-body-bytes" in error_of(response)["message"]


def test_a_chunked_body_is_cut_off_while_it_comes(small: Served) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 64 * 2**20:
            sent += 4096
            yield b'{"prompt": "' + b"a" * 4084

    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        pieces = endless()
        for _ in range(2):  # a body that has not ended, of more bytes than the cap
            piece = next(pieces)
            raw.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nx: " + b"a" * 3000,  # one endless header
        b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 500,  # many
        b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n",  # an endless path
        b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 500 + b"\r\n",  # complete
    ],
)
def test_a_head_above_the_cap_is_refused(small: Served, head: bytes) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(head)
        answer = b""
        while piece := raw.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"--max-header-bytes" in answer


def test_endless_trailers_are_refused(small: Served) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
            b"content-type: application/json\r\n\r\n2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 1000
        )
        answer = b""
        while piece := raw.recv(4096):
            answer += piece
    assert b"431 " in answer


def test_nonsense_instead_of_http(small: Served) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_http"' in answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"null",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "logit_bias": {"\\udfff": 1}}',
        b'{"prompt": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_malformed_json_is_one_clear_400(served: Served, body: bytes) -> None:
    with served.http() as http:
        response = http.post("/v1/completions", content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [[1], "a", 3]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 10**30}, "n"),
        ({"prompt": "a", "n": True}, "n"),
        ({"prompt": "a", "n": "2"}, "n"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "temperature": -0.1}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "top_k": -2}, "top_k"),
        ({"prompt": "a", "seed": 2**63}, "seed"),
        ({"prompt": "a", "seed": 1.5}, "seed"),
        ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
        ({"prompt": "a", "repetition_penalty": 1e300}, "repetition_penalty"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"300": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"1": "x"}}, "logit_bias.1"),
        ({"prompt": "a", "stop": [""]}, "stop"),
        ({"prompt": "a", "stop": [3]}, "stop[0]"),
        ({"prompt": "a", "stop_token_ids": [300]}, "stop_token_ids"),
        ({"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt"),
        ({"prompt": "a", "model": 7}, "model"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
    ],
)
def test_wrong_values_are_named(served: Served, body: dict[str, Any], param: str) -> None:
    response = served.post("/v1/completions", body)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").replace("logit_bias.1", "logit_bias") == param.replace(
        "logit_bias.1", "logit_bias"
    )
    assert not served.client.requests


def test_integers_may_be_written_with_a_point(served: Served) -> None:
    body = {"prompt": [[97.0, 98]], "max_tokens": 2.0, "seed": -3.0, "stop_token_ids": [5.0]}
    assert served.post("/v1/completions", body).json()["usage"]["total_tokens"] == 4
    request = served.client.requests[0]
    assert request.prompt_token_ids == [97, 98]
    assert all(type(token_id) is int for token_id in request.prompt_token_ids)
    assert request.sampling.stop_token_ids == (5,)
    response = served.post("/v1/completions", {"prompt": [97.5]})
    assert error_of(response)["param"] == "prompt"


def test_extreme_but_valid_values_pass(served: Served) -> None:
    body = {
        "prompt": "a",
        "max_tokens": 1,
        "top_k": 2**31 - 1,
        "temperature": 1e-300,
        "seed": 2**63 - 1,
        "n": 2,
    }
    assert served.post("/v1/completions", body).status_code == 200
    first, second = (r.sampling for r in served.client.requests)
    assert first.top_k == 300  # the vocabulary
    assert first.temperature == 0.0
    assert (first.seed, second.seed) == (2**63 - 1, -(2**63))


def test_a_prompt_that_never_fits_has_the_numbers(served: Served) -> None:
    response = served.post("/v1/completions", {"prompt": "a" * 3000})
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "prompt"
    assert "3001" in error["message"]
    assert "2048" in error["message"]


def test_json_must_be_declared(served: Served) -> None:
    """Else a web page could make a browser post here without asking first."""
    with served.http() as http:
        for headers in ({"content-type": "text/plain"}, {}):
            response = http.post("/v1/completions", content=b'{"prompt":"a"}', headers=headers)
            assert response.status_code == 415
            error_of(response)


def test_unknown_routes_and_methods(served: Served) -> None:
    with served.http() as http:
        response = http.get("/v2/completions")
        assert response.status_code == 404
        assert error_of(response)["code"] == "unknown_url"
        response = http.get("/v1/completions")
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"
        error_of(response)
        assert http.get("/health/").status_code == 404


def test_request_ids_are_taken_and_made(served: Served) -> None:
    with served.http() as http:
        assert http.get("/version", headers={"x-request-id": "my-1"}).headers["x-request-id"] == (
            "my-1"
        )
        for bad in ("a b", "a" * 200, ""):
            made = http.get("/version", headers={"x-request-id": bad}).headers["x-request-id"]
            assert re.fullmatch("[0-9a-f]{32}", made)
        # The same id twice at once is no conflict in the engine.
        for _ in range(2):
            assert (
                http.post(
                    "/v1/completions", json={"prompt": "a"}, headers={"x-request-id": "same"}
                ).status_code
                == 200
            )


# -- keys -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with serving(make_config(api_key=("first-key", "sécond"))) as served:
        yield served


def test_every_route_needs_a_key_unless_listed(locked: Served) -> None:
    routes = [
        (method, path.replace("{model}", "fake-model"))
        for path, item in locked.app.openapi()["paths"].items()
        for method in item
    ]
    assert len(routes) == 13
    assert {"/health", "/ready"} == OPEN_PATHS
    with locked.http() as http:
        for method, path in [*routes, ("get", "/openapi.json"), ("get", "/nowhere")]:
            status = http.request(method, path).status_code
            assert status == (200 if path in OPEN_PATHS else 401), path
        for path in ("//health", "/health/", "/health/../metrics", "/Health", "/health;x"):
            assert http.get(path).status_code == 401, path
        assert http.get("/metrics?x=/health").status_code == 401


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer first-key", 200),
        ("bearer first-key", 200),
        ("Bearer sécond", 200),
        ("Bearer first-ke", 401),
        ("Bearer first-key2", 401),
        ("Bearer x", 401),
        ("Basic first-key", 401),
        ("first-key", 401),
        ("", 401),
    ],
)
def test_keys(locked: Served, header: str, status: int) -> None:
    with locked.http() as http:
        response = http.get("/v1/models", headers={"authorization": header.encode()})
    assert response.status_code == status
    if status == 401:
        assert error_of(response)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


def test_openai_client_with_a_key(locked: Served) -> None:
    assert [model.id for model in locked.openai("first-key").models.list()] == ["fake-model"]


# -- options ----------------------------------------------------------------------------------


def test_cors_only_when_asked(served: Served) -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with served.http() as http:
        answer = http.options("/v1/completions", headers=preflight)
        assert "access-control-allow-origin" not in answer.headers
    config = make_config(cors_origins=("https://a.example",), api_key=("k",))
    with serving(config) as open_to_a, open_to_a.http() as http:
        answer = http.options("/v1/completions", headers=preflight)
        assert answer.status_code == 200  # a preflight carries no key
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        answer = http.options(
            "/v1/completions", headers={**preflight, "origin": "https://b.example"}
        )
        assert "access-control-allow-origin" not in answer.headers


def test_sampling_defaults_come_from_the_model_unless_switched_off() -> None:
    source = make_source(temperature=0.2, top_k=20, top_p=0.9, repetition_penalty=None, do_sample=1)
    body = {"prompt": "a", "max_tokens": 1}
    with serving(source=source) as served:
        served.post("/v1/completions", body)
        served.post("/v1/completions", {**body, "temperature": 0.7, "top_k": -1})
        own, asked = (r.sampling for r in served.client.requests)
    assert (own.temperature, own.top_k, own.top_p, own.repetition_penalty) == (0.2, 20, 0.9, 1.0)
    assert (asked.temperature, asked.top_k, asked.top_p) == (0.7, -1, 0.9)
    config = make_config(model={"generation_config": "none"})
    with serving(config, source=source) as served:
        served.post("/v1/completions", body)
        plain = served.client.requests[0].sampling
    assert (plain.temperature, plain.top_k, plain.top_p) == (1.0, -1, 1.0)
    with pytest.raises(ModelError, match="--generation-config none"):
        SamplingDefaults.from_generation_config({"top_p": 7})
    assert SamplingDefaults(temperature=0.2).describe() == "temperature 0.2"
    assert SamplingDefaults().describe() == "OpenAI's"


def test_served_names() -> None:
    config = make_config(model={"served_model_name": ("a", "org/b")})
    with serving(config) as served, served.http() as http:
        assert [m["id"] for m in http.get("/v1/models").json()["data"]] == ["a", "org/b"]
        assert http.get("/v1/models/org/b").json()["root"] == "a"
        assert http.post("/v1/completions", json={"prompt": "x"}).json()["model"] == "a"
        body = {"prompt": "x", "model": "org/b"}
        assert http.post("/v1/completions", json=body).json()["model"] == "org/b"
        response = http.post("/v1/completions", json={**body, "model": "fake-model"})
        assert response.status_code == 404
        assert error_of(response)["code"] == "model_not_found"


def test_default_max_tokens_of_chat() -> None:
    body = {"messages": [{"role": "user", "content": "a"}]}
    with serving(make_config(default_max_tokens=5)) as served:
        assert served.post("/v1/chat/completions", body).json()["usage"]["completion_tokens"] == 5
        answer = served.post("/v1/chat/completions", {**body, "max_tokens": 6}).json()
        assert answer["usage"]["completion_tokens"] == 6


def test_without_a_chat_template_chat_says_so() -> None:
    with serving(tokenizer=make_tokenizer(template=None)) as served:
        response = served.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}
        )
        assert response.status_code == 400
        assert "--chat-template" in error_of(response)["message"]

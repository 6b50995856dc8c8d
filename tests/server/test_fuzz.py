"""Bodies made from the OpenAPI document, right and wrong ones: only 2xx and 4xx, as declared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
import schemathesis
from fake_client import EOS, FakeClient
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serverkit import Served, make_config, serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = {"/v1/completions": 80, "/v1/chat/completions": 80, "/tokenize": 30, "/detokenize": 20}


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Served]:
    client = FakeClient(script=lambda _: [*"añ".encode(), EOS])
    with serving(make_config(), client) as served:
        yield served


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
@pytest.mark.parametrize("path", EXAMPLES)
def test_fuzz(fuzzed: Served, path: str, mode: schemathesis.GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict(fuzzed.app.openapi())
    statuses: dict[int, int] = {}
    session = requests.Session()

    @given(case=schema[path]["POST"].as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES[path],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def run(case: schemathesis.Case) -> None:
        response = case.call(base_url=fuzzed.url, session=session)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        assert response.status_code < 500
        case.validate_response(response, checks=CHECKS)

    run()
    # The document is exact enough for both kinds to reach what they are made for.
    if mode is schemathesis.GenerationMode.POSITIVE:
        assert statuses.get(200, 0) > 5, statuses
    else:
        assert statuses.get(400, 0) > 5, statuses
    assert not fuzzed.client.running


def test_every_other_answer_is_as_declared(fuzzed: Served) -> None:
    schema = schemathesis.openapi.from_dict(fuzzed.app.openapi())
    for path in ("/v1/models", "/health", "/ready", "/version", "/metrics"):
        case = schema[path]["GET"].Case()
        response = case.call(base_url=fuzzed.url)
        assert response.status_code == 200
        case.validate_response(response, checks=CHECKS)

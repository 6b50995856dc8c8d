from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_client import reply
from serverkit import Served, serving


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def served(shared_server: Served) -> Served:
    """The shared server, with its fake engine as new."""

    def reset() -> None:
        client = shared_server.client
        client.script, client.chunk = reply, 1
        client.hold_after = client.fail_after = None
        client.go.clear()
        client.requests.clear()
        client.aborted.clear()

    shared_server.call(reset)
    return shared_server

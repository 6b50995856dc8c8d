"""HTTPS: certificates are checked unless told not to; the error is one line."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atom.bench.client import probe, run_load
from atom.bench.errors import ServerUnreachable
from atom.bench.types import Job, Load, Target, Turn

EVENTS = (
    b'data: {"choices":[{"text":"a","finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (
    len(EVENTS),
    EVENTS,
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=localhost", "-keyout", str(path), "-out", str(path) + ".crt"]
    subprocess.run(made, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def url(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(client, server_side=True) as wrapped:
                    while wrapped.recv(65536):
                        wrapped.sendall(ANSWER)
            except OSError:  # a client that does not accept the certificate
                client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://localhost:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def load(url: str, verify: bool) -> list[str | None]:
    target = Target(base_url=url, model="m", verify_tls=verify)
    jobs = (Job(index, [Turn(prompt="x")]) for index in range(3))
    return [r.error for r in run_load(target, jobs, Load(concurrency=1)).records]


def test_an_unknown_certificate_is_refused(url: str) -> None:
    with pytest.raises(ServerUnreachable, match="its certificate is not accepted: self-signed"):
        load(url, verify=True)
    with pytest.raises(ServerUnreachable, match="its certificate is not accepted: self-signed"):
        probe(url)


def test_unless_it_is_not_to_be_checked(url: str) -> None:
    assert load(url, verify=False) == [None] * 3

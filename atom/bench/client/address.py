"""Where a server is: a base URL taken apart and checked, its addresses, a request's head."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from atom._version import __version__
from atom.bench.client.body import PATHS
from atom.bench.client.wire import Server
from atom.bench.errors import BenchError, ServerUnreachable
from atom.bench.types import Target

USER_AGENT = f"atom-bench/{__version__}"


class Address(NamedTuple):
    tls: bool
    host: str
    port: int
    path: str  # before /v1; "" or "/something"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"


def parse_url(text: str) -> Address:
    """`http://host:8000`, with or without /v1 and a trailing slash. Raises `BenchError`."""
    hint = "write e.g. http://127.0.0.1:8000"
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError as error:
        raise BenchError(f"--base-url {text}: {error}; {hint}") from None
    if parts.scheme not in ("http", "https"):
        raise BenchError(f"--base-url {text}: only http and https are spoken; {hint}")
    if not parts.hostname or any(c.isspace() for c in text):
        raise BenchError(f"--base-url {text}: it names no host; {hint}")
    if parts.username is not None or parts.password is not None:
        raise BenchError("--base-url must hold no user or password; give the key as --api-key")
    if parts.query or parts.fragment:
        raise BenchError(f"--base-url {text}: it must end before '?' and '#'; {hint}")
    tls = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Address(tls, parts.hostname, port or (443 if tls else 80), path)


def resolve(address: Address) -> list[tuple[str, int]]:
    """Numeric addresses, in the system's order. Raises `ServerUnreachable`."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        reason = error.strerror or error
        raise ServerUnreachable(f"cannot find the host {address.host}: {reason}") from None
    return list(dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in found))


def headers_of(api_key: str | None, headers: Mapping[str, str]) -> dict[str, str]:
    """What goes with every request. Raises `BenchError` for a header that cannot be sent."""
    sent = {"User-Agent": USER_AGENT}
    if api_key is not None:
        sent["Authorization"] = f"Bearer {api_key}"
    sent.update(headers)
    for name, value in sent.items():
        # The value may be a secret: it is never shown.
        if not name or any(c in name for c in " :\r\n") or any(c in value for c in "\r\n\0"):
            raise BenchError(f"the header {name!r} cannot be sent: a space or a line's end in it")
        try:
            (name + value).encode("latin-1")
        except UnicodeEncodeError:
            raise BenchError(f"the header {name!r} holds characters that HTTP has not") from None
    return sent


def server_of(target: Target) -> Server:
    """What a worker needs to send requests to `target`."""
    address = parse_url(target.base_url)
    own = {"host": address.authority, "content-type": "application/json"}
    own |= {"accept": "text/event-stream", "accept-encoding": "identity"}
    sent = {
        name.lower(): value for name, value in headers_of(target.api_key, target.headers).items()
    }
    lines = [f"POST {address.path}{PATHS[target.endpoint]} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in (own | sent).items()]
    return Server(
        resolve(address),
        address.host,
        address.tls,
        target.verify_tls,
        "\r\n".join([*lines, "content-length: "]).encode("latin-1"),
        target.timeout_s,
    )

"""A small server for the site: pages from memory, data rebuilt when the history has changed.

It reads only: GET and HEAD, the package's own files, the history, and those artefacts that runs of
the history name. Requests under a foreign host name are refused, so that no page elsewhere can read
the history through a browser (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import mimetypes
import shutil
import socket
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from atom.bench.dashboard.marks import find_marks
from atom.bench.dashboard.payload import payload
from atom.bench.dashboard.site import DATA, assets, data_js, script
from atom.bench.errors import BenchError
from atom.bench.history import History, HistoryError
from atom.bench.types import RunResult

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".LICENSE": "text/plain",
}
REQUEST_SECONDS = 30.0  # without a byte, until a connection is given up


class Site:
    """What is served, kept until the history changes. Threads may share it."""

    def __init__(self, history: Path) -> None:
        self._history = history
        self._lock = threading.Lock()
        self._stamp: str | None = None
        self._data = b""
        self._artefacts: dict[str, Path] = {}
        self.files = assets()

    def data(self) -> bytes:
        """`data.js` of the history as it is now; what is wrong with it, if it cannot be read."""
        with self._lock, History(self._history) as history:
            stamp = history.stamp()
            if stamp != self._stamp:
                try:
                    self._data = self._build(history)
                except HistoryError as error:
                    return script({**payload(()), "problem": str(error)})
                self._stamp = stamp
            return self._data

    def artefact(self, name: str) -> Path | None:
        """The file behind an address that `data` gave out."""
        self.data()
        return self._artefacts.get(name)

    def _build(self, history: History) -> bytes:
        runs = history.find()
        self._artefacts = _addresses(runs)
        links = {str(path): quote(name) for name, path in self._artefacts.items()}
        return data_js(runs, find_marks(runs), source=history.path.name, links=links)


def _addresses(runs: list[RunResult]) -> dict[str, Path]:
    """artefacts/<run>/<number>/<name> -> its path, for those that are there."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for run in runs:
        for number, artefact in enumerate(run.artefacts):
            path = artefact.get("path", "")
            if path and path not in seen and Path(path).is_file():
                seen.add(path)
                found[f"artefacts/{run.run_id}/{number}/{PurePath(path).name}"] = Path(path)
    return found


def make_server(history: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens already; `serve_forever` runs it. Port 0 takes a free one.

    Raises `BenchError` where the address cannot be taken.
    """
    handler = type("Handler", (_Handler,), {"site": Site(history), "bound": host})
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server: type[_Server] = type("Server", (_Server,), {"address_family": family})
    try:
        return server((host, port), handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BenchError(
            f"cannot listen on {host}:{port}: {reason}; give another --port or --host"
        ) from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    site: Site
    bound: str
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS
    # Head and body leave together: in two parts each answer would wait for an acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def version_string(self) -> str:
        return "atom"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the terminal belongs to whoever started the server."""

    def _answer(self, *, body: bool) -> None:
        if not self._ours(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.FORBIDDEN, "unknown host name")
            return
        name = unquote(urlsplit(self.path).path).lstrip("/") or "index.html"
        if name == DATA:
            self._send(self.site.data(), "text/javascript", body=body)
        elif name in self.site.files:
            self._send(self.site.files[name], _type(name), body=body)
        elif (path := self.site.artefact(name)) is not None:
            self._send_file(path, body=body)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _ours(self, host: str) -> bool:
        """An address in figures, localhost, or the name we were told to listen on."""
        name = urlsplit(f"//{host}").hostname or ""
        if name in ("localhost", self.bound.lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _send(self, content: bytes, kind: str, *, body: bool) -> None:
        self._head(len(content), {"Content-Type": f"{kind}; charset=utf-8"})
        if body:
            self.wfile.write(content)

    def _send_file(self, path: Path, *, body: bool) -> None:
        """Always saved, never shown: what a trace holds is not ours to run."""
        try:
            file = path.open("rb")
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            disposition = f"attachment; filename*=UTF-8''{quote(path.name)}"
            self._head(
                path.stat().st_size, {"Content-Type": kind, "Content-Disposition": disposition}
            )
            if body:
                shutil.copyfileobj(file, self.wfile)

    def _head(self, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(HTTPStatus.OK)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()


def _type(name: str) -> str:
    return TYPES.get(PurePath(name).suffix, "application/octet-stream")

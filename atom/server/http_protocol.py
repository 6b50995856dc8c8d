"""uvicorn's HTTP/1.1 protocol with a bounded request head and errors in OpenAI's shape.

llhttp keeps reading a head, or trailers, for as long as a client sends them; here they end at
`max_head_bytes`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from atom.server.errors import ApiError


class QuietServer(uvicorn.Server):
    """uvicorn's server without its signal handling, which would end the process by itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def limited_protocol(max_head_bytes: int) -> type[HttpToolsProtocol]:
    """A protocol class for `uvicorn.Config(http=...)`."""

    class LimitedProtocol(HttpToolsProtocol):
        _refused = False
        _head_bytes = 0  # of the headers and trailers of this request
        _pending_bytes = 0  # read since the parser last finished something
        _progress = False

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            self._progress = False
            super().data_received(data)
            self._pending_bytes = 0 if self._progress else self._pending_bytes + len(data)
            if self._pending_bytes > max_head_bytes:
                self._refuse_head()

        def on_message_begin(self) -> None:
            self._head_bytes = 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._grow(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._grow(len(name) + len(value) + 4)
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._progress = True
            if not self._refused:
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._progress = True
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._progress = True
            if not self._refused:
                super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(ApiError(400, msg, code="invalid_http"))

        def _grow(self, size: int) -> None:
            self._head_bytes += size
            if self._head_bytes > max_head_bytes:
                self._refuse_head()

        def _refuse_head(self) -> None:
            self._refuse(
                ApiError(
                    431,
                    f"The request's head is larger than {max_head_bytes} bytes "
                    "(--max-header-bytes).",
                    code="headers_too_large",
                )
            )

        def _refuse(self, error: ApiError) -> None:
            if self._refused:
                return
            self._refused = True
            body = orjson.dumps(error.body())
            self.transport.write(
                b"%bcontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b" % (STATUS_LINE[error.status], len(body), body)
            )
            self.transport.close()

    return LimitedProtocol

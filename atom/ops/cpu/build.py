"""Compiles the CPU kernels on first use and keeps the library in atom's cache.

The library is built for the machine it runs on (`-march=native`), so its place in the cache is
named by everything that decides what it is: sources, compiler, flags and the processor's features.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atom.errors import AtomError, ConfigError
from atom.utils.cache import cache_dir, locked

SOURCE_DIR = Path(__file__).parent / "native"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-math-errno",
    # gcc's own vector headers warn about their "undefined" values; nothing here is shown anyway.
    "-w",
)
logger = logging.getLogger(__name__)

# Values of ATOM_NATIVE that build for less than this machine has: for tests and comparisons.
ARCHITECTURES = {
    "1": "-march=native",
    "avx2": "-march=x86-64-v3",
    "avx512": "-march=icelake-server",
    "avx512-bf16": "-march=cooperlake",
}
COMPILE_TIMEOUT_S = 300


class CannotBuild(AtomError):
    """Why there are no native kernels on this machine; the torch paths serve instead."""


def compiler() -> str:
    """The C++ compiler: $CXX, else the first that is installed."""
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    looked_for = named or ", ".join(COMPILERS)
    raise CannotBuild(f"no C++ compiler ({looked_for}); install g++ for fast CPU kernels")


def cpu_features() -> frozenset[str]:
    """The processor's features as Linux names them; empty where they cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _architecture_flag() -> str:
    wanted = os.environ.get("ATOM_NATIVE") or "1"
    if wanted == "0":
        raise CannotBuild("switched off by ATOM_NATIVE=0")
    if wanted not in ARCHITECTURES:
        raise CannotBuild(f"ATOM_NATIVE={wanted} is none of 0, {', '.join(ARCHITECTURES)}")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise CannotBuild(
            f"written for Linux on x86_64, not {platform.system()} on {platform.machine()}"
        )
    missing = {"avx2", "fma", "f16c"} - cpu_features()
    if missing:
        raise CannotBuild(f"this processor lacks {', '.join(sorted(missing))}")
    return ARCHITECTURES[wanted]


def _key(cxx: str, flags: tuple[str, ...], sources: list[Path]) -> str:
    version = subprocess.run([cxx, "--version"], capture_output=True, check=True, timeout=30).stdout
    digest = hashlib.sha256(version)
    digest.update("\0".join((cxx, *flags, *sorted(cpu_features()))).encode())
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise CannotBuild(f"{Path(command[0]).name} failed: {lines[0][:200]}")


def _compile(cxx: str, flags: tuple[str, ...], sources: list[Path], target: Path) -> None:
    """Objects in parallel, then the library, moved into place when it is whole."""
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        objects = {source: str(Path(work, source.stem + ".o")) for source in sources}
        commands = [
            [cxx, *flags, "-c", str(source), "-o", objects[source]]
            for source in sorted(sources, key=lambda path: -path.stat().st_size)
        ]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(_run, commands))
        library = Path(work, "library.so")
        _run([cxx, *flags, "-shared", *objects.values(), "-o", str(library)])
        library.replace(target)


def library_path() -> Path:
    """The library for this machine, compiled if need be. Raises `CannotBuild` with the reason."""
    flags = (*FLAGS, _architecture_flag())
    cxx = compiler()
    sources = sorted(SOURCE_DIR.glob("*.cpp"))
    try:
        key = _key(cxx, flags, [*sources, *sorted(SOURCE_DIR.glob("*.h"))])
        folder = cache_dir("kernels") / key
        target = folder / "atom_cpu.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock"):
                if not target.exists():
                    logger.info("compiling the CPU kernels with %s, once", Path(cxx).name)
                    started = time.monotonic()
                    _compile(cxx, flags, sources, target)
                    logger.info("compiled in %.1f s", time.monotonic() - started)
    except (OSError, subprocess.SubprocessError, ConfigError) as error:
        raise CannotBuild(f"the kernels cannot be compiled: {error}".splitlines()[0]) from error
    return target

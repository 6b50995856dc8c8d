"""Finding a compiler, and what happens without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atom.ops.cpu import build


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATOM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("ATOM_NATIVE", raising=False)


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOM_NATIVE", "0")
    with pytest.raises(build.CannotBuild, match="switched off by ATOM_NATIVE=0"):
        build.library_path()


def test_unknown_architecture_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOM_NATIVE", "avx1024")
    with pytest.raises(build.CannotBuild, match="avx1024 is none of 0, 1, avx2, avx512"):
        build.library_path()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.CannotBuild, match="no C\\+\\+ compiler \\(no-such-compiler\\)"):
        build.library_path()


def test_processor_without_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cpu_features", lambda: frozenset({"sse4_2", "avx", "f16c"}))
    with pytest.raises(build.CannotBuild, match="lacks avx2, fma"):
        build.library_path()


def fake_compiler(folder: Path, body: str) -> Path:
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


ANY_LIBRARY = """
[ "$1" = --version ] && { echo fake 1; exit; }
echo run >> "$(dirname "$0")/runs"
while [ "$1" != -o ]; do shift; done; echo made > "$2"
"""


def test_compiled_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, ANY_LIBRARY)))
    first = build.library_path()
    count = len((tmp_path / "runs").read_text().splitlines())
    assert count == len(list(build.SOURCE_DIR.glob("*.cpp"))) + 1
    assert build.library_path() == first
    assert len((tmp_path / "runs").read_text().splitlines()) == count
    assert [p.name for p in first.parent.iterdir() if p.is_dir()] == []  # no scraps are left


def test_other_flags_are_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, ANY_LIBRARY)))
    first = build.library_path()
    monkeypatch.setenv("ATOM_NATIVE", "avx2")
    assert build.library_path() != first


def test_compile_error_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = '[ "$1" = --version ] && exit\necho "x.cpp:1: error: no such thing" >&2; exit 1'
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, body)))
    with pytest.raises(build.CannotBuild, match="error: no such thing"):
        build.library_path()


def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATOM_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, ANY_LIBRARY)))
    with pytest.raises(build.CannotBuild, match="cannot make the cache folder"):
        build.library_path()


def test_backend_without_native_kernels(tmp_path: Path) -> None:
    """In a process of its own: what is registered is decided at import."""
    script = """
from atom.ops import registry
from atom.ops.registry import OpQuery
for op in ("rms_norm", "linear"):
    query = OpQuery(op=op, weight_format="Q4_1", shape=(("N", 8), ("K", 32)))
    print(registry.candidates(query)[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "", "ATOM_NATIVE": "0", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    norm, linear = done.stdout.splitlines()
    assert norm == "('cpu', 'no native kernels: switched off by ATOM_NATIVE=0')"
    assert linear.startswith("('cpu', None)") or "no fbgemm" in linear


def test_the_kernels_compile_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests skip where nothing can be compiled: an error in the sources must not."""
    monkeypatch.delenv("ATOM_CACHE_DIR")
    try:
        build.compiler()
    except build.CannotBuild as reason:
        pytest.skip(str(reason))
    if {"avx2", "fma", "f16c"} - build.cpu_features():
        pytest.skip("this processor lacks AVX2")
    assert build.library_path().stat().st_size > 10_000

"""A file's bytes, decompressed, in blocks, the next one made in a thread while one is used.

What is damaged or cut is left out with a warning; whatever else can be had of the file is yielded.
"""

from __future__ import annotations

import codecs
import contextlib
import zlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import zstandard

BLOCK = 2 << 20  # decompressed; bounds what a chunk of events takes, some ten times this
_RAW = 256 << 10
_GZIP, _ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_STEP = 128 << 10  # of zstd: what is lost at most before its damage


class Source:
    """Iterate once; `num_bytes` and `warnings` are complete afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0  # decompressed, yielded
        self.cut = False  # it ended too early
        self.warnings: list[str] = []

    def __iter__(self) -> Generator[bytes]:
        with self.path.open("rb") as file, ThreadPoolExecutor(1) as pool:
            blocks = self._blocks(file)
            ahead = pool.submit(next, blocks, b"")
            while block := ahead.result():
                ahead = pool.submit(next, blocks, b"")
                self.num_bytes += len(block)
                yield block

    def _blocks(self, file: IO[bytes]) -> Iterator[bytes]:
        start = file.read(4)
        file.seek(0)
        if start.startswith(_GZIP):
            return self._gunzip(file)
        if start == _ZSTD:
            return self._unzstd(file)
        return iter(lambda: file.read(BLOCK), b"")

    def _gunzip(self, file: IO[bytes]) -> Iterator[bytes]:
        """All members. After damage: from the next member on, if there is one."""
        member, raw, seen = _inflater(), b"", 0
        fresh = True  # nothing of this member was read
        while True:
            if not raw:
                raw = file.read(_RAW)
                seen += len(raw)
                if not raw:
                    break
            if fresh and not raw.startswith(_GZIP[: len(raw)]):
                if raw.strip(b"\0"):  # tape-like padding is fine
                    self.warnings.append("bytes after the end of the gzip data were left out")
                raw = _next_member(file, raw)
                continue
            before, fresh = member.copy(), False
            try:
                found = member.decompress(raw, BLOCK)
            except zlib.error as error:
                if found := _until_damage(before, raw):
                    yield found
                self._damaged("gzip", error, file.tell() - len(raw), file.tell())
                raw, member, fresh = _next_member(file, raw[1:]), _inflater(), True
                continue
            if found:
                yield found
            raw = member.unconsumed_tail
            if member.eof:
                raw, member, fresh = member.unused_data, _inflater(), True
        if not fresh:
            self.cut = True
            self.warnings.append("the gzip data ends too early: the file is cut")

    def _unzstd(self, file: IO[bytes]) -> Iterator[bytes]:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        pieces: list[bytes] = []
        while True:
            try:
                piece = reader.read(_STEP)
            except zstandard.ZstdError as error:
                self._damaged("zstd", error, file.tell(), file.tell())
                piece = b""
            pieces.append(piece)
            if not piece or len(pieces) * _STEP >= BLOCK:
                if block := b"".join(pieces):
                    yield block
                pieces = []
            if not piece:
                return

    def _damaged(self, what: str, error: Exception, start: int, end: int) -> None:
        """Between those bytes of the file the decompressor gave up."""
        size = max(self.path.stat().st_size, 1)
        if "check" in str(error):  # somewhere before
            note = f"fails its checksum: what is in the first {end / size:.0%} of it may be wrong"
        else:
            note = f"is damaged near {start / size:.0%} of it; what was read there may be wrong"
        self.warnings.append(f"the {what} data {note}")


def _inflater() -> zlib._Decompress:
    return zlib.decompressobj(wbits=31)


def _until_damage(member: zlib._Decompress, raw: bytes) -> bytes:
    """What `raw` gives before it fails, byte by byte at the end."""
    found = []
    for size in (4096, 64, 1):
        for start in range(0, len(raw), size):
            before = member.copy()
            try:
                found.append(member.decompress(raw[start : start + size]))
            except zlib.error:
                member, raw = before, raw[start : start + size]
                break
    return b"".join(found)


def _next_member(file: IO[bytes], raw: bytes) -> bytes:
    """From the next gzip header on; b"" if there is none."""
    while True:
        place = raw.find(_GZIP)
        if place >= 0:
            return raw[place:]
        more = file.read(_RAW)
        if not more:
            return b""
        raw = raw[-len(_GZIP) + 1 :] + more


_LOOKS = (  # first bytes -> what that is
    (b"SQLite format 3", "an SQLite database, as nsys exports; convert it to Chrome JSON"),
    (b"QDSTRM", "an Nsight Systems file; torch.profiler writes what is read here"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"ustar", "a tar archive; unpack it first"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ", "an xz file; unpack it first"),
    (b"\x80\x02", "a Python pickle, perhaps a memory snapshot"),
    (b"\x80\x03", "a Python pickle, perhaps a memory snapshot"),
    (b"\x80\x04", "a Python pickle, perhaps a memory snapshot"),
    (b"\x80\x05", "a Python pickle, perhaps a memory snapshot"),
    (b"\xff\xfe", "text in UTF-16; convert it to UTF-8"),
    (b"\xfe\xff", "text in UTF-16; convert it to UTF-8"),
    (b"\x7fELF", "a program"),
    (b"\x0a", "perhaps Perfetto's or XLA's protobuf; Chrome JSON is read here"),
)


def looks_like(path: Path, start: bytes) -> str:
    """What bytes that are no JSON seem to be, in a few words."""
    if not start:
        return "empty" if not path.stat().st_size else "compressed, but nothing comes out of it"
    if path.suffix in (".nsys-rep", ".qdrep"):
        return "an Nsight Systems report; torch.profiler writes what is read here"
    for magic, what in _LOOKS:
        if start.startswith(magic):
            return what
    lowered = start[:200].lstrip().lower()
    if lowered.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return "HTML or XML, perhaps an error page that was saved"
    if lowered.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; fetch the file with git lfs pull"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    with contextlib.suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder("utf-8")().decode(start[:200])  # may end in a letter
        if all(letter.isprintable() or letter in "\t\r\n" for letter in text):
            return f"text that begins with {text[:24]!r}"
    return f"binary data that begins with {start[:8].hex(' ')}"

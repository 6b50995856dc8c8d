"""Reading files that are cut, damaged, odd or no traces at all."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_events import HEAD, TAIL, indices, kernel, names, read, texts

from atom.trace.errors import TraceError
from atom.trace.reader import event as ev
from atom.trace.reader import read_trace

_SHARED = [HealthCheck.function_scoped_fixture]

# Cut files.


@settings(max_examples=150, deadline=None, suppress_health_check=_SHARED)
@given(st.integers(0, 10**6), st.sampled_from([64, 500, 1 << 20]), st.sampled_from([None, 1]))
def test_a_cut_file_gives_every_whole_event(
    tmp_path: Path, cut: int, block: int, indent: int | None
) -> None:
    events = texts(12, indent)
    data = HEAD + b",\n".join(events) + TAIL
    cut = len(HEAD) + cut % (len(data) - len(HEAD) - len(TAIL) + 1)
    ends = [len(HEAD)]
    for event in events:
        ends.append(ends[-1] + len(event) + (2 if len(ends) > 1 else 0))
    whole = sum(end <= cut for end in ends[1:])
    trace = read(tmp_path, data[:cut], block=block)
    assert indices(trace) == list(range(whole))
    assert len(trace.warnings) == 1
    assert f"cut within its events: {whole} were read" in trace.warnings[0]


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_cut_compressed_file_gives_what_comes_out(
    tmp_path: Path, ending: str, kept: float
) -> None:
    rng = random.Random(1)
    events = texts(4000)
    for index, event in enumerate(events):  # compressors cannot have it too easy
        events[index] = event[:-1] + f', "id": "{rng.getrandbits(256):x}"}}'.encode()
    data = HEAD + b",\n".join(events) + TAIL
    packed = gzip.compress(data, mtime=0) if ending == "gz" else zstandard.compress(data)
    trace = read(tmp_path, packed[: int(len(packed) * kept)], f"m.json.{ending}")
    found = indices(trace)
    assert found == list(range(len(found)))
    # A decompressor gives whole blocks of some 100 KiB.
    assert len(found) > 4000 * kept - 700
    assert any("cut within its events" in warning for warning in trace.warnings)


def test_a_file_cut_after_its_events_is_whole_but_for_its_keys(tmp_path: Path) -> None:
    data = HEAD + b",".join(texts(3)) + b'], "traceNa'
    trace = read(tmp_path, data)
    assert indices(trace) == [0, 1, 2]
    assert trace.warnings == ("the keys after traceEvents are damaged and were left out",)


def test_a_file_cut_before_its_events_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="traceEvents was not found before it ends"):
        read(tmp_path, HEAD[:20])


# Damage.


@settings(max_examples=150, deadline=None, suppress_health_check=_SHARED)
@given(
    st.floats(0, 1),
    st.binary(min_size=1, max_size=80),
    st.sampled_from([200, 1 << 20]),
    st.sampled_from([None, 1]),
)
def test_damage_costs_only_the_events_it_touches(
    tmp_path: Path, where: float, junk: bytes, block: int, indent: int | None
) -> None:
    events = texts(20, indent)
    data = bytearray(HEAD + b",\n".join(events) + TAIL)
    last = len(data) - len(TAIL) - len(junk)
    start = len(HEAD) + int(where * (last - len(HEAD)))
    data[start : start + len(junk)] = junk
    place, touched = len(HEAD), set()
    for index, event in enumerate(events):
        if place - 2 <= start + len(junk) and start <= place + len(event) + 2:
            touched |= {index, index + 1}  # the end of one, and so where the next begins
        place += len(event) + 2
    trace = read(tmp_path, bytes(data), block=block)
    found = set(names(trace))
    for index in set(range(20)) - touched:
        assert f"kernel_{index}" in found, (index, touched, trace.warnings)
    if len(trace.gpu) < 20 and trace.counts.get("kernel", 0) < 20:
        # What is missing is said, unless it became an event of another kind.
        assert trace.warnings or sum(trace.counts.values()) >= 19


def test_damage_is_measured(tmp_path: Path) -> None:
    events = texts(10)
    lost = len(events[4])
    events[4] = b"#" * lost
    trace = read(tmp_path, HEAD + b",\n".join(events) + TAIL)
    assert indices(trace) == [0, 1, 2, 3, 5, 6, 7, 8, 9] or indices(trace) == [
        0,
        1,
        2,
        3,
        *range(6, 10),
    ]
    (warning,) = trace.warnings
    assert "damaged in one place" in warning
    assert trace.other["traceName"] == "x"


def test_damage_in_one_gzip_member_leaves_the_others(tmp_path: Path) -> None:
    rng = random.Random(5)
    events = [
        event[:-1] + f', "id": "{rng.getrandbits(512):x}"}}'.encode() for event in texts(3000)
    ]
    data = HEAD + b",\n".join(events) + TAIL
    third = len(data) // 3
    members = [
        gzip.compress(part, mtime=0)
        for part in (data[:third], data[third : 2 * third], data[2 * third :])
    ]
    sound = read(tmp_path, b"".join(members), "m.json.gz")
    assert len(sound.gpu) == 3000
    assert sound.warnings == ()
    middle = bytearray(members[1])
    middle[len(middle) // 2 : len(middle) // 2 + 300] = b"\x00" * 300
    trace = read(tmp_path, members[0] + bytes(middle) + members[2], "m.json.gz")
    found = set(indices(trace))
    assert set(range(995)) <= found
    assert set(range(2005, 3000)) <= found
    assert "the gzip data fails its checksum" in trace.warnings[0]


def test_zstd_damage_keeps_what_comes_before(tmp_path: Path) -> None:
    rng = random.Random(5)
    events = [
        event[:-1] + f', "id": "{rng.getrandbits(512):x}"}}'.encode() for event in texts(6000)
    ]
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(
        HEAD + b",\n".join(events) + TAIL))  # fmt: skip
    packed[-len(packed) // 4] ^= 0xFF
    packed[-len(packed) // 4 + 1] ^= 0xFF
    trace = read(tmp_path, bytes(packed), "m.json.zst")
    assert any("zstd data is damaged" in warning for warning in trace.warnings)
    assert len(trace.gpu) > 2000


def test_bytes_behind_gzip_data_are_left_out(tmp_path: Path) -> None:
    packed = gzip.compress(HEAD + b",".join(texts(3)) + TAIL)
    assert read(tmp_path, packed + b"\0" * 600, "m.json.gz").warnings == ()
    trace = read(tmp_path, packed + b"junk", "m.json.gz")
    assert len(trace.gpu) == 3
    assert trace.warnings == ("bytes after the end of the gzip data were left out",)


# What profilers write that is no JSON.


@pytest.mark.parametrize("block", [80, 1 << 20])
@pytest.mark.parametrize(
    ("field", "name"),
    [
        (b'"memory bandwidth (GB/s)": inf', "kernel_5"),
        (b'"x": -nan, "y": NaN, "z": -Infinity', "kernel_5"),
        (b'"x": [1.0, NaN, Infinity]', "kernel_5"),
        (b'"x": nan, "name": "{\\"a\\": nan, }"', '{"a": nan, }'),
        (b'"name": "a\xff\xfeb"', "a\ufffd\ufffdb"),
        (b'"name": "a\\ud800b"', "a\ufffdb"),
        (b'"name": "\\ud83d\\ude00"', "\U0001f600"),
        (b'"name": "C:\\Users\\x"', "C:\\Users\\x"),
        (b'"name": "line\nend\ttab"', "line\nend\ttab"),
        (b'"name": 17', "17"),
        (b'"name": null', ""),
        (b'"x": "\\ud800", "y": "\xc3"', "kernel_5"),
    ],
)
def test_what_is_no_json_costs_no_event(
    tmp_path: Path, block: int, field: bytes, name: str
) -> None:
    events = texts(10)
    events[5] = events[5][:-1] + b", " + field + b"}"
    trace = read(tmp_path, HEAD + b",\n".join(events) + TAIL, block=block)
    assert len(trace.gpu) == 10
    assert names(trace)[5] == name
    assert not any("damaged" in warning for warning in trace.warnings)


def test_fields_of_odd_types(tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"args": []},
        {"args": None},
        {"args": {"correlation": "12", "stream": "stream 9", "device": None}},
        {"args": {"correlation": 2**64 - 1, "stream": [1], "device": 3.0}},
        {"pid": "GPU 2", "tid": "stream 5"},
        {"dur": "2.5"},
        {"ts": "1004.5"},
        {"ts": 1005},
    ]
    data = json.dumps([{**kernel(0), "args": {}, "ts": 1000, **fields} for fields in odd]).encode()
    trace = read(tmp_path, data)
    gpu = trace.gpu
    assert len(gpu) == len(odd)
    assert trace.warnings == ()
    assert gpu.correlation.tolist() == [-1, -1, 12, -1, -1, -1, -1, -1]
    assert gpu.stream.tolist() == [7, 7, 9, 7, 5, 7, 7, 7]
    assert gpu.device.tolist() == [0, 0, 0, 3, 2, 0, 0, 0]
    assert gpu.dur.tolist() == [500, 500, 500, 500, 500, 2500, 500, 500]
    assert gpu.ts.tolist() == [0, 0, 0, 0, 0, 0, 4500, 5000]


def test_thread_ids_of_either_kind_are_one_track(tmp_path: Path) -> None:
    events = [
        {"ph": "X", "cat": "cpu_op", "name": "a", "ts": 1, "dur": 1, "pid": pid, "tid": tid}
        for pid, tid in ((1, 2), ("1", "2"), (1, "2"), ("Spans", "PyTorch Profiler"))
    ]
    trace = read(tmp_path, json.dumps(events).encode())
    assert trace.cpu.track.tolist() == [0, 0, 0, 1]
    assert [(track.pid, track.tid) for track in trace.tracks] == [
        ("1", "2"),
        ("Spans", "PyTorch Profiler"),
    ]


def test_unknown_times_are_counted(tmp_path: Path) -> None:
    events = [kernel(0), {**kernel(1), "ts": None}, {**kernel(2), "ts": "soon"},
              {**kernel(3), "dur": -2}]  # fmt: skip
    trace = read(tmp_path, json.dumps(events).encode())
    assert indices(trace) == [0, 3]
    assert trace.gpu.dur.tolist() == [500, 0]
    assert trace.warnings == (
        "events without a readable time, left out: 2",
        "events that end before they begin, counted as 0 us: 1",
    )


# No traces.

_PICKLE = b"\x80\x04\x95\x0b\x00"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("m.json", b"", "empty"),
        ("m.json.gz", gzip.compress(b"", mtime=0), "compressed, but nothing comes out of it"),
        ("m.json", b"   \n", "text that begins with"),
        ("m.pickle", _PICKLE, "a Python pickle"),
        ("m.json.gz", gzip.compress(_PICKLE, mtime=0), "a Python pickle"),
        ("m.html", b"<!DOCTYPE html><html>404", "HTML or XML, perhaps an error page"),
        ("m.nsys-rep", b"\x00\x01\x02", "an Nsight Systems report"),
        ("m.sqlite", b"SQLite format 3\0", "an SQLite database, as nsys exports"),
        ("m.zip", b"PK\x03\x04abc", "a zip archive"),
        ("m.json", b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        ("m.json", "{}".encode("utf-16"), "UTF-16"),
        ("m.json", b"hello there", "text that begins with 'hello there'"),
        ("m.bin", bytes(range(128, 160)), "binary data that begins with 80 81"),
        ("m.json", b"{}", "an empty JSON object"),
        ("m.json", b'{"runs": [1], "b": 2}', "JSON without traceEvents; its keys are runs, b"),
        ("m.json", b"[1, 2, 3]", "a JSON list, but no event in it has a ph"),
        ("m.json", b'[{"a": 1}, {"b": 2}]', "a JSON list, but no event in it has a ph"),
        ("m.json", b"[]", "a JSON list, but no event in it has a ph"),
        ("m.json", b'{"traceEvents": [{"a": 1}]}', "it has traceEvents, but no event in it"),
        ("m.json", b'{"traceEvents": 3}', "its keys are traceEvents"),
    ],
)
def test_what_is_no_trace_is_named(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(TraceError) as found:
        read_trace(path)
    message = str(found.value)
    assert message.startswith(f"{path}: not a trace: ")
    assert says in message
    assert "\n" not in message


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none.json")


def test_the_decoders_errors_read_as_we_think() -> None:
    """Where chunks are cut hangs on msgspec's words."""

    def error(text: bytes) -> msgspec.DecodeError:
        with pytest.raises(msgspec.DecodeError) as found:
            ev.FLOAT.decode(text)
        return found.value

    assert ev.trailing(error(b'[{"ph":"X"}], ')) == 12
    assert ev.trailing(error(b"[] ]")) == 3
    assert ev.trailing(error(b"[,")) == -1
    assert ev.truncated(error(b'[{"ph":"X"'))
    assert ev.truncated(error(b'[{"ph":"X'))
    assert not ev.truncated(error(b'[{"ph":}]'))
    assert ev.end_of_value(memoryview(b'{"a":[1]} ,x')) == 9
    assert ev.end_of_value(memoryview(b'{"a":12.')) == 0
    assert ev.end_of_value(memoryview(b'{"a":,')) == -1


@pytest.mark.parametrize("block", [200, 1 << 20])
@pytest.mark.parametrize("junk", [b'],"\x00\x00', b'],"a', b'],"a": 1, ', b"]}"])
@pytest.mark.parametrize("at", [0, 9])
def test_a_bracket_in_the_damage_does_not_end_the_list(
    tmp_path: Path, junk: bytes, at: int, block: int
) -> None:
    """Events behind it are read, and what was damaged is said."""
    events = texts(20)
    events[at] = junk + events[at][len(junk) :]
    trace = read(tmp_path, HEAD + b",\n".join(events) + TAIL, block=block)
    assert set(range(20)) - {at, at + 1} <= set(indices(trace))
    assert trace.other["traceName"] == "x"
    assert any("damaged" in warning for warning in trace.warnings)

"""Reading sound files: equal to the plain twin, row by row, however the chunks are cut."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import plain_reader
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import ORIGIN_NS, TraceBuilder, write_bytes

from atom.trace.reader import parallel, read_trace, read_traces, source
from atom.trace.reader.columns import UNKNOWN, exact_nanoseconds, nanoseconds
from atom.trace.types import CpuKind, GpuKind, RankTrace


def body(run: TraceBuilder) -> None:
    for layer in range(3):
        path = f"model.layers.{layer}"
        with run.scope(f"{path}.self_attn.qkv_proj"), run.op("aten::mm", [[4, 8], [8, 24]]):
            run.kernel("nvjet_tst", 5.0, grid=[1, 2, 3], block=[128, 1, 1])
        with run.nn_module(f"Qwen3MLP_{layer}"), run.op("silu", [[4, 8]], ["c10::BFloat16"]):
            run.python("mlp.py(3): forward")
            run.kernel('act<{"a"},{b}>', 2.25, stream=8, driver=True)


def made(**keywords: Any) -> TraceBuilder:
    """A run with everything that a trace has."""
    capture = TraceBuilder()
    graph = capture.capture("capture_graph_bs_4", body)
    run = TraceBuilder(flows=True, graph_nodes=True, **keywords)
    with run.step("prefill[bs=1 tok=8 ctx=8]"):
        run.copy("HtoD", nbytes=1 << 33)
        body(run)
    for _ in range(3):
        with run.step("decode[bs=4 tok=4 d=4]"):
            run.fill()
            run.graph_launch(graph, early_us=0.5)
    with run.thread(99), run.annotation("other thread"):
        run.kernel("orphan", launched=False)
    run.wait()
    return run


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".json.zst"])
@pytest.mark.parametrize("block", [61, 700, 1 << 20])
@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
def test_equals_the_plain_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, block: int, vendor: str
) -> None:
    monkeypatch.setattr(source, "BLOCK", block)
    monkeypatch.setattr(source, "_STEP", block)
    run = made(vendor=vendor)
    path = run.write(tmp_path / f"m{ending}")
    for keep in (False, True):
        trace = read_trace(path, keep_python=keep)
        plain_reader.assert_equal(path, trace, keep_python=keep)
        assert trace.warnings == ()
    assert trace.num_bytes == len(json.dumps(run.document(), indent=1))
    assert {thread.name for thread in trace.tracks} == {
        "thread 1723 (python3)",
        "thread 99 (python3)",
    }


def test_rows_are_what_the_builder_made(tmp_path: Path) -> None:
    run = made()
    trace = read_trace(run.write(tmp_path / "m.json.gz"))
    truth, gpu = run.truth, trace.gpu
    assert trace.origin_us * 1000 == pytest.approx(ORIGIN_NS, abs=1)
    assert gpu.ts.tolist() == [row.start for row in truth]
    assert gpu.end.tolist() == [row.end for row in truth]
    assert [trace.strings[name] for name in gpu.name] == [row.name for row in truth]
    assert gpu.stream.tolist() == [row.stream for row in truth]
    kinds = {"kernel": GpuKind.KERNEL, "memcpy": GpuKind.MEMCPY, "memset": GpuKind.MEMSET}
    assert gpu.kind.tolist() == [kinds[row.kind] for row in truth]
    assert gpu.nbytes.max() == 1 << 33
    modules = trace.cpu.name[trace.cpu.kind == CpuKind.MODULE]
    assert [trace.strings[name] for name in modules] == [
        f"nn.Module: Qwen3MLP_{layer}" for layer in range(3)
    ]


def test_shapes_and_launches_are_compact_json(tmp_path: Path) -> None:
    run = made()
    trace = read_trace(run.write(tmp_path / "m.json"))
    args = {trace.strings[index] for index in trace.cpu.args if index >= 0}
    assert args == {
        '{"Input Dims":[[4,8],[8,24]]}',
        '{"Input Dims":[[4,8]],"Input type":["c10::BFloat16"]}',
    }
    launches = {trace.strings[index] for index in trace.gpu.args if index >= 0}
    assert launches == {'{"grid":[1,2,3],"block":[128,1,1]}'}


def test_collectives_keep_what_they_moved(tmp_path: Path) -> None:
    facts = {
        "Collective name": "allreduce",
        "In msg nelems": 4096,
        "Out msg nelems": 4096,
        "Group size": 2,
        "dtype": "BFloat16",
    }
    places = {"device": 0, "stream": 7, "grid": [1, 1, 1], "block": [512, 1, 1]}
    event = {"ph": "X", "cat": "kernel", "pid": 0, "tid": 7, "dur": 2.0}
    args = {**places, **facts, "Process Group Ranks": "[0, 1]"}
    events = [
        {**event, "name": "plain", "ts": 10.0, "args": {**places, "dtype": "BFloat16"}},
        {**event, "name": "ncclDevKernel_AllReduce", "ts": 20.0, "args": args},
    ]
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"traceEvents": events}))
    trace = read_trace(path)
    plain, nccl = (json.loads(trace.strings[i]) for i in trace.gpu.args)
    assert plain == {"grid": [1, 1, 1], "block": [512, 1, 1]}
    assert nccl == {**plain, **facts}
    plain_reader.assert_equal(path, trace)


def test_dtypes_are_the_contract(tmp_path: Path) -> None:
    full = read_trace(made().write(tmp_path / "m.json"))
    empty = read_trace(write_bytes(tmp_path / "e.json", b'{"traceEvents": []}'))
    for trace in (full, empty):
        for table in ("cpu", "runtime", "gpu", "gpu_annotations"):
            columns = getattr(trace, table)
            for key in columns.__slots__:
                wide = key in ("ts", "dur", "external", "correlation", "graph_node", "nbytes")
                want = np.int64 if wide else np.uint8 if key == "kind" else np.int32
                assert getattr(columns, key).dtype == want, (table, key)
                assert len(getattr(columns, key)) == len(columns)
    assert len(empty.gpu) == 0
    assert empty.warnings == ()


def test_other_keys_are_kept_from_both_sides(tmp_path: Path) -> None:
    run = TraceBuilder(atom={"model": "m", "modules": {"lm_head": {"kind": "linear"}}}, rank=5,
                       world_size=8, other={"with_stack": 0})  # fmt: skip
    trace = read_trace(run.write(tmp_path / "m.json"))
    assert trace.rank == 5
    assert trace.device_name == "NVIDIA H200"
    assert trace.atom["modules"] == {"lm_head": {"kind": "linear"}}
    assert trace.other["traceName"] == "/tmp/made.json"  # behind the events
    assert trace.other["with_stack"] == 0
    assert "traceEvents" not in trace.other


@pytest.mark.parametrize(
    "text",
    [
        '{"traceEvents":[%s]}',
        '[%s]',
        '[%s',  # the format lets a list go without its end
        '[%s,\n',
        '\ufeff {"a": [{}, {"b": "},{"}], "traceEvents" : [ %s ], "c": [{}, {}, {"d": 1}], "e": 2}',
        '{"traceEvents":[%s, {}]}',
        '\n\n{"displayTimeUnit":"ms",\n"traceEvents":\n[\n%s\n]\n}\n\n',
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", [7, 50, 4096])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_any_frame_round_the_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int, count: int
) -> None:
    monkeypatch.setattr(source, "BLOCK", block)
    if count == 0:
        text = text.replace("%s,", "%s")  # a comma without an event before it is no JSON
    events = [
        {"ph": "X", "cat": "kernel", "name": f"k{i}", "ts": i, "dur": 1, "pid": 0, "tid": 7,
         "args": {"stream": 7, "nested": [{"a": "},{"}, {"b": "]}"}]}}
        for i in range(count)
    ]  # fmt: skip
    if count == 0 and (text.startswith("[") or "{}]}" in text):
        with pytest.raises(Exception, match="no event in it has a ph"):
            read_trace(write_bytes(tmp_path / "m.json", (text % "").encode()))
        return
    path = write_bytes(tmp_path / "m.json", (text % ",".join(map(json.dumps, events))).encode())
    trace = read_trace(path)
    assert [trace.strings[name] for name in trace.gpu.name] == [f"k{i}" for i in range(count)]
    assert trace.warnings == ()
    assert trace.other.get("e") == (2 if "displayTimeUnit" not in text and '"e"' in text else None)


# Random events.

_scalars = st.one_of(st.integers(-5, 10**12), st.text(max_size=12), st.booleans())
_names = st.one_of(
    st.sampled_from(['k<a>},{"b":1}', "void a::b(int)", "nn.Module: A_1", 'q"\\u00e9\\', "},{"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
_args = st.fixed_dictionaries(
    {},
    optional={
        "External id": st.integers(0, 2**40),
        "correlation": st.integers(0, 2**40),
        "device": st.integers(0, 8),
        "stream": st.integers(0, 100),
        "kernel": _names,
        "grid": st.lists(st.integers(0, 9), max_size=3),
        "bytes": st.integers(0, 2**50),
        "graph node id": st.integers(0, 2**40),
        "Input Dims": st.lists(st.lists(st.integers(0, 99), max_size=3), max_size=3),
        "Concrete Inputs": st.lists(_names, max_size=2),
        "junk": st.recursive(
            _scalars,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    },
)
_categories = st.sampled_from(
    ["kernel", "gpu_memcpy", "gpu_memset", "cpu_op", "user_annotation", "python_function",
     "cuda_runtime", "cuda_driver", "gpu_user_annotation", "overhead", "ac2g"]
)  # fmt: skip
_events = st.lists(
    st.fixed_dictionaries(
        {
            "ph": st.just("X"),
            "cat": _categories,
            "name": _names,
            "ts": st.integers(0, 10**7).map(lambda ns: (ORIGIN_NS + ns) / 1000),
            "dur": st.integers(0, 10**6).map(lambda ns: ns / 1000),
            "pid": st.integers(0, 3),
            "tid": st.integers(0, 3),
        },
        optional={"args": _args},
    ),
    min_size=1,
    max_size=12,
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    _events,
    st.sampled_from([(None, None), (1, None), (None, (",", ":")), ("\t", (" ,", " : "))]),
    st.booleans(),
    st.sampled_from([19, 64, 333, 1 << 16]),
)
def test_random_events_equal_the_plain_twin(
    tmp_path: Path,
    events: list[dict[str, Any]],
    layout: tuple[Any, Any],
    ascii_only: bool,
    block: int,
) -> None:
    document = {"a": [{"b": 1}, {"c": 2}], "traceEvents": events, "z": [{}, {"y": "]}"}]}
    text = json.dumps(document, indent=layout[0], separators=layout[1], ensure_ascii=ascii_only)
    path = write_bytes(tmp_path / "m.json", text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK", block)
        trace = read_trace(path)
    plain_reader.assert_equal(path, trace)
    assert trace.warnings == ()
    assert trace.other == {"a": document["a"], "z": document["z"]}


# Times.


@given(st.integers(0, 2**43 * 1000 - 1))
def test_a_float_of_microseconds_gives_its_nanoseconds(ns: int) -> None:
    assert nanoseconds([ns / 1000, float(f"{ns // 1000}.{ns % 1000:03d}")]).tolist() == [ns, ns]


@given(st.decimals(0, 10**15, places=6))
def test_exact_times_round_to_the_nearest(value: Decimal) -> None:
    found = exact_nanoseconds([json_raw(f"{value:f}")])[0]
    assert abs(Decimal(int(found)) - value * 1000) <= Decimal("0.5")


def test_times_that_are_none() -> None:
    found = nanoseconds([None, "7.5", float("nan"), float("inf"), "x", 1e30, 3])
    assert found.tolist() == [UNKNOWN, 7500, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, 3000]
    texts = ["null", '"7.5"', '"x"', "1e30", "-2.5", "1.5e3", "3"]
    exact = exact_nanoseconds([json_raw(text) for text in texts])
    assert exact.tolist() == [UNKNOWN, 7500, UNKNOWN, UNKNOWN, -2500, 1_500_000, 3000]


def json_raw(text: str) -> Any:
    return msgspec.Raw(text.encode())


@pytest.mark.parametrize("quote", ["", '"'])
def test_clocks_since_1970_keep_their_nanoseconds(tmp_path: Path, quote: str) -> None:
    start = 1_775_078_550_123_456  # us; a float64 here counts in steps of 0.25
    rows = [
        f'{{"ph":"X","cat":"kernel","name":"k","ts":{quote}{start + i}.{i:03d}{quote},"dur":0.001}}'
        for i in range(1000)
    ]
    trace = read_trace(write_bytes(tmp_path / "m.json", f"[{','.join(rows)}]".encode()))
    assert trace.gpu.ts.tolist() == [1001 * i for i in range(1000)]
    assert set(trace.gpu.dur.tolist()) == {1}


def test_rows_of_one_start_stay_in_the_files_order(tmp_path: Path) -> None:
    rng = random.Random(3)
    events = [
        {"ph": "X", "cat": rng.choice(["cpu_op", "user_annotation"]), "name": str(i),
         "ts": rng.randrange(5), "dur": 1, "pid": 1, "tid": 1}
        for i in range(200)
    ]  # fmt: skip
    trace = read_trace(write_bytes(tmp_path / "m.json", json.dumps(events).encode()))
    want = [event["name"] for event in sorted(events, key=lambda event: event["ts"])]
    assert [trace.strings[name] for name in trace.cpu.name] == want


# Several files, and bounds.


def ranks(tmp_path: Path) -> list[Path]:
    return [
        made(rank=rank, world_size=3, launch_us=rank + 1.0).write(
            tmp_path / f"rank_{rank}" / "m.json.gz"
        )
        for rank in (2, 0, 1)
    ]


def same(one: RankTrace, other: RankTrace) -> None:
    for key in RankTrace.__slots__:
        left, right = getattr(one, key), getattr(other, key)
        if key in ("cpu", "runtime", "gpu", "gpu_annotations"):
            for column in left.__slots__:
                assert np.array_equal(getattr(left, column), getattr(right, column))
        else:
            assert left == right, key


def test_processes_bring_what_reading_here_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ranks(tmp_path)
    here = read_traces(paths)
    assert [trace.rank for trace in here] == [0, 1, 2]
    monkeypatch.setattr(parallel, "_PAYS", 0)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 2)
    apart = read_traces(paths)
    for one, other in zip(here, apart, strict=True):
        same(one, other)
        other.gpu.ts[:1] += 1  # the columns are ours to change


def test_an_error_in_a_process_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_PAYS", 0)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 2)
    paths = [*ranks(tmp_path)[:1], write_bytes(tmp_path / "x.json", b'{"runs": 1}')]
    with pytest.raises(Exception, match=r"x\.json: not a trace: JSON without traceEvents"):
        read_traces(paths)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Exception, match=r"ended early \(exit status 1\)"):
        read_traces(paths)


def test_memory_stays_below_the_file(tmp_path: Path) -> None:
    """Columns take far less than the JSON, and chunks are freed."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        from trace_generator import generate
    finally:
        sys.path.pop(0)
    path = tmp_path / "m.json.gz"
    generate(path, 24 << 20)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    trace = read_trace(path)
    held, peak = (value - before for value in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert trace.num_bytes >= 24 << 20
    assert held < trace.num_bytes / 4
    assert peak < held + 12 * source.BLOCK


def test_the_worker_needs_no_torch() -> None:
    code = "import sys, atom.trace.reader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

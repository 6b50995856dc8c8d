"""`atom trace summary` and `top`: what they say equals what the file has."""

import gzip
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from cli_helpers import atom
from models import Row, model_of
from rich.console import Console
from synthetic import TraceBuilder

from atom.trace import communication, summary
from atom.trace.analysis import load
from atom.trace.communication import bus_factor
from atom.trace.markdown import write_summary
from atom.trace.pictures import print_summary
from atom.trace.timeline import work_of
from atom.trace.types import Analysis
from atom.trace.words import duration, percent, size

LAYERS = 3
ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
SHAPES = [[[32, 1024], [], []], ["c10::BFloat16", "Scalar", "Scalar"]]


def one_step(run: TraceBuilder, label: str, us: float, reduce_us: float) -> None:
    with run.step(label):
        for layer in range(LAYERS):
            path = f"model.layers.{layer}"
            with run.scope(f"{path}.self_attn"), run.op("atom::attention"):
                run.kernel("decode_kernel", us=us)
            with run.scope(f"{path}.mlp.down_proj"):
                with run.op("aten::mm"):
                    run.kernel("nvjet_tst_64x8", us=2 * us)
                with run.op("c10d::allreduce_", *SHAPES):
                    hidden = label.startswith("prefill")  # behind the next layer's kernels
                    run.kernel(ALL_REDUCE, us=reduce_us, stream=20 if hidden else 7)
        with run.scope("sample"):
            run.kernel("argmax_part_kernel", us=1.5)
            run.copy("DtoH", 2.0, nbytes=128)
    run.wait()


def profile(path: Path, *, rank: int = 0, ranks: int = 1, reduce_us: float = 4.0) -> Path:
    """A prefill, three iterations of a decode and two drafts, a decode alone, and a warm-up."""
    run = TraceBuilder(rank=rank, world_size=ranks, atom={"model": "toy", "tp_size": ranks})
    one_step(run, "dummy_decode[bs=4 tok=4 d=4 sk=40]", 900.0, reduce_us)
    one_step(run, "prefill[bs=1 tok=115 ctx=115]", 40.0, reduce_us)
    for _ in range(3):
        one_step(run, "decode[bs=4 tok=4 d=4 sk=40]", 10.0, reduce_us)
        for i in range(2):
            with run.step(f"draft[{i}/2 bs=4]"):
                run.kernel("gemm_draft", us=3.0 + i)
            run.wait()
    one_step(run, "decode[bs=4 tok=4 d=4 sk=40]", 10.0, reduce_us)
    return run.write(path / f"rank_{rank}" / "toy_ts_1.pt.trace.json.gz")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return profile(tmp_path)


def counted_rows(path: Path) -> list[tuple[str, int, int, int]]:
    """(kernel, start, end, index of the step) straight from the JSON, without warm-ups."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]

    def of(*categories: str) -> list[dict]:
        return [e for e in events if e.get("cat") in categories]

    def ns(us: float) -> int:
        return round(us * 1000)

    launched = {e["args"]["correlation"]: e["ts"] for e in of("cuda_runtime", "cuda_driver")}
    labels = [e for e in of("user_annotation") if re.match(r"\w+\[", e["name"])]
    labels.sort(key=lambda e: e["ts"])
    found = []
    for e in of("kernel", "gpu_memcpy"):
        at = launched[e["args"]["correlation"]]
        step = next(i for i, s in enumerate(labels) if s["ts"] <= at <= s["ts"] + s["dur"])
        if not labels[step]["name"].startswith("dummy"):
            found.append((e["name"], ns(e["ts"]), ns(e["ts"]) + ns(e["dur"]), step))
    return sorted(found, key=lambda row: row[1])


def union(spans: list[tuple[int, int]]) -> int:
    total, reach = 0, -1
    for start, end in sorted(spans):
        total += max(end - max(start, reach), 0)
        reach = max(reach, end)
    return total


def test_json_equals_the_file(trace, capsys):
    ran = atom(capsys, "trace", "summary", str(trace), "--json")
    assert ran.code == 0
    assert ran.err == ""
    rank = json.loads(ran.out)["ranks"][0]
    rows = counted_rows(trace)
    assert len(rank["steps"]) == 11
    for step in rank["steps"]:
        own = [(a, b) for _, a, b, index in rows if index == step["index"]]
        assert step["sum_ns"] == sum(b - a for a, b in own)
        assert step["busy_ns"] == union(own)
        assert step["gpu_ns"] == max(b for _, b in own) - min(a for a, _ in own)
    (time,) = rank["devices"]
    everything = [(a, b) for _, a, b, _ in rows]
    comm = [(a, b) for name, a, b, _ in rows if name == ALL_REDUCE]
    compute = [(a, b) for n, a, b, _ in rows if n != ALL_REDUCE and not n.startswith("Memcpy")]
    assert time["busy_ns"] == union(everything)
    assert time["computation_ns"] == union(compute)
    assert time["communication_ns"] == union(comm)
    assert time["exposed_communication_ns"] == union(comm + compute) - union(compute) > 0
    parts = ("computation_ns", "exposed_communication_ns", "exposed_copy_ns", "idle_ns")
    assert sum(time[part] for part in parts) == time["span_ns"]
    assert sum(time["idle"].values()) == time["idle_ns"]
    (collective,) = rank["collectives"]
    assert collective["calls"] == len(comm)
    assert collective["total_ns"] == sum(b - a for a, b in comm)


def test_text_says_what_the_json_has(trace, capsys):
    found = summary.summarize(load([trace]))
    ran = atom(capsys, "trace", "summary", str(trace))
    assert ran.code == 0
    for line in found.headlines:
        assert line in ran.out
    decode = next(g for g in found.first.groups if g.kind == "decode")
    row = next(line for line in ran.out.splitlines() if line.startswith("decode bs=4 "))
    assert duration(decode.median_ns) in row
    assert percent(decode.busy_ns / decode.mean_ns) in row
    assert "nvjet_tst_64x8" in ran.out
    assert "dummy" not in ran.out
    draft = next(line for line in ran.out.splitlines() if re.match(r" *0 +\d", line))
    first = found.first.iterations[0]
    assert first.drafts == 2
    assert duration(first.draft_ns) in draft


def shown(found: summary.Summary, width: int, **options) -> list[str]:
    """As a terminal of that width has it."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, no_color=True, **options)
    print_summary(console, found)
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_terminals(trace, width):
    """Numbers are whole at any width; a name may be folded."""
    found = summary.summarize(load([trace]))
    lines = shown(found, width)
    assert max(map(len, lines)) <= width
    start = lines.index("Time by kernel: 4 decode steps")
    assert re.match(r" *share +per step +calls +mean +(min|kernel)", lines[start + 1])
    first = found.first.top["decode"]["kernel"].rows[0]
    whole = rf" *{percent(first.share)} +{duration(first.own_ns / 4)} +{first.calls} +"
    assert re.match(whole + duration(first.mean_ns), lines[start + 2])
    assert first.name in lines[start + 2]


def test_terminals_without_unicode(trace):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    console = Console(file=out, width=90, force_terminal=True, no_color=True)
    print_summary(console, summary.summarize(load([trace])))
    out.buffer.seek(0)
    text = out.buffer.read().decode("ascii")
    assert "toy - NVIDIA H200 - rank 0 - 11 steps" in text
    assert "###" in text


@pytest.mark.parametrize("by", ["kernel", "module", "layer", "class", "op"])
def test_top(trace, capsys, by):
    ran = atom(
        capsys, "trace", "top", str(trace), "--by", by, "--kind", "decode", "-n", "2", "--json"
    )
    found = json.loads(ran.out)
    rows = [row for row in counted_rows(trace) if row[3] in (2, 5, 8, 11)]
    assert found["kind"] == "decode"
    assert found["steps"] == 4
    assert found["calls"] == len(rows)
    assert found["total_ns"] == sum(b - a for _, a, b, _ in rows)
    assert found["busy_ns"] == union([(a, b) for _, a, b, _ in rows])
    assert len(found["rows"]) == 2
    names = {
        "kernel": "nvjet_tst_64x8",
        "module": "mlp.down_proj",
        "class": "gemm",
        "op": "aten::mm",
    }
    assert found["rows"][0]["name"] == names.get(by, found["rows"][0]["name"])
    if by == "kernel":
        own = [b - a for name, a, b, _ in rows if name == "nvjet_tst_64x8"]
        assert found["rows"][0]["total_ns"] == sum(own)
        assert found["rows"][0]["where"] == "mlp.down_proj"
    if by == "layer":
        assert {row["name"] for row in found["rows"]} <= {"layer 0", "layer 1", "layer 2"}
    ran = atom(capsys, "trace", "top", str(trace), "--by", by, "-n", "2")
    assert " more" in ran.out or found["names"] <= 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--by", "colour"], "--by colour: one of kernel, module, layer, class, op"),
        (["--kind", "mixed"], "there are 6 draft, 4 decode and 1 prefill steps"),
        (["--rank", "5"], "--rank 5: the traces are of rank 0"),
    ],
)
def test_bad_questions_are_one_line(trace, capsys, arguments, words):
    ran = atom(capsys, "trace", "top", str(trace), *arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err


UPSTREAM = [
    "# Trace Performance Summary",
    "## Prefill",
    "| # | Label | Duration |",
    "## Decode",
    "| Iterations | 4 |",
    "| Mean |",
    "| Min |",
    "| Max |",
    "| Total |",
    "## Draft (MTP) Step Breakdown",
    "Total steps: 6",
    "Mean per step:",
    "| Step | Calls | Mean | Min | Max | delta vs step 0 |",
    "## Iteration Timing (decode + draft)",
    "| # | Decode | Draft (sum) | Total | Draft/Decode |",
    "| Average |",
]


def test_markdown_has_upstreams_sections_in_order(trace, tmp_path):
    analysis = load([trace])
    found = summary.summarize(analysis)
    paths = write_summary(analysis, tmp_path / "out", found)
    text = paths[0].read_text()
    places = [text.index(line.rstrip("|").rstrip()) for line in UPSTREAM]
    assert places == sorted(places)
    prefill = next(s for s in found.first.steps if s.kind == "prefill")
    assert f"| 0 | `prefill[bs=1 tok=115 ctx=115]` | {duration(prefill.gpu_ns)} |" in text
    drafts = [s.gpu_ns for s in found.first.steps if s.kind == "draft"]
    assert f"Total: {duration(sum(drafts))}" in text
    assert "| 0/2 | 3 | 3.0 us | 3.0 us | 3.0 us | - |" in text
    assert "| 1/2 | 3 | 4.0 us | 4.0 us | 4.0 us | +1.0 us |" in text
    # Every table is whole, every figure is there and is a drawing.
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    figures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert sorted(figures) == sorted(path.name for path in paths[1:])
    assert len(figures) == 4
    for path in paths[1:]:
        root = ET.fromstring(path.read_text())
        assert root.tag.endswith("svg")
        assert "prefers-color-scheme: dark" in path.read_text()
    assert re.search(r"/home|/work|/tmp", text) is None


def test_a_run_without_prefill_or_drafts(tmp_path):
    run = TraceBuilder()
    with run.step("decode[bs=4 tok=4 d=4 sk=40]"):
        run.kernel("some|kernel<1>", us=5.0)
    analysis = load([run.write(tmp_path / "m.pt.trace.json")])
    text = write_summary(analysis, tmp_path / "out")[0].read_text()
    assert "No prefill steps." in text
    assert "Draft" not in text
    assert "some\\|kernel" in text


def test_bars_of_a_drawing_are_as_long_as_their_shares(trace, tmp_path):
    analysis = load([trace])
    found = summary.summarize(analysis)
    paths = {path.stem: path for path in write_summary(analysis, tmp_path, found)}
    (time,) = found.first.devices
    widths: dict[str, float] = {}
    for rect in ET.parse(paths["performance_summary_time"]).getroot().iter():
        title = next(iter(rect), None)
        if rect.tag.endswith("rect") and title is not None and "whole run" in str(title.text):
            name = title.text.partition(": ")[2].rpartition(" ")[0]
            widths[name] = float(rect.get("width"))
    share = widths["computing"] / sum(widths.values())
    assert share == pytest.approx(time.computation_ns / time.span_ns, abs=0.002)
    dots = [e for e in ET.parse(paths["performance_summary_steps"]).iter() if "circle" in e.tag]
    assert len(dots) == len(found.first.steps)


def test_the_rank_that_is_waited_for(tmp_path):
    """Rank 1 computes longer, so that its collectives wait least."""
    for rank, us in enumerate([9.0, 4.0, 8.0]):
        profile(tmp_path, rank=rank, ranks=3, reduce_us=us)
    found = summary.summarize(load([tmp_path]))
    skew = found.skew
    assert skew.straggler == 1
    assert skew.steps == 11
    assert skew.collectives == 5 * LAYERS
    per_step = 5 * LAYERS / 11
    assert [s.wait_ns for s in skew.ranks] == pytest.approx([5000 * per_step, 0, 4000 * per_step])
    assert any(line.startswith("Rank 1 comes last to collectives") for line in found.headlines)
    (collective,) = found.first.collectives
    assert (collective.kind, collective.ranks, collective.nbytes) == ("all_reduce", 3, 32 * 2048)
    assert collective.algbw_gbps == pytest.approx(32 * 2048 / 9000)
    assert collective.busbw_gbps == pytest.approx(32 * 2048 / 9000 * 4 / 3)


def test_ranks_that_ran_other_steps_are_not_compared():
    rows = [Row(0, 10, step=0)]
    models = [model_of(rows, [kind], rank=i) for i, kind in enumerate(["decode", "prefill"])]
    skew = communication.skew(models, [work_of(m.trace) for m in models])
    assert skew.ranks == ()
    assert "different steps" in skew.note


def test_uneven_collectives_give_no_waits():
    first = [Row(0, 10, ALL_REDUCE, step=0), Row(20, 10, ALL_REDUCE, step=0)]
    models = [model_of(first, ["decode"]), model_of(first[:1], ["decode"], rank=1)]
    skew = communication.skew(models, [work_of(m.trace) for m in models])
    assert skew.collectives == 0
    assert [s.wait_ns for s in skew.ranks] == [0, 0]
    assert "different numbers of collectives" in skew.note
    assert skew.straggler == -1


def test_sizes_of_collectives_as_kineto_writes_them():
    args = {
        "Collective name": "_allgather_base",
        "In msg nelems": 1000,
        "Out msg nelems": 4000,
        "Group size": 4,
        "dtype": "BFloat16",
    }
    gather = "ncclDevKernel_AllGather_RING_LL"
    rows = [Row(0, 100, gather, step=0, args=json.dumps(args)), Row(200, 50, gather, step=0)]
    model = model_of(rows, ["decode"])
    (found,) = communication.collectives(model, work_of(model.trace))
    assert (found.kind, found.calls, found.sized_calls, found.ranks) == ("all_gather", 2, 1, 4)
    assert found.nbytes == 8000
    assert found.algbw_gbps == 80
    assert found.busbw_gbps == 60


def test_an_unknown_size_has_no_bandwidth():
    model = model_of([Row(0, 100, ALL_REDUCE, step=0, op="foo", op_args='{"Input Dims":1}')], ["x"])
    (found,) = communication.collectives(model, work_of(model.trace))
    assert (found.sized_calls, found.algbw_gbps, found.busbw_gbps) == (0, 0.0, 0.0)


def test_factors_of_bandwidth():
    assert bus_factor("all_reduce", 8) == 1.75
    assert bus_factor("all_gather", 8) == bus_factor("all_to_all", 8) == 0.875
    assert bus_factor("all_reduce", 1) == bus_factor("collective", 8) == 0


def test_no_step_counts():
    found = summary.summarize(Analysis([model_of([Row(0, 10)])]))
    assert found.first.steps == ()
    assert summary.told_kinds(found.first) == [""]
    assert found.first.devices[0].span_ns == 10


def test_a_profile_of_the_cpu(tmp_path, capsys):
    """Operators stand for kernels, and nothing is said of a GPU."""
    run = TraceBuilder(device_name="")
    for _ in range(3):
        with run.step("decode[bs=4 tok=4 d=4 sk=40]"):
            for layer in range(2):
                with run.scope(f"model.layers.{layer}.mlp"), run.op("aten::mm", us=20.0):
                    run.advance(30.0)
    path = str(run.write(tmp_path / "m.pt.trace.json"))
    ran = atom(capsys, "trace", "summary", path, "--device", "cpu", "--output-dir", str(tmp_path))
    assert ran.code == 0
    assert "decode bs=4: 144.0 us on the CPU (median of 3)" in ran.out
    assert "Time by operator: 3 decode steps" in ran.out
    assert "aten::mm" in ran.out
    assert "GPU" not in ran.out
    text = (tmp_path / "performance_summary.md").read_text()
    assert "Operators' own time on the CPU" in text
    assert "Where the time goes" not in text


def test_overlap_is_told():
    rows = [Row(0, 100, "gemm_a", step=0), Row(10, 95, "gemm_b", step=0)]
    found = summary.summarize(Analysis([model_of(rows, ["decode"])]))
    assert any("durations add up to 0.2 us" in line for line in found.headlines)
    rows = [Row(0, 100, "gemm_a", step=0), Row(100, 95, "gemm_b", step=0)]
    found = summary.summarize(Analysis([model_of(rows, ["decode"])]))
    assert not any("add up" in line for line in found.headlines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0%"), (0.0001, "<0.1%"), (0.034, "3.4%"), (0.424, "42%"), (0.987, "98.7%"),
        (0.9997, ">99.9%"), (1, "100%"), (2.6, "260%"), (0.0995, "10%"),
    ],
)  # fmt: skip
def test_percent(value, text):
    assert percent(value) == text


def test_units():
    assert [duration(ns) for ns in (0, 999_940, 1_000_000, 12_345_678, 2e10)] == [
        "0.0 us",
        "999.9 us",
        "1.00 ms",
        "12.35 ms",
        "20.00 s",
    ]
    assert [size(n) for n in (512, 65536, 3 * 2**20)] == ["512 B", "64 KiB", "3 MiB"]

"""`atom trace roofline`: whole traces, where every operation and byte is known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import TraceBuilder

from atom.cli.main import main
from atom.trace.analysis import load
from atom.trace.roofline import Roofline, ceilings_of, roofline

H200 = ceilings_of("NVIDIA H200")
LAYERS = 2
FACTS = {
    "qkv_proj": {"kind": "linear", "n": 96, "k": 64, "weight_bytes": 96 * 64 * 2},
    "attn": {"kind": "attention", "num_heads": 4, "num_kv_heads": 2, "head_dim": 16},
    "o_proj": {"kind": "linear", "n": 64, "k": 64, "weight_bytes": 64 * 64 * 2},
}


def about(**more: object) -> dict[str, object]:
    modules = {
        f"model.layers.{layer}.self_attn.{name}": facts
        for layer in range(LAYERS)
        for name, facts in FACTS.items()
    }
    modules["lm_head"] = {"kind": "linear", "n": 1000, "k": 64, "weight_bytes": 128_000}
    return {"dtype": "bfloat16", "modules": modules, **more}


def forward(run: TraceBuilder) -> None:
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        with run.scope(f"{at}.input_layernorm+{at}.self_attn.qkv_proj"):
            run.kernel("add_rms_norm_kernel", us=9.0)
            run.kernel("nvjet_sm90_tst", us=2.0 + layer)
            run.kernel("splitKreduce_kernel", us=1.0)
        with run.scope(f"{at}.self_attn.attn"):
            run.kernel("paged_attention_decode", us=4.0)
        with run.scope(f"{at}.self_attn.o_proj"):
            run.kernel("nvjet_sm90_tst", us=3.0)
    with run.scope("lm_head"):
        run.kernel("nvjet_sm90_tst", us=5.0)


def write(folder: Path, *labels: str, **more: object) -> Path:
    run = TraceBuilder(other={"atom": about(**more)})
    for label in labels:
        with run.step(label):
            forward(run)
        run.wait()
    return run.write(folder / "rank_0" / "m_ts_1.pt.trace.json.gz")


def measured(path: Path) -> Roofline:
    return roofline(load([path]).first, H200)


def test_facts_of_modules_give_the_work(tmp_path: Path) -> None:
    labels = [f"decode[bs=8 tok=8 d=8 sk={sk}]" for sk in (800, 808)]
    found = measured(write(tmp_path, *labels))
    rows = {row.module: row for row in found.rows}
    assert set(rows) == {
        "input_layernorm+self_attn.qkv_proj",
        "self_attn.attn",
        "self_attn.o_proj",
        "lm_head",
    }
    qkv = rows["input_layernorm+self_attn.qkv_proj"]
    assert (qkv.step, qkv.shape, qkv.calls) == ("decode bs=8", "8 x 96 x 64", 4)
    assert qkv.flops == 4 * 2 * 8 * 96 * 64
    assert qkv.nbytes == 4 * 2 * (96 * 64 + 8 * 96 + 8 * 64)
    assert not any("norm" in name for name in qkv.kernels)
    attn = rows["self_attn.attn"]  # one row, although each step sees more keys
    assert (attn.calls, attn.keys) == (4, 2 * (800 + 808))
    assert attn.flops == 2 * (800 + 808) * 4 * 4 * 16
    assert attn.flops_per_s == pytest.approx(attn.flops / 16e-6)
    assert attn.bound == "memory"
    assert attn.share == pytest.approx(attn.nbytes / 4.8e12 / 16e-6)
    assert found.left_out == {}


def test_covered_and_total_are_those_of_the_trace(tmp_path: Path) -> None:
    path = write(tmp_path, "decode[bs=8 tok=8 d=8 sk=800]")
    found = measured(path)
    gpu = load([path]).first.trace.gpu
    assert found.total_ns == int(gpu.dur.sum())
    norms = 2 * 9000
    assert found.covered_ns == found.total_ns - norms - _not_counted(found)


def _not_counted(found: Roofline) -> int:
    """The reduction behind a split product is a kernel of the module, of whichever class."""
    counted = any("splitK" in k for row in found.rows for k in row.kernels)
    return 0 if counted else 2 * 1000


def test_only_sampled_rows_go_through_what_follows_the_last_attention(tmp_path: Path) -> None:
    label = "prefill[bs=2 tok=100 ctx=[40,60] sk=100 sqsk=5200 sqsq=5200]"
    whole = {r.module + r.shape for r in measured(write(tmp_path / "a", label)).rows}
    narrow = {
        r.module + r.shape for r in measured(write(tmp_path / "b", label, selects_rows=True)).rows
    }
    in_graph = measured(write(tmp_path / "c", f"{label[:-1]} graph=128]", selects_rows=True)).rows
    assert "lm_head2 x 1000 x 64" in whole & narrow
    assert {r.module + r.shape for r in in_graph} == whole
    assert narrow - whole == {"self_attn.o_proj2 x 64 x 64"}


def test_a_label_without_numbers_leaves_work_out_and_says_so(tmp_path: Path) -> None:
    found = measured(write(tmp_path, "decode[bs=8 tok=8]"))
    assert "self_attn.attn" not in {row.module for row in found.rows}
    (why,) = found.left_out
    assert "keys" in why
    assert found.left_out[why] == LAYERS * 4000


def test_a_kernel_that_waits_for_the_one_before_it_has_not_worked_yet(tmp_path: Path) -> None:
    run = TraceBuilder(gap_us=-3.0)  # each starts 3 us before the one before it ends
    with run.step("decode[bs=4 tok=4 d=4 sk=40]"):
        for _ in range(2):
            with run.op("aten::mm", [[4, 8], [8, 24]], ["c10::BFloat16"] * 2):
                run.kernel("nvjet_sm90_tst", us=50.0)
    path = run.write(tmp_path / "m.pt.trace.json")
    starts, ends = (lambda gpu: (gpu.ts, gpu.end))(load([path]).first.trace.gpu)
    assert starts[1] < ends[0], "the builder made no overlap"
    (row,) = measured(path).rows
    assert row.total_ns == int(ends[1] - starts[0]) < 100_000


@pytest.mark.parametrize(("about", "words"), [({"dtype": "posit8"}, "dtype 'posit8'"), ({}, "")])
def test_numbers_of_unknown_width_are_left_out(
    tmp_path: Path, about: dict[str, str], words: str
) -> None:
    found = measured(write(tmp_path, "decode[bs=8 tok=8 d=8 sk=800]", **about))
    assert bool(found.rows) != bool(words)
    assert all(words in why for why in found.left_out)
    assert bool(found.left_out) == bool(words)


def test_shapes_serve_where_no_module_has_facts(tmp_path: Path) -> None:
    run = TraceBuilder()
    with run.step("decode[bs=4 tok=4 d=4 sk=40]"):
        for us, sizes in ((5.0, [[4, 8], [8, 24]]), (2.0, [[4, 24], [24, 8]])):
            with run.op("aten::mm", sizes, ["c10::BFloat16"] * 2):
                run.kernel(f"nvjet_sm90_tst_{us:.0f}", us=us)
        with run.op("aten::mm"):
            run.kernel("nvjet_sm90_tst_7", us=7.0)
    found = measured(run.write(tmp_path / "m.pt.trace.json"))
    rows = [(row.module, row.shape, row.calls, row.total_ns) for row in found.rows]
    assert rows == [("(aten::mm)", "4 x 24 x 8", 1, 5000), ("(aten::mm)", "4 x 8 x 24", 1, 2000)]
    assert list(found.left_out.values()) == [7000]
    assert "record_shapes" in next(iter(found.left_out))


def test_command_prints_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, "decode[bs=8 tok=8 d=8 sk=800]"))
    options = ["--bandwidth", "4", "--flops", "700"]
    assert main(["trace", "roofline", path, *options]) == 0
    shown = capsys.readouterr().out
    assert "4.00 TB/s, 700 TFLOP/s" in shown
    assert "8/" not in shown or "4/2 heads" in shown
    assert main(["trace", "roofline", path, "--json", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert len(document["rows"]) == 4
    row = document["rows"][0]
    assert row["share_of_roof"] == pytest.approx(row["floor_ns"] / row["total_ns"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rank", "7"], "--rank 7: the traces are of rank 0"),
        (["--kind", "prefill"], "--kind prefill: no such steps; there is 1 decode step"),
        (["--flops", "-1"], "--flops must be above 0"),
    ],
)
def test_bad_requests_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    path = str(write(tmp_path, "decode[bs=8 tok=8 d=8 sk=800]"))
    assert main(["trace", "roofline", path, "--bandwidth", "4", "--flops", "7", *options]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert words in error[0]

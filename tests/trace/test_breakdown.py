"""Breakdowns against plain Python: choice of the step, layers that are alike, averages, sums."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hand_models import GEMM, Row, llama, model_of, model_of_rows
from hypothesis import given, settings
from synthetic import TraceBuilder

from atom.trace.breakdown import breakdown, ranges
from atom.trace.choice import choose, shape_text
from atom.trace.errors import TraceError
from atom.trace.shapes import shapes_text
from atom.trace.tables import Table, tables
from atom.trace.types import Match, RankModel, Step

# Which step.


def steps_model(times: list[tuple[str, int, int]]) -> RankModel:
    """Steps of one kernel each: (kind, bs, ns)."""
    rows = [Row(i, 0, "m", "k", 1000 * i, ns) for i, (_, _, ns) in enumerate(times)]
    return model_of_rows(rows, [kind for kind, _, _ in times], [bs for _, bs, _ in times])


def test_the_median_is_that_of_the_commonest_shape() -> None:
    times = [("decode", 8, 10), ("decode", 32, 90), ("decode", 32, 70), ("decode", 32, 80)]
    found = choose(steps_model([*times, ("prefill", 32, 500)]).steps, "decode")
    assert found.step.index == 3
    assert found.shape == "bs=32"
    assert [step.index for step in found.alike] == [1, 2, 3]
    assert found.how == "the median of 3 decode steps with bs=32, the commonest shape"


def test_an_even_number_takes_the_lower_median() -> None:
    steps = steps_model([("decode", 1, ns) for ns in (40, 10, 30, 20)]).steps
    assert choose(steps, "decode").step.gpu_ns == 20


def test_of_shapes_equally_common_the_one_with_more_time_is_taken() -> None:
    steps = steps_model([("decode", bs, ns) for bs, ns in ((1, 5), (2, 6), (1, 5), (2, 9))]).steps
    assert choose(steps, "decode").shape == "bs=2"


def test_no_two_of_one_shape() -> None:
    steps = steps_model([("prefill", bs, 10 * bs) for bs in (3, 1, 2)]).steps
    found = choose(steps, "prefill")
    assert found.step.gpu_ns == 20
    assert "no two of one shape" in found.how
    assert len(found.alike) == 1


def test_first_slowest_and_number() -> None:
    steps = steps_model([("decode", 1, ns) for ns in (40, 90, 30)]).steps
    assert choose(steps, "decode", "first").step.index == 0
    assert choose(steps, "decode", "slowest").step.index == 1
    assert choose(steps, "decode", 2).step.index == 2


def test_incomplete_steps_stand_for_nothing_unless_there_is_nothing_else() -> None:
    steps = steps_model([("decode", 1, ns) for ns in (10, 20, 30)]).steps
    broken = [replace(steps[0], warning="incomplete"), steps[1], steps[2]]
    found = choose(broken, "decode", "first")
    assert found.step.index == 1
    assert found.how == "the first of 2 decode steps; 1 incomplete left out"
    assert found.of_kind == 3
    everything = [replace(step, warning="incomplete") for step in steps]
    assert choose(everything, "decode", "first").how.endswith("all 3 are incomplete")


def test_what_there_is_instead() -> None:
    steps = steps_model([("decode", 1, 5), ("decode", 1, 5), ("prefill", 1, 5)]).steps
    with pytest.raises(TraceError, match=r"no draft step.*2 decode and 1 prefill steps"):
        choose(steps, "draft")
    with pytest.raises(TraceError, match="--step 2 is no decode step"):
        choose(steps, "decode", 2)
    with pytest.raises(TraceError, match="median, first, slowest"):
        choose(steps, "decode", "best")
    with pytest.raises(TraceError, match="no step has GPU work"):
        choose([], "decode")


def test_a_shape_without_a_label_is_its_number_of_kernels() -> None:
    step = steps_model([("decode", 1, 5)]).steps[0]
    assert shape_text(replace(step, fields={})) == "1 kernel"
    spec = {"bs": 4, "tok": 16, "d": 4, "spec": 3, "graph": 4}
    assert shape_text(replace(step, fields=spec)) == "bs=4 tok=16 spec=3 graph=4"
    prefill: Step = replace(step, kind="prefill", fields={"bs": 1, "tok": 1, "ctx": [1, 2]})
    assert shape_text(prefill) == "bs=1 tok=1"


# Which layer.


def test_layer_three_or_the_last() -> None:
    rows = [Row(0, layer, "m", "k", 10 * layer, 5) for layer in range(6)]
    assert breakdown(model_of_rows(rows, ["decode"], [1]), "decode").layer == 3
    small = breakdown(model_of_rows(rows[:2], ["decode"], [1]), "decode")
    assert small.layer == 1
    assert "the step has layers 0-1" in small.notes


def test_a_layer_out_of_range_says_which_there_are() -> None:
    rows = [Row(0, layer, "m", "k", 10 * layer, 5) for layer in (0, 1, 2, 7)]
    with pytest.raises(TraceError, match=r"--layer 40: the decode step 0 has layers 0-2, 7$"):
        breakdown(model_of_rows(rows, ["decode"], [1]), "decode", 40)


def test_without_layers_the_whole_step_is_shown() -> None:
    rows = [Row(0, -1, "", "k", 0, 5), Row(0, -1, "", "l", 10, 7)]
    model = model_of_rows(rows, ["decode"], [1])
    made = breakdown(model, "decode")
    assert (made.layer, made.layer_sum_ns) == (None, 12)
    assert "no layers were found; the first sheet shows the whole step" in made.notes
    with pytest.raises(TraceError, match="no layers were found in the decode step 0"):
        breakdown(model, "decode", 0)
    assert all(table.name != "nothing" for table in tables(made))


def test_ranges() -> None:
    assert ranges([]) == ""
    assert ranges([4]) == "4"
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


# Runs and averages.


def test_streams_that_interleave_do_not_tear_modules_apart() -> None:
    main = [Row(0, 0, "attn", f"a{i}", 100 * i, 90) for i in range(3)]
    side = [Row(0, 0, "shared", f"s{i}", 100 * i + 70, 40, stream=13) for i in range(2)]
    made = breakdown(model_of_rows([*main, *side], ["decode"], [1]), "decode")
    assert [(run.module, len(run.kernels)) for run in made.runs] == [("attn", 3), ("shared", 2)]
    assert made.layer_sum_ns == 3 * 90 + 2 * 40
    assert made.layer_busy_ns == 290
    assert any("overlap: the sum exceeds the union by 0.06 us" in note for note in made.notes)


def test_a_module_that_runs_twice_has_two_runs() -> None:
    rows = [Row(0, 0, m, "k", 10 * i, 5) for i, m in enumerate(["norm", "mlp", "norm"])]
    made = breakdown(model_of_rows(rows, ["decode"], [1]), "decode")
    assert [run.module for run in made.runs] == ["norm", "mlp", "norm"]


def test_alternating_layers_are_averaged_apart() -> None:
    rows = []
    for layer in range(6):
        name = "window" if layer % 2 else "full"
        rows.append(Row(0, layer, "attn", name, 100 * layer, 10 + layer))
    made = breakdown(model_of_rows(rows, ["decode"], [1]), "decode", 3)
    assert made.group is not None
    assert made.group.layers == (1, 3, 5)
    spread = made.runs[0].kernels[0].over_layers
    assert spread is not None
    assert (spread.mean, spread.low, spread.high, spread.count) == (13.0, 11, 15, 3)
    other = next(group for group in made.groups if group is not made.group)
    assert other.layers == (0, 2, 4)


def test_a_group_of_one_has_no_average() -> None:
    rows = [Row(0, layer, "attn", f"k{layer}", 100 * layer, 10) for layer in range(3)]
    made = breakdown(model_of_rows(rows, ["decode"], [1]), "decode", 1)
    assert made.runs[0].kernels[0].over_layers is None
    assert made.runs[0].mean_sum_ns is None
    main = tables(made)[0]
    assert main.objects()[0]["avg_duration_us"] is None
    assert any("no average over layers" in note for note in main.notes)


def test_groups_say_how_they_differ() -> None:
    rows = [Row(0, layer, "norm", "fused", 100 * layer, 10) for layer in (1, 2)]
    rows += [Row(0, 0, "norm", "plain", 0, 10), Row(0, 0, "norm", "plain", 20, 10)]
    made = breakdown(model_of_rows(rows, ["decode"], [1]), "decode", 1)
    assert made.groups[0].differs == ()
    assert made.groups[1].differs == (("norm", "plain", 2), ("norm", "fused", -1))


def test_order_between_streams_does_not_set_layers_apart() -> None:
    rows = [Row(0, 0, "a", "x", 0, 5), Row(0, 0, "b", "y", 1, 5, stream=8)]
    rows += [Row(0, 1, "a", "x", 101, 5), Row(0, 1, "b", "y", 100, 5, stream=8)]
    assert len(breakdown(model_of_rows(rows, ["decode"], [1]), "decode", 0).groups) == 1


def test_averages_over_steps_leave_out_other_shapes_and_other_kernels() -> None:
    rows = []
    for step, (ns, name) in enumerate([(10, "k"), (20, "k"), (90, "other"), (60, "k")]):
        rows.append(Row(step, 0, "m", name, 1000 * step, ns))
    model = model_of_rows(rows, ["decode"] * 4, [4, 4, 4, 8])
    made = breakdown(model, "decode", 0, 0)
    spread = made.runs[0].kernels[0].over_steps
    assert spread is not None
    assert (spread.mean, spread.low, spread.high, spread.count) == (15.0, 10, 20, 2)
    assert made.same_steps == 2


def test_kernels_without_a_module_within_the_layer_are_said(tmp_path: Path) -> None:
    run = TraceBuilder()
    llama(run, "decode[bs=32 tok=32 d=32]", stray=True)
    made = breakdown(model_of(run, tmp_path / "a.json"), "decode")
    assert made.notes == [
        "1 kernel without a module, 1.30 us, between the layer's first and last kernel: in no layer"
    ]
    assert [(row.name, row.rows, row.sum_ns) for row in made.unmatched] == [("=mystery()", 1, 1300)]
    assert 0.98 < made.match_rate < 1


def test_guessed_layers_are_called_guesses() -> None:
    rows = [Row(0, layer, "part 0", "k", 10 * layer, 5) for layer in range(4)]
    model = model_of_rows(rows, ["decode"], [1])
    model.match[:] = Match.BLOCKS
    made = breakdown(model, "decode")
    assert any(note.startswith("no scopes") for note in made.notes)
    assert tables(made)[0].objects()[0]["match"] == "guess from blocks"


def test_a_llama_by_hand(tmp_path: Path) -> None:
    run = TraceBuilder()
    llama(run, "decode[bs=32 tok=32 d=32]", slow={4: 2.0})
    made = breakdown(model_of(run, tmp_path / "a.json"), "decode")
    assert [run.module for run in made.runs] == [
        "input_layernorm+self_attn.qkv_proj",
        "self_attn.attn",
        "self_attn.o_proj",
        "mlp.gate_up_proj",
        "mlp.act_fn",
        "mlp.down_proj",
    ]
    assert made.group is not None
    assert made.group.layers == (1, 2, 3, 4, 5)
    qkv = made.runs[0].kernels[1]
    assert (qkv.name, qkv.duration_ns) == (GEMM, 11_000)
    assert qkv.over_layers is not None
    assert qkv.over_layers.mean == pytest.approx((4 * 11_000 + 22_000) / 5)
    o_proj = made.runs[2].kernels[0]
    assert (o_proj.op, shapes_text(o_proj.op_args)) == ("aten::mm", "bf16[32,4096] bf16[4096,4096]")
    head = next(row for row in made.modules if row.module == "lm_head")
    assert not head.in_layers
    gate = next(row for row in made.modules if row.module == "mlp.gate_up_proj")
    assert (gate.layers, gate.slowest_layer, gate.high_ns) == (6, 4, 42_400)


def test_shapes_text() -> None:
    assert shapes_text("") == ""
    assert shapes_text("no json") == ""
    assert shapes_text("[1]") == ""
    assert shapes_text('{"Input Dims":[[2,3],[],[[1],[4,5]]],"Input type":["float","Scalar"]}') == (
        "f32[2,3] ([1] [4,5])"
    )
    assert shapes_text('{"Input Dims":[[2]]}') == "[2]"


# Everything at once.

ROWS = st.lists(
    st.tuples(
        st.integers(0, 2),  # step
        st.integers(-1, 3),  # layer
        st.sampled_from(["", "attn", "mlp"]),
        st.sampled_from(["x", "y"]),
        st.integers(0, 30),  # start within the step
        st.integers(0, 12),  # duration
        st.sampled_from([7, 13]),
    ),
    min_size=1,
    max_size=40,
)


def brute_union(rows: list[Row]) -> int:
    return len({t for row in rows for t in range(row.ts, row.ts + row.dur)})


def column_sum(table: Table, key: str) -> float:
    return sum(row[key] or 0 for row in table.objects())  # type: ignore[misc]


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_sums_unions_groups_and_averages_equal_brute_force(drawn: list) -> None:
    rows = [Row(s, la, m, n, 100 * s + at, dur, stream) for s, la, m, n, at, dur, stream in drawn]
    model = model_of_rows(rows, ["decode"] * 3, [4] * 3)
    step = rows[0].step
    mine = [row for row in rows if row.step == step]
    made = breakdown(model, "decode", None, step)
    layers = {row.layer for row in mine} - {-1}
    shown = [row for row in mine if made.layer is None or row.layer == made.layer]
    assert made.layer_sum_ns == sum(row.dur for row in shown)
    assert made.layer_busy_ns == brute_union(shown)
    assert sum(run.sum_ns for run in made.runs) == made.layer_sum_ns
    assert sum(run.sum_ns for run in made.step_runs) == sum(row.dur for row in mine)
    gaps = sum(kernel.gap_ns for run in made.step_runs for kernel in run.kernels)
    assert gaps == made.step.gpu_ns - brute_union(mine)

    signatures = defaultdict(list)
    for layer in sorted(layers):
        names = Counter((row.module, row.name) for row in mine if row.layer == layer)
        signatures[frozenset(names.items())].append(layer)
    assert sorted(group.layers for group in made.groups) == sorted(map(tuple, signatures.values()))
    for row in made.layers:
        own = [each for each in mine if each.layer == row.layer]
        assert (row.sum_ns, row.busy_ns) == (sum(each.dur for each in own), brute_union(own))
    if made.group is not None and len(made.group.layers) > 1:
        total = sum(row.dur for row in mine if row.layer in made.group.layers)
        means = [run.mean_sum_ns for run in made.runs]
        assert None not in means
        assert sum(means) == pytest.approx(total / len(made.group.layers))
    for module in made.modules:
        own = [
            row
            for row in mine
            if row.module == module.module and (row.layer >= 0) == module.in_layers
        ]
        assert (module.sum_ns, module.calls) == (sum(row.dur for row in own), len(own))
        assert module.busy_ns == brute_union(own)

    check_totals(tables(made), mine, shown)


def check_totals(sheets: list[Table], mine: list[Row], shown: list[Row]) -> None:
    """Every column of sums adds up to the sheet's total, and that to the rows'."""
    by_name = {sheet.name: sheet for sheet in sheets}
    total, layer = sum(row.dur for row in mine) / 1000, sum(row.dur for row in shown) / 1000
    busy = brute_union(mine) / 1000
    for name, keys, want in [
        ("decode", ("duration_us", "sum_per_module_us"), layer),
        ("decode", ("adds_us",), None),
        ("kernel_summary", ("adds_us",), busy),
        ("modules", ("adds_us",), busy),
        ("step", ("adds_us",), busy),
        ("layers", ("adds_us",), busy),
        ("kernel_summary", ("total_duration_us",), total),
        ("modules", ("sum_us",), total),
        ("step", ("duration_us", "sum_per_module_us"), total),
        ("layers", ("sum_us",), total),
        ("match", ("sum_us",), total),
    ]:
        table = by_name[name]
        for key in keys:
            total_row = table.total_object()
            assert total_row is not None
            assert column_sum(table, key) == pytest.approx(total_row[key], abs=1e-9)
            assert want is None or total_row[key] == pytest.approx(want)
    calls = by_name["kernel_summary"].total_object()
    assert calls is not None
    assert calls["calls"] == len(mine)


def test_a_kernel_launched_early_adds_only_what_it_runs_alone() -> None:
    rows = [Row(0, 0, "a", "first", 0, 100), Row(0, 0, "b", "early", 20, 90)]
    rows += [Row(0, 0, "c", "hidden", 30, 10), Row(0, 0, "d", "later", 200, 5)]
    made = breakdown(model_of_rows(rows, ["decode"], [1]), "decode", 0)
    adds = {kernel.name: kernel.adds_ns for run in made.runs for kernel in run.kernels}
    assert adds == {"first": 100, "early": 10, "hidden": 0, "later": 5}
    assert sum(adds.values()) == made.layer_busy_ns


def test_a_slow_layer_is_named_with_its_module() -> None:
    rows = []
    for layer in range(6):
        at = 1000 * layer
        rows.append(Row(0, layer, "qkv_proj", "gemm", at, 90 if layer == 4 else 20))
        rows.append(Row(0, layer, "mlp", "gemm", at + 100, 30 + layer))
    made = breakdown(model_of_rows(rows, ["decode"], [1]), "decode", 1)
    found = made.groups[0].outlier
    assert found is not None
    assert (found.layer, found.busy_ns, found.median_ns) == (4, 124, 52.5)
    assert (found.module, found.module_ns, found.module_median_ns) == ("qkv_proj", 90, 20.0)
    line = next(line for line in tables(made)[0].notes if "stands out" in line)
    assert line == (
        "Layer 4 stands out: 0.12 us, the median is 0.05; qkv_proj takes 0.09 in it, 0.02 in"
        " others."
    )
    even = [replace(row, dur=20) for row in rows]
    assert breakdown(model_of_rows(even, ["decode"], [1]), "decode", 1).groups[0].outlier is None

"""Two profiles beside each other: rows that sum to the difference, verdicts, what is paired."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from diff_models import K, S, analysis, model, serial
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.trace.attribution import Kind
from atom.trace.diff import StepDiff, TraceDiff, diff
from atom.trace.errors import TraceError
from atom.trace.noise import adjusted, changes
from atom.trace.pairing import joined_modules
from atom.trace.types import Analysis
from atom.trace.verdict import causes, fails, headline, sentences

DECODE = {"bs": 8, "tok": 8}
LAYERS = 6
GEMMS = (("qkv", "gemm_qkv", 5000), ("attn", "flash_fwd_kernel", 6000), ("o", "gemm_o", 4000))

kernels = st.builds(
    K,
    name=st.sampled_from(["gemm_a", "gemm_b", "norm_kernel", "x"]),
    start=st.integers(0, 60),
    dur=st.integers(0, 20),
    module=st.sampled_from(["", "mlp", "attn"]),
    layer=st.integers(-1, 2),
    stream=st.integers(7, 8),
    launch=st.none() | st.integers(0, 80),
)
profiles = st.lists(
    st.lists(kernels, min_size=1, max_size=10).map(lambda k: S(k, fields=DECODE)),
    min_size=1,
    max_size=5,
)


def program(
    count: int = 8,
    *,
    seed: int = 0,
    noise: float = 0.01,
    us: dict[str, float] | None = None,
    layers: int = LAYERS,
    parts: Sequence[tuple[str, str, int]] = GEMMS,
    **keywords: object,
) -> list[S]:
    """Steps of some layers of `parts`; `us`: by module, or by "layer.module"."""
    dice = random.Random(seed)
    made = []
    for _ in range(count):
        body = []
        for layer in range(layers):
            for module, kernel, ns in parts:
                wanted = (us or {}).get(f"{layer}.{module}", (us or {}).get(module, ns / 1000))
                drawn = wanted * 1000 * dice.uniform(1 - noise, 1 + noise)
                body.append((kernel, int(drawn), module, layer))
        made.append(S(serial(body, gap=0), fields=DECODE, **keywords))  # type: ignore[arg-type]
    return made


def only(found: TraceDiff) -> StepDiff:
    (group,) = found.groups
    return group


@given(profiles, profiles)
@settings(max_examples=120, deadline=None)
def test_every_table_sums_to_the_step_to_the_nanosecond(a: list[S], b: list[S]) -> None:
    group = only(diff(analysis(*a), analysis(*b)))
    spans = [sum(step.gpu_ns for step in model(side).steps) for side in (a, b)]
    # Steps may be left out as strays, so the group's own sums are what counts; all, if none is.
    if not group.notes:
        assert group.span_ns == tuple(spans)
    for rows in (group.rows, group.modules, group.layers):
        if rows:
            assert sum(r.a_ns for r in rows) == group.span_ns[0]
            assert sum(r.b_ns for r in rows) == group.span_ns[1]
            assert sum(r.delta_us for r in rows) == pytest.approx(group.span.delta_us, abs=1e-6)
    exact = group.span_ns[1] / group.steps_b - group.span_ns[0] / group.steps_a
    assert group.span.delta_us * 1000 == pytest.approx(exact, abs=1e-6)
    for row in group.rows:
        if row.layers:
            assert sum(row.layers) == pytest.approx(row.delta_us, abs=1e-6)


def test_a_slow_kernel_is_named_first_with_its_layers() -> None:
    group = only(diff(analysis(*program()), analysis(*program(10, seed=1, us={"o": 7.1}))))
    assert (group.rows[0].module, group.rows[0].name) == ("o", "gemm_o")
    assert group.rows[0].time.verdict == group.span.verdict == "slower"
    assert [r.time.verdict for r in group.rows[1:]] == ["same", "same"]
    line = headline(group)
    assert line == (
        "decode bs=8: 90.1 us -> 109 us per step, +21%: "
        "100% of it is kernel gemm_o in o, +3.1 us x 6 layers"
    )


def test_one_slow_layer_is_told_from_all() -> None:
    slow = program(seed=1, us={"3.o": 30.0})
    line = headline(only(diff(analysis(*program()), analysis(*slow))))
    assert line.endswith("kernel gemm_o in o, +26.0 us in layer 3 only")


def test_a_faster_b_is_said_so() -> None:
    group = only(diff(analysis(*program()), analysis(*program(seed=1, us={"attn": 3.0}))))
    assert group.span.verdict == "faster"
    assert "99% of it is kernel flash_fwd_kernel in attn, -3.0 us x 6 layers" in headline(group)


def test_nothing_changed_is_the_same() -> None:
    found = diff(analysis(*program()), analysis(*program(seed=1)))
    assert "the same (±" in headline(only(found))
    assert not fails(found, 0.001)


def test_changes_that_make_up_for_each_other_are_told() -> None:
    group = only(diff(analysis(*program()), analysis(*program(seed=1, us={"o": 5.0, "qkv": 4.0}))))
    assert group.span.verdict == "same"
    told = headline(group).partition("; within it ")[2]
    assert told == (
        "-6.1 us is kernel gemm_qkv in qkv, -1.0 us x 6 layers; "
        "+6.0 us is kernel gemm_o in o, +0.99 us x 6 layers"
    )


def test_noise_beyond_the_change_is_undecided() -> None:
    slow = program(4, seed=9, noise=0.9, us={"o": 5.0})
    found = diff(analysis(*program(4, noise=0.9)), analysis(*slow))
    assert "undecided, the steps vary too much" in headline(only(found))
    assert not fails(found, 0.001)


def test_one_step_a_side_has_no_noise_and_says_so() -> None:
    found = diff(analysis(*program(1)), analysis(*program(1, us={"o": 9.0})))
    group = only(found)
    assert group.span.verdict == "undecided"
    assert group.rows[0].name == "gemm_o"
    assert headline(group).endswith("(one step a side: the noise is not known)")
    assert fails(found, 0.05) == [group]  # the limit alone decides


def test_a_renamed_kernel_is_one_row() -> None:
    other = [(m, "gemm_o_tile64" if m == "o" else k, ns) for m, k, ns in GEMMS]
    group = only(diff(analysis(*program()), analysis(*program(parts=other, us={"o": 6.0}))))
    first = group.rows[0]
    assert (first.change, first.was, first.name) == ("renamed", "gemm_o", "gemm_o_tile64")
    assert len([r for r in group.rows if r.kind is Kind.KERNEL]) == 3
    assert "gemm_o_tile64 in o in place of gemm_o" in headline(group)


def test_renamed_kernels_of_one_module_pair_in_their_order() -> None:
    a = [("m", "gemm_first", 5000), ("m", "gemm_second", 3000)]
    b = [("m", "gemm_aaa", 5000), ("m", "gemm_bbb", 4000)]
    group = only(diff(analysis(*program(parts=a)), analysis(*program(parts=b))))
    assert {(r.was, r.name) for r in group.rows if r.change == "renamed"} == {
        ("gemm_first", "gemm_aaa"),
        ("gemm_second", "gemm_bbb"),
    }


def test_another_class_of_kernel_is_no_renaming() -> None:
    other = [("o", "rms_norm_kernel", 4000) if m == "o" else (m, k, ns) for m, k, ns in GEMMS]
    group = only(diff(analysis(*program()), analysis(*program(parts=other))))
    assert {(r.change, r.name) for r in group.rows if r.change} == {
        ("new", "rms_norm_kernel"),
        ("vanished", "gemm_o"),
    }


def test_a_name_that_says_nothing_takes_the_place_that_is_left() -> None:
    other = [("o", "k_7f3a", 6000) if m == "o" else (m, k, ns) for m, k, ns in GEMMS]
    group = only(diff(analysis(*program()), analysis(*program(parts=other))))
    assert (group.rows[0].change, group.rows[0].was) == ("renamed", "gemm_o")


def test_kernels_that_others_replace_are_told_by_their_modules_net() -> None:
    a = [*GEMMS, ("moe", "moe_one_kernel", 9000)]
    b = [*GEMMS, ("moe", "moe_gemm_kernel", 8000), ("moe", "reduce_kernel", 4000)]
    line = headline(only(diff(analysis(*program(parts=a)), analysis(*program(parts=b)))))
    assert "100% of it is moe with other kernels, +3.0 us x 6 layers" in line


def test_new_and_vanished_kernels_are_causes() -> None:
    more = [*GEMMS, ("o", "splitk_reduce_kernel", 2000)]
    there, back = analysis(*program()), analysis(*program(parts=more, seed=1))
    assert "new kernel splitk_reduce_kernel in o, +2.0 us x 6 layers" in headline(
        only(diff(there, back))
    )
    assert "kernel splitk_reduce_kernel in o, which is gone" in headline(only(diff(back, there)))


def test_more_calls_are_told() -> None:
    twice = [*GEMMS, ("o", "gemm_o", 4000)]
    group = only(diff(analysis(*program()), analysis(*program(parts=twice))))
    assert group.rows[0].change == "calls"
    assert "6 -> 12 calls" in headline(group)


def test_idle_before_a_late_launch_is_the_hosts() -> None:
    body = [(k, ns, m, layer) for layer in range(3) for m, k, ns in GEMMS]
    a = [S(serial(body, gap=100), fields=DECODE)] * 5
    b = [S(serial(body, gap=100, late={4: 50_000}), fields=DECODE)] * 5
    group = only(diff(analysis(*a), analysis(*b)))
    assert group.rows[0].kind is Kind.HOST
    assert group.rows[0].module == "attn"
    assert "idle time before attn: its launch comes late" in headline(group)
    assert group.busy.delta_us == 0


def test_less_overlap_is_a_cause_of_its_own() -> None:
    def steps(start: int) -> list[S]:
        side = K("nccl_all_reduce", start, 40_000, "comm", stream=20)
        return [S([K("gemm_a", 0, 40_000, "m"), side], fields=DECODE)] * 4

    group = only(diff(analysis(*steps(0)), analysis(*steps(30_000))))
    assert group.rows[0].kind is Kind.OVERLAP
    assert group.rows[0].time.verdict == "slower"
    assert headline(group).endswith("100% of it is streams that overlap less")


def test_all_kernels_alike_point_to_the_clock_and_not_to_a_kernel() -> None:
    parts = [(f"m{i}", f"gemm_{i}", 4000 + 100 * i) for i in range(8)]
    slow = [(m, k, int(ns * 1.1)) for m, k, ns in parts]
    group = only(diff(analysis(*program(parts=parts)), analysis(*program(parts=slow, seed=1))))
    assert "all kernels alike, x1.1; a guess" in headline(group)
    one = [(m, k, ns * 2 if k == "gemm_3" else ns) for m, k, ns in parts]
    group = only(diff(analysis(*program(parts=parts)), analysis(*program(parts=one, seed=1))))
    assert "gemm_3" in causes(group)


def test_a_module_whose_kernels_share_the_blame_is_named_as_a_whole() -> None:
    parts = [("moe", f"moe_gemm_{i}", 3000) for i in range(4)]
    slow = [("moe", f"moe_gemm_{i}", 4000) for i in range(4)]
    a, b = program(parts=[*GEMMS, *parts]), program(parts=[*GEMMS, *slow], seed=1)
    assert "% of it is moe, +4.0 us x 6 layers" in headline(only(diff(analysis(*a), analysis(*b))))


def test_shapes_of_one_side_are_listed() -> None:
    prompt = S(serial([("gemm_p", 5000, "p", 0)]), kind="prefill", fields={"bs": 1, "tok": 64})
    other = S(prompt.kernels, kind="prefill", fields={"bs": 1, "tok": 65})
    found = diff(analysis(*program(), prompt, prompt), analysis(*program(), other))
    assert found.only_a == ["prefill bs=1 tok=64 (2 steps)"]
    assert found.only_b == ["prefill bs=1 tok=65 (1 step)"]
    assert [str(g.shape) for g in found.groups] == ["decode bs=8"]


def test_no_common_shape_is_an_error_that_lists_them() -> None:
    other = [S(s.kernels, fields={"bs": 9, "tok": 9}) for s in program(3)]
    with pytest.raises(TraceError, match=r"A has decode bs=8 \(8 steps\); B has decode bs=9 \(3"):
        diff(analysis(*program()), analysis(*other))
    with pytest.raises(TraceError, match="no prefill step of A has its like in B"):
        diff(analysis(*program()), analysis(*program()), kind="prefill")


def test_unlike_batches_pair_by_the_graph_that_ran_them() -> None:
    def steps(sizes: Sequence[int]) -> list[S]:
        kernels = program(1)[0].kernels
        return [S(kernels, fields={"bs": n, "tok": n, "graph": 32}) for n in sizes]

    found = diff(analysis(*steps([28, 29, 30])), analysis(*steps([30, 31, 31])))
    assert {(str(g.shape), g.steps_a, g.steps_b) for g in found.groups} == {
        ("decode bs=30", 1, 1),
        ("decode graph=32", 2, 2),
    }


def test_captures_and_warm_ups_do_not_count() -> None:
    dummy = [S(s.kernels, kind="dummy", fields=DECODE) for s in program(3, us={"o": 90.0})]
    group = only(diff(analysis(*program()), analysis(*dummy, *program(seed=1))))
    assert group.steps_b == 8
    assert group.span.verdict == "same"


def test_incomplete_steps_are_left_out_and_told() -> None:
    cut = [S(s.kernels[:3], fields=DECODE, warning="incomplete: 1 of 2") for s in program(2)]
    group = only(diff(analysis(*program()), analysis(*cut, *program(seed=1))))
    assert group.steps_b == 8
    assert "B: 2 incomplete steps left out" in group.notes


def slow_at(places: set[int], count: int = 20) -> list[S]:
    fast, slow = program(count), program(count, us={"o": 90.0})
    return [slow[i] if i in places else fast[i] for i in range(count)]


def test_a_stray_step_hides_nothing_where_both_have_one() -> None:
    a, b = slow_at({5}), slow_at({9, 0})
    group = only(diff(analysis(*a), analysis(*b)))
    assert group.span.verdict == "same"
    assert "A: 1 of 20 steps up to 6.74 x the median: left out" in group.notes
    assert any("B: the first step left out" in n for n in group.notes)


def test_strays_that_only_b_has_count() -> None:
    group = only(diff(analysis(*slow_at(set())), analysis(*slow_at({3, 7, 11}))))
    assert group.span.delta_us > 50
    assert "B: 3 of 20 steps up to 6.75 x the median: counted" in headline(group)


def test_other_context_is_told() -> None:
    a = [S(s.kernels, fields={**DECODE, "sk": 800}) for s in program(4)]
    b = [S(s.kernels, fields={**DECODE, "sk": 1200}) for s in program(4)]
    found = diff(analysis(*a), analysis(*b))
    assert sentences(found)[1] == (
        "decode bs=8: not the same context: 800 tokens a step in A, 1,200 in B (+50%); "
        "attention grows with it"
    )


def test_graphs_on_one_side_are_told() -> None:
    found = diff(analysis(*program(graph_launches=1)), analysis(*program()))
    assert "A runs by graph, B without a graph" in only(found).notes


def test_what_the_files_say_of_the_run_is_compared() -> None:
    def run(level: int) -> Analysis:
        other = {"atom": {"level": level, "model": "m"}, "deviceProperties": [{"name": "H200"}]}
        return analysis(*program(3), other=other)

    assert diff(run(3), run(0)).differences == [("level", "3", "0")]


def ranks(*sides: list[S]) -> Analysis:
    return Analysis([model(steps, rank=i) for i, steps in enumerate(sides)])


WITH_COMM = (*GEMMS, ("comm", "ncclDevKernel_AllReduce", 3000))


def test_the_rank_that_is_slow_is_blamed_and_not_those_that_wait() -> None:
    a = ranks(*(program(seed=i, parts=WITH_COMM) for i in range(3)))
    waits = [program(seed=i, parts=WITH_COMM, us={"comm": 9.0}) for i in (3, 4)]
    b = ranks(waits[0], program(seed=5, parts=WITH_COMM, us={"attn": 12.0}), waits[1])
    lines = sentences(diff(a, b))
    assert lines[0].startswith("rank 1, decode bs=8")
    assert "kernel flash_fwd_kernel in attn, +6.0 us x 6 layers" in lines[0]
    assert lines[1] == "ranks 0, 2: that time goes into waiting for rank 1 in communication"


def test_ranks_without_a_partner_are_told() -> None:
    found = diff(ranks(program(), program()), ranks(program()))
    assert "rank 1 is only in A" in found.notes
    assert found.ranks == [0]
    apart = Analysis([model(program(), rank=5)])
    assert diff(ranks(program()), apart).notes == ["rank 0 of A beside rank 5 of B"]
    with pytest.raises(TraceError, match="no rank in common: A has 0, 1, B has 5"):
        diff(ranks(program(), program()), apart)


def test_several_files_of_one_rank_are_one_profile() -> None:
    prompt = S(serial([("gemm_p", 5000, "p", 0)]), kind="prefill", fields={"bs": 1, "tok": 64})
    parts = Analysis([model(program()), model([prompt, prompt])])
    found = diff(parts, parts)
    assert {str(g.shape) for g in found.groups} == {"decode bs=8", "prefill bs=1 tok=64"}


def test_fused_modules_compare_with_what_they_fused() -> None:
    apart = [("norm", "rms_norm_kernel", 1000), ("qkv", "gemm_qkv", 5000), ("o", "gemm_o", 4000)]
    fused = [("norm+qkv", "gemm_norm_qkv", 4000), ("o", "gemm_o", 4000)]
    group = only(diff(analysis(*program(parts=apart)), analysis(*program(parts=fused))))
    assert [r.name for r in group.modules if r.kind is Kind.KERNEL] == ["norm+qkv", "o"]
    assert group.modules[0].delta_us == pytest.approx(-12, abs=0.5)


def test_modules_known_on_one_side_alone_are_given_up_and_told() -> None:
    bare = [
        S([k._replace(module="", layer=-1) for k in s.kernels], fields=DECODE) for s in program()
    ]
    group = only(diff(analysis(*program(us={"o": 7.0}, seed=1)), analysis(*bare)))
    assert any("compare by name alone" in n for n in group.notes)
    assert group.rows[0].name == "gemm_o"
    assert not group.rows[0].change


def test_joined_modules() -> None:
    rename = joined_modules(["a+b", "c", "d"], ["a", "b", "c", "d"])
    assert [rename(n) for n in ("a", "b", "a+b", "c", "d", "")] == [
        "a+b", "a+b", "a+b", "c", "d", "",
    ]  # fmt: skip
    rename = joined_modules(["a+b", "b+c"], ["a+b", "b", "c"])
    assert {rename(n) for n in ("a+b", "b+c", "b", "c")} == {"a+b+c"}
    rename = joined_modules(["a+b", "c"], ["a+b", "c"])
    assert [rename(n) for n in ("a+b", "c")] == ["a+b", "c"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_is_the_definition(p: list[float]) -> None:
    ordered = sorted(p)
    expected = [
        min(1.0, min(q * len(p) / (k + 1) for k, q in enumerate(ordered) if q >= each))
        for each in p
    ]
    assert adjusted(np.array(p)) == pytest.approx(expected)


def test_welch_is_scipys() -> None:
    from scipy import stats

    dice = np.random.default_rng(0)
    a, b = dice.normal(10, 1, (7, 1)), dice.normal(11, 3, (12, 1))
    found = changes(a, b)
    assert found.p[0] == pytest.approx(stats.ttest_ind(b, a, equal_var=False).pvalue[0])
    low, high = stats.ttest_ind(b[:, 0], a[:, 0], equal_var=False).confidence_interval(0.95)
    assert found.half[0] == pytest.approx((high - low) / 2)
    assert found.delta[0] == pytest.approx((high + low) / 2)


def test_the_rate_of_false_alarms_is_what_is_claimed() -> None:
    """A thousand tables of twenty rows without a difference: few have any verdict but one."""
    dice = np.random.default_rng(1)
    alarms = 0
    for _ in range(1000):
        found = changes(dice.normal(100, 20, (8, 20)), dice.normal(100, 20, (8, 20)))
        alarms += any(found.verdict(i) in ("slower", "faster") for i in range(20))
    assert alarms <= 20

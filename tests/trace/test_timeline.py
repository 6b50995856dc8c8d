"""Times of devices and steps against a nanosecond-by-nanosecond computation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Row, covered, model_of
from synthetic import TraceBuilder

from atom.trace import pace, ranking, timeline
from atom.trace.analysis import load
from atom.trace.timeline import Work, device_times, step_times, work_of

COMPUTE, COMM, COPY = "nvjet", "ncclDevKernel_AllReduce", "Memcpy HtoD (Pinned -> Device)"
KINDS = ("decode", "decode", "prefill", "dummy")
PARTS = {Work.COMPUTE: COMPUTE, Work.COMMUNICATION: COMM, Work.COPY: COPY}


@st.composite
def rows(draw, devices=1):
    found = draw(
        st.lists(
            st.builds(
                Row,
                start=st.integers(0, 60),
                ns=st.integers(1, 12),
                name=st.sampled_from([COMPUTE, COMPUTE, COMM, COPY]),
                step=st.integers(-1, len(KINDS) - 1),
                stream=st.sampled_from([7, 8, 9]),
                device=st.integers(0, devices - 1),
                launch=st.integers(-1, 70),
                module=st.integers(-1, 1),
                layer=st.integers(-1, 2),
            ),
            min_size=1,
            max_size=25,
        )
    )
    return sorted(found, key=lambda row: row.start)


def counted(found):
    return [r for r in found if r.step >= 0 and KINDS[r.step] != "dummy"]


def of(found, *works):
    return covered([r for r in found if r.name in [PARTS[w] for w in works]])


@given(rows(devices=2))
@settings(max_examples=80)
def test_devices(found):
    model = model_of(found, KINDS)
    window = counted(found) or found
    low, high = min(r.start for r in window), max(r.end for r in window)
    inside = set(range(low, high))
    times = device_times(model, work_of(model.trace))
    present = {r.device for r in found if covered([r]) & inside}
    assert [t.device for t in times] == sorted(present)
    for time in times:
        own = [r for r in found if r.device == time.device and covered([r]) & inside]
        busy = covered(own) & inside
        span = set(range(min(busy), max(busy) + 1))
        compute = of(own, Work.COMPUTE) & inside
        exposed = (of(own, Work.COMMUNICATION) & inside) - compute
        assert time.span_ns == len(span)
        assert time.busy_ns == len(busy)
        assert time.sum_ns == sum(len(covered([r]) & inside) for r in own)
        assert time.computation_ns == len(compute)
        assert time.exposed_communication_ns == len(exposed)
        assert time.exposed_copy_ns == len(busy - compute - exposed)
        assert time.idle_ns == len(span - busy)
        assert time.communication_ns == len(of(own, Work.COMMUNICATION) & inside)
        streams = [covered([r for r in own if r.stream == s]) & inside for s in (7, 8, 9)]
        assert time.concurrent_ns == sum(sum(t in s for s in streams) >= 2 for t in busy)
        check_idle(time, own, span - busy)


def check_idle(time, own, idle):
    """Nanosecond by nanosecond: what was the next piece of work waiting for?"""
    parts = dict.fromkeys(("host", "launch", "queued", "copy", "unknown"), 0)
    for t in idle:
        begin, end = t, t + 1
        while begin - 1 in idle:
            begin -= 1
        while end in idle:
            end += 1
        after = next(r for r in own if r.start == end)
        # The last one that ended, by start among equals.
        before = [r for r in own if r.end == begin][-1]
        if after.launch < 0:
            parts["unknown"] += 1
        elif after.launch > begin and after.launch != before.launch:
            parts["host" if t < after.launch else "launch"] += 1
        else:
            parts["copy" if COPY in (after.name, before.name) else "queued"] += 1
    i = time.idle
    assert parts == {
        "host": i.host_ns,
        "launch": i.launch_ns,
        "queued": i.queued_ns,
        "copy": i.copy_ns,
        "unknown": i.unknown_ns,
    }
    assert i.total_ns == time.idle_ns
    lengths = [gap.ns for gap in time.gaps]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(lengths) <= time.idle_ns


@given(rows())
@settings(max_examples=80)
def test_steps(found):
    model = model_of(found, KINDS)
    everything = covered(found)
    ended = None
    expected = sorted({r.step for r in counted(found)}, key=lambda i: (model.steps[i].gpu_start, i))
    times = step_times(model, work_of(model.trace))
    assert [t.index for t in times] == expected
    for time in times:
        own = [r for r in found if r.step == time.index]
        start, end = min(r.start for r in own), max(r.end for r in own)
        span = set(range(start, end))
        compute, comm = of(own, Work.COMPUTE), of(own, Work.COMMUNICATION)
        assert time.gpu_ns == len(span)
        assert time.busy_ns == len(covered(own))
        assert time.sum_ns == sum(r.ns for r in own)
        assert time.computation_ns == len(compute)
        assert time.exposed_communication_ns == len(comm - compute)
        assert time.exposed_copy_ns == len(of(own, Work.COPY) - compute - comm)
        assert time.other_ns == len((everything & span) - covered(own))
        assert time.idle_ns == len(span - everything)
        parts = time.computation_ns + time.exposed_communication_ns + time.exposed_copy_ns
        assert parts + time.other_ns + time.idle_ns == time.gpu_ns
        since = range(ended, start) if ended is not None else range(0)
        assert time.idle_before_ns == len(set(since) - everything)
        ended = max(end, ended or 0)


@given(rows(), st.sampled_from(ranking.BY), st.sampled_from(["", "decode", "prefill"]))
@settings(max_examples=80)
def test_rankings_add_up(found, by, kind):
    model = model_of(found, KINDS, modules=["a", "b"])
    chosen = [
        r
        for r in found
        if (KINDS[r.step] == kind if kind else r.step < 0 or KINDS[r.step] != "dummy")
        and (r.step >= 0 or not kind)
    ]
    top = ranking.top(model, by, kind)
    assert top.calls == len(chosen) == sum(row.calls for row in top.rows)
    assert top.busy_ns == len(covered(chosen)) == sum(row.own_ns for row in top.rows)
    assert top.total_ns == sum(r.ns for r in chosen) == sum(row.total_ns for row in top.rows)
    assert sum(row.share for row in top.rows) == pytest.approx(1.0 if chosen else 0.0)
    owns = [row.own_ns for row in top.rows]
    assert owns == sorted(owns, reverse=True)
    if by == "kernel":
        for row in top.rows:
            mine = [r for r in chosen if r.name == row.full_name]
            assert (row.calls, row.total_ns) == (len(mine), sum(r.ns for r in mine))
            assert (row.min_ns, row.max_ns) == (min(r.ns for r in mine), max(r.ns for r in mine))
            taken, own = set(), 0
            for r in chosen:
                own += len(covered([r]) - taken) if r in mine else 0
                taken |= covered([r])
            assert row.own_ns == own


def test_early_launched_kernels_get_only_what_they_run_alone():
    """A kernel that starts early and waits takes no share of what it waits for."""
    found = [Row(0, 100, "gemm_a", step=0), Row(10, 95, "gemm_b", step=0)]
    top = ranking.top(model_of(found, ["decode"]), "kernel")
    assert [(row.name, row.own_ns, row.total_ns) for row in top.rows] == [
        ("gemm_a", 100, 100),
        ("gemm_b", 5, 95),
    ]


def test_a_kernel_without_time_of_its_own_keeps_its_module():
    found = [Row(0, 100, "gemm_a", step=0, module=0), Row(10, 50, "gemm_b", step=0, module=1)]
    top = ranking.top(model_of(found, ["decode"], modules=["a", "b"]), "kernel")
    assert [(row.name, row.own_ns, row.where) for row in top.rows] == [
        ("gemm_a", 100, "a"),
        ("gemm_b", 0, "b"),
    ]


def test_gaps_within_a_graph_are_not_the_hosts():
    """A replay whose call returns long after its kernels began: its gaps are gaps of kernels."""
    found = [Row(100, 10, launch=50), Row(130, 10, launch=50), Row(170, 10, launch=150)]
    (time,) = device_times(model_of(found), work_of(model_of(found).trace))
    assert (time.idle.queued_ns, time.idle.host_ns, time.idle.launch_ns) == (20, 10, 20)


def test_a_slow_call_counts_as_launch_latency(tmp_path):
    """The device runs dry while the host is within the call: not queued work."""
    run = TraceBuilder(launch_us=50.0, latency_us=2.0)
    with run.step("decode[bs=1 tok=1 d=1 sk=9]"):
        run.kernel("gemm_a", us=5.0)
        run.kernel("gemm_b", us=5.0)
    model = load([run.write(tmp_path / "m.pt.trace.json")]).first
    (time,) = device_times(model, work_of(model.trace))
    a, b = run.truth
    assert time.idle_ns == b.start - a.end
    assert time.idle.host_ns + time.idle.launch_ns == time.idle_ns
    assert time.idle.host_ns == max(int(model.launch[1]) - a.end, 0)
    assert time.gaps[0].before == "gemm_a"
    assert time.gaps[0].after == "gemm_b"


PARTED = {
    "parts": [{"path": "a", "start": 0, "end": 900}, {"path": "b", "start": 900, "end": 2000}]
}


def test_time_between_the_files_of_a_rank_is_nobodys():
    found = [Row(100, 50, step=0, launch=1), Row(300, 50, step=1, launch=2)]
    found += [Row(1000, 50, step=2, launch=3), Row(1100, 50, step=3, launch=4)]
    model = model_of(found, ["decode"] * 4, other=PARTED)
    (time,) = device_times(model, work_of(model.trace))
    assert (time.span_ns, time.busy_ns, time.idle_ns) == (400, 200, 200)
    steps = step_times(model, work_of(model.trace))
    assert [s.idle_before_ns for s in steps] == [0, 150, 0, 50]
    assert [i.until_next_ns for i in pace.iterations(steps)] == [200, -1, 100, -1]


def steps_of(kinds, *, every=100, ns=40, fields=()):
    found = [Row(every * i, ns, step=i, launch=every * i - 5) for i in range(len(kinds))]
    model = model_of(found, kinds, fields=fields)
    return step_times(model, work_of(model.trace))


def test_iterations_pair_decodes_with_the_drafts_behind_them():
    steps = steps_of(["prefill", "draft", "decode", "draft", "draft", "prefill", "draft", "decode"])
    assert [(i.decode, i.drafts, i.draft_ns, i.until_next_ns) for i in pace.iterations(steps)] == [
        (2, 2, 80, 500),
        (7, 0, 0, -1),
    ]
    assert pace.iterations(steps)[0].total_ns == 120


def test_the_steady_stretch_is_the_longest_of_one_shape():
    fields = [{"bs": 4}] * 3 + [{"bs": 8}] * 5 + [{"bs": 4}] * 2
    steady = pace.steady(steps_of(["decode"] * 10, fields=fields))
    assert (steady.shape, steady.first, steady.steps, steady.span_ns) == ("decode bs=8", 3, 5, 400)
    assert steady.mean_interval_ns == steady.median_interval_ns == 100
    assert steady.tokens_per_s == pytest.approx(4 * 8 / 400e-9)
    assert steady.idle_share == pytest.approx(0.6)
    assert pace.steady(steps_of(["decode"] * 2)) is None


def test_groups_keep_shapes_apart():
    fields = [{"bs": 4}, {"bs": 8}, {"bs": 4}]
    groups = pace.group_steps(steps_of(["decode"] * 3, fields=fields))
    assert [(g.shape, g.steps, g.indices) for g in groups] == [
        ("decode bs=4", 2, (0, 2)),
        ("decode bs=8", 1, (1,)),
    ]
    assert groups[0].idle_before_ns == pytest.approx(30)


def test_launches_and_their_queue():
    found = [Row(100, 10, launch=10), Row(110, 10, launch=20), Row(120, 10, launch=115)]
    launches = pace.launches(model_of(found))
    assert (launches.calls, launches.max_queue, launches.median_queue) == (3, 2, 1)
    assert launches.median_delay_ns == 90
    assert pace.launches(model_of([Row(0, 5)])) is None


def test_classes_of_work():
    found = [Row(0, 1, COMM), Row(1, 1, COPY), Row(2, 1, "__amd_rocclr_copyBuffer"), Row(3, 1)]
    assert work_of(model_of(found).trace).tolist() == [1, 2, 2, 0]
    assert timeline.windows(model_of([])) == []

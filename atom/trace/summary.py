"""A profile in one value: what `atom trace summary` shows and performance_summary.md tells.

Everything shown comes from here, so that JSON, terminal and Markdown cannot differ. ns throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atom.trace import pace
from atom.trace.communication import Collective, Skew, collectives, skew
from atom.trace.pace import Iteration, Launches, Steady, StepGroup
from atom.trace.ranking import Top, tops
from atom.trace.timeline import DeviceTime, StepTime, device_times, step_times, work_of
from atom.trace.types import I8, STEP_KINDS, Analysis, Match, RankModel
from atom.trace.words import duration, percent

SCHEMA = 1  # of the JSON
TOP_ROWS = 15
OVERLAP = 1.01  # durations beyond the busy time by that much are worth a sentence
HOW = {
    Match.LAUNCH: "by its launch",
    Match.GRAPH_NODE: "by its graph node",
    Match.CAPTURE: "by its place in the capture",
    Match.ALIGNED: "by aligning it with the capture",
    Match.BLOCKS: "guessed from repeating blocks",
    Match.NONE: "not found",
}


@dataclass(frozen=True, slots=True)
class Matched:
    """How rows of GPU work came to their modules, over steps that count."""

    rate: float  # share of rows with a module
    rows: int
    by: Mapping[str, int]  # how -> rows, words of `HOW`
    unmatched: Mapping[str, int]  # kernel -> rows without a module
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KindShare:
    """Where the busy time of all steps of one kind goes."""

    kind: str
    steps: int
    busy_ns: int
    total_ns: int  # sum of durations
    classes: tuple[tuple[str, float], ...]  # class and share of the busy time, most first


@dataclass(frozen=True, slots=True)
class RankSummary:
    """One rank's part."""

    rank: int
    path: str
    model: str
    device_name: str
    num_layers: int
    layers_by: str
    devices: tuple[DeviceTime, ...]
    groups: tuple[StepGroup, ...]
    kinds: tuple[KindShare, ...]
    steady: Steady | None
    iterations: tuple[Iteration, ...]
    launches: Launches | None
    collectives: tuple[Collective, ...]
    match: Matched
    # By kind of step, "" for all work: by kernel, module, layer, class; the first rows of each.
    top: Mapping[str, Mapping[str, Top]]
    steps: tuple[StepTime, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """All ranks. `headlines` are sentences, the most telling first."""

    schema: int
    device: str  # "gpu", or "cpu": operators' own time stands for GPU work
    headlines: tuple[str, ...]
    ranks: tuple[RankSummary, ...]
    skew: Skew | None
    capture: str
    warnings: tuple[str, ...]

    @property
    def first(self) -> RankSummary:
        return self.ranks[0]


def told_kinds(rank: RankSummary, limit: int = 2) -> list[str]:
    """Kinds of step whose rankings are shown: those with most work, in the order of `STEP_KINDS`;
    all work together where there are no steps."""
    chosen = sorted(rank.kinds, key=lambda k: -k.busy_ns)[:limit]
    return [k.kind for k in rank.kinds if k in chosen and k.busy_ns] or [""]


def summarize(analysis: Analysis, *, top_rows: int = TOP_ROWS) -> Summary:
    """The profile's figures and what they say."""
    works = [work_of(model.trace) for model in analysis.ranks]
    ranks = tuple(
        _rank(model, work, top_rows) for model, work in zip(analysis.ranks, works, strict=True)
    )
    summary = Summary(
        schema=SCHEMA,
        device=str(analysis.extra.get("device", "gpu")),
        headlines=(),
        ranks=ranks,
        skew=skew(analysis.ranks, works),
        capture=analysis.capture.name if analysis.capture else "",
        warnings=analysis.warnings,
    )
    return replace(summary, headlines=tuple(headlines(summary)))


def as_json(summary: Summary) -> dict[str, Any]:
    """Plain objects; keys as the fields are named, times in ns."""
    import msgspec

    built: dict[str, Any] = msgspec.to_builtins(summary)
    return built


def _rank(model: RankModel, work: I8, top_rows: int) -> RankSummary:
    trace, report = model.trace, model.report
    steps = step_times(model, work)
    kinds = [kind for kind in STEP_KINDS if any(step.kind == kind for step in steps)]
    ranked = {kind: tops(model, ("kernel", "module", "layer", "class"), kind) for kind in kinds}
    ranked[""] = tops(model, ("kernel", "module", "layer", "class"))
    return RankSummary(
        rank=trace.rank,
        path=str(trace.path),
        model=str(trace.atom.get("model", "")),
        device_name=trace.device_name,
        num_layers=model.num_layers,
        layers_by=model.layers_by,
        devices=tuple(device_times(model, work)),
        groups=tuple(pace.group_steps(steps)),
        kinds=tuple(_kind(ranked[kind]["class"]) for kind in kinds),
        steady=pace.steady(steps),
        iterations=tuple(pace.iterations(steps)),
        launches=pace.launches(model),
        collectives=tuple(collectives(model, work)),
        match=Matched(
            rate=report.rate,
            rows=report.total,
            by={HOW[how]: report.rows[how] for how in HOW if report.rows.get(how)},
            unmatched=dict(report.unmatched),
            notes=report.notes,
        ),
        top={
            kind: {by: replace(found, rows=found.rows[:top_rows]) for by, found in of.items()}
            for kind, of in ranked.items()
        },
        steps=tuple(steps),
    )


def _kind(found: Top) -> KindShare:
    classes = tuple((row.name, row.share) for row in found.rows)
    return KindShare(found.kind, found.steps, found.busy_ns, found.total_ns, classes)


# --- sentences --------------------------------------------------------------------------------


def headlines(summary: Summary) -> list[str]:
    """Of the first rank, and of the ranks together."""
    rank = summary.first
    lines = [_group_line(rank, group, summary.device) for group in main_groups(rank.groups)]
    lines += _idle_lines(rank, summary.device)
    if rank.steady and rank.steady.tokens_per_s:
        s = rank.steady
        lines.append(
            f"Steady: {s.steps} steps of {s.shape} in a row, one every "
            f"{duration(s.mean_interval_ns)}: {s.tokens_per_s:,.0f} tokens/s computed."
        )
    lines += _communication_lines(summary)
    for kind in rank.kinds:
        if kind.busy_ns and kind.total_ns > OVERLAP * kind.busy_ns:
            lines.append(
                f"{_work(summary.device)} of {kind.kind} overlap: their durations add up to "
                f"{duration(kind.total_ns)}, the {_device(summary.device)} was busy for "
                f"{duration(kind.busy_ns)}. Shares are of busy time."
            )
    lines.append(_match_line(rank, summary.device))
    return lines


def main_groups(groups: Sequence[StepGroup], limit: int = 3) -> list[StepGroup]:
    """The shapes with most time; of every kind the first one, as far as there is room."""
    order = sorted(groups, key=lambda g: -g.total_ns)
    firsts = {g.kind: g for g in reversed(order)}
    chosen = sorted(firsts.values(), key=lambda g: -g.total_ns)[:limit]
    return [g for g in groups if g in chosen]


def _group_line(rank: RankSummary, group: StepGroup, device: str) -> str:
    shares = next(k for k in rank.kinds if k.kind == group.kind).classes
    told = ", ".join(f"{percent(share)} {name}" for name, share in shares[:3])
    many = f"median of {group.steps}" if group.steps > 1 else "one step"
    lead = f"{group.shape}: {duration(group.median_ns)} on the {_device(device)} ({many})"
    if device == "cpu":
        return f"{lead}; {told}."
    idle = group.idle_ns / group.mean_ns if group.mean_ns else 0.0
    return f"{lead}, {percent(idle)} of it idle; {told}."


def _idle_lines(rank: RankSummary, device: str) -> list[str]:
    lines = []
    for each in rank.devices:
        if not each.span_ns or device == "cpu":
            continue
        name = "GPU" if len(rank.devices) == 1 else f"GPU {each.device}"
        why = [(part, words) for words, part in idle_parts(each) if part]
        why.sort(reverse=True)
        told = ", ".join(f"{percent(part / each.span_ns)} {words}" for part, words in why[:2])
        share = percent(each.idle_ns / each.span_ns)
        line = f"{name} idle {share} of {duration(each.span_ns)} from first to last step"
        lines.append(f"{line}: {told}." if told else f"{line}.")
    return lines


def idle_parts(time: DeviceTime) -> list[tuple[str, int]]:
    """Words for `Idle`, and ns."""
    idle = time.idle
    return [
        ("waiting for the host to launch", idle.host_ns),
        ("launch latency", idle.launch_ns),
        ("gaps between launched kernels", idle.queued_ns),
        ("gaps beside copies", idle.copy_ns),
        ("launch not in the file", idle.unknown_ns),
    ]


def _communication_lines(summary: Summary) -> list[str]:
    lines = []
    for each in summary.first.devices:
        if each.communication_ns:
            exposed = each.exposed_communication_ns
            lines.append(
                f"Communication takes {percent(each.communication_ns / each.span_ns)} of the "
                f"time; {percent(exposed / each.communication_ns)} of it is exposed."
            )
    skewed = summary.skew
    if skewed and skewed.straggler >= 0:
        others = [s for s in skewed.ranks if s.rank != skewed.straggler]
        wait = sum(s.wait_ns for s in others) / len(others)
        lines.append(
            f"Rank {skewed.straggler} comes last to collectives: the others wait "
            f"{duration(wait)} per step for it."
        )
    return lines


def _match_line(rank: RankSummary, device: str) -> str:
    match = rank.match
    what = _work(device).lower() + ("" if device == "cpu" else " and copies")
    if not match.rows:
        return "No step that counts has work."
    how = ", ".join(f"{percent(rows / match.rows)} {words}" for words, rows in match.by.items())
    found = (
        f"{rank.num_layers} layers found by {rank.layers_by}" if rank.num_layers else "no layers"
    )
    return f"{percent(match.rate)} of {match.rows:,} {what} have a module ({how}); {found}."


def _work(device: str) -> str:
    return "Kernels" if device == "gpu" else "Operators"


def _device(device: str) -> str:
    return "GPU" if device == "gpu" else "CPU"

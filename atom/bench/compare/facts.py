"""What a comparison says of its two runs besides the metrics: who they are, how they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from atom.bench.compare import rules
from atom.bench.history.runs import commit_of, load_text, recipe_of, shape_text, started_at
from atom.bench.types import RunResult

# Work that differs by more than this is other work, whatever was asked for.
SAME_WORK = 0.01
SAME_CACHED = 0.02

NO_EXPERIMENT = frozenset({"seed", "seeds", "path", "repeats", "workers", "label", "source"})


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str
    sweep_id: str
    name: str
    model: str
    server: str  # kind and version
    commit: str
    started_at: str
    status: str
    fingerprint: str
    artefacts: list[dict[str, str]]


class Difference(msgspec.Struct, frozen=True):
    """Something that the two runs do not have in common."""

    what: str
    a: str
    b: str


def run_facts(run: RunResult) -> RunFacts:
    return RunFacts(
        run_id=run.run_id,
        sweep_id=run.sweep_id,
        name=run.name or run.model,
        model=run.model,
        server=_server(run),
        commit=commit_text(run),
        started_at=started_at(run),
        status=run.status,
        fingerprint=run.fingerprint,
        artefacts=run.artefacts,
    )


def point(run: RunResult) -> str:
    """The load and the lengths, for people: "c=8 1024/128"."""
    return " ".join(filter(None, (load_text(run.load), shape_text(run.workload))))


def commit_text(run: RunResult) -> str:
    """Short, with a mark where the checkout had changes that no commit holds."""
    dirty = rules.get(run.provenance, "server", "dirty")
    return commit_of(run)[:12] + ("-dirty" if dirty and commit_of(run) else "")


def _server(run: RunResult) -> str:
    server = run.provenance.get("server")
    return " ".join(str(rules.get(server, key) or "") for key in ("kind", "version")).strip()


def differences(a: RunResult, b: RunResult) -> list[Difference]:
    """What else than the code differs, most telling first; equal facts are left out."""
    described = [dict(_described(run)) for run in (a, b)]
    keys = dict.fromkeys([*described[0], *described[1]])
    found = []
    for key in keys:
        left, right = (side.get(key, "") for side in described)
        if left != right:
            found.append(Difference(key, left or "not known", right or "not known"))
    return found


def _described(run: RunResult) -> Iterator[tuple[str, str]]:
    get = rules.get
    yield "model", run.model
    yield "server", _server(run)
    yield "commit", commit_text(run)
    yield "recipe", recipe_of(run)
    yield "recipe text", str(get(run.provenance, "recipe", "sha256") or "")[:12]
    for key, value in _flat(run.load):
        yield f"load: {key}", value
    for key, value in _flat(run.workload):
        yield f"workload: {key}", value
    hardware = run.provenance.get("hardware")
    yield "hardware", _hardware(hardware)
    yield "driver", str(get(hardware, "driver") or run.provenance.get("driver") or "")
    yield "python", str(run.provenance.get("python") or "")
    packages = run.provenance.get("packages")
    for key, value in _flat(packages if isinstance(packages, Mapping) else {}):
        yield f"package: {key}", value
    yield "repeats", str(len(run.repeats))


def _flat(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Plain values that set an experiment; what came of it, and where its files lie, do not."""
    for key, value in tree.items():
        if isinstance(value, str | int | float) and key not in NO_EXPERIMENT:
            yield str(key), f"{value:g}" if isinstance(value, float) else str(value)


def _hardware(hardware: Any) -> str:
    gpus = rules.get(hardware, "gpus")
    if isinstance(gpus, list) and gpus:
        labels = {str(rules.get(g, "name") or g) for g in gpus}
        return f"{len(gpus)} x {', '.join(sorted(labels))}"
    return str(rules.get(hardware, "cpu") or "")


def doubts(a: RunResult, b: RunResult) -> list[str]:
    """What speaks against taking the verdicts at their word."""
    return [*_unlike_work(a, b), *_troubled("A", a), *_troubled("B", b)]


def _unlike_work(a: RunResult, b: RunResult) -> Iterator[str]:
    for name, what in (
        ("mean_input_tokens", "input tokens per request"),
        ("mean_output_tokens", "output tokens per request"),
    ):
        left, right = rules.typical(a, name), rules.typical(b, name)
        if left and right and abs(right / left - 1) > SAME_WORK:
            yield f"not the same work: {what} are {left:.1f} in A and {right:.1f} in B"
    left, right = (rules.typical(run, "cached_token_share") for run in (a, b))
    if left is not None and right is not None and abs(right - left) > SAME_CACHED:
        yield f"the prefix cache gave {left:.0%} of A's prompt tokens and {right:.0%} of B's"


def _troubled(letter: str, run: RunResult) -> Iterator[str]:
    said = {
        "client_bound": "was limited by the client, not by the server",
        "interrupted": "was interrupted: it is not whole",
        "errors": "had more failed requests than allowed",
    }
    if run.status in said:
        yield f"{letter} {said[run.status]}"
    if len(run.repeats) in (1, 2):
        yield f"{letter} has {len(run.repeats)} repeat{'s' * (len(run.repeats) > 1)}; 5 tell more"

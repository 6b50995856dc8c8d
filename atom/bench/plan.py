"""`--dry-run`: what would be measured, the first prompts and their lengths; no load is sent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from atom.bench.errors import ServerUnreachable
from atom.bench.points import Point
from atom.bench.session import draw_seed
from atom.bench.settings import DEFAULT_URL
from atom.bench.target import Request, ask, describe_server, make_target
from atom.bench.types import Target, Turn
from atom.bench.workloads import TokenSource, make_workload, needs_tokens, open_tokens, realised

SHOWN = 2
SHOWN_CHARS = 160


def lines(request: Request) -> Iterator[str]:
    """The plan, a line at a time. Asks a running server for its model and for token counts."""
    settings = request.settings
    if request.own_server:
        yield f"server     atom serve {request.recipe}, started for this and stopped after"
    base_url = settings.base_url or DEFAULT_URL
    target, max_len, problem = None, None, ""
    if not request.own_server:
        try:
            info = ask(request, base_url)
        except ServerUnreachable as error:
            yield f"server     {base_url}: not there now ({error})"
            problem = "known once the server is there, or with --tokenizer"
        else:
            target, max_len = make_target(request, base_url, info), info.max_model_len
            yield f"server     {base_url}: {describe_server(info)}, model {info.model}"
    else:
        problem = "known once the server runs, or with --tokenizer"
    yield from _what(request)
    seed = settings.config.load.seed
    yield f"seed       {'drawn for each benchmark' if seed is None else seed}"
    yield from _prompts(request, target, max_len, problem, draw_seed() if seed is None else seed)


def _what(request: Request) -> Iterator[str]:
    settings = request.settings
    eos = "answers run to their full length" if settings.ignore_eos() else "answers may end early"
    yield f"endpoint   {settings.endpoint()}; {eos}"
    statistics = settings.config.statistics
    repeats = f"{settings.repeats}"
    if settings.precision is not None:
        repeats += f" to {statistics.max_repeats}, until within {settings.precision:.1%}"
    if settings.search is not None:
        s = settings.search
        what = s.what.replace("_", " ")
        runs = settings.config.objectives.max_runs
        yield f"search     {what} from {s.low:g} to {s.high:g}, at most {runs} points"
    for point in settings.points:
        yield f"point      {point.title()}: {repeats} x {_size(point)}, {_warm_up(request, point)}"
    for name, limit in settings.objectives.items():
        yield f"objective  {name} {limit:g}"


def _size(point: Point) -> str:
    parts = []
    if point.num_requests is not None:
        parts.append(f"{point.num_requests} requests")
    if point.duration_s is not None:
        parts.append(f"{point.duration_s:g} s")
    return " or ".join(parts) or "the whole trace"


def _warm_up(request: Request, point: Point) -> str:
    asked = request.settings.config.load.warmup
    count = point.warmups() if asked is None else asked
    return f"{count} to warm up" if count else "no warm-up"


def _prompts(
    request: Request, target: Target | None, max_len: int | None, problem: str, seed: int
) -> Iterator[str]:
    settings = request.settings
    point = settings.points[0] if settings.points else Point(concurrency=1, num_requests=16)
    spec = settings.workload_spec(max_len=max_len, limit=point.num_requests)
    tokens: TokenSource | None = None
    tokenizer = settings.config.server.tokenizer
    if target is not None and (needs_tokens(spec) or tokenizer):
        tokens = open_tokens(target, tokenizer)
    elif tokenizer is not None:
        from atom.bench.workloads import LocalTokens

        tokens = LocalTokens(Path(tokenizer))
    elif needs_tokens(spec):
        yield f"prompts    {problem}"
        return
    workload = make_workload(spec, tokens, seed)
    point = point.fit(workload, asked=settings.count_asked)
    jobs = list(itertools.islice(workload.jobs(), point.num_requests or 1000))
    yield f"lengths    {realised(jobs)}"
    for note in getattr(workload, "notes", ()):
        if not note.startswith("lengths:"):
            yield f"           {note}"
    for job in jobs[:SHOWN]:
        yield f"prompt     {job.index}: {_shown(job.turns[0])}"


def _shown(turn: Turn) -> str:
    if turn.messages is not None:
        text = " ".join(f"{m['role']}: {m['content']}" for m in turn.messages)
    elif isinstance(turn.prompt, list):
        text = f"token ids {' '.join(map(str, turn.prompt))}"
    else:
        text = turn.prompt or ""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."

"""The whole of `atom eval --agree`: ask the reference, then the tested side, compare, keep.

The reference answers first and is gone before the other starts: two recipes need not fit together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from atom.bench.history import History
from atom.config import resolve
from atom.engine.sampling_params import MAX_LOGPROBS
from atom.eval.agree import limits, prompts, saved
from atom.eval.agree.ask import Asker
from atom.eval.agree.compare import compare
from atom.eval.agree.findings import Report
from atom.eval.agree.limits import Verdict
from atom.eval.agree.precision import of_recipe
from atom.eval.agree.record import Kept, keep, provenance
from atom.eval.agree.server_side import ServerSide
from atom.eval.agree.transformers_side import PREFIX, TransformersSide, parse
from atom.eval.agree.types import Answers, Model, OnCount, Prompt, Say, Side
from atom.eval.errors import EvalError
from atom.eval.serving import DEFAULT_URL, Place, Served, Watcher, served
from atom.eval.types import Endpoint

DEFAULT_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    reference: str  # URL, recipe, kept answers, hf:PATH
    tested: Place | None  # None: only the reference is asked, to keep its answers
    reference_place: Place  # key, headers, model, flags of the reference, where it is a server
    prompts: Path | None = None
    num_prompts: int | None = None
    max_tokens: int | None = None
    top_k: int = 20
    concurrency: int = 8
    min_agreement: float | None = None
    max_kl: float | None = None
    save: Path | None = None
    history: Path | None = None


@dataclass(slots=True)
class Outcome:
    """What is to be printed. `report` is None where only the reference was asked."""

    reference: Answers
    tested: Answers | None = None
    report: Report | None = None
    verdict: Verdict | None = None
    run_id: str = ""
    saved: Path | None = None
    notes: list[str] = field(default_factory=list)


def run(request: Request, say: Say, on_count: OnCount) -> Outcome:
    """Raises `EvalError` or `BenchError` where there is nothing to report."""
    check(request)
    watcher = Watcher(say=say, waiting=lambda what, s: on_count(what, round(s), 0))
    began = time.time()
    with History(request.history) as store:
        logs = store.path.parent / "logs"
        if request.tested is not None:
            store.check_writable()
        reference = _reference(request, logs, watcher, on_count)
        outcome = Outcome(reference, notes=list(reference.notes))
        if request.save is not None:
            saved.save(request.save, reference)
            outcome.saved = request.save
        if request.tested is None:
            return outcome
        tested, kept, origin = _test(request, reference, logs, watcher, on_count)
        kept_reference = _subset(reference, kept)
        outcome.reference, outcome.tested = kept_reference, tested
        outcome.notes += tested.notes
        outcome.report = compare(kept_reference, tested)
        chosen = limits.choose(reference.side, tested.side, request.min_agreement, request.max_kl)
        outcome.verdict = limits.judge(outcome.report, chosen)
        facts = Kept(kept_reference, tested, outcome.report, outcome.verdict, outcome.notes)
        outcome.run_id = keep(store, facts, origin, began, time.time() - began)
    return outcome


def check(request: Request) -> None:
    """What is wrong with the request before anything is started."""
    limits.check(request.min_agreement, request.max_kl)
    if request.save is not None:
        saved.check_place(request.save)
    if saved.is_saved(request.reference):
        given = [
            flag
            for flag, value in (
                ("--prompts", request.prompts),
                ("--num-prompts", request.num_prompts),
                ("--max-tokens", request.max_tokens),
                ("--save", request.save),
            )
            if value is not None
        ]
        if given:
            raise EvalError(
                f"{given[0]} does not go with the kept answers {request.reference}: the prompts "
                "and lengths are that file's"
            )
    elif request.reference.startswith(PREFIX):
        parse(request.reference)
    elif not _is_url(request.reference) and not request.reference.endswith(".toml"):
        raise EvalError(
            f"--agree {request.reference}: write a server's URL (http://...), a recipe (.toml), "
            f"answers kept by --save ({saved.SUFFIX}) or hf:PATH"
        )
    if request.tested is None and request.save is None:
        raise EvalError("--reference-only keeps the reference's answers: name a file with --save")


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _reference(request: Request, logs: Path, watcher: Watcher, on_count: OnCount) -> Answers:
    name = request.reference
    if saved.is_saved(name):
        found = saved.load(Path(name))
        watcher.say(f"reference: {found.side.name}, kept in {name}")
        return found
    texts = _texts(request)
    count = _counting("reference", on_count)
    max_tokens = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
    with _open(name, request.reference_place, request, logs, watcher, count) as (model, _):
        return _ask_reference(model, texts, max_tokens)


def _texts(request: Request) -> list[prompts.Text]:
    if request.prompts is not None:
        return prompts.from_file(request.prompts, request.num_prompts)
    return prompts.bundled(request.num_prompts or prompts.DEFAULT_COUNT)


def _counting(who: str, on_count: OnCount) -> OnCount:
    return lambda what, done, total: on_count(f"{who}: {what}", done, total)


Origin = Callable[[], dict[str, Any]]


@contextlib.contextmanager
def _open(
    name: str, place: Place, request: Request, logs: Path, watcher: Watcher, on_count: OnCount
) -> Iterator[tuple[Model, Origin]]:
    """A side, ready to be asked, and what says where it comes from."""
    if name.startswith(PREFIX):
        watcher.say(f"starting transformers with {name.removeprefix(PREFIX)}")
        with TransformersSide(name, request.top_k, on_count) as hf:
            yield hf, dict
        return
    with served(_with_logprobs(place, request.top_k), logs, watcher) as server:
        side = _side(name, place, server, request.top_k)
        watcher.say(f"{side.kind} {side.version or ''} at {server.base_url}: {side.model}")
        asker = Asker(_endpoint(place, server, request), server.died)
        yield ServerSide(asker, side, on_count), lambda: provenance(place, server)


def _with_logprobs(place: Place, top_k: int) -> Place:
    """A recipe's server is started with leave to tell so many tokens, where it has less."""
    if not place.own_server or place.recipe is None:
        return place
    wanted = min(top_k, MAX_LOGPROBS)
    if "--max-logprobs" in place.server_args:
        return place
    if wanted <= resolve(place.recipe, place.env).server.max_logprobs:
        return place
    more = f"{place.server_args} --max-logprobs {wanted}".strip()
    return dataclasses.replace(place, server_args=more)


def _side(name: str, place: Place, server: Served, top_k: int) -> Side:
    recipe = place.recipe if place.own_server else None
    details = {"server_args": place.server_args} if place.server_args else {}
    return Side(
        name=name,
        model=server.info.model,
        kind=server.info.kind,
        version=server.info.version,
        # With other flags it may compute with anything.
        precision="" if recipe is None or details else of_recipe(recipe, place.env),
        top_k=top_k,
        recipe=None if recipe is None else str(recipe),
        max_model_len=server.info.max_model_len,
        details=details,
    )


def _endpoint(place: Place, server: Served, request: Request) -> Endpoint:
    return Endpoint(
        base_url=server.info.base_url,
        model=server.info.model,
        api_key=server.api_key,
        headers=place.headers,
        concurrency=request.concurrency,
        verify_tls=place.verify_tls,
    )


def _ask_reference(model: Model, texts: list[prompts.Text], max_tokens: int) -> Answers:
    def tokenize(some: list[str]) -> list[list[int]]:
        found = model.tokenize(some)
        if found is None:
            raise EvalError(
                f"the reference {model.side.name} has no /tokenize: its prompts' token ids are "
                "not known; an atom or vLLM server, a recipe or hf:PATH can be a reference"
            )
        return found

    longest = model.side.max_model_len or 1 << 62
    limit = longest - max_tokens - 1
    if limit < 1:
        raise EvalError(
            f"--max-tokens {max_tokens} leaves no room for a prompt: {model.side.name} holds "
            f"{longest} tokens"
        )
    fitted, cut = prompts.fitting(texts, limit, tokenize)
    asked = [Prompt(text.kind, text.text, ids) for text, ids in fitted]
    notes = [f"{cut} prompts were cut to the reference's context"] if cut else []
    continued = model.continue_([prompt.ids for prompt in asked], max_tokens) if max_tokens else []
    outputs, other = model.output_ids(asked, continued) if continued else ([[] for _ in asked], 0)
    if other:
        notes.append(
            f"{other} of {len(asked)} continuations are scored as their text is tokenized, "
            "which is not how they were generated"
        )
    scored = model.score([[*p.ids, *out] for p, out in zip(asked, outputs, strict=True)])
    return Answers(
        side=model.side,
        prompts=asked,
        outputs=outputs,
        continued=continued,
        scored=scored,
        texts=model.texts,
        max_tokens=max_tokens,
        retokenized=other,
        notes=[*notes, *model.notes],
    )


def _test(
    request: Request, reference: Answers, logs: Path, watcher: Watcher, on_count: OnCount
) -> tuple[Answers, list[int], dict[str, Any]]:
    """The tested side's answers, to which of the prompts, and where it comes from."""
    place = request.tested
    assert place is not None
    name = str(place.recipe) if place.own_server else place.base_url or DEFAULT_URL
    count = _counting("tested", on_count)
    with _open(name, place, request, logs, watcher, count) as (model, origin):
        kept, notes = _fitting(reference, model.side)
        part = _subset(reference, kept)
        notes += _same_tokens(model, part)
        continued = []
        if part.continued:
            continued = model.continue_([p.ids for p in part.prompts], part.max_tokens)
        whole = [[*p.ids, *out] for p, out in zip(part.prompts, part.outputs, strict=True)]
        scored = model.score(whole)
        answers = Answers(
            side=model.side,
            prompts=part.prompts,
            outputs=part.outputs,
            continued=continued,
            scored=scored,
            texts=model.texts,
            max_tokens=part.max_tokens,
            notes=[*notes, *model.notes],
        )
        return answers, kept, origin()


def _fitting(reference: Answers, side: Side) -> tuple[list[int], list[str]]:
    """The prompts that the tested side's context holds."""
    limit = (side.max_model_len or 1 << 62) - 1
    lengths = [
        len(p.ids) + max(len(out), reference.max_tokens)
        for p, out in zip(reference.prompts, reference.outputs, strict=True)
    ]
    kept = [i for i, length in enumerate(lengths) if length <= limit]
    left = len(lengths) - len(kept)
    if not kept:
        raise EvalError(
            f"no prompt fits: {side.name} holds {side.max_model_len} tokens, the shortest prompt "
            f"with its continuation has {min(lengths)}"
        )
    note = f"{left} prompts do not fit into {side.max_model_len} tokens and are left out"
    return kept, [note] if left else []


def _same_tokens(model: Model, reference: Answers) -> list[str]:
    """Raises where the two tokenize a prompt differently: then nothing can be compared."""
    found = model.tokenize([prompt.text for prompt in reference.prompts])
    if found is None:
        return [f"{model.side.name} has no /tokenize: that its tokens are the same is not checked"]
    for prompt, ids in zip(reference.prompts, found, strict=True):
        if ids != prompt.ids:
            place = next(
                (i for i, (a, b) in enumerate(zip(prompt.ids, ids, strict=False)) if a != b),
                min(len(ids), len(prompt.ids)),
            )
            raise EvalError(
                f"{reference.side.name} and {model.side.name} tokenize differently "
                f"({prompt.text[:30]!r}, token {place}: {prompt.ids[place : place + 3]} and "
                f"{ids[place : place + 3]}): there is no agreement of tokens to measure"
            )
    return []


def _subset(answers: Answers, kept: Sequence[int]) -> Answers:
    if len(kept) == len(answers.prompts):
        return answers
    return msgspec.structs.replace(
        answers,
        prompts=[answers.prompts[i] for i in kept],
        outputs=[answers.outputs[i] for i in kept],
        continued=[answers.continued[i] for i in kept] if answers.continued else [],
        scored=[answers.scored[i] for i in kept],
    )

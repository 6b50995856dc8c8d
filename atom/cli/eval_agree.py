"""`atom eval --agree REF`: do two models say the same, token by token?"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.cli.common import console, print_json
from atom.cli.flags import CONTEXT, SettingsCommand
from atom.errors import ConfigError

if TYPE_CHECKING:
    from atom.eval.agree.session import Outcome, Request
    from atom.eval.serving import Place

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

LIMITS = "default: by what is compared; the result names it"


@app.command(cls=SettingsCommand)
def agree(
    reference: Annotated[
        str,
        typer.Option(
            "--agree",
            metavar="REF",
            help="The reference: a server's URL, a recipe (.toml), answers kept by --save "
            "(.jsonl.zst), or hf:PATH[,dtype=float32][,device=cpu] for transformers.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="The tested side: its server is started.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            "--base-url",
            help="The tested side: a running server. (default: http://127.0.0.1:8000)",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The tested server's model. (default: its first)")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key of the tested server. (default: ATOM_API_KEY, OPENAI_API_KEY)"),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", help="For the tested server, Name: value.")
    ] = None,
    server_args: Annotated[
        str, typer.Option(help="More flags of atom serve for --recipe.", show_default=False)
    ] = "",
    ref_model: Annotated[
        str | None, typer.Option(help="The reference server's model. (default: its first)")
    ] = None,
    ref_api_key: Annotated[
        str | None, typer.Option(help="Key of the reference's server; no other is sent there.")
    ] = None,
    ref_server_args: Annotated[
        str, typer.Option(help="More flags of atom serve for a REF recipe.", show_default=False)
    ] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Texts to compare on: a line each, or .jsonl with prompt or text. "
            "(default: bundled questions, solutions, prose and long texts)"
        ),
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(min=1, max=4096, help="How many. (default: 32; all of a file)")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens that each side generates; 0: scoring only. (default: 64)"),
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Likeliest tokens to ask for at each place.")
    ] = 20,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
    min_agreement: Annotated[
        float | None, typer.Option(help=f"Least share of places with the same top. ({LIMITS})")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help=f"Largest mean KL divergence, in nats. ({LIMITS})")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Keep the reference's answers: FILE.jsonl.zst.")
    ] = None,
    reference_only: Annotated[
        bool, typer.Option("--reference-only", help="Ask and --save the reference, test nothing.")
    ] = False,
    history: Annotated[
        Path | None,
        typer.Option(help="The run history. (default: ATOM_HISTORY, else one per user)"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout, the rest on stderr.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Compare two models token by token: agreement and KL divergence on the same texts.

    The reference continues some prompts; both sides then tell how likely they find each token of
    the same texts, and the tested side's own answers are held against the reference's.

    The exit code is 3 if the two differ by more than the limits.
    """
    serving = importlib.import_module("atom.eval.serving")
    session = importlib.import_module("atom.eval.agree.session")
    written = importlib.import_module("atom.bench.headers")
    if recipe is not None and url is not None:
        raise ConfigError("--recipe starts a server and --url names a running one; give one")
    tested = serving.Place(
        base_url=url,
        recipe=recipe,
        model=model,
        api_key=api_key,
        headers=written.read_headers(header or [], "--header"),
        server_args=server_args,
    )
    request = session.Request(
        reference=reference,
        tested=None if reference_only else tested,
        reference_place=_reference_place(reference, ref_model, ref_api_key, ref_server_args),
        prompts=prompts,
        num_prompts=num_prompts,
        max_tokens=max_tokens,
        top_k=top_k,
        concurrency=concurrency,
        min_agreement=min_agreement,
        max_kl=max_kl,
        save=save,
        history=history,
    )
    outcome = _run(request, quiet)
    _print(outcome, as_json, quiet)
    raise typer.Exit(_exit_code(outcome))


def _reference_place(
    reference: str, model: str | None, api_key: str | None, server_args: str
) -> Place:
    """A URL gets the key that is meant for it and none of the environment's."""
    serving = importlib.import_module("atom.eval.serving")
    is_recipe = reference.endswith(".toml")
    place: Place = serving.Place(
        base_url=None if is_recipe else reference,
        recipe=Path(reference) if is_recipe else None,
        model=model,
        api_key=api_key,
        server_args=server_args,
        env=os.environ if is_recipe else {},
    )
    return place


def _run(request: Request, quiet: bool) -> Outcome:
    session = importlib.import_module("atom.eval.agree.session")
    display = importlib.import_module("atom.eval.agree.display")
    with display.Display(console(stderr=True), quiet=quiet) as shown:
        outcome: Outcome = session.run(request, shown.say, shown.count)
    return outcome


def _print(outcome: Outcome, as_json: bool, quiet: bool) -> None:
    report: Any = importlib.import_module("atom.eval.agree.report")
    if not (as_json and quiet):
        report.print_outcome(console(stderr=as_json), outcome)
    if as_json:
        print_json(report.as_json(outcome))


def _exit_code(outcome: Outcome) -> int:
    limits = importlib.import_module("atom.eval.agree.limits")
    beyond: int = limits.BEYOND
    return 0 if outcome.verdict is None or outcome.verdict.good else beyond

"""`atom run`: one answer, or a chat, from the engine in process or from a running server."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.cli.answers import Answerer, Usage
from atom.cli.chat import Chat, converse, enable_line_editing
from atom.cli.common import print_json, resolve_target
from atom.cli.flags import CONTEXT, SettingsCommand, collects, option_parameter, with_settings
from atom.config import Resolved, resolve
from atom.errors import ConfigError

if TYPE_CHECKING:
    from atom.config.schema import Config

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

SECTIONS = ("model", "engine", "scheduler", "compile", "parallel")
INTERRUPTED = 130
RAW_MAX_TOKENS = 256  # a text that is only continued often has no end of its own


# Name in the API -> (type, help). Only what is given is sent on: the model's own defaults count.
SAMPLING: dict[str, tuple[type, str]] = {
    "temperature": (float, "0 takes the likeliest token"),
    "top_p": (float, "Sample from the likeliest tokens that make up this mass"),
    "top_k": (int, "Sample from this many tokens; -1: all"),
    "min_p": (float, "Drop tokens less likely than this share of the likeliest"),
    "max_tokens": (int, "Most tokens to generate (default: until the model ends; --raw: 256)"),
    "stop": (list, "End at this text; may be repeated"),
    "repetition_penalty": (float, "Above 1 discourages what is there already"),
    "presence_penalty": (float, "Discourage tokens that were generated already"),
    "frequency_penalty": (float, "Discourage them by how often"),
    "sample_seed": (int, "Same seed, same text"),
}


def _sampling_parameters() -> list[inspect.Parameter]:
    return [
        option_parameter(
            name,
            list[str] | None if kind is list else kind | None,
            ["--" + name.replace("_", "-")],
            help=text,
            metavar={int: "INT", float: "NUMBER", list: "TEXT"}[kind],
            panel="sampling: how each answer is drawn",
        )
        for name, (kind, text) in SAMPLING.items()
    ]


@app.command(cls=SettingsCommand)
@collects(_sampling_parameters(), into="sampling")
@with_settings(*SECTIONS)
def run(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|MODEL",
            help="As for atom serve; a text with blanks in it is taken as the prompt.",
        ),
    ] = None,
    words: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="The prompt; without one, and at a terminal: a chat."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it stands; no chat template.")
    ] = False,
    url: Annotated[
        str | None, typer.Option("--url", help="Ask this server; load no model here.")
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print tokens and seconds after each answer.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one answer as JSON when it is complete.")
    ] = False,
    *,
    sampling: dict[str, Any],
    flags: dict[str, Any],
) -> None:
    """Chat in the terminal, or get one answer.

    The prompt is PROMPT, --prompt or standard input (after the prompt, if both are given).
    """
    target, words = _prompt_or_target(target, words)
    question = _question(prompt, words)
    if as_json and question is None:
        raise ConfigError("--json is for one answer: give a prompt")
    given = {"seed" if name == "sample_seed" else name: v for name, v in sampling.items()}
    answerer = _answerer(target, flags, url)
    try:
        raw = raw or not answerer.can_chat
        if raw:
            given.setdefault("max_tokens", RAW_MAX_TOKENS)
        chat = Chat(answerer, given, system, raw, stats)
        if question is not None:
            _answer_once(chat, question, as_json)
        else:
            enable_line_editing()
            converse(chat, input)
    finally:
        answerer.close()


def _prompt_or_target(target: str | None, words: str | None) -> tuple[str | None, str | None]:
    """`atom run "Say hello"`: no model has blanks in its name, unless it is a file that exists."""
    if target and words is None and len(target.split()) > 1 and not Path(target).exists():
        return None, target
    return target, words


def _question(prompt: str | None, words: str | None) -> str | None:
    """The one prompt, or None for a chat."""
    if prompt is not None and words is not None:
        raise ConfigError("two prompts: give either PROMPT or --prompt")
    given = prompt if prompt is not None else words
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    if piped.strip():
        return f"{given}\n\n{piped}" if given else piped
    if given is None and not sys.stdin.isatty():
        raise ConfigError("no prompt: give --prompt TEXT, pipe one, or start at a terminal")
    return given


def _answerer(target: str | None, flags: Mapping[str, Any], url: str | None) -> Answerer:
    if url is None:
        resolved = resolve_target(target, flags)
        local = importlib.import_module("atom.cli.local")
        found: Answerer = local.LocalAnswerer(_for_one(resolved))
        return found
    if flags:
        names = ", ".join("--" + name.replace("_", "-") for name in flags)
        raise ConfigError(f"{names}: the server at --url has its own settings")
    remote = importlib.import_module("atom.cli.remote").RemoteAnswerer
    keys = resolve(None, os.environ).server.api_key
    answerer: Answerer = remote(url, model=target, api_key=keys[0] if keys else None)
    return answerer


def _for_one(resolved: Resolved) -> Config:
    """One conversation runs one sequence: no room is kept for others unless they were asked for."""
    if "max_num_seqs" in resolved.sources:
        return resolved.config
    scheduler = dataclasses.replace(resolved.config.scheduler, max_num_seqs=1)
    return dataclasses.replace(resolved.config, scheduler=scheduler)


def _answer_once(chat: Chat, question: str, as_json: bool) -> None:
    if as_json:
        chat.write = lambda _: None
        chat.show_usage = False
    answer = chat.ask(question)
    usage = chat.answerer.usage
    if as_json:
        print_json(_as_json(chat.answerer.name, answer, usage))
    if chat.stopped:
        raise typer.Exit(INTERRUPTED)


def _as_json(model: str, answer: str, usage: Usage) -> dict[str, Any]:
    return {
        "model": model,
        "text": answer,
        "finish_reason": usage.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        },
        "ttft_s": round(usage.ttft_s, 4),
        "latency_s": round(usage.latency_s, 4),
    }

"""`atom doctor`: prints what `atom.engine.doctor` finds."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atom.cli.common import add_row, console, gib, print_json, resolve_target, table
from atom.cli.flags import CONTEXT, SettingsCommand, with_settings
from atom.cli.recipe_plan import cache_words, count_words
from atom.cli.version import versions
from atom.config.environment import environment_problem

if TYPE_CHECKING:
    from rich.console import Console

    from atom.engine.doctor import Devices, Diagnosis, Kernel, MemoryPlan
    from atom.utils.machine import Machine

app = typer.Typer(context_settings=CONTEXT, add_completion=False)

SECTIONS = ("model", "engine", "scheduler", "compile", "parallel")
UNHEALTHY = 1
PROBLEM = "problem"


@app.command(cls=SettingsCommand)
@with_settings(*SECTIONS)
def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE|MODEL", help="What to plan for; as for atom serve."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Show the machine, the kernels chosen on it and a memory plan.

    Of a model that is not here, only its configuration is downloaded. The exit code is 1 if it
    could not run here, is not to be found, or a variable of the environment is wrong.
    """
    # A bad variable is reported with the rest instead of ending the examination.
    env = {} if environment_problem(os.environ) else os.environ
    resolved = resolve_target(target, flags, env)
    diagnose = importlib.import_module("atom.engine.doctor").diagnose
    found: Diagnosis = diagnose(resolved.config, os.environ)
    if as_json:
        print_json({"versions": versions(), **found.as_json()})
    else:
        _print(found)
    if not found.healthy:
        raise typer.Exit(UNHEALTHY)


def _print(found: Diagnosis) -> None:
    out = console()
    _rows(out, "versions", {"": ", ".join(f"{k} {v}" for k, v in versions().items())})
    _rows(out, "machine", _machine(found.machine))
    _rows(out, "devices", _devices(found.devices))
    if found.environment_problem:
        _rows(out, "environment", {PROBLEM: found.environment_problem})
    if found.no_model:
        _rows(out, "model", {"not here": found.no_model})
    if found.kernels:
        _print_kernels(out, found.kernels)
    _rows(
        out,
        "caches",
        {c.name: f"{c.bytes / 1e6:,.0f} MB in {c.files} files, {c.path}" for c in found.caches},
    )
    if found.memory:
        _rows(out, "memory plan", _memory(found.memory))


def _rows(out: Console, title: str, rows: dict[str, str]) -> None:
    out.print(f"[bold cyan]{title}[/bold cyan]")
    shown = table("", "", "", headers=False)
    for name, value in rows.items():
        add_row(shown, "", name, value, style="red" if name == PROBLEM else "")
    out.print(shown)


def _machine(machine: Machine) -> dict[str, str]:
    limit = f", limited to {gib(machine.memory_limit)}" if machine.memory_limit else ""
    return {
        "system": machine.system,
        "cpu": machine.cpu,
        "cores": f"{machine.physical_cores} physical, {machine.logical_cpus} logical, "
        f"{machine.usable_cpus:g} usable here",
        "features": " ".join(machine.isa) or "unknown",
        "memory": f"{gib(machine.memory_total)}, {gib(machine.memory_available)} free{limit}",
    }


def _devices(devices: Devices) -> dict[str, str]:
    gpus = [f"{name} ({gib(memory)})" for name, memory in devices.gpus]
    return {
        "model runs on": f"{devices.chosen} ({devices.why})",
        "gpus": ", ".join(gpus) or "none",
        "torch threads": str(devices.torch_threads),
        "c++ compiler": devices.compiler,
    }


def _print_kernels(out: Console, kernels: tuple[Kernel, ...]) -> None:
    out.print("[bold cyan]kernels[/bold cyan]")
    shown = table("", "operation", "served by", "asked", "declined before it")
    for kernel in kernels:
        declined = "; ".join(f"{name}: {why}" for name, why in kernel.declined.items())
        asked = kernel.query.partition("(")[2].rstrip(")")
        style = "" if kernel.backend else "red"
        add_row(shown, "", kernel.op, kernel.backend or "nobody", asked, declined, style=style)
    out.print(shown)


def _activations(plan: MemoryPlan) -> dict[str, str]:
    if not plan.activations_bytes:
        return {}
    return {
        "activations": f"about {gib(plan.activations_bytes)} for the largest step, with a reserve"
    }


def _caches(plan: MemoryPlan) -> str:
    return "; ".join(cache_words(use) for use in plan.caches)


def _memory(plan: MemoryPlan) -> dict[str, str]:
    problem = {PROBLEM: plan.problem} if plan.problem else {}
    return {
        "model": f"{plan.model} ({plan.architecture}), {count_words(plan.parameters)} parameters",
        "weights": f"{gib(plan.weights_bytes)} (known from {plan.weights_from}), "
        f"computing in {plan.dtype}",
        **_activations(plan),
        "caches": f"{gib(plan.kv_bytes)} in {plan.kv_cache_dtype}: {_caches(plan)}",
        "fits": f"{plan.kv_tokens:,} tokens: {plan.full_contexts:,.1f} sequences of "
        f"{plan.max_model_len:,}",
        **problem,
    }

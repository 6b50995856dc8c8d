"""The mock server's command line: one flag for each field of `Behaviour`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from mock_behaviour import FAULTS, KINDS, Behaviour, Fault


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Behaviour]:
    lines = "\n".join(f"  {kind:8} {what}" for kind, what in FAULTS.items())
    parser = argparse.ArgumentParser(
        description="A mock OpenAI server with exactly known timings.",
        epilog=f"faults:\n{lines}\nselectors: @every=N, @2,5,9 (by order of arrival); none: all",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0: a free one, printed")
    parser.add_argument("--truth", type=Path, help="written at the end: one request a line")
    parser.add_argument("--fault", action="append", default=[], metavar="KIND[:NUMBER][@WHICH]")
    parser.add_argument("--stall", action="append", default=[], metavar="TOKEN:MS")
    parser.add_argument("--eos-at", type=int)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--cached-tokens", type=int)
    parser.add_argument("--key")
    parser.add_argument("--kind", choices=KINDS, default="atom")
    for field in dataclasses.fields(Behaviour):
        name = "--" + field.name.replace("_", "-")
        if name in ("--faults", "--stalls") or name in parser._option_string_actions:
            continue
        if isinstance(field.default, bool):
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(name, type=type(field.default), default=field.default)
    given = parser.parse_args(arguments)
    values = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(Behaviour)
        if field.name not in ("faults", "stalls")
    }
    stalls = {int(token): float(ms) for token, _, ms in (s.partition(":") for s in given.stall)}
    faults = tuple(Fault.parse(text) for text in given.fault)
    return given, Behaviour(**values, faults=faults, stalls=stalls)

"""The environment: every ATOM_* variable that exists, and what else in it matters.

An ATOM_ variable that nobody knows is an error with the nearest name, because a misspelt one would
silently do nothing. Kubernetes' service links (ATOM_SERVICE_HOST, ATOM_PORT=tcp://...), which
appear by themselves when a service is called "atom", are left alone. An empty variable counts as
unset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from atom.config.coerce import coerce_text
from atom.config.fields import Setting, nearest, variables
from atom.config.support import REFUSED_ENVIRONMENT
from atom.errors import ConfigError

PREFIX = "ATOM_"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that is not a setting: it is read by one place, at the time it is needed."""

    name: str
    type_name: str
    default: str
    doc: str
    choices: tuple[str, ...] = ()


PROCESS_VARIABLES: tuple[Variable, ...] = (
    Variable(
        "ATOM_CACHE_DIR",
        "directory",
        "~/.cache/atom",
        "Where downloaded models and compiled kernels are kept",
    ),
    Variable(
        "ATOM_NATIVE",
        "0, 1, avx2, avx512 or avx512-bf16",
        "1",
        "CPU kernels in C++: 1 for this machine, 0 for none, or for less than this machine has",
        ("0", "1", "avx2", "avx512", "avx512-bf16"),
    ),
    Variable(
        "ATOM_HISTORY",
        "file",
        "~/.local/share/atom/history.db",
        "Where the runs of atom bench are kept; --history goes before it",
    ),
    Variable("ATOM_DEBUG", "0 or 1", "0", "Show the Python traceback of an error", ("0", "1")),
)

# Read by libraries below us. Listed for the reference; their meaning is theirs.
OTHER_VARIABLES: tuple[Variable, ...] = (
    Variable("HF_TOKEN", "text", "", "Access token for gated or private Hugging Face models"),
    Variable(
        "HF_HOME", "directory", "~/.cache/huggingface", "Where Hugging Face downloads are kept"
    ),
    Variable("HF_HUB_OFFLINE", "0 or 1", "0", "Use only what has been downloaded already"),
    Variable(
        "CXX", "command", "", "C++ compiler of the CPU kernels (default: c++, g++ or clang++)"
    ),
    Variable("CUDA_VISIBLE_DEVICES", "list", "", "Which NVIDIA GPUs can be seen"),
    Variable("HIP_VISIBLE_DEVICES", "list", "", "Which AMD GPUs can be seen"),
    Variable("NO_COLOR", "any", "", "No colours in the terminal"),
)

_LINK_VALUE = re.compile(r"^(tcp|udp|sctp)://", re.IGNORECASE)
_LINK_NAME = re.compile(
    r"^ATOM_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$"
)


class EnvironmentValue(NamedTuple):
    """One setting given by a variable; `variable` is the name it was given under."""

    setting: Setting
    value: Any
    variable: str


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes, not the user, set this variable for a service called "atom..."."""
    return bool(_LINK_NAME.match(name)) or (
        name.endswith("_PORT") and bool(_LINK_VALUE.match(value))
    )


def read_environment(env: Mapping[str, str]) -> Iterator[EnvironmentValue]:
    """The settings that `env` gives, tools' too; `ConfigError` for a bad or unknown variable."""
    known = _known()
    seen: dict[tuple[str, str], EnvironmentValue] = {}
    for name in sorted(env):
        text = env[name]
        if not name.startswith(PREFIX) or not text or is_service_link(name, text):
            continue
        if name in REFUSED_ENVIRONMENT:
            raise ConfigError(f"{name} is refused: {REFUSED_ENVIRONMENT[name]}")
        if name not in known:
            raise ConfigError(
                f"{name}: unknown variable{nearest(name, known)}; unset it or correct its name"
            )
        setting = known[name]
        if setting is None:
            _check_process_variable(name, text)
            continue
        found = EnvironmentValue(setting, coerce_text(setting, text, name), name)
        earlier = seen.setdefault((setting.tool, setting.name), found)
        if earlier.value != found.value:
            raise ConfigError(
                f"{name} and {earlier.variable} both set {setting.name}, to different values"
            )
    yield from seen.values()


def _check_process_variable(name: str, text: str) -> None:
    (variable,) = (v for v in PROCESS_VARIABLES if v.name == name)
    if variable.choices and text not in variable.choices:
        raise ConfigError(f"{name} must be one of {', '.join(variable.choices)}, got {text!r}")


def environment_problem(env: Mapping[str, str]) -> str | None:
    """What `read_environment` refuses, in one line, or None."""
    try:
        list(read_environment(env))
    except ConfigError as error:
        return str(error)
    return None


def _known() -> dict[str, Setting | None]:
    """Every ATOM_ name -> its setting, or None for a process variable."""
    table: dict[str, Setting | None] = {v.name: None for v in PROCESS_VARIABLES}
    for setting in variables():
        table[setting.env] = setting
        if setting.env_alias:
            table[setting.env_alias] = setting
    return table

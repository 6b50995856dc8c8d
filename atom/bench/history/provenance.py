"""Where a run comes from: `collect` writes it down, `fingerprint` names the experiment.

Nothing secret is kept: keys, tokens and headers are cut out (see `redact`), the host's name is
hashed. Nothing heavy is imported: versions come from package metadata, GPUs from the makers' tools.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import ipaddress
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

import atom
from atom._version import __version__
from atom.bench.history import hardware as machines
from atom.bench.history import redact
from atom.bench.history.runs import utc_text

PACKAGES = (
    "aiohttp",
    "uvloop",
    "msgspec",
    "orjson",
    "numpy",
    "scipy",
    "torch",
    "transformers",
    "tokenizers",
    "triton",
)
GIT_SECONDS = 10.0
FINGERPRINT_DIGITS = 12

# Differ between repeats and re-runs of the same experiment, so the fingerprint leaves them out.
_NOT_THE_EXPERIMENT = frozenset(
    {"seed", "seeds", "realised", "realized", "path", "repeats", "workers", "label", "source"}
)


def collect(
    *,
    seed: int | None = None,
    base_url: str | None = None,
    server: Any = None,
    server_config: Mapping[str, Any] | None = None,
    recipe: Path | None = None,
    num_gpus: int | None = None,
    argv: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The provenance of a run that begins now, on this machine; no network, no torch.

    `server`: what the probe found (a dataclass, struct or mapping with kind, version, model, ...).
    `server_config`: its settings where we know them (we started it). `num_gpus`: how many GPUs the
    server uses; without it, those of this machine that hold memory are counted, and `hardware`
    says which it is. `argv` defaults to this process's.

    `hardware` is the server's machine: this one, if `base_url` is; else it is unknown, and only
    that it is another (by the hash of its name) is kept. The client's machine is under `client`.
    Call it while the server has its model loaded.
    """
    here = dict(_this_machine())
    arguments = redact.argv(sys.argv[1:] if argv is None else argv)
    own = {"version": __version__, **_commit(str(Path(atom.__file__).parent))}
    found: dict[str, Any] = {
        "atom": own,
        "argv": arguments,
        "command": shlex.join(["atom", *arguments]),
        "recipe": _recipe(recipe),
        "server": _server(server, base_url, server_config, own),
        "hardware": _server_machine(here, base_url, num_gpus),
        "client": {k: here[k] for k in ("cpu", "usable_cpus", "memory_bytes", "system")},
        "driver": "",
        "python": platform.python_version(),
        "packages": _packages(),
        "host": _hash(socket.gethostname()),
        "environment": redact.mapping(_environment()),
        "time": utc_text(datetime.now(timezone.utc)),
        "seed": seed,
        "metadata": redact.mapping(metadata or {}),
    }
    found["driver"] = found["hardware"].get("driver", "")
    return found


def fingerprint(
    *,
    model: str,
    load: Mapping[str, Any],
    workload: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> str:
    """A name for "the same experiment": 12 hex digits of a SHA-256 over canonical JSON.

    In it: model, the recipe's text, load, workload, kind of server, hardware, driver. Not in it:
    seeds, realised lengths, file paths, commit, versions, dates: what may differ between two runs
    that are to be compared.
    """
    server = provenance.get("server") or {}
    recipe = provenance.get("recipe") or {}
    same = {
        "model": model,
        "recipe": recipe.get("sha256", "") if isinstance(recipe, Mapping) else "",
        "load": _experiment(load),
        "workload": _experiment(workload),
        "server": server.get("kind", "unknown") if isinstance(server, Mapping) else "unknown",
        "hardware": _hardware_name(provenance.get("hardware") or {}),
        "driver": provenance.get("driver") or "",
    }
    return hashlib.sha256(canonical_json(same)).hexdigest()[:FINGERPRINT_DIGITS]


def canonical_json(value: Any) -> bytes:
    """The same bytes for equal values: sorted keys, no spaces, 1.0 as 1."""
    plain = msgspec.to_builtins(value)
    return json.dumps(_plain(plain), sort_keys=True, separators=(",", ":")).encode()


def is_local(base_url: str | None) -> bool:
    """Whether an address is this machine's: loopback, or its own name."""
    host = (urlsplit(base_url or "").hostname or "").lower()
    if host in ("", "localhost", socket.gethostname().lower()):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _experiment(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        str(key): _experiment(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if str(key) not in _NOT_THE_EXPERIMENT and value is not None
    }


def _hardware_name(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """GPUs by name and count; without them the CPU; of an unknown machine its hashed name."""
    names = sorted({str(gpu.get("name", "")) for gpu in hardware.get("gpus") or []})
    if hardware.get("num_gpus") or (names and hardware.get("num_gpus") is None):
        return {"gpus": names, "num_gpus": hardware.get("num_gpus")}
    if hardware.get("cpu"):
        return {"cpu": hardware["cpu"], "usable_cpus": hardware.get("usable_cpus")}
    return {"machine": hardware.get("machine", "")}


def _recipe(path: Path | None) -> dict[str, Any] | None:
    """Name, path, text without secrets, and the hash of that text: a new key is no new recipe."""
    if path is None:
        return None
    try:
        text = redact.recipe(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {"name": path.stem, "path": str(path), "problem": error.strerror or str(error)}
    return {
        "name": path.stem,
        "path": str(path),
        "text": text,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _server(
    server: Any,
    base_url: str | None,
    config: Mapping[str, Any] | None,
    own: Mapping[str, Any],
) -> dict[str, Any]:
    """What the probe found; an atom of this version on this machine runs from this checkout."""
    facts = _facts(server)
    facts.setdefault("kind", "unknown")
    if base_url is not None:
        facts["base_url"] = redact.text(base_url)
    if config is not None:
        facts["config"] = config
    same = facts["kind"] == "atom" and facts.get("version") == own["version"]
    if same and is_local(base_url) and own.get("commit"):
        facts.setdefault("commit", own["commit"])
        facts.setdefault("dirty", own["dirty"])
    return redact.mapping(msgspec.to_builtins(facts))


def _facts(value: Any) -> dict[str, Any]:
    """A dataclass, struct, named tuple or mapping as a dict."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "_asdict"):
        return dict(value._asdict())
    return dict(msgspec.to_builtins(value))


@functools.lru_cache(maxsize=1)
def _cached_machine() -> str:
    return json.dumps(machines.describe())


def _this_machine() -> dict[str, Any]:
    """What does not change is asked once; the memory in use on GPUs is asked each time."""
    here: dict[str, Any] = json.loads(_cached_machine())
    if here["gpus"]:
        here["gpus"] = machines.find_gpus().devices or here["gpus"]
    return here


def _server_machine(
    here: dict[str, Any], base_url: str | None, num_gpus: int | None
) -> dict[str, Any]:
    if not is_local(base_url):
        name = _hash(urlsplit(base_url or "").hostname or "")
        given = {"num_gpus": num_gpus, "num_gpus_from": "given" if num_gpus is not None else ""}
        return {"machine": name, "known": False, "gpus": [], **given}
    found = dict(here, known=True, machine=_hash(socket.gethostname()))
    if num_gpus is None:
        count, source = machines.gpus_in_use(here["gpus"]), "in use"
    else:
        count, source = num_gpus, "given"
    return {**found, "num_gpus": count, "num_gpus_from": source if here["gpus"] else "none here"}


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _environment() -> dict[str, str]:
    """The variables that change what is measured."""
    wanted = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if (name.startswith("ATOM_") and name != "ATOM_HISTORY") or name in wanted
    }


def _hash(name: str) -> str:
    return hashlib.sha256(f"atom:{name}".encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=4)
def _commit_cached(folder: str) -> tuple[str, bool] | None:
    """The commit of the working copy that tracks `folder`, and whether files were changed."""
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
    head = _git(folder, "rev-parse", "HEAD") if tracked else None
    if not head:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return head.strip(), status is None or bool(status.strip())


def _commit(folder: str) -> dict[str, Any]:
    """{"commit", "dirty"}; nothing for an installed package, whose version says it all."""
    found = _commit_cached(folder)
    return {} if found is None else {"commit": found[0], "dirty": found[1]}


def _git(folder: str, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

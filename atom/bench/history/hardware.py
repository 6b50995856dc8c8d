"""What a machine is made of, asked of the operating system and the GPU makers' tools; no torch.

A tool that is missing, hangs or speaks another language leaves its facts unknown: no benchmark
fails because nvidia-smi did.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from atom.utils.machine import describe_machine

TOOL_SECONDS = 20.0  # nvidia-smi without its daemon takes seconds per GPU


class Gpus(NamedTuple):
    """`devices`: {"name", "memory_mib", "used_mib", ...} each; `driver` as its tool writes it."""

    devices: list[dict[str, Any]]
    driver: str
    tool: str


Ask = Callable[[Sequence[str]], str | None]


def describe() -> dict[str, Any]:
    """This machine: cpu, cores, memory (bytes) and GPUs. `num_gpus` is how many it has."""
    machine = describe_machine()
    gpus = find_gpus()
    return {
        "cpu": machine.cpu,
        "physical_cores": machine.physical_cores,
        "logical_cpus": machine.logical_cpus,
        "usable_cpus": machine.usable_cpus,
        "isa": list(machine.isa),
        "memory_bytes": machine.memory_limit or machine.memory_total,
        "system": machine.system,
        "gpus": gpus.devices,
        "num_gpus": len(gpus.devices),
        "driver": gpus.driver,
    }


def find_gpus(ask: Ask | None = None) -> Gpus:
    """The GPUs that the first answering tool lists; none where there is no tool."""
    asked = ask or _run
    for look in (_nvidia, _amd_smi, _rocm_smi):
        found = look(asked)
        if found is not None and found.devices:
            return found
    return Gpus([], "", "")


def gpus_in_use(gpus: Sequence[dict[str, Any]]) -> int:
    """How many hold more than a twentieth of their memory: a loaded model does, an idle GPU not."""
    return sum(
        1
        for gpu in gpus
        if gpu.get("used_mib") and gpu["used_mib"] > 0.05 * (gpu.get("memory_mib") or 0)
    )


def _run(command: Sequence[str]) -> str | None:
    """What a tool prints; None where it is missing, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TOOL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _nvidia(ask: Ask) -> Gpus | None:
    fields = "name,memory.total,memory.used,driver_version,power.limit,clocks.max.sm"
    text = ask(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    if text is None:
        return None
    devices, driver = [], ""
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(fields.split(",")):
            continue
        name, total, used, driver, power, clock = (cell.strip() for cell in row)
        devices.append(
            _known(
                name=name,
                memory_mib=_number(total),
                used_mib=_number(used),
                power_limit_w=_number(power),
                max_clock_mhz=_number(clock),
            )
        )
    return Gpus(devices, f"NVIDIA {driver}" if driver else "", "nvidia-smi")


def _amd_smi(ask: Ask) -> Gpus | None:
    static = _json(ask(["amd-smi", "static", "--asic", "--vram", "--driver", "--json"]))
    if static is None:
        return None
    used = _amd_used(ask)
    devices, driver = [], ""
    for entry in _entries(static):
        asic, vram = _part(entry, "asic"), _part(entry, "vram")
        driver = str(_part(entry, "driver").get("version") or driver)
        devices.append(
            _known(
                name=str(asic.get("market_name") or asic.get("target_graphics_version") or "AMD"),
                memory_mib=_number(vram.get("size")),
                used_mib=used.get(entry.get("gpu")),
                architecture=asic.get("target_graphics_version"),
            )
        )
    return Gpus(devices, f"amdgpu {driver}" if driver else "", "amd-smi")


def _amd_used(ask: Ask) -> dict[Any, float | None]:
    """MiB in use by GPU number, as `amd-smi metric --mem-usage` tells it."""
    metric = _json(ask(["amd-smi", "metric", "--mem-usage", "--json"]))
    return {
        entry.get("gpu"): _number(_part(entry, "mem_usage").get("used_vram"))
        for entry in _entries(metric)
    }


def _rocm_smi(ask: Ask) -> Gpus | None:
    options = ["--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json"]
    found = _json(ask(["rocm-smi", *options]))
    if not isinstance(found, dict):
        return None
    driver = str(_part(found, "system").get("Driver version") or "")
    devices = []
    for card in sorted(name for name in found if re.fullmatch(r"card\d+", name)):
        facts = _part(found, card)
        name = facts.get("Card Series") or facts.get("Card series") or facts.get("Card Model")
        total = _number(facts.get("VRAM Total Memory (B)"))
        used = _number(facts.get("VRAM Total Used Memory (B)"))
        devices.append(
            _known(
                name=str(name or "AMD"),
                memory_mib=None if total is None else round(total / 2**20),
                used_mib=None if used is None else round(used / 2**20),
                architecture=facts.get("GFX Version"),
            )
        )
    return Gpus(devices, f"amdgpu {driver}" if driver else "", "rocm-smi")


def _known(**facts: Any) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _json(text: str | None) -> Any:
    """The JSON that a tool printed, after whatever warnings stand before it."""
    if text is None:
        return None
    begin = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=-1)
    try:
        return json.loads(text[begin:]) if begin >= 0 else None
    except ValueError:
        return None


def _entries(found: Any) -> list[dict[str, Any]]:
    """amd-smi answers with a list, newer ones with {"gpu_data": list}."""
    if isinstance(found, dict):
        found = found.get("gpu_data")
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


def _part(tree: dict[str, Any], key: str) -> dict[str, Any]:
    part = tree.get(key)
    return part if isinstance(part, dict) else {}


def _number(value: Any) -> float | None:
    """81559, "81559", "81559 MB" or {"value": 81559, "unit": "MB"}; None for "[N/A]"."""
    if isinstance(value, dict):
        value = value.get("value")
    match = re.match(r"\s*(\d+(?:\.\d+)?)", str(value))
    return float(match[1]) if match else None

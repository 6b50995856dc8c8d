"""What this machine is: CPU, instruction sets, memory, limits. Linux first; imports no torch."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

# The instruction sets that decide which CPU kernels can run, as /proc/cpuinfo spells them.
ISA_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes in bytes. `memory_limit` is the control group's, if it is below the machine's."""

    system: str
    cpu: str
    isa: tuple[str, ...]
    physical_cores: int
    logical_cpus: int
    usable_cpus: float  # by affinity and control group quota
    memory_total: int
    memory_available: int
    memory_limit: int | None


def describe_machine() -> Machine:
    name, flags = _cpuinfo()
    memory = psutil.virtual_memory()
    limit = _cgroup_memory_limit()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=name or platform.processor() or platform.machine(),
        isa=tuple(flag for flag in ISA_FLAGS if flag in flags),
        physical_cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        logical_cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        memory_total=memory.total,
        memory_available=memory.available,
        memory_limit=limit if limit is not None and limit < memory.total else None,
    )


def usable_cpus() -> float:
    """CPUs that this process may use: its affinity, cut by the control group's quota."""
    try:
        count = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        count = float(os.cpu_count() or 1)
    quota = _cgroup_cpu_quota()
    return min(count, quota) if quota else count


def _cpuinfo() -> tuple[str, frozenset[str]]:
    """The first CPU's name and flags ("Features" on Arm)."""
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name", ""), frozenset(flags.split())


def _cgroup_memory_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            return int(text)
    return None


def _cgroup_cpu_quota() -> float | None:
    """CPUs' worth of time per period, or None if it is not limited."""
    both = _read("/sys/fs/cgroup/cpu.max").split()
    if len(both) != 2:
        both = [
            _read(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
    quota, period = both
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

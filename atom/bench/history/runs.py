"""Facts of one run that several places ask for: its id, its moment, commit, recipe, load."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from atom.bench import names
from atom.bench.types import RunResult

# <UTC date>-<UTC time>-<6 hex digits, more where two would be equal>
RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6,64}")


def new_run_id(now: datetime | None = None, suffix: str = "") -> str:
    """A sortable id, 20261121-130907-3fa9c1; `suffix` (hex digits) in place of random ones."""
    moment = (now or datetime.now(timezone.utc)).astimezone(timezone.utc)
    return f"{moment:%Y%m%d-%H%M%S}-{suffix or secrets.token_hex(3)}"


def utc_text(moment: datetime) -> str:
    """ISO 8601 in UTC, always with microseconds: such texts sort as their moments do."""
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_moment(text: str) -> datetime | None:
    """ISO 8601 (without a zone: UTC), or None if it is not that."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def started_at(run: RunResult) -> str:
    """When the first repeat began, as `utc_text`; without repeats, what the id says."""
    for repeat in run.repeats:
        moment = parse_moment(repeat.started_at)
        if moment is not None:
            return utc_text(moment)
    return utc_text(_moment_of_id(run.run_id))


def _moment_of_id(run_id: str) -> datetime:
    digits = re.sub(r"\D", "", run_id)[:14]
    try:
        return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return datetime.fromtimestamp(0, timezone.utc)


def commit_of(run: RunResult) -> str:
    """The commit of the server that was measured; "" when it is not known.

    From the server itself, from `--metadata commit=...`, or this checkout's, where the server runs
    from it (see `provenance.collect`). The client's own commit says nothing of another's server.
    """
    for part in ("server", "metadata"):
        place = run.provenance.get(part)
        if isinstance(place, Mapping) and place.get("commit"):
            return str(place["commit"])
    return ""


def recipe_of(run: RunResult) -> str:
    """The recipe's name (its file without folder and ending); "" without one."""
    recipe = run.provenance.get("recipe")
    return str(recipe.get("name") or "") if isinstance(recipe, Mapping) else ""


def better(run: RunResult, name: str) -> names.Direction:
    """Which way a metric is better: as an evaluation's task says it, else by its name."""
    told = run.provenance.get("eval")
    lower = told.get("lower_is_better") if isinstance(told, Mapping) else None
    return "lower" if isinstance(lower, list) and name in lower else names.better(name)


def load_text(load: Mapping[str, Any]) -> str:
    """The load in a few letters: c=8 (closed loop), 2.5/s (open loop), trace, else its mode."""
    if load.get("concurrency") is not None:
        return f"c={load['concurrency']}"
    rate = load.get("request_rate")
    if isinstance(rate, int | float):
        return f"{rate:g}/s"
    return str(rate or load.get("mode") or "")


def data_set(workload: Mapping[str, Any]) -> str:
    """What was sent, by the name its user knows: random, mt_bench, "trace azure.csv"; or ""."""
    kind = str(workload.get("dataset") or workload.get("name") or "")
    if workload.get("file"):
        return f"{kind} {workload['file']}"
    return str(workload.get("prompts") or kind)


def shape_text(workload: Mapping[str, Any]) -> str:
    """The lengths, or where they are not asked for the data set."""
    return lengths_text(workload) or data_set(workload)


def lengths_text(workload: Mapping[str, Any]) -> str:
    """Input/output lengths as asked, 1024/128, or where only means are known, ~1024/128; or ""."""
    for mark, prefix in (("", ""), ("~", "mean_")):
        both = [workload.get(f"{prefix}{side}_len") for side in ("input", "output")]
        if all(value is not None for value in both):
            return mark + "/".join(str(value) for value in both)
    return ""

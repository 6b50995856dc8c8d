"""What was asked of `atom bench`, read and checked: texts of the settings become values.

Everything that can be known to be wrong before a server is touched is refused here, in one line
that names what the user wrote.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from atom.bench import points as loads
from atom.bench.errors import BenchError
from atom.bench.headers import read_headers, whole_pairs
from atom.bench.names import parse_objectives
from atom.config.bench import BenchConfig, BenchStatistics
from atom.config.fields import flag_name

if TYPE_CHECKING:
    from atom.bench.points import Point
    from atom.bench.workloads.spec import WorkloadSpec
    from atom.config import ResolvedTool

DEFAULT_URL = "http://127.0.0.1:8000"
TURNS = 4  # of a multi-turn conversation
SEARCH_CONCURRENCY = (1.0, 256.0)

# A value given by a stronger source displaces the same question's answer from a weaker one.
_RANK = {"default": 0, "recipe": 1, "environment": 2, "flag": 3}


@dataclass(frozen=True, slots=True)
class SearchRange:
    """Where --find-max looks."""

    what: Literal["concurrency", "request_rate"]
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A benchmark, ready to be planned. `config` holds what needs no reading."""

    config: BenchConfig
    base_url: str | None  # None: the recipe's own server, or the default place
    headers: Mapping[str, str]
    extra_body: Mapping[str, Any]
    points: tuple[Point, ...]  # empty under a search
    search: SearchRange | None
    dataset: str
    path: str | None
    parameters: Mapping[str, Any]  # of the workload, by their names in `WorkloadSpec`
    objectives: Mapping[str, float]
    goodput: Mapping[str, float]
    precision: float | None
    repeats: int
    metadata: Mapping[str, str]
    count_asked: bool  # whether the number of requests is the user's

    def endpoint(self) -> Literal["completions", "chat"]:
        """The API: as asked, else chat for data sets of conversations."""
        asked = self.config.server.endpoint
        if asked != "auto":
            return "chat" if asked == "chat" else "completions"
        return "chat" if self.dataset in ("sharegpt", "prompts", "multi-turn") else "completions"

    def ignore_eos(self) -> bool:
        asked = self.config.server.ignore_eos
        if asked is not None:
            return asked
        if self.dataset in ("sharegpt", "prompts", "jsonl"):
            return self.config.workload.output_len is not None
        return True

    def workload_spec(self, *, max_len: int | None, limit: int | None) -> WorkloadSpec:
        """The workload's parameters; raises `BenchError` where they contradict each other."""
        from atom.bench.workloads import WorkloadSpec

        return WorkloadSpec(
            dataset=self.dataset,  # type: ignore[arg-type]
            path=self.path,
            endpoint=self.endpoint(),
            max_len=max_len,
            limit=limit,
            **{k: v for k, v in self.parameters.items() if v is not None},
        )


def read(resolved: ResolvedTool) -> Settings:
    """The settings' values; raises `BenchError` at the first mistake."""
    from atom.bench.metrics.options import MetricOptions

    config: BenchConfig = resolved.config
    where = resolved.where
    _check_needs(resolved)
    dataset, path = _dataset(config, where)
    search = _search(resolved) if config.objectives.find_max else None
    points = () if search is not None else tuple(_points(resolved, dataset))
    settings = Settings(
        config=config,
        base_url=_base_url(resolved),
        headers=read_headers(config.server.header, where("header")),
        extra_body=_json_object(config.server.extra_body, where("extra_body")),
        points=points,
        search=search,
        dataset=dataset,
        path=path,
        parameters=_parameters(resolved, dataset, path),
        objectives={} if config.objectives.slo is None else parse_objectives(config.objectives.slo),
        goodput=_goodput(config.objectives.goodput),
        precision=_precision(config.statistics.precision, where("precision")),
        repeats=_repeats(resolved),
        metadata=_metadata(config.output.metadata, where("metadata")),
        count_asked=config.load.num_prompts is not None,
    )
    # These refuse what contradicts itself or is out of range.
    settings.workload_spec(max_len=None, limit=None)
    MetricOptions(
        closed=True,
        percentiles=tuple(config.statistics.metric_percentiles),
        goodput=settings.goodput,
    )
    return settings


def _repeats(resolved: ResolvedTool) -> int:
    """Under --precision a run begins with three repeats, enough for an interval."""
    statistics: BenchStatistics = resolved.config.statistics
    if "repeats" in resolved.sources:
        if statistics.precision is not None and statistics.repeats > statistics.max_repeats:
            raise BenchError(
                f"{resolved.where('repeats')} {statistics.repeats} is more than --max-repeats "
                f"{statistics.max_repeats}"
            )
        return statistics.repeats
    if statistics.precision is not None:
        return min(3, statistics.max_repeats)
    return 1 if resolved.config.objectives.find_max else statistics.repeats


def _rank(resolved: ResolvedTool, name: str) -> int:
    source = resolved.sources.get(name)
    return 0 if source is None else _RANK[source.kind]


def _check_needs(resolved: ResolvedTool) -> None:
    """A flag that could have no effect is a mistake; in a recipe it is a default for others."""
    config: BenchConfig = resolved.config
    load, aims = config.load, config.objectives
    open_loop = bool(load.request_rate)
    rules: dict[str, tuple[bool, str]] = {
        "burstiness": (open_loop, "--request-rate: a closed loop has no arrivals"),
        "arrival": (open_loop, "--request-rate: a closed loop has no arrivals"),
        "max_runs": (aims.find_max, "--find-max"),
        "max_repeats": (config.statistics.precision is not None, "--precision"),
        "turns_max": (config.workload.dataset.startswith("multi"), "--dataset multi-turn"),
        "length_convention": (config.workload.range_ratio is not None, "--range-ratio"),
        "auto_profile": (aims.gate is not False, "the gate; drop --no-gate"),
    }
    for name, (holds, needed) in rules.items():
        if _rank(resolved, name) == _RANK["flag"] and not holds:
            raise BenchError(f"{resolved.where(name)} needs {needed}")
    if aims.find_max and aims.slo is None:
        raise BenchError(
            f"{resolved.where('find_max')} needs objectives: --slo ttft_p99=500ms,tpot_p99=50ms"
        )
    if load.arrival == "constant" and load.burstiness != 1.0:
        raise BenchError(f"{resolved.where('burstiness')}: constant gaps have no burstiness")


def _base_url(resolved: ResolvedTool) -> str | None:
    from atom.bench.client.address import parse_url

    server = resolved.config.server
    ranks = {name: _rank(resolved, name) for name in ("base_url", "host", "port")}
    by_parts = max(ranks["host"], ranks["port"])
    if server.base_url is not None and ranks["base_url"] >= by_parts:
        if ranks["base_url"] == by_parts:
            raise BenchError(f"{resolved.where('base_url')} and --host or --port: give one")
        return parse_url(server.base_url).url
    if by_parts:
        host, port = server.host or "127.0.0.1", server.port or 8000
        return parse_url(f"http://{host}:{port}").url
    return None


def _json_object(text: str | None, where: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BenchError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BenchError(f'{where} must be a JSON object such as {{"top_p": 0.9}}')
    return value


def _metadata(texts: tuple[str, ...], where: str) -> dict[str, str]:
    found = {}
    for text in whole_pairs(texts, "="):
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise BenchError(f"{where} {text}: write KEY=VALUE")
        found[key.strip()] = value.strip()
    return found


def _goodput(texts: tuple[str, ...]) -> dict[str, float]:
    if not texts:
        return {}
    from atom.bench.metrics.options import parse_goodput

    return parse_goodput(list(texts))


def _precision(text: str | None, where: str) -> float | None:
    """`2%` or `0.02` -> 0.02."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share < 1:
        raise BenchError(f"{where} {text}: write a share above 0 and below 100%, e.g. 2%")
    return share


def _dataset(config: BenchConfig, where: Callable[[str], str]) -> tuple[str, str | None]:
    from atom.bench.workloads.spec import PROMPT_SETS, parse_dataset

    dataset, path = parse_dataset(config.workload.dataset)
    given = config.workload.dataset_path
    if given is not None:
        if path is not None:
            raise BenchError(f"{where('dataset_path')} {given}: the data set is {path} already")
        path = given
        if dataset == "prompts":
            path = next((s for s in PROMPT_SETS if s == given.replace("-", "_")), given)
    return dataset, path


def _parameters(resolved: ResolvedTool, dataset: str, path: str | None) -> dict[str, Any]:
    """The workload's parameters. What a weaker source says of another data set is left out.

    A recipe's input_len goes with its random prompts; `--dataset mt_bench` replaces both.
    """
    from atom.bench.workloads.spec import BELONGS

    workload = resolved.config.workload
    kind = path if dataset == "prompts" else dataset
    kept = {}
    for field in dataclasses.fields(workload):
        if field.name in ("dataset", "dataset_path"):
            continue
        stranger = field.name in BELONGS and kind not in BELONGS[field.name][1]
        if not (stranger and _rank(resolved, field.name) < _rank(resolved, "dataset")):
            kept[field.name] = getattr(workload, field.name)
    if kept.get("turns") is None and dataset == "multi-turn":
        kept["turns"] = TURNS
    if "range_ratio" not in kept:
        kept.pop("length_convention", None)
    if "prefix_len" not in kept:
        kept.pop("num_prefixes", None)
    return kept


def _search(resolved: ResolvedTool) -> SearchRange:
    load = resolved.config.load
    kind = "request_rate" if _is_open(resolved) else "concurrency"
    found = loads.span(getattr(load, kind), resolved.where(kind))
    if kind == "request_rate":
        assert found is not None
        return SearchRange("request_rate", *found)
    low, high = found or SEARCH_CONCURRENCY
    if low != int(low) or high != int(high):
        raise BenchError(f"{resolved.where(kind)}: a concurrency is a whole number")
    return SearchRange("concurrency", low, high)


def _is_open(resolved: ResolvedTool) -> bool:
    """Open or closed loop; the stronger source decides, two of the same strength are a mistake."""
    load = resolved.config.load
    rates, places = _rank(resolved, "request_rate"), _rank(resolved, "concurrency")
    if load.request_rate and load.concurrency and rates == places:
        raise BenchError(
            f"{resolved.where('request_rate')} and {resolved.where('concurrency')}: a load is "
            "either open loop or closed loop; --max-concurrency caps an open loop"
        )
    return bool(load.request_rate) and rates > places


def _points(resolved: ResolvedTool, dataset: str) -> list[Point]:
    load = resolved.config.load
    if _is_open(resolved):
        found = loads.open_points(
            load.request_rate,
            resolved.where("request_rate"),
            burstiness=float("inf") if load.arrival == "constant" else load.burstiness,
            max_in_flight=load.max_concurrency,
        )
    elif load.concurrency:
        if load.max_concurrency is not None and _rank(resolved, "max_concurrency") == 3:
            raise BenchError(
                f"{resolved.where('max_concurrency')} caps an open loop (--request-rate); "
                f"{resolved.where('concurrency')} is a closed one"
            )
        found = loads.closed_points(load.concurrency, resolved.where("concurrency"))
    elif dataset == "trace":
        scale = resolved.config.workload.time_scale
        found = [loads.Point(time_scale=scale, max_in_flight=load.max_concurrency)]
    else:
        places = load.max_concurrency
        if places is None:
            places = min(loads.DEFAULT_CONCURRENCY, load.num_prompts or loads.DEFAULT_CONCURRENCY)
        found = [loads.closed_point(places)]
    return [sized(point, resolved.config) for point in found]


def sized(point: Point, config: BenchConfig) -> Point:
    """The point with the count, the duration and the workers that were asked for."""
    load = config.load
    count = load.num_prompts
    if count is None and load.duration is None:
        count = point.num_requests
    if count is not None and point.concurrency is not None and count < point.concurrency:
        raise BenchError(
            f"{flag_name('num_prompts')} {count} cannot keep {point.concurrency} requests in "
            "flight; ask for at least as many"
        )
    return replace(point, num_requests=count, duration_s=load.duration, workers=load.workers)

"""How near the truth are a benchmark client's figures? atom beside guidellm and aiperf.

Each tool loads the same mock server (tests/bench/mock_server.py), which sends at exactly known
times and writes them down; each of the tool's metrics is then compared with the same metric of the
truth of its own run. A figure is right within 1 ms + 1 % (rates 1 %, counts exactly).

    python benchmarks/bench_accuracy.py --streams 1000 --out accuracy.json
    python benchmarks/bench_accuracy.py --streams 1000 --guidellm guidellm --aiperf aiperf \
        --tokenizer DIR --out accuracy.json

The peers are commands of your own installations; they want a tokenizer directory to make prompts
with, and run offline. Exit status: 0 if every figure of atom is right, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accuracy_tools as tools
import accuracy_truth

MOCK = Path(__file__).parents[1] / "tests" / "bench" / "mock_server.py"


@dataclass(frozen=True)
class Scenario:
    """What the mock does; `flags` beside the tokens' rate."""

    about: str
    flags: tuple[str, ...] = ()
    chat: bool = False
    tokens_per_chunk: int = 1


SCENARIOS = {
    "steady": Scenario("constant TTFT and gaps"),
    "stalls": Scenario(
        "every tenth request stands still for 400 ms, once",
        ("--stall", "9:400", "--stall-every", "10"),
    ),
    "errors": Scenario(
        "one request in 20 gets 503, one in 20 ends early, one in 20 an error event",
        (
            "--fault",
            "http:503@every=20",
            "--fault",
            "close:9@every=19",
            "--fault",
            "event:9@every=17",
        ),
    ),
    "grouped": Scenario("three tokens a chunk, as with speculative decoding", (), False, 3),
    "role-chunk": Scenario("chat, whose first chunk holds only the role", (), True),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2, help="requests per stream")
    parser.add_argument("--tokens", type=int, default=200, help="output tokens of a request")
    parser.add_argument("--token-rate", type=float, default=20.0, help="of a stream, per second")
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--tools", default="atom,guidellm,aiperf", help="of those that are given")
    parser.add_argument("--guidellm", help="its command")
    parser.add_argument("--aiperf", help="its command")
    parser.add_argument(
        "--tokenizer", type=Path, help="directory with tokenizer.json, for the peers"
    )
    parser.add_argument("--out", type=Path, help="all figures as JSON")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=600.0, help="of one tool in one scenario")
    given = parser.parse_args(argv)
    unknown = set(given.scenarios.split(",")) - set(SCENARIOS)
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}: {', '.join(SCENARIOS)}")
    if (given.guidellm or given.aiperf) and given.tokenizer is None:
        parser.error("the peers make prompts with a tokenizer: give --tokenizer DIR")
    return given


def chosen_tools(given: argparse.Namespace) -> list[tools.Tool]:
    every = [tools.atom_tool()]
    if given.guidellm:
        every.append(tools.guidellm_tool(given.guidellm))
    if given.aiperf:
        every.append(tools.aiperf_tool(given.aiperf))
    return [tool for tool in every if tool.name in given.tools.split(",")]


def measure(
    tool: tools.Tool, scenario: Scenario, given: argparse.Namespace, env: dict[str, str]
) -> dict[str, Any]:
    """One tool in one scenario: its figures, the truth, and what it cost."""
    with tempfile.TemporaryDirectory(prefix="accuracy-") as name:
        folder = Path(name)
        itl_ms = 1e3 / given.token_rate * scenario.tokens_per_chunk
        shape = {"ttft_ms": given.ttft_ms, "itl_ms": itl_ms}
        mock, url = start_mock(scenario, shape, folder)
        try:
            task = tools.Task(
                url=url,
                model=tools.TOKENIZER,
                chat=scenario.chat,
                streams=given.streams,
                requests=given.streams * given.rounds,
                tokens=given.tokens,
                seed=given.seed,
                folder=folder,
            )
            wrong, cpu_s = tools.run(tool, task, env, given.limit_s)
        finally:
            mock.send_signal(signal.SIGTERM)
            said, _ = mock.communicate(timeout=60)
        truths = accuracy_truth.read(folder / "truth.jsonl")
        found: dict[str, Any] = {
            "cpu_s": round(cpu_s, 2),
            "mock": json.loads(said.splitlines()[-1]),
            "peak_concurrency": accuracy_truth.peak_concurrency(truths),
            "blocked": sum(truth["blocked"] for truth in truths),
        }
        if not scenario.flags:
            found["mock"]["lateness_ms"] = accuracy_truth.lateness_ms(truths, shape)
        if wrong or not truths:
            return {**found, "error": wrong or "it sent no request"}
        measured = tool.read(task)
        found["health"] = measured.pop("health", None)
        return {**found, "measured": measured, "truth": accuracy_truth.metrics(truths)}


def start_mock(
    scenario: Scenario, shape: dict[str, float], folder: Path
) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, str(MOCK), "--model", tools.TOKENIZER]
    command += ["--truth", str(folder / "truth.jsonl"), *scenario.flags]
    command += ["--ttft-ms", str(shape["ttft_ms"]), "--itl-ms", str(shape["itl_ms"])]
    command += ["--tokens-per-chunk", str(scenario.tokens_per_chunk)]
    mock = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert mock.stdout is not None
    return mock, json.loads(mock.stdout.readline())["url"]


def compare(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Metric -> measured, truth, right; in the truth's order, what the tool reports only."""
    return {
        name: {
            "measured": result["measured"][name],
            "truth": truth,
            "right": accuracy_truth.within(name, result["measured"][name], truth),
        }
        for name, truth in result["truth"].items()
        if result["measured"].get(name) is not None
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Of one scenario: each tool's figure and its distance from the truth, ! if that is too far."""
    verdicts = {name: compare(r) for name, r in results.items() if "measured" in r}
    names = [n for n in _order() if any(n in verdict for verdict in verdicts.values())]
    lines = [f"{'':24}" + "".join(f"{tool:>12}{'error':>12}  " for tool in results)]
    for name in names:
        cells = ""
        for tool in results:
            entry = verdicts.get(tool, {}).get(name)
            if entry is None:
                cells += f"{'-':>12}{'':12}  "
                continue
            off = entry["measured"] - entry["truth"]
            mark = " " if entry["right"] else "!"
            cells += f"{_number(entry['measured']):>12}{_signed(off):>12}{mark} "
        lines.append(f"{name:24}{cells.rstrip()}")
    lines.append("")
    for tool, result in results.items():
        if "error" in result:
            lines.append(f"{tool}: {result['error']}")
            continue
        wrong = [n for n, entry in verdicts[tool].items() if not entry["right"]]
        total = len(verdicts[tool])
        bound = result.get("health")
        lines.append(
            f"{tool}: {total - len(wrong)} of {total} figures right, {result['cpu_s']:.1f} CPU s, "
            f"{result['peak_concurrency']} requests in flight at most"
            + (f"; {bound['reason']}" if bound else "")
        )
    return "\n".join(lines)


def _order() -> list[str]:
    latencies = [
        f"{statistic}_{what}_ms"
        for what in accuracy_truth.LATENCIES
        for statistic in accuracy_truth.STATISTICS
    ]
    return [*latencies, *accuracy_truth.COUNTS, *accuracy_truth.RATES]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1e4 or value == int(value) else f"{value:,.2f}"


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+,.2f}"


def main(argv: list[str] | None = None) -> int:
    given = parse(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    report: dict[str, Any] = {
        "arguments": {k: str(v) for k, v in vars(given).items() if k not in ("out", "tokenizer")},
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_average": os.getloadavg(),
        "scenarios": {},
    }
    all_right = True
    with tempfile.TemporaryDirectory(prefix="accuracy-home-") as home:
        env = tools.environment(given.tokenizer, Path(home))
        for name in given.scenarios.split(","):
            scenario = SCENARIOS[name]
            results = {t.name: measure(t, scenario, given, env) for t in chosen_tools(given)}
            report["scenarios"][name] = {"about": scenario.about, "tools": results}
            rate = given.streams * given.token_rate
            print(
                f"\n{name}: {scenario.about}; {given.streams:,} streams, {rate:,.0f} tok/s, "
                f"{given.streams * given.rounds:,} requests of {given.tokens} tokens\n"
            )
            print(table(results), flush=True)
            ours = results.get("atom")
            if ours is not None:
                right = "measured" in ours and all(e["right"] for e in compare(ours).values())
                all_right = all_right and right
    if given.out is not None:
        given.out.write_text(tools.as_json(report), encoding="utf-8")
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main())

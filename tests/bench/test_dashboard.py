"""The dashboard's data: facts, commands, payload, marks, the folder, the server, the command."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from synthetic_runs import START, bench_run, eval_run, many, nightly

from atom.bench.dashboard import build
from atom.bench.dashboard.command import command
from atom.bench.dashboard.facts import facts, load
from atom.bench.dashboard.marks import find_marks
from atom.bench.dashboard.payload import payload
from atom.bench.dashboard.serve import make_server
from atom.bench.dashboard.site import STATIC, assets, write_site
from atom.bench.errors import BenchError
from atom.bench.history import History
from atom.bench.types import Interval, RunResult
from atom.cli.main import main

VENDOR = Path(str(STATIC)).parent / "vendor"


def with_argv(run: RunResult, *argv: str) -> RunResult:
    return msgspec.structs.replace(run, provenance={**run.provenance, "argv": list(argv)})


def read_data(script: bytes) -> dict:
    text = script.decode("ascii")
    assert text.startswith("window.ATOM_DATA=")
    assert text.endswith(";\n")
    return json.loads(text[len("window.ATOM_DATA=") : -2])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            "bench r.toml --concurrency 1-256*4 --num-prompts 64",
            "atom bench r.toml --num-prompts 64",
        ),
        ("bench --concurrency=1,2,4", "atom bench"),
        ("bench -c 1-8 --slo ttft=1s --find-max", "atom bench --slo ttft=1s"),
        ("bench -c8 --max_concurrency 9 --max-runs 5", "atom bench"),
        ("/usr/bin/atom bench --request-rate 1 --seed 9", "atom bench"),
        ("bench --label 'two words' --cold", "atom bench --label 'two words' --cold"),
    ],
)
def test_command_of_a_point(argv: str, expected: str) -> None:
    import shlex

    run = with_argv(bench_run(concurrency=16, seed=42), *shlex.split(argv))
    assert command(run) == f"{expected} --concurrency 16 --seed 42"


@pytest.mark.parametrize(
    ("rate", "flag"), [(2.5, "2.5"), ("2:20:exponential", "2:20:exponential"), ("inf", "inf")]
)
def test_command_of_an_open_loop_keeps_its_cap(rate: float | str, flag: str) -> None:
    run = with_argv(bench_run(seed=7), "bench", "-r", "1,2", "--max-concurrency", "64")
    run = msgspec.structs.replace(run, load={"mode": "open", "request_rate": rate})
    assert command(run) == f"atom bench --max-concurrency 64 --request-rate {flag} --seed 7"


def test_command_of_an_imported_run_is_not_guessed() -> None:
    run = bench_run()
    del run.provenance["argv"]
    assert command(run) == ""


@pytest.mark.parametrize(
    ("described", "mode", "level", "label"),
    [
        ({"concurrency": 16}, "concurrency", 16, "c=16"),
        ({"request_rate": 2.5}, "rate", 2.5, "2.5 req/s"),
        ({"request_rate": "2:20"}, "rate", 20, "2 to 20 req/s"),
        ({"request_rate": "2:20:exponential"}, "rate", 20, "2 to 20 req/s"),
        ({"request_rate": "inf"}, "other", None, "all at once"),
        ({"mode": "trace"}, "other", None, "trace"),
        ({}, "other", None, ""),
    ],
)
def test_load(described: dict, mode: str, level: float | None, label: str) -> None:
    assert load(described) == (mode, level, label)


def test_facts_of_patchy_provenance() -> None:
    bare = msgspec.structs.replace(bench_run(), provenance={}, workload={}, load={}, repeats=[])
    found = facts(bare)
    assert (found.hardware, found.gpus, found.devices, found.tp, found.commit) == (
        "",
        None,
        1,
        None,
        "",
    )
    assert found.time_ms == START.timestamp() * 1000  # from the id


@pytest.mark.parametrize(
    ("gpus", "hardware"), [(0, "AMD EPYC 9654"), (1, "MI300X"), (8, "8x MI300X")]
)
def test_hardware_is_what_was_used(gpus: int, hardware: str) -> None:
    run = bench_run(gpu="MI300X", num_gpus=max(gpus, 1))
    run.provenance["hardware"]["num_gpus"] = gpus
    assert facts(run).hardware == hardware


def test_a_series_differs_in_load_alone() -> None:
    points = [bench_run(concurrency=c, at=START + timedelta(hours=c)) for c in (1, 2, 4)]
    assert len({facts(run).series for run in points}) == 1
    others = [
        bench_run(backend="vllm"),
        bench_run(input_len=8),
        bench_run(tp=4),
        bench_run(model="x"),
    ]
    assert len({facts(run).series for run in [points[0], *others]}) == 5


def test_payload_holds_every_finite_value_in_place() -> None:
    runs = [bench_run(concurrency=c) for c in (4, 1)]
    runs[0].metrics["mean_tpot_ms"] = Interval(math.nan, 0, 1)
    runs[1].metrics["mean_ttft_ms"] = Interval(5.0, -math.inf, math.inf)
    data = payload(reversed(runs))
    ids = [row["id"] for row in data["runs"]]
    assert sorted(ids) == sorted(run.run_id for run in runs)
    json.dumps(data, allow_nan=False)
    for run in runs:
        for name, interval in run.metrics.items():
            cell = data["values"].get(name, [None] * 2)[ids.index(run.run_id)]
            if not math.isfinite(interval.value):
                assert cell is None
            elif not math.isfinite(interval.high):
                assert cell == [interval.value]
            else:
                assert cell == pytest.approx(
                    [interval.value, interval.low, interval.high][: len(cell)], rel=1e-5
                )


@pytest.mark.parametrize(("gpus", "devices"), [(8, 8), (0, 1)])
def test_per_device_counts_a_cpu_machine_as_one(gpus: int, devices: int) -> None:
    run = bench_run(num_gpus=gpus)
    cell = payload([run])["values"]["total_per_device"][0]
    assert cell[0] == pytest.approx(run.metrics["total_token_throughput"].value / devices, rel=1e-5)


def test_tokens_per_user_from_tpot_keeps_the_interval_in_order() -> None:
    run = bench_run()
    del run.metrics["output_throughput_per_user"]
    run.metrics["mean_tpot_ms"] = Interval(20.0, 16.0, 25.0)
    assert payload([run])["values"]["output_throughput_per_user"][0] == [50.0, 40.0, 62.5]


def test_provenance_is_stored_once() -> None:
    data = payload(many(200))
    assert len(data["pool"]) < 3 * 200  # time, commit, load differ; recipe, packages do not
    for row in data["runs"]:
        assert data["pool"][row["provenance"]["packages"]]["torch"] == "2.9.1"
    assert len(json.dumps(data)) < 200 * 4000


def test_scores_by_task_and_filter() -> None:
    run = eval_run(score=0.95, threshold=0.94)
    run.metrics["arc/acc,none"] = Interval(0.5, 0.4, 0.6)
    run.metrics["acceptance_rate"] = Interval(0.7, 0.7, 0.7)
    first, second = payload([bench_run(), run])["evals"]
    assert (first["task"], second["task"]) == ("gsm8k", "arc")
    assert set(first["scores"]) == {"exact_match,flexible-extract", "exact_match,strict-match"}
    assert first["thresholds"] == {"exact_match,flexible-extract": 0.94}
    assert first["fewshot"] == 5
    assert second["scores"] == {"acc,none": [0.5, 0.4, 0.6]}


def test_an_evaluation_says_what_its_scores_are_judged_by() -> None:
    run = eval_run(score=0.95, threshold=None)
    run.workload["tasks"] = {
        "gsm8k": {"main_metric": "exact_match,strict-match", "num_fewshot": 3, "samples": 200},
        "lambada": {"num_fewshot": 0},
    }
    run.metrics["lambada/perplexity,none"] = Interval(20.0, 18.0, 22.0)
    run.metrics["lambada/odd,none"] = Interval(0.5, 0.4, 0.6)
    run.slo["lambada/perplexity,none"] = 25.0
    baseline = {"value": 0.96, "run_id": "", "recovery": 0.99}
    run.provenance["eval"] = {
        "baselines": {"gsm8k/exact_match,strict-match": baseline},
        "lower_is_better": ["lambada/odd,none"],
    }
    gsm8k, lambada = payload([run])["evals"]
    assert (gsm8k["main"], gsm8k["fewshot"], gsm8k["samples"]) == (
        "exact_match,strict-match",
        3,
        200,
    )
    assert gsm8k["baselines"] == {"exact_match,strict-match": 0.96}
    assert gsm8k["lower"] == []
    assert lambada["lower"] == ["perplexity,none", "odd,none"]
    assert lambada["thresholds"] == {"perplexity,none": 25.0}
    assert (lambada["main"], lambada["baselines"], lambada["fewshot"]) == ("", {}, 0)


def series_of(values: list[float], **more: object) -> list[RunResult]:
    return [
        bench_run(
            at=START + timedelta(days=i), speed=speed, noise=0.008, commit=f"{i:040x}", **more
        )
        for i, speed in enumerate(values)
    ]


def test_a_lasting_loss_is_marked_with_its_commits() -> None:
    runs = series_of([1.0] * 12 + [0.9] * 6)
    marks = [m for m in find_marks(runs) if m.kind == "regression"]
    assert {m.metric for m in marks} == {"steady_output_throughput", "mean_ttft_ms", "mean_tpot_ms"}
    assert {m.run_id for m in marks} == {runs[12].run_id}
    assert marks[0].ratio == pytest.approx(0.9, abs=0.02)
    assert marks[0].commits == f"{11:040x}"[:9] + ".." + f"{12:040x}"[:9]


def test_a_steady_series_and_single_runs_have_no_marks() -> None:
    assert find_marks(series_of([1.0] * 20)) == []
    assert find_marks([bench_run(model=m) for m in "abc"]) == []


def test_a_newest_run_that_falls_is_suspicious_until_another_agrees() -> None:
    runs = series_of([1.0] * 10 + [0.8])
    marks = find_marks(runs)
    assert {m.kind for m in marks} == {"suspicious"}
    assert {m.run_id for m in marks} == {runs[-1].run_id}


def test_marks_of_runs_that_are_not_there_are_left_out() -> None:
    runs = series_of([1.0] * 12 + [0.9] * 6)
    data = payload(runs[:12], find_marks(runs))
    assert data["marks"] == []


def test_site_is_whole_and_leaves_other_files_alone(tmp_path: Path) -> None:
    out = tmp_path / "a" / "site"
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("kept")
    trace = tmp_path / "rank 0" / "t#1.json.gz"
    trace.parent.mkdir()
    trace.write_bytes(b"x")
    run = bench_run(
        artefacts=[{"kind": "trace", "path": str(trace)}, {"kind": "log", "path": "/no"}]
    )
    index = write_site([run], out)
    named = re.findall(r'(?:src|href)="([\w.-]+\.(?:js|css))"', index.read_text())
    assert {p.name for p in out.iterdir()} == {*assets(), "data.js", "mine.txt"}
    assert set(named) <= {p.name for p in out.iterdir()}
    artefacts = read_data((out / "data.js").read_bytes())["runs"][0]["artefacts"]
    assert [a["href"] for a in artefacts] == ["../../rank%200/t%231.json.gz", None]


def test_site_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"--out .*file"):
        write_site([], tmp_path / "file")


def test_vendored_files_are_those_of_the_checksums() -> None:
    lines = (VENDOR / "echarts.sha256").read_text().splitlines()
    sums = dict(reversed(line.split()) for line in lines)
    assert set(sums) == {"echarts.min.js", "echarts.LICENSE"}
    for name, expected in sums.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == expected
    packages = json.loads((VENDOR / "package-lock.json").read_text())["packages"]
    assert all("integrity" in p for name, p in packages.items() if name)


def test_our_scripts_never_parse_data_as_html() -> None:
    ours = {n: c.decode() for n, c in assets().items() if n.startswith("app")}
    assert len(ours) > 10
    for name, text in ours.items():
        for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert banned not in text, name
        assert "http://" not in text.replace("http://www.w3.org/", ""), name
        assert "https://" not in text, name


def variables(block: str) -> dict[str, str]:
    return dict(re.findall(r"(--[\w-]+): ([^;]+);", block))


def themes() -> dict[str, dict[str, str]]:
    css = (STATIC / "app.css").read_text()
    light = variables(css[css.index(":root {") : css.index("}", css.index(":root {"))])
    forced, system = (
        variables(css[(at := css.index(mark)) : css.index("}", at)])
        for mark in (':root[data-theme="dark"] {', ":root:not([data-theme]) {")
    )
    assert forced == system
    return {"light": light, "dark": {**light, **forced}}


def rgb(colour: str) -> tuple[float, ...]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)


def contrast(a: str, b: str) -> float:
    light, dark = sorted(
        (0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2] for c in map(rgb, (a, b))), reverse=True
    )
    return (light + 0.05) / (dark + 0.05)


# Viénot, Brettel and Mollon 1999: linear RGB as a dichromat sees it.
BLINDNESS = {
    "protan": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "deutan": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
}


def lab(linear: tuple[float, ...]) -> tuple[float, float, float]:
    r, g, b = (min(1.0, max(0.0, c)) for c in linear)
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_apart_and_from_the_page(theme: str) -> None:
    known = themes()[theme]
    series = [known[f"--series-{i}"] for i in range(8)]
    for colour in series:
        assert contrast(colour, known["--surface"]) >= 3.0, colour
    for name in ("--text", "--muted", "--accent", "--bad", "--warn", "--good"):
        assert contrast(known[name], known["--surface"]) >= 4.5, name
        assert contrast(known[name], known["--page"]) >= 4.5, name
    for name in ("bad", "warn", "good"):
        assert contrast(known[f"--{name}"], known[f"--{name}-soft"]) >= 4.5, name
    for kind, matrix in BLINDNESS.items():
        seen = [
            lab(tuple(sum(m * c for m, c in zip(row, rgb(s), strict=True)) for row in matrix))
            for s in series
        ]
        for (i, a), (j, b) in itertools.combinations(enumerate(seen), 2):
            assert math.dist(a, b) > 12, (kind, series[i], series[j])


@contextmanager
def serving(history: Path, host: str = "127.0.0.1") -> Iterator[ThreadingHTTPServer]:
    server = make_server(history, host, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(
    server: ThreadingHTTPServer, path: str, method: str = "GET", host: str = "localhost"
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    try:
        connection.request(method, path, headers={"Host": host})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_served_data_follows_the_history(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    with serving(path) as server:
        assert read_data(ask(server, "/data.js")[1])["runs"] == []
        for count in (1, 2):
            with History(path) as history:
                history.add(bench_run(concurrency=count))
            assert len(read_data(ask(server, "/data.js")[1])["runs"]) == count


def test_served_files_and_refusals(tmp_path: Path) -> None:
    trace, other = tmp_path / "t.json.gz", tmp_path / "secret"
    trace.write_bytes(b"trace")
    other.write_bytes(b"secret")
    run = bench_run(artefacts=[{"kind": "trace", "path": str(trace)}])
    with History(tmp_path / "h.db") as history:
        history.add(run)
    with serving(tmp_path / "h.db") as server:
        response, body = ask(server, "/")
        assert (response.status, body) == (200, assets()["index.html"])
        assert "'unsafe-eval'" not in response.headers["Content-Security-Policy"]
        assert ask(server, "/app.css")[0].headers["Content-Type"].startswith("text/css")
        href = read_data(ask(server, "/data.js")[1])["runs"][0]["artefacts"][0]["href"]
        response, body = ask(server, "/" + href)
        assert (response.status, body) == (200, b"trace")
        assert response.headers["Content-Disposition"].startswith("attachment")
        for path in (
            "/nothing",
            f"/{other}",
            "/../secret",
            "/%2e%2e/secret",
            "/artefacts/x/0/secret",
        ):
            assert ask(server, path)[0].status == 404, path
        assert ask(server, "/", host="evil.example")[0].status == 403
        assert ask(server, "/", host="127.0.0.1:80")[0].status == 200
        assert ask(server, "/", "POST")[0].status == 501
        assert ask(server, "/data.js", "HEAD")[1] == b""


def test_served_history_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    path.write_text("no database")
    with serving(path) as server:
        assert "is not a run history" in read_data(ask(server, "/data.js")[1])["problem"]
        path.unlink()
        assert "problem" not in read_data(ask(server, "/data.js")[1])


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "h.db") as server,
        pytest.raises(BenchError, match="give another --port"),
    ):
        make_server(tmp_path / "h.db", "127.0.0.1", server.server_address[1])


def test_build_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "h.db", tmp_path / "site"
    with History(path) as history:
        for run in nightly(14, regression_at=7):
            history.add(run)
        expected = build(history, tmp_path / "other")
    assert expected.regressions >= 10
    assert main(["dashboard", "build", "--history", str(path), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == expected.runs
    assert told["regressions"] == expected.regressions
    data = read_data(Path(told["index"]).with_name("data.js").read_bytes())
    assert len(data["runs"]) == expected.runs
    assert main(["dashboard", "build", "--history", str(path), "-o", str(path)]) == 2
    assert "choose a folder that can be written" in capsys.readouterr().err


def test_build_of_an_empty_history_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["dashboard", "build", "--history", str(tmp_path / "no.db"), "-o", str(tmp_path)]) == 0
    )
    told = capsys.readouterr()
    assert "0 runs" in told.out
    assert "atom bench fills it" in told.err

"""The dashboard in a real Chromium: every tab, keyboard, address, files, hostile and huge data."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import bench_run, eval_run, many, nightly

from atom.bench.dashboard.marks import find_marks
from atom.bench.dashboard.serve import make_server
from atom.bench.dashboard.site import write_site
from atom.bench.history import History
from atom.bench.types import Interval, RunResult

sync_api = pytest.importorskip("playwright.sync_api")
axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), "")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
TABS = ("performance", "tradeoff", "trends", "data", "accuracy")
HOSTILE = "<img src=x onerror=\"document.title='owned'\">'\"</script><b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        if os.environ.get("CI") == "true":
            pytest.fail("the dashboard's tests need Chromium (apt-get install chromium)")
        pytest.skip("no chromium here")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Opened:
    """A page that notes everything that must not happen, and looks only where it may."""

    def __init__(self, page: Any, base: str) -> None:
        self.page = page
        self.base = base
        self.problems: list[str] = []
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: self._requested(request.url))

    def _requested(self, url: str) -> None:
        if not url.startswith((self.base, "data:", "blob:")):
            self.problems.append(f"request to {url}")

    def script(self, text: str, argument: Any = None) -> Any:
        """Evaluate `text`, in which CHART is the first chart on the page."""
        first = "[...Atom.charts].find((c) => c.canvas === document.querySelector('.canvas'))"
        return self.page.evaluate(text.replace("CHART", first), argument)

    def go(self, address: str = "") -> Any:
        """Load the page afresh at #address."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.base}/index.html#{address}")
        # Charts draw in the next frame.
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        return self.page


@contextmanager
def opened(browser: Any, base: str, **more: Any) -> Iterator[Opened]:
    options: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, **more}
    with closing(browser.new_context(**options)) as context:
        context.set_default_timeout(10_000)
        found = Opened(context.new_page(), base)
        yield found
        assert found.problems == []


def site(folder: Path, runs: list[RunResult]) -> str:
    return write_site(runs, folder, find_marks(runs), source="history.db").parent.as_uri()


def violations(page: Any) -> list[str]:
    """What the axe audit finds, without its own request for the style sheet."""
    options = {"preload": False, "resultTypes": ["violations"]}
    found = axe_playwright.Axe().run(page, options=options)
    return [
        f"{v['id']}: {node['html'][:200]}"
        for v in found.response["violations"]
        for node in v["nodes"][:3]
    ]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[RunResult]]:
    """Twelve nights, the second model slower from the eighth on; the last run has a trace."""
    folder = tmp_path_factory.mktemp("site")
    trace = folder / "model.pt.trace.json.gz"
    trace.write_bytes(b"trace")
    runs = list(nightly(12, regression_at=7))
    runs[-1].artefacts.append({"kind": "trace", "path": str(trace)})
    runs[-2].status = "client_bound"
    return site(folder / "out", runs), runs


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, nights: Any) -> str:
    """One load and shape of those nights: all that a page can show, in few rows to audit."""
    runs = [
        run
        for run in nights[1]
        if run.kind == "eval"
        or (run.load["concurrency"] == 16 and run.workload["input_len"] == 1024)
    ]
    kept = [run for run in runs if run.name != "DeepSeek-R1-0528" or run.kind == "eval"]
    return site(tmp_path_factory.mktemp("few"), kept)


@pytest.mark.parametrize("look", ["light", "dark", "narrow"])
def test_every_tab_is_drawn_and_accessible(browser: Any, few: str, look: str) -> None:
    size = {"width": 390, "height": 844} if look == "narrow" else {"width": 1280, "height": 900}
    scheme = "dark" if look == "dark" else "light"
    with opened(browser, few, viewport=size, color_scheme=scheme) as at:
        for tab in TABS:
            page = at.go(f"tab={tab}")
            assert page.locator("[role=tabpanel]:visible").get_attribute("id") == f"panel-{tab}"
            for summary in page.locator(".twin > summary").all():
                summary.click()
            assert violations(page) == [], tab
            text = page.locator("body").inner_text()
            assert not re.search(r"undefined|NaN|\[object|Infinity", text), tab
            wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, tab


PAINTED = """() => [...document.querySelectorAll('canvas')].map((canvas) => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const colours = new Set();
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] === 255) colours.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
  }
  return colours.size;
})"""


def test_charts_are_painted_and_redrawn_for_the_theme(browser: Any, nights: Any) -> None:
    with opened(browser, nights[0], color_scheme="light") as at:
        for tab, charts in (("tradeoff", 3), ("trends", 4), ("data", 1), ("accuracy", 1)):
            painted = at.go(f"tab={tab}").evaluate(PAINTED)
            assert len(painted) == charts, tab
            assert min(painted) >= 3, tab
        page = at.go("tab=tradeoff")
        curves = "CHART.chart.getOption().series.map((s) => s.itemStyle?.color)"
        before = at.script(curves)
        page.locator("#theme").click()  # system -> light: the same here
        assert at.script(curves) == before
        page.locator("#theme").click()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert at.script(curves) != before
        page = at.go("tab=tradeoff")
        assert page.locator("#theme").inner_text() == "Theme: dark"


def test_points_are_the_measured_values_and_open_their_run(browser: Any, nights: Any) -> None:
    base, runs = nights
    by_id = {run.run_id: run for run in runs}
    with opened(browser, base) as at:
        page = at.go("tab=tradeoff&y=output_per_device")
        points = at.script(
            "CHART.chart.getOption().series.flatMap((s) => s.data)"
            ".filter((p) => p.run !== undefined)"
            ".map((p) => [Atom.data.runs[p.run].id, p.value[0], p.value[1]])"
        )
        assert len(points) == 35
        for run_id, x, y in points:
            run = by_id[run_id]
            gpus = run.provenance["hardware"]["num_gpus"]
            assert x == pytest.approx(run.metrics["output_throughput_per_user"].value, rel=1e-5)
            assert y == pytest.approx(run.metrics["output_throughput"].value / gpus, rel=1e-5)
        run_id, x, y = max(points, key=lambda p: p[2])
        pixel = at.script(
            "([x, y]) => CHART.chart.convertToPixel({ gridIndex: 0 }, [x, y])", [x, y]
        )
        page.locator(".canvas").first.click(position={"x": pixel[0], "y": pixel[1]})
        assert page.evaluate("new URLSearchParams(location.hash.slice(1)).get('run')") == run_id


def test_whiskers_are_the_intervals(browser: Any, nights: Any) -> None:
    base, runs = nights
    known = {m.value: m for run in runs if (m := run.metrics.get("output_throughput_per_user"))}
    with opened(browser, base) as at:
        at.go("tab=tradeoff")
        data = at.script(
            "CHART.chart.getOption().series.filter((s) => s.type === 'custom')"
            ".flatMap((s) => s.data)"
        )
    assert len(data) == 35
    for row in data:
        metric = known[min(known, key=lambda value: abs(value - row[0]))]
        assert row[:3] == pytest.approx([metric.value, metric.low, metric.high], rel=1e-5)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_pareto_front_is_what_brute_force_finds(
    browser: Any, nights: Any, lower_is_better: bool
) -> None:
    rng = random.Random(3)
    sets = [
        [[rng.randrange(12), rng.randrange(12)] for _ in range(rng.randrange(1, 30))]
        for _ in range(200)
    ]
    with opened(browser, nights[0]) as at:
        fronts = at.go().evaluate(
            "([sets, lower]) => sets.map((points) => Atom.pareto(points, lower))",
            [sets, lower_is_better],
        )
    sign = -1 if lower_is_better else 1
    for points, front in zip(sets, fronts, strict=True):
        best = {
            (x, y)
            for x, y in points
            if not any(
                sign * a >= sign * x and b >= y and (a, b) != (x, y) for a, b in map(tuple, points)
            )
        }
        assert {tuple(p) for p in front} == best
        assert len(front) == len(best)


def test_tabs_by_keyboard_and_history(browser: Any, nights: Any) -> None:
    with opened(browser, nights[0]) as at:
        page = at.go()
        page.locator("#tab-performance").focus()
        for key, tab in (
            ("ArrowRight", "tradeoff"), ("ArrowRight", "trends"), ("End", "accuracy"),
            ("ArrowRight", "performance"), ("ArrowLeft", "accuracy"), ("Home", "performance"),
        ):  # fmt: skip
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.id") == f"tab-{tab}"
            assert (
                page.locator("[role=tab][aria-selected=true]").get_attribute("id") == f"tab-{tab}"
            )
            assert page.locator("[role=tab][tabindex='0']").count() == 1
        page.go_back()
        assert page.locator("#panel-accuracy").is_visible()


def test_filters_live_in_the_address(browser: Any, nights: Any) -> None:
    with opened(browser, nights[0]) as at:
        page = at.go("tab=performance")
        rows = page.locator("#panel-performance tbody tr")
        everything = rows.count()
        page.locator("details[data-key=model] summary").click()
        page.get_by_label("gpt-oss-120b").check()
        page.locator("details[data-key=load] summary").click()
        page.get_by_label("c=16").check()
        names = set(page.locator("#panel-performance tbody th").all_inner_texts())
        assert names == {"gpt-oss-120b"}
        assert rows.count() == 2
        address = page.evaluate("location.hash")
        assert "model=openai%2Fgpt-oss-120b" in address
        assert at.go(address[1:]).locator("#panel-performance tbody tr").count() == 2
        page.locator("#tab-tradeoff").click()
        assert "model=openai%2Fgpt-oss-120b" in page.evaluate("location.hash")
        page.get_by_role("button", name="Clear filters").click()
        page.locator("#tab-performance").click()
        assert rows.count() == everything
        page = at.go("tab=performance&model=nobody")
        assert "No run matches these filters" in page.locator("main").inner_text()
        page.locator(".empty").get_by_role("button", name="Clear filters").click()
        assert rows.count() == everything


def test_choices_keep_the_focus_and_the_address(browser: Any, nights: Any) -> None:
    with opened(browser, nights[0]) as at:
        page = at.go("tab=tradeoff")
        for label, value in (("Scale", "log"), ("Up", "output_per_device"), ("Period", "7")):
            page.get_by_label(label, exact=True).focus()
            page.get_by_label(label, exact=True).select_option(value)
            assert page.evaluate("document.activeElement.value") == value
        address = page.evaluate("location.hash")[1:]
        assert {"scale=log", "y=output_per_device", "period=7"} <= set(address.split("&"))
        page = at.go(address)
        assert page.get_by_label("Scale", exact=True).input_value() == "log"
        assert at.script("CHART.chart.getOption().yAxis[0].type") == "log"


def test_tables_sort_with_missing_values_last(browser: Any, tmp_path: Path) -> None:
    runs = [bench_run(concurrency=c) for c in (4, 1, 64)] + [bench_run(concurrency=2)]
    del runs[-1].metrics["mean_ttft_ms"]
    with opened(browser, site(tmp_path, runs)) as at:
        page = at.go()
        head = page.get_by_role("columnheader", name="TTFT ms")
        loads = page.locator("#panel-performance tbody tr td:nth-child(6)")
        assert loads.all_inner_texts() == ["c=1", "c=2", "c=4", "c=64"]
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert loads.all_inner_texts() == ["c=64", "c=4", "c=1", "c=2"]
        head.get_by_role("button").click()
        assert loads.all_inner_texts() == ["c=1", "c=4", "c=64", "c=2"]
        assert "sort=mean_ttft_ms" in page.evaluate("location.hash")


def test_a_run_opens_closes_and_has_an_address(browser: Any, nights: Any) -> None:
    with opened(browser, nights[0]) as at:
        page = at.go("tab=performance")
        button = page.locator("#panel-performance tbody button.link").first
        button.click()
        drawer = page.get_by_role("dialog")
        address = page.evaluate("location.hash")
        text = drawer.inner_text()
        assert not re.search(r"undefined|NaN|\[object|Infinity", text)
        assert "--concurrency 1 --seed 0" in drawer.locator(".command pre").inner_text()
        for part in ("TTFT", "p99", "Provenance", "Repeats (3)", "Client", "rocm 7.2.0"):
            assert part in text
        page.keyboard.press("Escape")
        assert not drawer.is_visible()
        assert "run=" not in page.evaluate("location.hash")
        assert button.evaluate("(node) => node === document.activeElement")
        assert at.go(address[1:]).get_by_role("dialog").is_visible()
        page.go_back()
        assert not drawer.is_visible()


def test_the_command_is_copied(browser: Any, nights: Any) -> None:
    with opened(browser, nights[0], permissions=["clipboard-read", "clipboard-write"]) as at:
        page = at.go("tab=data")
        page.locator("#panel-data tbody").get_by_role("button", name="Copy").first.click()
        page.get_by_text("Command copied").wait_for(state="attached")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("atom bench recipes/llama-3.3-70b.toml --num-prompts 640")


def test_a_lasting_regression_is_marked_everywhere(browser: Any, nights: Any) -> None:
    with opened(browser, nights[0]) as at:
        page = at.go("tab=performance")
        badges = page.locator("#panel-performance .badge.regression")
        assert badges.count() >= 8  # of the ten points of the slower model
        rows = page.locator("tr", has=page.locator(".badge.regression"))
        assert set(rows.locator("th").all_inner_texts()) == {"Llama-3.3-70B-Instruct"}
        rows.first.get_by_role("button").click()
        assert re.search(
            r"Output tokens, steady state: (8|9)\.\d % worse since 2026-08-08",
            page.get_by_role("dialog").inner_text(),
        )
        page = at.go("tab=trends")
        changes = page.locator("table", has_text="Changes found").locator("tbody")
        assert changes.locator("tr").count() >= 8
        assert changes.locator("code").first.inner_text().count("..") == 1
        marks = at.script(
            "CHART.chart.getOption().series.filter((s) => s.type === 'scatter')"
            ".flatMap((s) => s.data).length"
        )
        assert marks >= 1


def test_traces_are_linked(browser: Any, nights: Any) -> None:
    with opened(browser, nights[0]) as at:
        page = at.go("tab=data")
        href = page.get_by_role("link", name="trace:").get_attribute("href")
        assert href == "../model.pt.trace.json.gz"


def test_downloads_hold_the_filtered_runs(browser: Any, tmp_path: Path) -> None:
    runs = [bench_run(model="=cmd|' /C calc'!A1"), bench_run(model='a,"b"\nc'), eval_run()]
    with opened(browser, site(tmp_path, runs), accept_downloads=True) as at:
        page = at.go("tab=data&model=a%2C%22b%22%0Ac")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download JSON").click()
        (row,) = json.loads(Path(download.value.path()).read_text())
        assert row["model"] == 'a,"b"\nc'
        value = runs[1].metrics["mean_ttft_ms"]
        assert row["mean_ttft_ms"] == pytest.approx(value.value, rel=1e-5)
        assert row["mean_ttft_ms_high"] == pytest.approx(value.high, rel=1e-5)
        assert row["provenance"]["driver"] == "rocm 7.2.0"
        page = at.go("tab=data")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download CSV").click()
        rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_bytes().decode())))
        assert sorted(r["model"] for r in rows) == [
            "'=cmd|' /C calc'!A1", 'a,"b"\nc', "deepseek-ai/DeepSeek-R1-0528",
        ]  # fmt: skip


def test_hostile_names_stay_text(browser: Any, tmp_path: Path) -> None:
    runs = [
        bench_run(model=HOSTILE + str(i), name=HOSTILE, backend=HOSTILE, gpu=HOSTILE, concurrency=c,
                  notes=[HOSTILE], artefacts=[{"kind": HOSTILE, "path": "javascript:alert(1)"}])
        for i in range(3) for c in (1, 4)
    ]  # fmt: skip
    runs.append(eval_run(model=HOSTILE))
    with opened(browser, site(tmp_path, runs)) as at:
        for tab in TABS:
            page = at.go(f"tab={tab}")
            for summary in page.locator(".twin > summary").all():
                summary.click()
            for canvas in page.locator(".canvas").all():  # tooltips
                box = canvas.bounding_box()
                for share in (0.2, 0.5, 0.8):
                    page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
        page = at.go(f"tab=data&run={runs[0].run_id}")
        assert HOSTILE in page.get_by_role("dialog").inner_text()
        assert page.locator("img, b img, dialog script").count() == 0
        assert page.locator("a[href^=javascript]").count() == 0
        assert "owned" not in page.title()


def test_tooltips_are_nodes_with_the_names(browser: Any, tmp_path: Path) -> None:
    run = bench_run(model=HOSTILE.replace("/", ""))
    with opened(browser, site(tmp_path, [run])) as at:
        page = at.go("tab=tradeoff")
        x, y = at.script(
            "(() => { const { chart } = CHART;"
            " const p = chart.getOption().series.flatMap((s) => s.data).find((d) => d.run === 0);"
            " return chart.convertToPixel({ gridIndex: 0 }, p.value); })()"
        )
        page.locator(".canvas").first.hover(position={"x": x, "y": y})
        tip = page.locator(".tip strong")
        tip.wait_for()
        assert tip.inner_text() == run.model
        assert tip.locator("*").count() == 0


@pytest.mark.parametrize("tab", TABS)
def test_an_empty_history_says_what_to_do(browser: Any, tmp_path: Path, tab: str) -> None:
    with opened(browser, site(tmp_path, [])) as at:
        page = at.go(f"tab={tab}")
        assert page.locator(".empty code").count() >= 2
        assert "atom bench" in page.locator(".empty").inner_text()
        assert violations(page) == []


def test_a_single_run_of_a_cpu_machine(browser: Any, tmp_path: Path) -> None:
    run = bench_run(gpu="", num_gpus=0, tp=None, model="SmolLM2-135M-Instruct")
    with opened(browser, site(tmp_path, [run])) as at:
        note = at.go("tab=tradeoff").locator("figure .note").first.inner_text()
        assert "whole machine as one device" in note
        assert "has been run twice" in at.go("tab=trends").locator(".empty").inner_text()
        assert "No accuracy results yet" in at.go("tab=accuracy").locator(".empty").inner_text()


def test_accuracy_stands_against_thresholds_and_baselines(browser: Any, tmp_path: Path) -> None:
    """Four models: at its threshold, below it, a perplexity above its limit, one not judged."""
    runs = [
        eval_run(model="at", score=0.9, threshold=0.9),
        eval_run(model="below", score=0.8, threshold=0.9),
        eval_run(model="lower", score=0.5, threshold=None),
        eval_run(model="plain", score=0.7, threshold=None),
    ]
    metric = "exact_match,flexible-extract"
    runs[1].provenance["eval"] = {"baselines": {f"gsm8k/{metric}": {"value": 0.85}}}
    runs[1].metrics["acceptance_rate"] = Interval(0.625, 0.625, 0.625)
    runs[1].metrics["accept_length"] = Interval(2.88, 2.88, 2.88)
    runs[2].metrics = {"lambada/perplexity,none": Interval(21.0, 20.5, 21.5)}
    runs[2].slo = {"lambada/perplexity,none": 20.0}
    for run in runs:
        run.fingerprint = run.model
    read = """() => [...document.querySelectorAll('#panel-accuracy section tbody tr')].map((row) =>
      Object.fromEntries([...row.children].map((cell, i) => [
        document.querySelectorAll('#panel-accuracy section thead th')[i].innerText.trim(),
        cell.innerText.trim(),
      ])))"""
    with opened(browser, site(tmp_path, [*runs, bench_run(model="loaded")])) as at:
        page = at.go("tab=accuracy")
        rows = {row["Model"]: row for row in page.evaluate(read)}
        assert (rows["at"]["State"], rows["at"]["Margin"]) == ("◇ at risk", "+0.0000")
        below = rows["below"]
        assert (below["State"], below["Margin"], below["Threshold"]) == (
            "▼ fails", "−0.1000", "0.9000",
        )  # fmt: skip
        assert (below["Baseline"], below["Recovery"]) == ("0.8500", "94.1 %")
        assert (below["MTP accept"], below["tok/fwd"]) == ("62.5 %", "2.88")
        assert (rows["lower"]["State"], rows["lower"]["Metric"]) == ("▼ fails", "perplexity")
        assert rows["lower"]["Margin"] == "−1.0000"
        assert (rows["plain"]["State"], rows["plain"]["Baseline"]) == ("", "–")
        assert at.script("CHART.chart.getOption().yAxis[0].data.length") == 3
        choices = page.locator("details.choice > summary .what").all_inner_texts()
        assert choices == ["Model", "Backend"], "an evaluation has no lengths and no load"
        page.locator("details[data-key=model] summary").click()
        models = page.locator("details[data-key=model] label").all_inner_texts()
        assert sorted(text.split()[0] for text in models) == ["at", "below", "lower", "plain"]


def test_two_thousand_runs_stay_bounded(browser: Any, tmp_path: Path) -> None:
    runs = list(many(2000))
    with opened(browser, write_site(runs, tmp_path).parent.as_uri()) as at:
        for tab in TABS:
            page = at.go(f"tab={tab}")
            assert page.evaluate("document.querySelectorAll('*').length") < 6000, tab
        page = at.go("tab=data")
        rows = page.locator("#panel-data > section tbody tr")
        assert rows.count() == 100
        page.get_by_role("button", name="Show 100 more").click()
        assert rows.count() == 200
        page.locator("details[data-key=model] summary").click()
        page.get_by_role("searchbox").fill("model-7")
        assert page.locator("details[data-key=model] label:visible").count() == 1


def test_data_that_is_missing_is_said(browser: Any, tmp_path: Path) -> None:
    base = site(tmp_path, [bench_run()])
    (tmp_path / "data.js").unlink()
    with opened(browser, base) as at:
        page = at.go()
        assert "data.js is missing" in page.locator(".empty").inner_text()
        at.problems.clear()  # the browser's own line about the file


def test_served_under_the_strict_policy(browser: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.json.gz"
    trace.write_bytes(b"trace")
    path = tmp_path / "h.db"
    with History(path) as history:
        for run in nightly(8, regression_at=4):
            history.add(run)
        history.add(bench_run(model="traced", artefacts=[{"kind": "trace", "path": str(trace)}]))
    server = make_server(path, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with opened(browser, base, accept_downloads=True) as at:
            for tab in TABS:
                assert at.go(f"tab={tab}").locator(".card").count() >= 1
            page = at.go("tab=data&model=traced")
            with page.expect_download() as download:
                page.get_by_role("link", name="trace:").click()
            assert Path(download.value.path()).read_bytes() == b"trace"
            with History(path) as history:
                history.add(bench_run(model="just measured"))
            assert "just measured" in at.go("tab=performance").locator("tbody").inner_text()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""The tables of a start: order, sums and reasons."""

from __future__ import annotations

from typing import Any

from engine.engine_helpers import make_config

from atom.engine import startup
from atom.engine.core import EngineCore
from atom.engine.runner.fake import FakeRunner

GIB = 2**30


class GpuLike(FakeRunner):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.startup_s = {"load": 2.0, "profile": 1.5, "compile": 3.0, "graphs": 0.25, "odd": 1.0}
        self.memory_bytes = {
            "weights": 15 * GIB,
            "total": 140 * GIB,
            "other": GIB,
            "kv_cache": 100 * GIB,
            "graphs": GIB // 2,
        }
        self.memory_notes = {"kv_cache": "gpu_memory_utilization = 0.9"}


def test_the_tables_are_in_order_and_add_up() -> None:
    config = make_config()
    core = EngineCore(config, GpuLike(config), before_s={"import": 4.0})
    lines = startup.report(core.info)
    split = lines.index("memory:")
    times, memory = lines[1:split], lines[split + 1 :]
    assert [line.split("  ")[1].strip() for line in times] == [
        "import",
        "load the weights",
        "compile",
        "measure the largest step",
        "capture graphs",
        "odd",
        "total",
    ]
    assert times[-1].split() == ["total", "11.75", "s"]
    cells = {line[2:12].strip(): line.split() for line in memory}
    assert list(cells) == ["weights", "other", "graphs", "kv cache", "free", "total"]
    assert "   23.50 GiB  left alone" in next(line for line in memory if "free" in line)
    assert memory[3].endswith("100.00 GiB  gpu_memory_utilization = 0.9")


def test_no_memory_is_no_error() -> None:
    config = make_config()
    runner = FakeRunner(config)
    runner.memory_bytes = {}
    assert startup.memory_table(EngineCore(config, runner).info) == []

"""One rank's torch profiler: from `start` to a finished trace file.

While it records, the marks of `atom.engine.marks` are on.

Recording stops between two steps, on the thread that steps. What is written afterwards is written
by whoever calls the `Writer`, so that steps go on meanwhile; under its final name a file is whole.
"""

from __future__ import annotations

import contextlib
import datetime
import gzip
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from atom._version import __version__
from atom.config.schema import ProfileConfig
from atom.engine.marks import Marks
from atom.errors import ConfigError, RequestError

Writer = Callable[[], list[str]]  # writes the files; their paths

_GZIP_LEVEL = 3  # of a trace, 1.3 times the size of level 9 in a sixth of its time


class RankProfiler:
    """Writes `rank_<rank>/<model>_ts_<stamp>.pt.trace.json.gz` below the configured directory.

    `marks`: what is named in the trace. `about`: what a trace says of the engine, under "atom".
    """

    def __init__(self, config: ProfileConfig, rank: int, model: str, device: torch.device) -> None:
        assert config.torch_profiler_dir is not None
        self.mark_trace = config.mark_trace
        self.marks = Marks()
        self.about: dict[str, Any] = {
            "atom": __version__,
            "model": model,
            "rank": rank,
            "device": str(device),
        }
        self._folder = Path(config.torch_profiler_dir).absolute() / f"rank_{rank}"
        self._more = config.profiler_more
        self._device = device
        self._stem = re.sub(r"[^\w.-]+", "_", model) or "model"
        self._running: profile | None = None
        self._target = Path()

    def start(self, stamp: str) -> None:
        """Record from now on; raises `RequestError` if it does already."""
        if self._running is not None:
            raise RequestError("a profile is running", code="profile_running")
        self._start(self._target_of(stamp), shapes=self._more, more=self._more)

    def stop(self) -> Writer:
        """Stop recording; raises `RequestError` if it does not."""
        if self._running is None:
            raise RequestError("no profile is running", code="no_profile")
        return self._stop(self.about)

    @contextmanager
    def recording_capture(self, stamp: str) -> Iterator[Writer]:
        """Record the capture of graphs, with shapes. The file is written by what it yields, called
        when the block has ended; nothing is kept of a block that fails."""
        writer: Writer | None = None

        def finish() -> list[str]:
            assert writer is not None
            return writer()

        self._start(self._target_of(stamp, "capture_graph_"), shapes=True, more=False)
        try:
            yield finish
            writer = self._stop({**self.about, "capture": True})
        finally:
            self.close()

    def close(self) -> None:
        """Drop what is being recorded. A process that ends with the profiler running crashes."""
        self.marks.off()
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def _target_of(self, stamp: str, prefix: str = "") -> Path:
        return self._folder / f"{prefix}{self._stem}_ts_{stamp}.pt.trace.json.gz"

    def _start(self, target: Path, *, shapes: bool, more: bool) -> None:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        running = profile(
            activities=activities,
            record_shapes=shapes,
            profile_memory=more,
            with_stack=more,
            acc_events=True,  # one cycle, whose end is no loss that torch would have to warn of
        )
        running.start()
        self._running, self._target = running, target
        self.marks.on()

    def _stop(self, about: dict[str, Any]) -> Writer:
        self.marks.off()
        running, self._running = self._running, None
        assert running is not None
        running.add_metadata_json("atom", json.dumps(about))
        running.stop()
        target = self._target
        return lambda: [_write(running, target)]


def stamp_of_now() -> str:
    """YYYYMMDD_HHMMSS_mmm, UTC: what tells one trace's file from another's."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{now:%Y%m%d_%H%M%S}_{now.microsecond // 1000:03d}"


def check_folder(directory: str) -> None:
    """Make it if need be; raises `ConfigError` where no trace could be written."""
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--torch-profiler-dir {directory}: {error.strerror}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"--torch-profiler-dir {directory} cannot be written to")


def _write(recorded: Any, target: Path) -> str:
    """The trace compressed under its name; raises `RequestError` and leaves nothing half done."""
    raw, packed = target.with_suffix(".raw"), target.with_suffix(".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(raw))
        with raw.open("rb") as source, gzip.open(packed, "wb", _GZIP_LEVEL) as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        packed.replace(target)
    except (OSError, RuntimeError) as error:
        raise RequestError(f"the trace could not be written: {error}", code="no_trace") from error
    finally:
        for left in (raw, packed):
            with contextlib.suppress(OSError):
                left.unlink()
    return str(target)

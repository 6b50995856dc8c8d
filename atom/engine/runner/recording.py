"""What of a runner is marked while it is recorded, and the trace of its graphs' capture.

Steps are labelled in every profile. The model's modules and the parts of a step are with
--mark-trace alone: a scope costs microseconds, of which an eager step has some hundreds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from atom.engine.compiled_marks import MarkedForward
from atom.engine.compiler import scopes
from atom.engine.compiler.program import Program
from atom.engine.marks import Marks, Scope, fixed, op_scope
from atom.engine.module_marks import mark_around_dynamo, mark_modules
from atom.engine.runner import labels
from atom.engine.runner.compilation import COMPILED
from atom.engine.runner.facts import describe
from atom.engine.runner.graphs import Graphs
from atom.engine.runner.profiler import RankProfiler, stamp_of_now
from atom.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from atom.engine.runner.started_runner import StartedRunner

log = logging.getLogger("atom.runner")

_LABELLED = {"_launch_decode": labels.of_step, "_launch_any": labels.of_step}
_PREPARE, _SAMPLE, _LOGITS = fixed("prepare"), fixed("sample"), fixed("logits")
# What a step does besides the model. `_handle` and `deliver` carry the tokens to the host.
_OF_RUNNER = {
    **_LABELLED,
    "_prepare": _PREPARE,
    "_edit": _PREPARE,
    "_logits": _LOGITS,
    "_sample": _SAMPLE,
    "_sample_decode": _SAMPLE,
    "_handle": _SAMPLE,
}
# Round modules that are marked, views. Round those that are not, it would name their kernels, too.
_OF_MARKED_MODEL = {"_run_model": fixed("model")}
_OF_DECODE = {"_prepare": _PREPARE, "_finish": _SAMPLE, "put_tokens": _SAMPLE}
_OF_RING = {"send": _PREPARE, "deliver": _SAMPLE}
_OF_TOKENS = {"_fill": _PREPARE}


def prepare(recorder: RankProfiler, runner: StartedRunner, graphs: Graphs | None) -> None:
    """Tell `recorder` what to mark, and what to write of `runner`, which is ready for steps."""
    recorder.about.update(describe(runner, recorder.mark_trace))
    marks = recorder.marks
    if not recorder.mark_trace:
        marks.add(runner, "", _LABELLED)
        return
    all_named = _mark_model(marks, runner)
    marks.add(runner, "", _OF_RUNNER | (_OF_MARKED_MODEL if all_named else {}))
    if isinstance(runner.forward, Program):
        runner.forward.mark(marks)
    if (native := runner.program) is not None:
        marks.call_on_change(
            lambda is_on: native.mark(*((Scope, op_scope) if is_on else (None, None)))
        )
    if graphs is not None:
        _mark_graphs(marks, graphs)


def _mark_model(marks: Marks, runner: StartedRunner) -> bool:
    """Whether all of it is named."""
    if runner.mode not in COMPILED:
        mark_modules(marks, runner.model)
        return True
    forward, why = runner.forward, scopes.why_not()
    if isinstance(forward, MarkedForward):
        why = forward.why_unnamed()
        if why is None:
            forward.mark(marks, runner.model)
            return True
    log.warning(
        "mark_trace: of the modules, only attention, experts, sums over ranks and lm_head have "
        "names, what torch.compile makes of the rest has none (%s); levels 0 and 3 name all",
        why,
    )
    mark_around_dynamo(marks, runner.model)
    return False


def _mark_graphs(marks: Marks, graphs: Graphs) -> None:
    if graphs.decode is not None:
        marks.add(graphs.decode, "", _OF_DECODE)
        marks.add(graphs.decode.ring, "", _OF_RING)
    if graphs.tokens is not None:
        marks.add(graphs.tokens, "", _OF_TOKENS)


@contextmanager
def of_capture(recorder: RankProfiler | None) -> Iterator[None]:
    """With --mark-trace, a trace of what happens within."""
    if recorder is None or not recorder.mark_trace:
        yield
        return
    with recorder.recording_capture(stamp_of_now()) as finish:
        yield
    try:
        (path,) = finish()
    except RequestError as error:
        raise ConfigError(f"mark_trace: {error}") from error
    log.info("trace of graph capture: %s", path)

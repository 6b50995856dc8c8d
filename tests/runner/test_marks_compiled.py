"""Names in traces of what torch.compile makes (levels 1, 2): all is named, none of it other."""

from __future__ import annotations

import itertools
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_graphs
import pytest
import torch
from compiling import load_traceable, logits_of
from fake_graphs import with_graphs
from serving import generate, greedy, make_config, make_runner
from test_graphs import settings
from tiny import make_tiny, random_prompt, tiny_checkpoint
from torch._dynamo.utils import counters
from torch.fx import traceback
from tracing import Recorded, profiled

from atom.config.schema import Config
from atom.engine.compiled_marks import MarkedForward
from atom.engine.compiler import scopes
from atom.engine.core import EngineCore
from atom.engine.marks import Marks
from atom.engine.module_marks import computing
from atom.engine.runner import graph_plan
from atom.engine.runner.compilation import _compile_once
from atom.engine.runner.model_runner import ModelRunner
from atom.layers import custom_ops
from atom.layers.attention import Attention
from atom.ops import registry
from atom.ops.cpu import build

PROMPTS = [random_prompt(5, seed=1), random_prompt(9, seed=2)]
STEPS = ("prefill[", "decode[")
# By which Dynamo's code makes numbers tensors, at level 2; no device takes part.
OF_HOST = {"aten::empty", "aten::to", "aten::lift_fresh"}
VIEWS = {"aten::slice", "aten::as_strided"}
AROUND = ("prepare", "logits", "sample")  # not the model's


def _why_not() -> str | None:
    try:
        build.compiler()
    except build.CannotBuild as why:
        return str(why)
    return scopes.why_not()


needs_inductor = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All operations are torch's, which Dynamo sees through; it knows of no other test."""
    monkeypatch.setitem(registry.PREFERENCE, "cpu", ("reference",))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tokens(config: Config, runner: ModelRunner) -> list[list[int]]:
    return [r.token_ids for r in generate(EngineCore(config, runner), PROMPTS, greedy(3))]


def recorded(config: Config, runner: ModelRunner) -> tuple[Recorded, list[list[int]]]:
    runner.start_profile("x")
    found = tokens(config, runner)
    (path,) = runner.stop_profile()()
    return Recorded(path), found


def parts(trace: Recorded, step: Any, model: Any) -> list[str]:
    """Modules that compute, by their first operation."""
    paths = {path for path, _ in computing(model)}
    names = [part for scope in trace.scopes(step) for part in scope.split("+")]
    return [name for name in dict.fromkeys(names) if name in paths]


def work(trace: Recorded, step: Any) -> list[tuple[str, str]]:
    """(operation, scope) of what computes."""
    ops = [op for op in trace.within(step, "ops") if is_operator(op.name)]
    return [(op.name, trace.scope_of(op)) for op in ops]


def is_operator(name: str) -> bool:
    """Or a kernel; torch.compile notes what it does on the way, too."""
    return "::" in name or name.startswith("cpp_")


# -- engines --------------------------------------------------------------------------------------


@needs_inductor
@pytest.mark.parametrize(("level", "family"), [(1, "llama3"), (2, "mixtral")])
def test_every_kernel_has_its_module(level: int, family: str, tmp_path: Path) -> None:
    path = make_tiny(family, tmp_path / "model", num_hidden_layers=2)
    config = make_config(path, level=level, caching=False)
    plain = profiled(config, tmp_path / "plain", mark=False)
    without, expected = recorded(plain, make_runner(plain))
    config = profiled(config, tmp_path / "marked")
    runner = make_runner(config)
    trace, got = recorded(config, runner)
    compiled = counters["stats"]["unique_graphs"]
    assert got == expected == tokens(config, runner)
    assert counters["stats"]["unique_graphs"] == compiled  # no guard sees marks come and go
    assert [op.name for op in trace.ops if "::" in op.name] == [
        op.name for op in without.ops if "::" in op.name
    ]
    eager = profiled(make_config(path, level=0, caching=False), tmp_path / "eager")
    like, _ = recorded(eager, make_runner(eager))
    for start in STEPS:
        step, twin = trace.named(start)[-1], like.named(start)[-1]
        assert parts(trace, step, runner.model) == parts(like, twin, runner.model)
        found = work(trace, step)
        assert {op for op, scope in found if scope in ("model", "", step.name)} <= OF_HOST
        kernels = [scope for op, scope in found if op.startswith("cpp_fused")]
        assert kernels[0] == "model.embed_tokens+model.layers.0.input_layernorm"
        # The sum behind the product is the next norm's.
        product = "model.layers.1.self_attn.o_proj+model.layers.1.post_attention_layernorm"
        assert product in [scope for op, scope in found if op == "aten::addmm"]


class Loaded:
    """What Inductor writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch._inductor.codecache import PyCodeCache

        self.modules: list[types.ModuleType] = []
        load = PyCodeCache.load_by_key_path

        def loading(*args: Any, **kwargs: Any) -> Any:
            self.modules.append(load(*args, **kwargs))
            return self.modules[-1]

        monkeypatch.setattr(PyCodeCache, "load_by_key_path", staticmethod(loading))

    def take(self) -> str:
        """The calls of what was written since."""
        texts = [Path(str(module.__file__)).read_text() for module in self.modules]
        self.modules.clear()
        (text,) = [text for text in texts if "def call(" in text]
        return text.partition("async_compile.wait(")[2]


@needs_inductor
def test_cached_code_is_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is the same but for comments, and torch's caches give nobody the other's."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    loaded, path = Loaded(monkeypatch), make_tiny("llama3", tmp_path / "m", num_hidden_layers=1)
    ids, written, logits, hits = random_prompt(7), [], [], []
    for marked in (False, True, False):
        torch._dynamo.reset()
        counters.clear()
        monkeypatch.setattr(custom_ops, "_numbers", itertools.count())  # as in another process
        model = load_traceable(path)
        forward: Any
        forward = MarkedForward(model, _compile_once) if marked else _compile_once(model.forward)
        with torch.inference_mode():
            logits.append(logits_of(model, forward, ids, [7]))
        written.append(loaded.take())
        stats = {**counters["inductor"], **counters["aot_autograd"]}
        hits.append(sum(n for key, n in stats.items() if key.endswith("cache_hit")))
        assert not marked or forward.why_unnamed() is None
    assert all(torch.equal(each, logits[0]) for each in logits)
    marks = [[line for line in text.splitlines() if "# atom scope:" in line] for text in written]
    assert [len(each) > 5 for each in marks] == [False, True, False]
    without = [re.sub(r"\n *# atom scope:.*", "", text) for text in written]
    assert without == [without[0]] * 3
    assert hits[0] == hits[1] == 0
    assert hits[2] > 0


@needs_inductor
def test_compiled_while_a_profile_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a shape comes that level 1 has not met; and afterwards nothing is left of it."""
    model, opened = load_traceable(tiny_checkpoint("llama3")), []
    forward = MarkedForward(model, torch.compile)
    assert forward.why_unnamed() == "nothing was compiled"
    marks = Marks()
    forward.mark(marks, model)
    loaded = Loaded(monkeypatch)

    def opener(name: str) -> Any:
        opened.append(name)
        return traceback.annotate({})

    with torch.inference_mode(), marks.during(opener):
        logits_of(model, forward, random_prompt(7), [7])
    assert opened[0] == "model.embed_tokens+model.layers.0.input_layernorm"
    assert opened[-2:] == ["model.norm", "lm_head"]
    (module,) = [module for module in loaded.modules if hasattr(module, "call")]
    assert not {"_atom_scope", "_atom_kernel"} & vars(module).keys()
    count = len(opened)
    with torch.inference_mode():
        logits_of(model, forward, random_prompt(7), [7])
    assert len(opened) == count


def test_attention_between_the_pieces_of_a_graph_has_its_scope(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is called on the layer itself: no operator, and nothing that was compiled, is round it."""
    opened: list[str] = []
    monkeypatch.setattr(Attention, "run", lambda layer, *args: opened.append("run"))
    model = load_traceable(tiny_checkpoint("llama3"))
    marks = Marks()
    MarkedForward(model, torch.compile).mark(marks, model)
    layer = model.attention_layers()[1]
    layer.run()
    with marks.during(lambda name: opened.append(name) or traceback.annotate({})):
        layer.run()
    assert opened == ["run", "model.layers.1.self_attn.attn", "run"]


@needs_inductor
def test_the_capture_of_graphs_has_the_scopes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorder(fake_graphs.FakeRecorder):
        def record(self, body: Any) -> Any:  # no mode, under which Dynamo would not compile
            result = body()
            return fake_graphs.Rerun(body, result), result

    monkeypatch.setattr(fake_graphs, "FakeRecorder", Recorder)
    monkeypatch.setattr(graph_plan, "TOKEN_SIZES", (8,))
    monkeypatch.setattr(graph_plan, "LONG_SIZES", ())
    config = profiled(settings("full_decode_only", level=2), tmp_path)
    runner = with_graphs(config, monkeypatch)
    (path,) = tmp_path.rglob("capture_graph_*")
    trace = Recorded(path)
    for graph in trace.named("capture_graph_bs"):
        spans = [span for span in trace.within(graph) if span.name in ("warm_up", "record")]
        bodies = [work(trace, span) for span in spans]
        named = [[op for op in each if op[1] not in ("warm_up", "record")] for each in bodies]
        assert named[0] == named[1]
        rest = {op for op, scope in bodies[0] if scope in ("", "model", "warm_up")}
        assert rest <= OF_HOST | VIEWS
        found = parts(trace, spans[0], runner.model)
        assert [name for name in found if name.endswith("o_proj")] == [
            f"model.layers.{i}.self_attn.o_proj" for i in range(3)
        ]


# -- where torch is another one -------------------------------------------------------------------


@needs_inductor
def test_a_compiler_that_cannot_be_asked_compiles_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(schedule: Any) -> str:
        raise AttributeError("no origins")

    config = make_config(tiny_checkpoint("llama3"), level=2, caching=False)
    expected = tokens(config, make_runner(config))
    monkeypatch.setattr(scopes, "scope_of_kernel", fail)
    config = profiled(config, tmp_path)
    trace, got = recorded(config, make_runner(config))
    assert got == expected
    assert caplog.text.count("mark_trace:") == 1
    assert "AttributeError: no origins" in caplog.text
    names = {name for name in trace.names if "[" not in name}
    attention = {f"model.layers.{i}.self_attn.attn" for i in range(3)}
    assert names == {*AROUND, "lm_head", *attention}


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(traceback, "annotate")
    assert scopes.why_not() == f"torch {torch.__version__} has no torch.fx.traceback.annotate"


# -- twins ----------------------------------------------------------------------------------------

# As written for a GPU, in short.
WRITTEN = """
class Runner:
    def __init__(self, partitions):
        self.partitions = partitions
    def call(self, args):
        arg0, arg1 = args
        args.clear()
        assert_size_stride(arg0, "input")
        with guard(0):
            # atom scope: a
            # a comment of Inductor's
            stream0 = get_raw_stream(0)
            buf0 = empty_strided_cuda((2, 3))
            triton_0.run(arg0, buf0, stream=stream0)
            del arg0
            buf1 = empty_strided_cuda((2, 3))
            # atom scope: a
            # atom scope: b+c
            extern_kernels.mm(buf0, arg1, out=buf1)
            arg2 = copy_if_misaligned(buf1)
            buf2 = buf0; del buf0  # reuse
            # atom scope: d
            buf3 = torch.ops.atom.attention.default(arg2)
            buf4 = buf3[0]
            assert_size_stride(buf4, "output")
            # atom scope: d
            cpp_fused_1(buf4)
            # atom scope:
            extern_kernels.copy(buf4)
            (buf5,) = self.partitions[0]([buf4])
        return (buf5, )
    def recursively(self, fns):
        return 1
def partition_0(args):
    (arg,) = args
    # atom scope: e
    triton_0.run(arg)
    return (arg, )
runner = Runner([partition_0])
call = runner.call
"""


class Kernels:
    """Everything that the text calls, by name."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log

    def __getattr__(self, name: str) -> Kernels:
        return Kernels(f"{self._name}.{name}", self._log)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._log.append(self._name)
        return (self, self)

    def __enter__(self) -> None:
        self._log.append(f"<{self._name}")

    def __exit__(self, *_: object) -> None:
        self._log.append(f"{self._name}>")


def test_a_twin_calls_the_same_in_scopes(tmp_path: Path) -> None:
    log: list[str] = []
    path = tmp_path / "written.py"
    path.write_text(WRITTEN)
    module = types.ModuleType("written")
    module.__file__ = str(path)
    names = ["extern_kernels", "triton_0", "torch", "cpp_fused_1", "assert_size_stride"]
    names += ["empty_strided_cuda", "copy_if_misaligned", "get_raw_stream"]
    vars(module).update({name: Kernels(name, log) for name in names})
    vars(module)["guard"] = lambda index: Kernels("guard", log)
    exec(compile(WRITTEN, str(path), "exec"), vars(module))
    module.call([1, 2])
    plain = log.copy()
    log.clear()
    twin = scopes.twin_of(module)
    assert twin is not None
    assert scopes.twin_of(module) is twin
    twin.on(lambda name: Kernels(name, log), lambda name: Kernels(f"op {name}", log))
    module.call([1, 2])
    assert [entry for entry in log if not re.search(r"^<(?!guard)|(?<!guard)>$", entry)] == plain
    assert log == [
        *["assert_size_stride", "<guard"],
        *["<a", "get_raw_stream", "empty_strided_cuda", "triton_0.run", "a>"],
        *["empty_strided_cuda", "<b+c", "extern_kernels.mm", "b+c>"],
        *["<d", "copy_if_misaligned", "torch.ops.atom.attention.default", "assert_size_stride"],
        *["<op cpp_fused_1", "cpp_fused_1", "op cpp_fused_1>", "d>", "extern_kernels.copy"],
        *["<e", "triton_0.run", "e>", "guard>"],
    ]
    log.clear()
    twin.off()
    module.call([1, 2])
    assert log == plain


def test_code_without_marks_has_no_twin(tmp_path: Path) -> None:
    path = tmp_path / "written.py"
    path.write_text(re.sub("# atom scope:.*", "# atom scope:", WRITTEN))
    module = types.ModuleType("written")
    module.__file__ = str(path)
    assert scopes.twin_of(module) is None

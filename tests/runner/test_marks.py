"""Names in traces: every operation under its module, and nothing else changed, on or off."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import Interpreter, compiled, interpreter, load_traceable, logits_of
from fake_graphs import with_graphs
from serving import generate, greedy, make_config, make_runner
from test_graphs import settings
from tiny import FAMILIES, random_prompt, tiny_checkpoint
from torch.profiler import ProfilerActivity, profile
from tracing import Recorded, profiled

from atom.config.schema import Config, ProfileConfig
from atom.config.support import refuse_unsupported
from atom.engine.compiler import scopes
from atom.engine.compiler.store import Store
from atom.engine.core import EngineCore
from atom.engine.marks import Marks, Scope, own
from atom.engine.module_marks import computing, mark_around_dynamo, mark_modules
from atom.engine.runner import graph_plan, labels
from atom.engine.runner.decode_graphs import DecodeGraphs
from atom.engine.runner.model_runner import ModelRunner
from atom.errors import ConfigError
from atom.layers.activation import SiluAndMul
from atom.layers.weights import Layer
from atom.ops import registry

__all__ = ["interpreter"]  # a fixture
PROMPTS = [random_prompt(5, seed=1), random_prompt(9, seed=2)]
LAYER = [
    "input_layernorm",
    "self_attn.qkv_proj",
    "self_attn.rotary",
    "self_attn.attn",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_up_proj",
    "mlp.act",
    "mlp.down_proj",
]


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """All operations are torch's, which the profiler sees."""
    monkeypatch.setitem(registry.PREFERENCE, "cpu", ("reference",))


def recorded(config: Any, runner: ModelRunner, new: int = 3) -> tuple[Recorded, list[list[int]]]:
    runner.start_profile("x")
    results = generate(EngineCore(config, runner), PROMPTS, greedy(new))
    (path,) = runner.stop_profile()()
    return Recorded(path), [result.token_ids for result in results]


def tokens(config: Any, runner: ModelRunner, new: int = 3) -> list[list[int]]:
    return [r.token_ids for r in generate(EngineCore(config, runner), PROMPTS, greedy(new))]


# -- marks ----------------------------------------------------------------------------------------


class Thing:
    def outer(self, x: int) -> int:
        return self.inner(x) + 1

    def inner(self, x: int) -> int:
        if x < 0:
            raise ValueError(x)
        return x


class Slotted:
    __slots__ = ("y",)

    def __call__(self, *, x: int) -> int:
        return x


class Opened:
    """An opener that notes what is opened and closed."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.log.append(name)
        try:
            yield
        finally:
            self.log.append(f"/{name}")


def test_marks_are_there_only_while_they_are_on() -> None:
    marks, opened, thing, slotted, other = Marks(), Opened(), Thing(), Slotted(), Thing()
    marks.add(thing, "a.thing", {"outer": own, "inner": own})
    marks.add(slotted, "a.slotted", {"__call__": own})
    assert (type(thing), thing.outer(1), opened.log) == (Thing, 2, [])
    with marks.during(opened):
        assert (thing.outer(1), slotted(x=3), other.outer(4)) == (2, 3, 5)
        assert type(thing).__qualname__ == "Thing"
        with pytest.raises(AttributeError):
            slotted.z = 1  # type: ignore[attr-defined]
    assert opened.log == ["a.thing", "/a.thing", "a.slotted", "/a.slotted"]
    assert (type(thing), type(slotted)) == (Thing, Slotted)
    thing.outer(1)
    assert len(opened.log) == 4


def test_a_failure_closes_what_is_open() -> None:
    marks, opened, thing = Marks(), Opened(), Thing()
    marks.add(thing, "a", {"inner": own})
    with marks.during(opened):
        for _ in range(2):
            with pytest.raises(ValueError, match="-1"):
                thing.outer(-1)
        assert marks.innermost == ""
    assert opened.log == ["a", "/a"] * 2
    assert type(thing) is Thing


def test_scopes_are_what_record_function_gives() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as both:
        with Scope("ours"):
            torch.ones(2)
        with torch.profiler.record_function("torch's"):
            torch.ones(2)
    ours, theirs = (
        next(event for event in both.events() if event.name == name) for name in ("ours", "torch's")
    )
    assert ours.is_user_annotation
    assert theirs.is_user_annotation
    assert [child.name for child in ours.cpu_children] == [c.name for c in theirs.cpu_children]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_layer_has_its_path(family: str) -> None:
    model = load_traceable(tiny_checkpoint(family))
    found = {id(thing): path for path, thing in computing(model)}
    for path, module in model.named_modules():
        if isinstance(module, Layer):
            assert found[id(module)] == path
        for name, thing in vars(module).items():
            if isinstance(thing, SiluAndMul):
                assert found[id(thing)] == f"{path}.{name}"
    assert len(set(found.values())) == len(found)


# -- steps ----------------------------------------------------------------------------------------


def layers_of(names: list[str], count: int) -> list[list[str]]:
    """Of each layer, its scopes in order; what stands outside of layers is left out."""
    return [
        [n.removeprefix(f"model.layers.{i}.") for n in names if n.startswith(f"model.layers.{i}.")]
        for i in range(count)
    ]


def test_an_eager_step(tmp_path: Path, in_torch: None) -> None:
    plain = make_config(tiny_checkpoint("llama3"), level=0, caching=False)
    expected = tokens(plain, make_runner(plain))
    config = profiled(plain, tmp_path)
    runner = make_runner(config)
    trace, got = recorded(config, runner)
    assert got == expected
    steps = [s for s in trace.annotations if s.name.startswith(("prefill[", "decode["))]
    assert [s.name for s in steps] == [
        "prefill[bs=2 tok=14 ctx=[5,9] sk=14 sqsk=106 sqsq=106]",
        "decode[bs=2 tok=2 d=2 sk=16]",
        "decode[bs=2 tok=2 d=2 sk=18]",
    ]
    for step in steps:
        scopes = trace.scopes(step)
        assert scopes[0] == "prepare"
        assert scopes[1] == "model.embed_tokens"
        # Operators that compute; between them, blocks take views.
        wanted = ["input_layernorm", "self_attn.qkv_proj", "self_attn", "self_attn.attn"]
        wanted += ["self_attn.rotary", "self_attn.attn", "self_attn", "self_attn.o_proj"]
        wanted += LAYER[5:]
        assert layers_of(scopes, 3) == [wanted] * 3
        tail = ["model.norm", *(["logits"] if "prefill" in step.name else []), "lm_head", "sample"]
        assert scopes[-len(tail) :] == tail
        assert step.name not in scopes  # nothing of the step is left without a name


def test_a_step_unmarked_runs_the_same_operators(tmp_path: Path, in_torch: None) -> None:
    config = make_config(tiny_checkpoint("mixtral"), level=0, caching=False)
    marked = profiled(config, tmp_path / "a")
    labelled = profiled(config, tmp_path / "b", mark=False)
    (one, first), (two, second) = (recorded(c, make_runner(c)) for c in (marked, labelled))
    assert first == second
    assert [op.name for op in one.ops] == [op.name for op in two.ops]
    assert {n.partition("[")[0] for n in two.names} == {"prefill", "decode"}
    assert one.atom["marked"]
    assert not two.atom["marked"]


def test_a_runner_that_does_not_record_makes_no_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = profiled(make_config(tiny_checkpoint("llama3")), tmp_path)
    runner = make_runner(config)
    classes = [type(module) for module in runner.model.modules()]

    def never(*_: Any) -> str:
        raise AssertionError("a label was made")

    recorded(config, runner)
    assert type(runner) is ModelRunner
    assert [type(module) for module in runner.model.modules()] == classes
    monkeypatch.setattr(labels, "step_label", never)
    tokens(config, runner)
    runner.start_profile("y")
    with pytest.raises(AssertionError, match="a label was made"):
        tokens(config, runner)
    runner.shutdown()


def test_the_native_program_is_walked_entry_by_entry(tmp_path: Path) -> None:
    plain = make_config(tiny_checkpoint("qwen3"), caching=False)
    runner = make_runner(plain)
    if runner.mode != "native program":
        pytest.skip(f"there is none here: {runner.mode}")
    expected = tokens(plain, runner)
    config = profiled(plain, tmp_path)
    runner = make_runner(config)
    trace, got = recorded(config, runner)
    assert got == expected == tokens(config, runner)
    assert runner.program is not None
    for step in trace.named("decode["):
        ops = [op for op in trace.within(step, "ops") if op.name.startswith("cpu::")]
        assert [trace.scope_of(op) for op in ops] == list(runner.program.scopes)
    wanted = [*LAYER[:2], "self_attn.q_norm", "self_attn.k_norm", *LAYER[2:]]
    assert layers_of(list(dict.fromkeys(runner.program.scopes)), 3) == [wanted] * 3


class Fused:
    """One kernel from the norm on, of a projection."""

    def norm_linear(self, x: torch.Tensor, residual: Any, *rest: Any) -> Any:
        return x, x

    norm_gated = norm_linear


def test_a_kernel_of_several_modules_names_them_all() -> None:
    model = load_traceable(tiny_checkpoint("mixtral"))
    opened, marks, layer = Opened(), Marks(), model.model.layers[1]
    mark_modules(marks, model)
    attention, moe, x = layer.self_attn, layer.mlp, torch.ones(2, 128)
    attention.qkv_proj._fused = Fused()
    moe._fused = lambda x, residual, *rest: (x, x)
    moe._handle, moe.gate.dense = "", x
    with marks.during(opened):
        attention.qkv_proj.after_norm(layer.input_layernorm, x, None)
        moe(layer.post_attention_layernorm, x, None)
    path = "model.layers.1."
    norms = [f"{path}{name}_layernorm" for name in ("input", "post_attention")]
    fused = f"{norms[1]}+{path}mlp.gate+{path}mlp.experts"
    names = [name for name in opened.log if not name.startswith("/")]
    assert names == [f"{norms[0]}+{path}self_attn.qkv_proj", fused, f"{path}mlp.experts"]


def test_a_fused_gated_projection_names_its_activation_too() -> None:
    model = load_traceable(tiny_checkpoint("llama3"))
    opened, marks, layer = Opened(), Marks(), model.model.layers[0]
    mark_modules(marks, model)
    layer.mlp.gate_up_proj._fused = Fused()
    with marks.during(opened):
        layer.mlp.gate_up_proj.after_norm_gated(
            layer.post_attention_layernorm, layer.mlp.act, torch.ones(2, 128), None
        )
    path = "model.layers.0."
    wanted = f"{path}post_attention_layernorm+{path}mlp.gate_up_proj+{path}mlp.act"
    assert opened.log == [wanted, f"/{wanted}"]


def test_a_runner_that_is_shut_down_lets_go_of_its_model(tmp_path: Path) -> None:
    config = profiled(make_config(tiny_checkpoint("llama3"), level=0), tmp_path)
    runner = make_runner(config)
    held = weakref.ref(runner.model.model.layers[0])
    runner.start_profile("x")
    runner.shutdown()
    gc.collect()
    assert held() is None


# -- compiled -------------------------------------------------------------------------------------


def scopes_of(model: Any, forward: Any, marks: Marks) -> list[str]:
    opened = Opened()
    with marks.during(opened):
        logits_of(model, forward, random_prompt(7), [7])
    return [name for name in opened.log if not name.startswith("/")]


def test_pieces_have_the_scopes_of_what_they_compute(
    tmp_path: Path, interpreter: Interpreter
) -> None:
    model = load_traceable(tiny_checkpoint("mixtral"))
    made = [compiled(model, Store(tmp_path)) for _ in range(2)]
    assert [each.traced for each in made] == [True, False]  # the second time from disk
    assert made[0].forward.plan == made[1].forward.plan
    for each in made:
        marks = Marks()
        each.forward.mark(marks)
        piece = "self_attn.o_proj+model.layers.{}.post_attention_layernorm+model.layers.{}.mlp.gate"
        first = "input_layernorm+model.layers.{}.self_attn.qkv_proj"
        wanted = ["model.embed_tokens+model.layers.0." + first.format(0)]
        for i in range(3):
            path = f"model.layers.{i}."
            wanted += [path + first.format(i)] if i else []
            wanted += [path + "self_attn.attn", path + "self_attn"]  # a view between them
            wanted += [path + piece.format(i, i), path + "mlp.experts"]
        assert scopes_of(model, each.forward, marks) == [*wanted, "model.norm"]


def test_marks_change_neither_pieces_nor_plans(tmp_path: Path, interpreter: Interpreter) -> None:
    """What is on disk is found again by an engine that marks, and by one that does not."""
    path = tiny_checkpoint("llama3")
    compiled(load_traceable(path), Store(tmp_path))
    model = load_traceable(path)
    marks = Marks()
    mark_modules(marks, model)
    with marks.during(Opened()):
        pass
    again = compiled(model, Store(tmp_path))
    assert (again.traced, again.compiled) == (False, 0)


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_what_dynamo_leaves_to_be_marked(family: str) -> None:
    """Operators find their layers marked; the layers that guards watch keep their classes."""
    model = load_traceable(tiny_checkpoint(family))
    classes = [type(module) for module in model.model.modules()]
    marks, seen = Marks(), []
    mark_around_dynamo(marks, model)

    def forward(ids: torch.Tensor, positions: torch.Tensor) -> Any:
        seen.append([type(module) for module in model.model.modules()])
        return model.forward(ids, positions)

    before = logits_of(model, model.forward, random_prompt(7), [7])
    names = scopes_of(model, forward, marks)
    parts = ["self_attn.attn", "mlp.experts"] if family == "mixtral" else ["self_attn.attn"]
    wanted = [f"model.layers.{i}.{part}" for i in range(3) for part in parts]
    assert names == [*wanted, "lm_head"]
    assert seen == [classes]
    assert torch.equal(logits_of(model, model.forward, random_prompt(7), [7]), before)
    assert len(scopes_of(model, forward, marks)) == len(names)


def test_what_torch_compile_runs_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where torch gives no names: not even that of the model, which would pass for one."""
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    monkeypatch.setattr(scopes, "why_not", lambda: "this torch has no annotate")
    config = profiled(make_config(tiny_checkpoint("llama3"), level=1, caching=False), tmp_path)
    runner = make_runner(config)
    assert (
        "what torch.compile makes of the rest has none (this torch has no annotate)" in caplog.text
    )
    trace, _ = recorded(config, runner)
    names = {name for name in trace.names if "[" not in name}
    attention = {f"model.layers.{i}.self_attn.attn" for i in range(3)}
    assert names == {"prepare", "logits", "lm_head", "sample", *attention}
    for step in trace.named("decode["):
        assert step.name in trace.scopes(step)  # what is left without a name


# -- graphs ---------------------------------------------------------------------------------------


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_plan, "TOKEN_SIZES", (3, 8))
    monkeypatch.setattr(graph_plan, "LONG_SIZES", ())


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("mode", ["full_and_piecewise", "full"])
def test_capture_has_a_trace_of_its_own(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_sizes: None
) -> None:
    config = profiled(settings(mode), tmp_path)
    with_graphs(config, monkeypatch)
    (path,) = files(tmp_path)
    name = path.name.partition("_ts_")
    assert path.parent.name == "rank_0"
    assert name[0].startswith("capture_graph_atom-tiny-llama3")
    assert name[2].endswith(".pt.trace.json.gz")
    trace = Recorded(path)
    assert trace.atom["capture"] is True
    assert trace.atom["cudagraph_mode"] == mode
    graphs = trace.named("capture_graph_")
    sizes = [f"capture_graph_bs_{n}" for n in (6, 4, 2, 1)]
    sizes += [f"capture_graph_tok_{n}" for n in (8, 3)]
    assert [graph.name for graph in graphs] == sizes
    for graph in graphs:
        bodies = [s for s in trace.within(graph) if s.name in ("warm_up", "record")]
        assert [body.name for body in bodies] == ["warm_up", "record"]
        warm, record = (_modules(trace, body) for body in bodies)
        assert warm == record
        assert len([n for n in warm if n.endswith("o_proj")]) == 3
        decode = graph.name.startswith("capture_graph_bs")
        ends = (warm[0], warm[-1])
        assert ends == (("prepare", "sample") if decode else ("model.embed_tokens", "model.norm"))


def _modules(trace: Recorded, body: Any) -> list[str]:
    """Modules and parts of the step, once each, in order."""
    return list(dict.fromkeys(name for name in trace.scopes(body) if name != body.name))


def test_no_trace_of_capture_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_sizes: None
) -> None:
    with_graphs(profiled(settings("full_and_piecewise"), tmp_path, mark=False), monkeypatch)
    assert files(tmp_path) == []


def test_a_capture_that_fails_leaves_no_trace_and_no_profiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_sizes: None
) -> None:
    config = profiled(settings("full_decode_only"), tmp_path)

    def fail(self: Any, size: int) -> None:
        raise RuntimeError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(DecodeGraphs, "capture", fail)
        with pytest.raises(RuntimeError, match="no room"):
            with_graphs(config, patch)
    assert files(tmp_path) == []
    with_graphs(config, monkeypatch)  # the profiler can start again
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("overlap", [False, True])
def test_graphed_steps_are_labelled(
    overlap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_sizes: None
) -> None:
    config = settings("full_and_piecewise", overlap=overlap, caching=False)
    expected = tokens(config, with_graphs(config, monkeypatch), new=9)
    config = profiled(config, tmp_path)
    runner = with_graphs(config, monkeypatch)
    trace, got = recorded(config, runner, new=9)
    assert got == expected
    steps = [s for s in trace.annotations if s.name.startswith(("prefill[", "decode["))]
    assert steps[0].name == "prefill[bs=2 tok=14 ctx=[5,9] sk=14 sqsk=106 sqsq=106]"
    assert [s.name.rpartition(" ")[2] for s in steps[1:]] == ["graph=2]"] * (len(steps) - 1)
    decode = trace.within(steps[1])
    assert [decode[0].name, decode[-1].name] == ["prepare", "sample"]


# -- settings -------------------------------------------------------------------------------------


def test_marks_without_a_folder_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mark_trace.*--torch-profiler-dir"):
        refuse_unsupported(Config(profile=ProfileConfig(mark_trace=True)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_on_a_gpu(family: str, level: int, tmp_path: Path) -> None:
    """Every launch of a step has a scope, and a recorded graph as many as its warm-up ran."""
    config = make_config(
        tiny_checkpoint(family), device="cuda", dtype="bfloat16", level=level, caching=False
    )
    graphs = dataclasses.replace(
        config.compile, cudagraph_mode="full_and_piecewise", cudagraph_capture_sizes=(1, 2)
    )
    plain = dataclasses.replace(config, compile=graphs)
    expected = tokens(plain, make_runner(plain))
    config = profiled(plain, tmp_path)
    runner = make_runner(config)
    trace, got = recorded(config, runner)
    assert got == expected
    by_correlation = {span.correlation: span for span in trace.launches}
    whole = ("prefill[", "decode[", "model")  # a decode graph is a step, a piece lies in the model
    for span in trace.gpu:
        scope = trace.scope_of(by_correlation[span.correlation])
        graph = "GraphLaunch" in by_correlation[span.correlation].name
        known = not scope.startswith(whole) or "." in scope.partition("[")[0]
        assert graph or known, (span.name, scope)
    (path,) = (p for p in files(tmp_path) if p.name.startswith("capture_graph_"))
    capture = Recorded(path)
    ran = {span.correlation for span in capture.gpu}
    for graph in capture.named("capture_graph_"):
        counts = {}
        for body in capture.within(graph):
            if body.name in ("warm_up", "record"):
                launches = [s for s in capture.within(body, "launches") if "LaunchKernel" in s.name]
                done = sum(launch.correlation in ran for launch in launches)
                counts[body.name] = (done, len(launches) - done)
        # While a graph is recorded nothing runs but what torch sets up for its random numbers.
        assert counts["warm_up"] == (counts["record"][1], 0)
        assert counts["record"][1] > 0

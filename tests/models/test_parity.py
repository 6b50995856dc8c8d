"""Every family against transformers, through the paged cache: logits, greedy tokens, mutations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import PagedModel
from tiny import (
    FAMILIES,
    make_tiny,
    random_prompt,
    reference_greedy,
    reference_logits,
    tiny_checkpoint,
)
from torch import Tensor

from atom.config.schema import Config, EngineConfig, ModelConfig
from atom.layers.weights import CheckpointTensor
from atom.models import loader
from atom.models.checkpoint import open_safetensors
from atom.models.loader import load_model, load_weights
from atom.models.source import resolve_source

CPU = torch.device("cpu")


def load(path: Path, *, dtype: str = "float32", kv: str = "auto", **options: Any) -> Any:
    config = Config(
        model=ModelConfig(model=str(path), dtype=dtype), engine=EngineConfig(kv_cache_dtype=kv)
    )
    return load_model(resolve_source(config.model), config, CPU, torch.float32, **options)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunks", [[61], [1], [23, 1, 1, 9]])
def test_logits_in_any_chunks(family: str, chunks: list[int]) -> None:
    path, ids = tiny_checkpoint(family), random_prompt(61)
    got = PagedModel(load(path), block_size=4).logits(ids, chunks)
    assert_close(got, reference_logits(path, ids))


def test_sequences_of_a_batch_do_not_mix(family: str) -> None:
    """Prefill chunks, decodes and padding tokens in one step."""
    path = tiny_checkpoint(family)
    prompts = {key: random_prompt(30 + 7 * key, seed=key) for key in range(3)}
    paged = PagedModel(load(path), block_size=16)
    done = dict.fromkeys(prompts, 0)
    got: dict[int, list[Tensor]] = {key: [] for key in prompts}
    sizes = {0: [20, 1, 1, 1], 1: [3, 9, 1], 2: [11, 5]}
    while any(done[key] < len(ids) for key, ids in prompts.items()):
        step = {}
        for key, ids in prompts.items():
            size = sizes[key].pop(0) if sizes[key] else 6
            if done[key] < len(ids):
                step[key] = ids[done[key] : done[key] + size]
                done[key] += len(step[key])
        for key, logits in paged.step(step, num_padding=3).items():
            got[key].append(logits)
    for key, ids in prompts.items():
        assert_close(torch.cat(got[key]), reference_logits(path, ids))


def test_greedy_tokens(family: str) -> None:
    path, prompt = tiny_checkpoint(family), random_prompt(40, seed=1)
    got = PagedModel(load(path)).greedy(prompt, 16, chunk=13)
    assert got == reference_greedy(path, prompt, 16)


class Scaled:
    """A tensor of a checkpoint with other values."""

    def __init__(self, tensor: CheckpointTensor) -> None:
        self.tensor, self.name, self.shape = tensor, tensor.name, tensor.shape

    def read(self, *index: slice) -> Tensor:
        part = self.tensor.read(*index)
        assert isinstance(part, Tensor)
        return part * 1.5 + 0.05

    def dense(self, *index: slice) -> Tensor:
        return self.tensor.dense(*index) * 1.5 + 0.05


def test_every_parameter_matters(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ids = tiny_checkpoint(family), random_prompt(48)
    changed = ""

    def open_changed(folder: Path) -> Iterator[CheckpointTensor]:
        for tensor in open_safetensors(folder):
            yield Scaled(tensor) if tensor.name == changed else tensor

    monkeypatch.setattr(loader, "open_safetensors", open_changed)
    want = PagedModel(load(path)).logits(ids, [48])
    names = [tensor.name for tensor in open_safetensors(path)]
    assert len(names) > 20
    for changed in names:
        got = PagedModel(load(path)).logits(ids, [48])
        assert float((got - want).abs().max()) > 1e-2, changed


@pytest.mark.parametrize("name", ["llama2", "qwen3"])
def test_biases(name: str, tmp_path: Path) -> None:
    """Optional biases: Llama has them on all matrices, Qwen3 on attention only."""
    extra = {"mlp_bias": True} if name == "llama2" else {}
    path = make_tiny(name, tmp_path, attention_bias=True, **extra)
    ids = random_prompt(40)
    assert_close(PagedModel(load(path)).logits(ids, [17, 1]), reference_logits(path, ids))


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32,
            "beta_slow": 1,
        },
    ],
    ids=lambda s: s["rope_type"],
)
def test_rope_scaling(scaling: dict[str, Any], tmp_path: Path) -> None:
    path, ids = make_tiny("llama3", tmp_path, rope_scaling=scaling), random_prompt(60)
    assert_close(PagedModel(load(path)).logits(ids, [17, 1]), reference_logits(path, ids))


def test_sliding_window_from_a_layer_on(tmp_path: Path) -> None:
    options = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    path, ids = make_tiny("qwen3", tmp_path, **options), random_prompt(60)
    model = load(path)
    assert [layer.window for layer in model.attention_layers()] == [0, 8, 8]
    assert_close(PagedModel(model).logits(ids, [17, 1]), reference_logits(path, ids))


def test_weights_stay_as_stored_with_auto(tmp_path: Path) -> None:
    """A bfloat16 checkpoint on CPU: exact in float32; with auto a kernel may round activations."""
    path, ids = make_tiny("llama3", tmp_path, dtype="bfloat16"), random_prompt(40)
    want = reference_logits(path, ids)
    assert_close(PagedModel(load(path)).logits(ids, [17, 1]), want)
    model = load(path, dtype="auto")
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    got = PagedModel(model).logits(ids, [17, 1])
    assert float((got - want).abs().max()) < 0.05 * float(want.std())


@pytest.mark.parametrize(("kv", "loss"), [("bf16", 0.2), ("fp16", 0.05), ("fp8", 2.0)])
def test_narrow_kv_cache(kv: str, loss: float) -> None:
    path, ids = tiny_checkpoint("llama3"), random_prompt(40)
    want = reference_logits(path, ids)
    got = PagedModel(load(path, kv=kv)).logits(ids, [17, 1])
    difference = float((got - want).abs().max())
    assert 1e-4 < difference < loss, "narrow, but not wrong"


def test_traceable_model_is_one_graph() -> None:
    """Built for torch.compile: attention and experts are single calls, results the same."""
    path, ids = tiny_checkpoint("qwen3_moe"), random_prompt(24)
    want = PagedModel(load(path)).logits(ids, [24])
    model = load(path, traceable=True)
    calls: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        calls.extend(str(node.target).removesuffix(".default") for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(model.forward, backend=backend, fullgraph=True)

    class Compiled:
        cache_layers, compute_logits = model.cache_layers, model.compute_logits
        __call__ = staticmethod(compiled)

    assert_close(PagedModel(Compiled()).logits(ids, [24]), want)
    assert calls.count("atom.attention") == 3
    assert calls.count("atom.experts") == 2


def test_fused_expert_tensors(tmp_path: Path) -> None:
    """All experts in one tensor, as newer checkpoints store them, give the same model."""
    path, ids = tiny_checkpoint("qwen3_moe"), random_prompt(24)
    want = PagedModel(load(path)).logits(ids, [24])
    config = Config(model=ModelConfig(model=str(path), load_dummy=True))
    model = load_model(resolve_source(config.model), config, CPU, torch.float32)
    load_weights(model, fuse(list(open_safetensors(path))), "fused")
    assert_close(PagedModel(model).logits(ids, [24]), want)


class Stored:
    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.value, self.shape = name, value, tuple(value.shape)

    def read(self, *index: slice) -> Tensor:
        return self.value[index[: self.value.ndim]]

    dense = read


def fuse(tensors: list[CheckpointTensor]) -> Iterator[CheckpointTensor]:
    experts: dict[str, dict[str, list[Tensor]]] = {}
    for tensor in tensors:
        if ".experts." not in tensor.name:
            yield tensor
            continue
        stem, _, rest = tensor.name.partition(".experts.")
        kinds = experts.setdefault(f"{stem}.experts", {"gate": [], "up": [], "down": []})
        number, kind = int(rest.split(".")[0]), rest.split(".")[1].removesuffix("_proj")
        kinds[kind].append((number, tensor.dense(slice(None), slice(None))))  # type: ignore[arg-type]
    for stem, kinds in experts.items():
        gate, up, down = (
            torch.stack([value for _, value in sorted(kinds[kind], key=lambda pair: pair[0])])
            for kind in ("gate", "up", "down")
        )
        yield Stored(f"{stem}.gate_up_proj", torch.cat((gate, up), 1))
        yield Stored(f"{stem}.down_proj", down)

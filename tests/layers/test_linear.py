"""Linear layers and embeddings, alone: slices of the ranks, parts, biases, packs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from atom.layers.linear import (
    ColumnParallelLinear,
    ConcatLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from atom.layers.weights import ALL, Layer
from atom.ops.contracts import GGUFWeight
from atom.parallel.state import ParallelState


class Given:
    """A checkpoint tensor with a value, or (for `blocks`) only its packed form."""

    def __init__(self, name: str, value: Tensor, blocks: GGUFWeight | None = None) -> None:
        self.name, self.value, self.shape = name, value, tuple(value.shape)
        self.blocks = blocks

    def read(self, rows: slice = ALL, cols: slice = ALL) -> Tensor | GGUFWeight:
        return self.blocks or self.value[(rows, cols)[: self.value.ndim]]

    def dense(self, *index: slice) -> Tensor:
        return self.value[index]


def build(rank: int = 0, size: int = 1, **options: Any) -> BuildContext:
    state = ParallelState(rank, size)
    return BuildContext(parallel=state, **options)


def fill(layer: Layer, path: str = "a.b.layer") -> dict[str, Tensor]:
    """Random values for every slot, the same for every rank; returns them by name."""
    values = {}
    for seed, slot in enumerate(layer.slots(path)):
        values[slot.name] = torch.randn(slot.shape, generator=torch.Generator().manual_seed(seed))
        slot.load(Given(slot.name, values[slot.name]))
    layer.finish()
    return values


def fill_all(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The same values for the layers of all ranks."""
    return [fill(layer) for layer in layers][-1]


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(99))


def test_replicated() -> None:
    for rank in range(2):
        layer = ReplicatedLinear(build(rank, 2), 12, 7, bias=True)
        values = fill(layer)
        assert list(values) == ["a.b.layer.weight", "a.b.layer.bias"]
        want = X @ values["a.b.layer.weight"].T + values["a.b.layer.bias"]
        torch.testing.assert_close(layer(X), want)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_column_parallel_ranks_side_by_side(size: int) -> None:
    layers = [ColumnParallelLinear(build(r, size), 12, 8, bias=True) for r in range(size)]
    values = fill_all(layers)
    want = X @ values["a.b.layer.weight"].T + values["a.b.layer.bias"]
    torch.testing.assert_close(torch.cat([layer(X) for layer in layers], -1), want)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_merged_parts_are_shared_out_one_by_one(size: int) -> None:
    sizes = {"gate_proj": 8, "up_proj": 16}
    layers = [MergedColumnParallelLinear(build(r, size), 12, sizes) for r in range(size)]
    values = fill_all(layers)
    assert list(values) == ["a.b.gate_proj.weight", "a.b.up_proj.weight"]
    shares = [layer(X).split([8 // size, 16 // size], -1) for layer in layers]
    for part, name in enumerate(values):
        got = torch.cat([share[part] for share in shares], -1)
        torch.testing.assert_close(got, X @ values[name].T)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_qkv_heads(size: int) -> None:
    """Four query heads over two KV heads: at four ranks each KV head is held twice."""
    layers = [QKVParallelLinear(build(r, size), 12, 6, 4, 2, bias=True) for r in range(size)]
    values = fill_all(layers)
    q, k, v = (
        (X @ values[f"a.b.{n}_proj.weight"].T + values[f"a.b.{n}_proj.bias"]).view(5, -1, 6)
        for n in "qkv"
    )
    kv_heads = max(2 // size, 1)
    for rank, layer in enumerate(layers):
        assert (layer.num_heads, layer.num_kv_heads) == (4 // size, kv_heads)
        first = rank * 2 // size
        want_q = q[:, rank * layer.num_heads :][:, : layer.num_heads]
        want = torch.cat((want_q, *(t[:, first : first + kv_heads] for t in (k, v))), 1)
        torch.testing.assert_close(layer(X).view(5, -1, 6), want)


def test_row_parallel_ranks_add_up_with_one_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ParallelState, "all_reduce", lambda self, x: x)
    layers = [RowParallelLinear(build(r, 3), 12, 7, bias=True) for r in range(3)]
    values = fill_all(layers)
    parts = [layer(X[:, 4 * r : 4 * r + 4]) for r, layer in enumerate(layers)]
    want = X @ values["a.b.layer.weight"].T + values["a.b.layer.bias"]
    torch.testing.assert_close(torch.stack(parts).sum(0), want)


def q8_0(rows: int) -> tuple[GGUFWeight, Tensor]:
    """Blocks of 32 int8 with scale 0.5, and their values."""
    quants = torch.randint(-127, 128, (rows, 32), dtype=torch.int8)
    scale = torch.full((rows, 1), 0.5, dtype=torch.float16)
    data = torch.cat((scale.view(torch.uint8), quants.view(torch.uint8)), 1)
    return GGUFWeight("Q8_0", data, (rows, 32)), quants.float() * 0.5


def test_parts_in_unequal_formats() -> None:
    """Packed, dense and packed again: three packs, one output, bias over all."""
    layer = QKVParallelLinear(build(), 32, 4, 3, 2, bias=True)
    packed_q, q = q8_0(12)
    packed_v, v = q8_0(8)
    k = torch.randn(8, 32)
    given = {"q": (q, packed_q), "k": (k, None), "v": (v, packed_v)}
    for slot in layer.slots("layer"):
        name, leaf = slot.name[0], slot.name.split(".")[-1]
        value, blocks = given[name]
        if leaf == "bias":
            value, blocks = torch.full((len(value),), float("qkv".index(name))), None
        slot.load(Given(slot.name, value, blocks))
    layer.finish()
    assert isinstance(layer.weight, ConcatLinear)
    weight = torch.cat((q, k, v))
    torch.testing.assert_close(layer.weight.dequantize(), weight)
    x = torch.randn(3, 32)
    bias = torch.tensor([0.0] * 12 + [1.0] * 8 + [2.0] * 8)
    exact = x @ weight.T + bias
    assert (layer.weight.in_features, layer.weight.out_features) == (32, 28)
    assert layer.weight_bytes >= layer.weight.nbytes + bias.nbytes > 0
    # A kernel on packed weights may round x to 8 bits: 1/127 of the row's largest product.
    difference = (layer(x) - exact).abs().max()
    assert float(difference) < 0.02 * float(exact.abs().max())


@pytest.mark.parametrize("vocab", [10, 11])
@pytest.mark.parametrize("size", [1, 3])
def test_vocabulary_shares(vocab: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor([0, vocab - 1, 4, 3, 4])
    rows, logits = torch.zeros(5, 12), []
    for rank in range(size):
        monkeypatch.setattr(ParallelState, "all_reduce", lambda self, x: x)
        embedding = VocabParallelEmbedding(build(rank, size), vocab, 12)
        table = fill(embedding)["a.b.layer.weight"]
        rows += embedding(ids)
        head = ParallelLMHead(build(rank, size), vocab, 12)
        weight = fill(head)["a.b.layer.weight"]
        gathered: list[Tensor] = []
        monkeypatch.setattr(
            ParallelState, "all_gather", lambda self, x, g=gathered: g.append(x) or x
        )
        out = head(X)
        logits.append(gathered[0] if size > 1 else out)
    assert torch.equal(rows, table[ids])
    assert {part.shape for part in logits} == {(5, -(-vocab // size))}
    torch.testing.assert_close(torch.cat(logits, -1)[:, :vocab], X @ weight.T)
    assert logits[0].dtype == torch.float32


def test_dense_weights_are_not_wider_than_activations() -> None:
    """float32 weights of a bfloat16 model are stored in bfloat16; narrow ones stay narrow."""
    wide = build(dtype=torch.bfloat16)
    assert wide.storage_dtype(torch.float32) == torch.bfloat16
    assert build().storage_dtype(torch.bfloat16) == torch.bfloat16
    assert build(weight_dtype=torch.float32).storage_dtype(torch.bfloat16) == torch.float32
    layer = ReplicatedLinear(wide, 12, 7)
    fill(layer)
    assert layer(X.bfloat16()).dtype == torch.bfloat16
    assert layer.weight_bytes == 12 * 7 * 2

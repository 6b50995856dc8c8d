"""Products with experts in MXFP4, against the reference on dequantised ones."""

from __future__ import annotations

import pytest
import torch
from test_moe import close
from torch import Tensor

from atom.layers.build import BuildContext
from atom.layers.mxfp4 import MXFP4Experts
from atom.models.loader import load_dummy
from atom.ops import registry
from atom.ops.contracts import SILU, GatedActivation, MXFP4Weight, Routing
from atom.ops.reference.moe import fused_experts as reference_experts
from atom.ops.registry import OpQuery, candidates
from atom.ops.triton import moe, moe_config, moe_mxfp4, moe_mxfp4_pairs
from atom.ops.triton.moe_act import Extras
from atom.ops.triton.moe_config import GroupedConfig, PairConfig, PairTile, Tile

PAIR = PairConfig(PairTile(128, 64), PairTile(64, 64))
SMALL = GroupedConfig(16, Tile(32, 64, 1, 4, 3), Tile(32, 64, 1, 4, 3))
WIDE = GroupedConfig(64, Tile(64, 128, 4, 4, 3), Tile(64, 64, 4, 4, 3))
OSS = GatedActivation("gpt_oss", 1.0)


def random_weight(experts: int, rows: int, cols: int, device: str) -> MXFP4Weight:
    """Every code occurs, scales are of several sizes, and one below float16's range."""
    data = torch.randint(0, 256, (experts, rows, cols // 2), dtype=torch.uint8)
    scales = torch.randint(120, 126, (experts, rows, cols // 32), dtype=torch.uint8)
    scales[:, 0, 0] = 90
    return MXFP4Weight(data.to(device), scales.to(device))


def make_case(
    tokens: int, size: int, wide: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, MXFP4Weight, MXFP4Weight, Tensor, Tensor]:
    """Some choices are elsewhere; the last expert, which nobody chose, must not be read."""
    x = torch.randn(tokens, size + 16)[:, :size].to(device, dtype)
    w13, w2 = (random_weight(6, n, k, device) for n, k in ((2 * wide, size), (size, wide)))
    w13.scales[-1], w2.scales[-1] = 255, 255
    ids = torch.stack([torch.randperm(5)[:3] for _ in range(tokens)]).int()
    ids[torch.rand(tokens, 3) < 0.1] = -1
    return x, w13, w2, torch.rand(tokens, 3).to(device), ids.to(device)


@pytest.mark.parametrize(
    ("dtype", "extras"),
    [(torch.bfloat16, True), (torch.float32, False), (torch.float16, True)],
    ids=["bfloat16-gpt_oss", "float32-plain", "float16-gpt_oss"],
)
@pytest.mark.parametrize("config", [PAIR, SMALL, WIDE], ids=["pairs", "small", "wide"])
def test_experts(
    device: str, on_gpu: bool, config: moe_config.Config, dtype: torch.dtype, extras: bool
) -> None:
    if dtype == torch.float16 and config is not SMALL and not on_gpu:
        pytest.skip("as bfloat16")
    size, wide = (1056, 736) if on_gpu else (96, 32)  # groups are no whole number of tiles
    tokens = 2 if config is PAIR else 19
    x, w13, w2, weights, ids = make_case(tokens, size, wide, dtype, device)
    b13 = torch.randn(6, 2 * wide, device=device) if extras else None
    b2 = torch.randn(6, size, device=device) if extras else None
    act = OSS if extras else SILU
    want = reference_experts(x.float(), w13, w2, weights, ids, act, b13, b2)
    more = Extras(act, b13, b2)
    if isinstance(config, PairConfig):
        got = moe_mxfp4_pairs.experts_by_pair(x, w13, w2, weights, ids, config, more)
    else:
        got = moe_mxfp4.experts_grouped(x, w13, w2, weights, ids, config, more)
    assert got.dtype == dtype
    close(got.float(), want, 1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("tokens", [0, 1, 20])
def test_by_rule(device: str, tokens: int) -> None:
    x, w13, w2, weights, ids = make_case(max(tokens, 1), 64, 32, torch.float32, device)
    x, weights, ids = x[:tokens], weights[:tokens], ids[:tokens]
    got = moe.fused_experts(x, w13, w2, weights, ids)
    assert got.shape == x.shape
    if tokens:
        close(got, reference_experts(x, w13, w2, weights, ids), 1e-5)


def test_what_is_declined() -> None:
    def reason(**sizes: int) -> str | None:
        shape = tuple(({"E": 8, "K": 2880, "I": 2880, "k": 4} | sizes).items())
        query = OpQuery(
            op="fused_experts",
            device="cuda",
            dtype="bfloat16",
            weight_format="mxfp4",
            shape=shape,
            variant="act,bias",
        )
        return dict(candidates(query))["triton"]

    assert reason() is None
    assert reason(I=736) is None  # a rank's share of four
    assert "I=720" in str(reason(I=720))


def test_the_layer_keeps_them_packed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(keep_packed: bool) -> MXFP4Experts:
        build = BuildContext(device=torch.device(device), keep_packed=keep_packed)
        layer = MXFP4Experts(
            build,
            hidden_size=64,
            intermediate_size=32,
            num_experts=3,
            top_k=2,
            routing=Routing(renormalize=True),
            act=OSS,
        )
        load_dummy(torch.nn.ModuleDict({"experts": layer}), 0, torch.bfloat16, build.device)
        return layer

    monkeypatch.setitem(registry.PREFERENCE, device, ("triton", "reference"))
    packed, dense = make(True), make(False)
    assert (packed.weight_format, dense.weight_format) == ("mxfp4", "bfloat16")
    assert packed.weight_bytes < 0.35 * dense.weight_bytes
    x, logits = torch.randn(2, 64, device=device), torch.randn(2, 3, device=device)
    want = reference_experts(x, dense.w13, dense.w2, *dense.route(logits), OSS, dense.b13, dense.b2)
    close(packed.run(x, logits), want, 1e-5)

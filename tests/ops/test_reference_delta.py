"""Gated DeltaNet's reference against transformers', and what its contract says of states."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from delta_cases import STEPS, check_same, make_case, near
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_next import modeling_qwen3_next as oracle

from atom.ops.cpu.build import CannotBuild
from atom.ops.cpu.delta import chunked
from atom.ops.cpu.delta import gated_delta_net as cpu
from atom.ops.reference.delta import gated_delta_net, recurrence

Run = Callable[..., Tensor]
CPU: dict[str, Run] = {"torch": cpu}
try:
    from atom.ops.cpu.delta_native import gated_delta_net as native
except CannotBuild:  # no compiler: torch serves
    pass
else:
    CPU["native"] = native


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("heads", [(2, 4), (3, 3), (1, 4)], ids=str)
def test_a_prompt_is_transformers(heads: tuple[int, int]) -> None:
    """Convolution, gates, recurrence and gated norm, of transformers' own functions."""
    case = make_case([(0, 75)], heads, (16, 8))
    p, x = case.params, case.x
    qkv, z, b, a = x.split((p.channels, p.v_size, p.num_v_heads, p.num_v_heads), 1)
    y = F.conv1d(
        F.pad(qkv.t()[None], (p.taps - 1, 0)), p.conv_weight.t()[:, None], groups=p.channels
    )
    parts = F.silu(y)[0].t().split((p.qk_size, p.qk_size, p.v_size), 1)
    q, k = (part.view(1, 75, p.num_k_heads, p.k_dim) for part in parts[:2])
    out, state = oracle.torch_recurrent_gated_delta_rule(
        q,
        k,
        parts[2].view(1, 75, p.num_v_heads, p.v_dim),
        g=(-p.rate * F.softplus(a + p.dt_bias))[None],
        beta=b.sigmoid()[None],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    norm = oracle.Qwen3NextRMSNormGated(p.v_dim, p.eps)
    norm.weight.data = p.norm_weight
    want = norm(out.view(-1, p.v_dim), z.reshape(-1, p.v_dim)).view(75, -1).detach()
    got = gated_delta_net(*case)
    near(got, want, 1e-5)
    slot = int(case.meta.state_slots)
    near(case.state[slot], state[0].transpose(1, 2), 1e-5)


@pytest.mark.parametrize("parts", [[150], [1] * 20 + [130], [63, 2, 1, 84]], ids=str)
@pytest.mark.parametrize("run", [gated_delta_net, *CPU.values()], ids=["reference", *CPU])
def test_a_prompt_in_parts(run: Run, parts: list[int]) -> None:
    whole = make_case([(0, 150)])
    want = gated_delta_net(*whole.copied())
    at, got, states = 0, [], whole.copied()
    for part in parts:
        case = make_case([(at, part)])
        case.meta.state_slots = whole.meta.state_slots
        rows = whole.x[at : at + part]
        got.append(run(rows, states.conv_state, states.state, case.meta, whole.params))
        at += part
    near(torch.cat(got), want, 1e-5)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("run", CPU.values(), ids=CPU)
def test_cpu(run: Run, steps: str) -> None:
    for dims in ((16, 16), (32, 48), (16, 8)):
        check_same(make_case(STEPS[steps], (2, 4), dims, padding=2), run, 1e-5)


@pytest.mark.parametrize("steps", ["decode", "mixed"])
def test_cpu_in_bfloat16(steps: str) -> None:
    case = make_case(STEPS[steps], dtype=torch.bfloat16)
    check_same(case, cpu, 1e-2, 1e-5)


@pytest.mark.parametrize("run", CPU.values(), ids=CPU)
def test_other_taps_and_heads(run: Run) -> None:
    for taps in (2, 3, 5, 9):
        check_same(make_case(STEPS["mixed"], taps=taps), run, 1e-5)
    for size in (64, 128):  # rows of as many registers as a machine has, or more
        check_same(make_case([(0, 5), (3, 1)], (1, 1), (size, 16)), run, 1e-5)


def test_chunks_when_everything_is_forgotten_or_kept() -> None:
    """Decays to nothing within a token, and none at all: no overflow, no loss."""
    shapes = ((130, 2, 16), (130, 2, 16), (130, 2, 8))
    q, k, v = (F.normalize(torch.randn(shape), dim=-1) for shape in shapes)
    beta, state = torch.rand(130, 2), torch.randn(2, 8, 16)
    for log_g in (torch.zeros(130, 2), torch.full((130, 2), -90.0), -90.0 * torch.rand(130, 2)):
        want = recurrence(q, k, v, log_g, beta, state)
        for got, expected in zip(chunked(q, k, v, log_g, beta, state), want, strict=True):
            near(got, expected, 1e-4)  # sums of hundreds, subtracted


def test_out_is_written() -> None:
    case = make_case(STEPS["mixed"])
    for run in (gated_delta_net, *CPU.values()):
        out = torch.full((case.x.shape[0], case.params.v_size), float("nan"))
        assert run(*case.copied(), out) is out
        assert torch.equal(out, run(*case.copied()))

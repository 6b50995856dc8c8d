"""Products of tokens with a dense weight: which kernel, how it is launched, what goes around it.

Nothing here holds a weight: what depends on shapes alone is decided once per shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from atom.ops import registry
from atom.ops.registry import OpQuery
from atom.ops.triton import linear_kernels as kernels
from atom.ops.triton import support
from atom.ops.triton.elementwise import add_rms_norm_apart
from atom.ops.triton.linear_config import BUCKETS, Columns, Config, Problem, Rows, Skinny, choose

MOST_TOKENS = BUCKETS[-1]
_NO_NORM = (None, None, 0.0)
Norm = tuple[Tensor | None, Tensor | None, float]  # residual, norm weight, eps


class Scratch:
    """Where the parts of a product split along K meet, one per device.

    Made when weights are packed, never while a graph is captured. Launches of one stream use it in
    turn: a kernel touches it only once the kernel before it has ended.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.arrivals = torch.zeros(4096, dtype=torch.int32, device=device)
        self.partial = torch.empty(0, dtype=torch.float32, device=device)
        self._outgrown: list[Tensor] = []  # graphs captured earlier still write there

    def reserve(self, numel: int) -> None:
        if numel > self.partial.numel():
            self._outgrown.append(self.partial)
            self.partial = torch.empty(numel, dtype=torch.float32, device=self.device)


@functools.cache
def scratch_of(device: torch.device) -> Scratch:
    return Scratch(device)


def _card(device: torch.device) -> tuple[str, int]:
    """Name, and shared memory of one program less what the compiler adds."""
    if device.type != "cuda":
        return "", 1 << 17
    limits = driver.active.utils.get_device_properties(device.index or 0)
    return torch.cuda.get_device_name(device), int(limits["max_shared_mem"]) - 8192


class Launcher:
    """All launches of one problem: what depends on shapes alone is decided here, once."""

    def __init__(
        self, problem: Problem, device: torch.device, configs: tuple[Config | None, ...]
    ) -> None:
        self.problem = problem
        index = device.index or 0
        self.sms = support.num_sms(index)
        self.pdl = support.supports_pdl(index)
        self.options: dict[str, Any] = {"launch_pdl": True} if self.pdl else {}
        self.scratch = scratch_of(device)
        self.gated = problem.kind == "gated"
        self.width = support.next_power_of_2(problem.k)
        sizes = range(MOST_TOKENS + 1)
        bucket = [next(i for i, m in enumerate(BUCKETS) if m >= tokens) for tokens in sizes]
        self.by_tokens = [configs[i] for i in bucket]  # [0] is not used
        for tokens, config in zip(BUCKETS, configs, strict=True):
            if isinstance(config, Skinny) and config.split > 1:
                assert problem.n <= config.block_n * self.scratch.arrivals.numel(), problem
                self.scratch.reserve(config.split * tokens * problem.n)

    def config(self, tokens: int) -> Config | None:
        return self.by_tokens[tokens] if 0 < tokens <= MOST_TOKENS else None

    def one(
        self,
        config: Rows | Columns,
        x: Tensor,
        norm: Norm,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
    ) -> Tensor | None:
        """One token, with the norm before. Returns the new residual, if one was added to."""
        residual, gamma, eps = norm
        new = None if residual is None else x.new_empty(x.shape)
        n, k = self.problem.n, self.problem.k
        operands = (x, residual, gamma, weight, bias, out, new, n, k, eps)
        flags = {
            "ADD": residual is not None,
            "NORM": gamma is not None,
            "GATED": self.gated,
            "BIAS": bias is not None,
            "PDL": self.pdl,
        }
        tiles = -(-n // config.block_n)
        if isinstance(config, Rows):
            grid = min(tiles, config.waves * self.sms) if config.waves else tiles
            kernels.gemv_rows[(grid,)](
                *operands, BLOCK_N=config.block_n, BLOCK_K=self.width, PREFETCH=config.prefetch,
                num_warps=config.num_warps, **flags, **self.options,
            )  # fmt: skip
        else:
            kernels.gemv_columns[(tiles,)](
                *operands, BLOCK_N=config.block_n, BLOCK_K=config.block_k, STAGES=config.stages,
                PREFETCH=config.prefetch, num_warps=config.num_warps, **flags, **self.options,
            )  # fmt: skip
        return new

    def few(
        self, config: Skinny, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor
    ) -> None:
        """A few tokens, normed before if at all."""
        split = config.split
        partial, arrivals = (
            (self.scratch.partial, self.scratch.arrivals) if split > 1 else (None, None)
        )
        tiles = None
        if config.tma:
            tiles = TensorDescriptor.from_tensor(weight, [config.block_n, config.block_k])
        kernels.skinny[(-(-self.problem.n // config.block_n), split)](
            x, weight, tiles, bias, out, partial, arrivals, len(x), self.problem.n, self.problem.k,
            x.stride(0), BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            SPLIT=split, SWAP=config.swap, TMA=config.tma, PREFETCH=config.prefetch,
            GATED=self.gated, BIAS=bias is not None, PDL=self.pdl, num_warps=config.num_warps,
            num_stages=config.num_stages, **self.options,
        )  # fmt: skip


class Products:
    """What can be done with a weight [rows, K] of a dtype on a device; holds no weight."""

    def __init__(self, rows: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
        def launcher(kind: str, n: int) -> Launcher:
            problem = Problem(kind, n, k)
            return Launcher(problem, device, choose(problem, *_card(device)))

        def op(name: str) -> Callable[..., Any]:
            # Under the interpreter, too, the kernels are this backend's.
            query = OpQuery(op=name, device="cuda", dtype=str(dtype).removeprefix("torch."))
            return registry.select(query)

        self.rows = rows
        self.plain = launcher("linear", rows)
        self.normed = launcher("norm", rows)
        self.gated = launcher("gated", rows // 2) if rows % 2 == 0 else None
        self.rms_norm = op("rms_norm")
        self.silu_and_mul = op("silu_and_mul")

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """[M, K] -> [M, N] in `dtype`; None: x's."""
        config = self.plain.config(len(x))
        if config is None:
            return _library_linear(x, weight, bias, dtype)
        out = x.new_empty((len(x), self.rows), dtype=dtype)
        if isinstance(config, Skinny):
            self.plain.few(config, x, weight, bias, out)
        else:
            self.plain.one(config, x, _NO_NORM, weight, bias, out)
        return out

    def norm_linear(
        self, x: Tensor, norm: Norm, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self._after_norm(self.normed, x, norm, weight, bias)

    def norm_gated(
        self, x: Tensor, norm: Norm, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert self.gated is not None, "a gated weight has as many gate rows as up rows"
        return self._after_norm(self.gated, x, norm, weight, bias)

    def _after_norm(
        self, launcher: Launcher, x: Tensor, norm: Norm, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        config = launcher.config(len(x))
        if config is None:
            normed, new = self._norm(x, norm)
            y = F.linear(normed, weight, bias)
            return self.silu_and_mul(y) if launcher.gated else y, new
        out = x.new_empty((len(x), launcher.problem.n))
        if isinstance(config, Skinny):
            normed, new = self._norm(x, norm)
            launcher.few(config, normed, weight, bias, out)
            return out, new
        added = launcher.one(config, x, norm, weight, bias, out)
        return out, x if added is None else added

    def _norm(self, x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        residual, gamma, eps = norm
        if residual is None:
            return self.rms_norm(x, gamma, eps), x
        assert gamma is not None
        return add_rms_norm_apart(x, residual, gamma, eps)


def _library_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    if dtype is None or dtype == x.dtype:
        return F.linear(x, weight, bias)
    if x.device.type == "cpu" or bias is not None:
        return F.linear(x, weight, bias).to(dtype)
    return torch.mm(x, weight.t(), out_dtype=dtype)


@functools.cache
def products(rows: int, k: int, dtype: torch.dtype, device: torch.device) -> Products:
    return Products(rows, k, dtype, device)

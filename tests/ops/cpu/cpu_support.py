"""Random inputs for the CPU kernels' tests."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from torch import Tensor

from atom.ops.contracts import AttentionMetadata, GGUFWeight

DENSE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_weight(fmt: str, n: int, k: int, seed: int = 0) -> Tensor | GGUFWeight:
    values = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.05
    if fmt in DENSE:
        return values.to(DENSE[fmt])
    blocks = gguf.quants.quantize(values.numpy(), getattr(gguf.GGMLQuantizationType, fmt))
    return GGUFWeight(fmt, torch.from_numpy(blocks), (n, k))


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


class PagedCase:
    """Sequences (query length, total length) in a shuffled pool whose unused slots are NaN."""

    def __init__(
        self,
        lengths: list[tuple[int, int]],
        heads: int,
        kv_heads: int,
        dim: int,
        block_size: int,
        kv_dtype: torch.dtype,
        seed: int = 0,
        run: int = 1,
    ) -> None:
        """`run`: so many blocks stay neighbours."""
        rng = np.random.default_rng(seed)
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        needed = [-(-total // block_size) for _, total in lengths]
        num_blocks = -(-(sum(needed) + 3) // run) * run
        order = rng.permutation(np.arange(num_blocks).reshape(-1, run)).reshape(-1)
        self.k_cache = poisoned(num_blocks, block_size, kv_heads, dim, dtype=kv_dtype)
        self.v_cache = poisoned(num_blocks, block_size, kv_heads, dim, dtype=kv_dtype)
        self.table = torch.full((len(lengths), max(needed) + 2), 2**30, dtype=torch.int32)
        tokens = sum(query for query, _ in lengths)
        self.q = torch.from_numpy(rng.standard_normal((tokens, heads, dim), dtype=np.float32))
        slots, used = [], 0
        for row, (query, total) in enumerate(lengths):
            blocks = order[used : used + needed[row]]
            used += needed[row]
            self.table[row, : len(blocks)] = torch.from_numpy(blocks.astype(np.int32))
            own = np.array(
                [blocks[p // block_size] * block_size + p % block_size for p in range(total)]
            )
            keys = rng.standard_normal((2, total, kv_heads, dim), dtype=np.float32)
            flat = torch.from_numpy(own)
            self.k_cache.view(-1, kv_heads, dim)[flat] = torch.from_numpy(keys[0]).to(kv_dtype)
            self.v_cache.view(-1, kv_heads, dim)[flat] = torch.from_numpy(keys[1]).to(kv_dtype)
            slots.append(own[total - query :])
        starts = np.cumsum([0] + [query for query, _ in lengths])
        self.meta = AttentionMetadata(
            num_tokens=tokens,
            num_seqs=len(lengths),
            max_query_len=max(query for query, _ in lengths),
            max_seq_len=max(total for _, total in lengths),
            slot_mapping=torch.from_numpy(np.concatenate(slots).astype(np.int64)),
            block_table=self.table,
            cu_seqlens_q=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor([total for _, total in lengths], dtype=torch.int32),
        )

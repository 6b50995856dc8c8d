"""DeepSeek V4's attention block: low-rank queries, one key head, grouped output projection."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from atom.layers.build import BuildContext
from atom.layers.linear import LinearBase, Part, RowParallelLinear
from atom.layers.norm import RMSNorm
from atom.layers.v4_mixer import Compressor, V4Mixer
from atom.layers.weights import ALL, CheckpointTensor, Layer, WeightSlot


class Indexer(nn.Module):
    """Where the index keys' compressor hangs; its projections are the attention block's."""

    def __init__(self, compressor: Compressor) -> None:
        super().__init__()
        self.compressor = compressor


class GroupedLinear(Layer):
    """x [T, G K] -> [T, G N]: each of G groups of channels by a weight of its own, the rank holding
    some groups. The checkpoint's weight is [G N, K]."""

    weight: Tensor  # [groups of the rank, N, K]

    def __init__(self, build: BuildContext, groups: int, in_features: int, out_features: int):
        super().__init__()
        self.build = build
        self.shape = (groups * out_features, in_features)
        share = build.parallel.shard(groups, "o_groups")
        self.groups: int = share.stop - share.start
        self._rows = slice(share.start * out_features, share.stop * out_features)

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.view(-1, self.groups, self.shape[1]).transpose(0, 1)
        return torch.bmm(grouped, self.weight.transpose(1, 2)).transpose(0, 1).flatten(1)

    __call__ = forward

    def slots(self, path: str) -> Iterator[WeightSlot]:
        yield WeightSlot(f"{path}.weight", self.shape, self._take)

    def _take(self, tensor: CheckpointTensor) -> None:
        rows = self.build.dense(tensor.read(self._rows))
        self.weight = rows.view(self.groups, -1, self.shape[1])

    def finish(self) -> None:
        """Nothing to pack."""

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes


class V4Attention(nn.Module):
    """x [T, K], normed -> [T, K], summed over ranks, which share heads and groups of them.

    `ratio` 0: the window alone; with `index_heads`, entries overlap and are chosen by an indexer,
    whose heads every rank has. What reads x is one product, and what reads the queries' latent.
    """

    def __init__(
        self,
        build: BuildContext,
        *,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        q_rank: int,
        o_rank: int,
        o_groups: int,
        window: int,
        eps: float,
        cos_sin: Tensor,
        ratio: int = 0,
        index_heads: int = 0,
        index_dim: int = 0,
        index_topk: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"wq_a": q_rank, "wkv": head_dim}
        compressor = index = None
        if ratio:
            compressor = Compressor(build, head_dim, ratio, index_heads > 0, eps, cos_sin)
            self.compressor = compressor
            width = compressor.width
            sizes |= {"compressor.wkv": width, "compressor.wgate": width}
        share = build.parallel.shard(num_heads, "num_attention_heads")
        rows = slice(share.start * head_dim, share.stop * head_dim)
        q_parts = [Part("wq_b", num_heads * head_dim, rows)]
        if index_heads:
            index = Compressor(build, index_dim, ratio, True, eps, cos_sin)
            self.indexer = Indexer(index)
            sizes |= {"indexer.weights_proj": index_heads}
            sizes |= dict.fromkeys(
                ("indexer.compressor.wkv", "indexer.compressor.wgate"), index.width
            )
            q_parts.append(Part("indexer.wq_b", index_heads * index_dim, ALL))
        parts = [Part(name, size, ALL) for name, size in sizes.items()]
        self.in_proj = LinearBase(build, hidden_size, parts)
        self.q_norm = RMSNorm(build, q_rank, eps)
        self.q_proj = LinearBase(build, q_rank, q_parts)
        self.kv_norm = RMSNorm(build, head_dim, eps)
        self.mixer = V4Mixer(
            build,
            total_heads=num_heads,
            head_dim=head_dim,
            window=window,
            cos_sin=cos_sin,
            norm=self.kv_norm,
            compressor=compressor,
            indexer=index,
            index_topk=index_topk if index_heads else 0,
        )
        self.wo_a = GroupedLinear(build, o_groups, num_heads * head_dim // o_groups, o_rank)
        self.wo_b = RowParallelLinear(build, o_groups * o_rank, hidden_size)
        self._split = [q_rank, head_dim]
        if compressor is not None:
            self._split.append(2 * compressor.width)
        if index is not None:
            self._split += [index_heads, 2 * index.width]
        self._q_split = [self.mixer.width, index_heads * index_dim]

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        latent, *inputs = self.in_proj(x).split_with_sizes(self._split, 1)
        q, index_q = self.q_proj(self.q_norm(latent)).split_with_sizes(self._q_split, 1)
        if len(inputs) == 4:
            inputs.insert(2, index_q)
        return self.wo_b(self.wo_a(self.mixer([q, *inputs], positions)))

    __call__ = forward

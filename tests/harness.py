"""Drive a model without an engine: paged caches and metadata made by hand.

`PagedModel(model)` owns a pool of blocks poisoned with NaN, handed out in shuffled order, so that
anything read from an unused slot shows.
"""

from __future__ import annotations

import random
import socket
from typing import Any

import torch
from torch import Tensor

from atom.layers.context import ForwardContext, set_forward_context
from atom.ops.contracts import AttentionMetadata


def free_port() -> int:
    """A port of the loopback interface that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def poison(tensor: Tensor) -> Tensor:
    """Fill with NaN, also a float8 cache (0x7f is NaN in e4m3)."""
    if tensor.element_size() == 1:
        tensor.view(torch.uint8).fill_(0x7F)
        return tensor
    return tensor.fill_(float("nan"))


def make_metadata(
    chunks: list[tuple[list[int], int, int]],
    block_size: int,
    num_padding: int = 0,
    device: str = "cpu",
) -> AttentionMetadata:
    """`chunks`: (blocks of the sequence, tokens already in the cache, new tokens) of each row."""
    slots: list[int] = []
    starts, lengths = [0], []
    for blocks, done, new in chunks:
        slots += [
            blocks[p // block_size] * block_size + p % block_size for p in range(done, done + new)
        ]
        starts.append(starts[-1] + new)
        lengths.append(done + new)
    width = max(len(blocks) for blocks, _, _ in chunks)
    table = torch.full((len(chunks), width), -1, dtype=torch.int32)  # only valid entries are read
    for row, (blocks, _, _) in enumerate(chunks):
        table[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
    return AttentionMetadata(
        num_tokens=len(slots),
        num_seqs=len(chunks),
        max_query_len=max(new for _, _, new in chunks),
        max_seq_len=max(lengths),
        slot_mapping=torch.tensor(slots + [-1] * num_padding, dtype=torch.int64, device=device),
        block_table=table.to(device),
        cu_seqlens_q=torch.tensor(starts, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
    )


class PagedModel:
    """A model with its caches. Sequences are named by any hashable key."""

    def __init__(
        self,
        model: Any,
        block_size: int = 16,
        num_blocks: int = 256,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.device = device
        self.block_size = block_size
        self.free = list(range(num_blocks))
        random.Random(seed).shuffle(self.free)
        self.blocks: dict[Any, list[int]] = {}
        self.done: dict[Any, int] = {}
        for layer in model.attention_layers():
            shape = (num_blocks, block_size, layer.num_kv_heads, layer.head_dim)
            layer.k_cache = poison(torch.empty(shape, dtype=layer.kv_dtype, device=device))
            layer.v_cache = poison(torch.empty(shape, dtype=layer.kv_dtype, device=device))

    def step(self, new_tokens: dict[Any, list[int]], num_padding: int = 0) -> dict[Any, Tensor]:
        """Compute some tokens of some sequences; returns the logits [new, vocab] of each."""
        chunks, ids, positions = [], [], []
        for key, tokens in new_tokens.items():
            blocks, done = self.blocks.setdefault(key, []), self.done.get(key, 0)
            while len(blocks) * self.block_size < done + len(tokens):
                blocks.append(self.free.pop())
            chunks.append((blocks, done, len(tokens)))
            ids += tokens
            positions += range(done, done + len(tokens))
            self.done[key] = done + len(tokens)
        meta = make_metadata(chunks, self.block_size, num_padding, self.device)
        pad = [0] * num_padding
        inputs = torch.tensor([ids + pad, positions + pad], device=self.device)
        with torch.inference_mode(), set_forward_context(ForwardContext(meta)):
            hidden = self.model(inputs[0], inputs[1])
            logits = self.model.compute_logits(hidden[: len(ids)]).cpu()
        sizes = [new for _, _, new in chunks]
        return dict(zip(new_tokens, logits.split(sizes), strict=True))

    def logits(self, tokens: list[int], chunks: list[int], key: Any = "only") -> Tensor:
        """Logits [T, vocab] of a whole sequence, computed in chunks of the given sizes, the last
        size repeated until all is done."""
        out, at, sizes = [], 0, list(chunks)
        while at < len(tokens):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            out.append(self.step({key: tokens[at : at + size]})[key])
            at += size
        return torch.cat(out)

    def greedy(
        self, prompt: list[int], count: int, chunk: int = 64, key: Any = "only"
    ) -> list[int]:
        """`count` greedy tokens after `prompt`."""
        last = self.logits(prompt, [chunk], key)[-1]
        out: list[int] = []
        while True:
            out.append(int(last.argmax()))
            if len(out) == count:
                return out
            last = self.step({key: [out[-1]]})[key][-1]

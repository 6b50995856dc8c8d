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

from atom.layers.caches import FULL, STATE, WINDOW, CacheSpec
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
    """A model with its caches. Sequences are named by any hashable key.

    Kinds of caches are as in `atom.layers.caches`. Blocks that a window has left are overwritten
    with large numbers before others get them, so that looking outside the window shows.
    """

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
        shuffle = random.Random(seed).shuffle
        self.free: dict[str, list[int]] = {FULL: list(range(num_blocks))}
        self.free[WINDOW], self.free[STATE] = list(range(num_blocks)), list(range(32))
        for ids in self.free.values():
            shuffle(ids)
        self.blocks: dict[Any, list[int]] = {}
        self.window_blocks: dict[Any, list[int]] = {}
        self.num_left: dict[Any, int] = {}  # leading window blocks that were given back
        self.slots: dict[Any, int] = {}
        self.done: dict[Any, int] = {}
        self.specs: list[tuple[Any, CacheSpec]] = []
        for layer in model.cache_layers():
            layer.block_size = block_size
            for spec in layer.cache_specs():
                count = 32 if spec.kind == STATE else num_blocks
                shape = (count, *spec.shape)
                cache = poison(torch.empty(shape, dtype=spec.dtype, device=device))
                setattr(layer, spec.name, cache)
                self.specs.append((layer, spec))
        self.window = max((s.window for _, s in self.specs), default=0)
        self.has_state = any(s.kind == STATE for _, s in self.specs)

    def step(self, new_tokens: dict[Any, list[int]], num_padding: int = 0) -> dict[Any, Tensor]:
        """Compute some tokens of some sequences; returns the logits [new, vocab] of each."""
        hidden = self.hidden(new_tokens, num_padding)
        with torch.inference_mode():
            logits = self.model.compute_logits(hidden).cpu()
        sizes = [len(tokens) for tokens in new_tokens.values()]
        return dict(zip(new_tokens, logits.split(sizes), strict=True))

    def hidden(self, new_tokens: dict[Any, list[int]], num_padding: int = 0) -> Tensor:
        """As `step`: hidden states [T, H] of all the tokens, before the head."""
        ids: list[int] = []
        positions: list[int] = []
        for key, tokens in new_tokens.items():
            done = self.done.get(key, 0)
            ids += tokens
            positions += range(done, done + len(tokens))
        meta = self.metadata(new_tokens, num_padding)
        pad = [0] * num_padding
        inputs = torch.tensor([ids + pad, positions + pad], device=self.device)
        with torch.inference_mode(), set_forward_context(ForwardContext(meta)):
            hidden: Tensor = self.model(inputs[0], inputs[1])[: len(ids)]
        self.advance(new_tokens)
        return hidden

    def metadata(self, new_tokens: dict[Any, list[int]], num_padding: int) -> AttentionMetadata:
        """Of a step, for which blocks and slots are taken."""
        chunks: dict[str, list[tuple[list[int], int, int]]] = {FULL: [], WINDOW: []}
        for key, tokens in new_tokens.items():
            done = self.done.get(key, 0)
            for kind, tables in ((FULL, self.blocks), (WINDOW, self.window_blocks)):
                blocks = tables.setdefault(key, [])
                while len(blocks) * self.block_size < done + len(tokens):
                    blocks.append(self.free[kind].pop())
                chunks[kind].append((blocks, done, len(tokens)))
            if key not in self.slots:
                self.slots[key] = self.free[STATE].pop()
        meta = make_metadata(chunks[FULL], self.block_size, num_padding, self.device)
        if self.window:
            meta.window = make_metadata(chunks[WINDOW], self.block_size, num_padding, self.device)
        if self.has_state:
            slots = [self.slots[key] for key in new_tokens]
            meta.state_slots = torch.tensor(slots, dtype=torch.int32, device=self.device)
            if meta.window is not None:
                meta.window.state_slots = meta.state_slots
        return meta

    def advance(self, new_tokens: dict[Any, list[int]]) -> None:
        """The step is done: give back the blocks that no later token sees."""
        for key, tokens in new_tokens.items():
            self.done[key] = self.done.get(key, 0) + len(tokens)
            if not self.window:
                continue
            seen_from = max(0, self.done[key] - self.window + 1)
            for i in range(self.num_left.get(key, 0), seen_from // self.block_size):
                block = self.window_blocks[key][i]
                for layer, spec in self.specs:
                    if spec.kind == WINDOW and spec.dtype.itemsize > 1:
                        getattr(layer, spec.name)[block].fill_(1e4)
                self.free[WINDOW].insert(0, block)
                self.num_left[key] = i + 1

    def forget(self, key: Any) -> None:
        """The sequence ends; whoever comes next gets its slot, as it is."""
        self.free[FULL] += self.blocks.pop(key)
        self.free[WINDOW] += self.window_blocks.pop(key)[self.num_left.pop(key, 0) :]
        self.free[STATE].append(self.slots.pop(key))
        del self.done[key]

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

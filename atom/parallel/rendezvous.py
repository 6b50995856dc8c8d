"""How ranks meet: a store at rank 0, a roll call with a time limit, then a process group."""

from __future__ import annotations

import time
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from atom.errors import AtomError
from atom.parallel.state import SINGLE, ParallelState

# A rank that has met the others may still be busy loading when a collective starts.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


class RendezvousError(AtomError):
    """Ranks did not meet in time; the message says who is missing."""

    exit_code = 70


def _open_store(rank: int, world_size: int, addr: str, port: int, timeout_s: float) -> TCPStore:
    try:
        return TCPStore(
            addr,
            port,
            world_size,
            is_master=rank == 0,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
    except (dist.DistError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        what = f"cannot listen at {addr}:{port}" if rank == 0 else f"rank 0 not at {addr}:{port}"
        raise RendezvousError(f"rank {rank}: {what} within {timeout_s:g} s ({first})") from None


def _roll_call(store: Store, rank: int, world_size: int, deadline: float) -> list[int]:
    """Ranks that have not signed the store when the deadline passes; empty when all are here."""
    store.set(f"here/{rank}", "1")
    missing = [other for other in range(world_size) if other != rank]
    while missing:
        left = max(deadline - time.monotonic(), 0.001)
        try:
            store.wait([f"here/{missing[0]}"], timedelta(seconds=left))
        except (dist.DistError, RuntimeError):
            return [other for other in missing if not store.check([f"here/{other}"])]
        missing.pop(0)
    return missing


def rendezvous(
    rank: int,
    world_size: int,
    *,
    addr: str = "127.0.0.1",
    port: int,
    timeout_s: float,
    backend: str = "gloo",
) -> ParallelState:
    """Meet the other ranks and return this one's state; raises `RendezvousError` after `timeout_s`.

    `backend` is "gloo" on CPU and "nccl" on GPUs (RCCL answers to the same name).
    """
    if world_size == 1:
        return SINGLE
    deadline = time.monotonic() + timeout_s
    store = _open_store(rank, world_size, addr, port, timeout_s)
    missing = _roll_call(store, rank, world_size, deadline)
    if missing:
        names = ", ".join(str(other) for other in missing)
        raise RendezvousError(
            f"rank {rank}: after {timeout_s:g} s still missing of {world_size}: rank {names}"
        )
    dist.init_process_group(
        backend,
        store=PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    return ParallelState(rank, world_size, dist.group.WORLD)

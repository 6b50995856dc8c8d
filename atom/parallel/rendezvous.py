"""How ranks meet: a store at rank 0, a roll call with a time limit, then a process group."""

from __future__ import annotations

import os
import socket
import sys
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


def listen(addr: str, port: int) -> socket.socket:
    """Rank 0's listening socket; port 0 takes a free one. Raises `RendezvousError`.

    Given no socket, TCPStore would listen on every interface of the machine.
    """
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((addr, port))
        listener.listen()
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise RendezvousError(f"rank 0: cannot listen at {addr}:{port} ({why})") from None
    return listener


def _serve_store(listener: socket.socket, world_size: int, timeout: timedelta) -> TCPStore:
    addr, port = listener.getsockname()[:2]
    return TCPStore(
        addr,
        port,
        world_size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),  # the store closes it
    )


def _find_store(rank: int, world_size: int, addr: str, port: int, timeout: timedelta) -> TCPStore:
    try:
        return TCPStore(
            addr, port, world_size, is_master=False, timeout=timeout, wait_for_workers=False
        )
    except (dist.DistError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise RendezvousError(
            f"rank {rank}: rank 0 not at {addr}:{port} within {timeout.total_seconds():g} s"
            f" ({first})"
        ) from None


def _stay_on_loopback(addr: str) -> None:
    """Ranks that meet on the loopback address also talk there, unless the user says otherwise."""
    if addr in ("127.0.0.1", "::1", "localhost") and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")


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
    listener: socket.socket | None = None,
) -> ParallelState:
    """Meet the other ranks and return this one's state; raises `RendezvousError` after `timeout_s`.

    `listener` is rank 0's socket if it has opened it already; the store takes it over. `backend`
    is "gloo" on CPU and "nccl" on GPUs (RCCL answers to the same name).
    """
    if world_size == 1:
        return SINGLE
    deadline = time.monotonic() + timeout_s
    timeout = timedelta(seconds=timeout_s)
    _stay_on_loopback(addr)
    if rank == 0:
        store = _serve_store(listener or listen(addr, port), world_size, timeout)
    else:
        store = _find_store(rank, world_size, addr, port, timeout)
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
    return ParallelState(rank, world_size)

"""Ranks that meet, and what is said of those that do not come."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from harness import free_port
from torch._C._distributed_c10d import TCPStore

from atom.parallel.rendezvous import RendezvousError, listen, rendezvous
from atom.parallel.state import SINGLE


def test_one_rank_needs_nobody() -> None:
    state = rendezvous(0, 1, port=1, timeout_s=0.1)
    assert state is SINGLE
    x = torch.ones(2, 3)
    assert state.all_reduce(x) is x
    assert state.all_gather(x) is x
    assert state.shard(7, "things") == slice(0, 7)
    assert state.shard_heads(3) == slice(0, 3)


def test_missing_ranks_are_named() -> None:
    """Rank 2 of 4 signs the store but 1 and 3 never come."""
    port, signed = free_port(), threading.Event()

    def rank_2() -> None:
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20))
        store.set("here/2", "1")
        signed.set()

    thread = threading.Thread(target=rank_2)
    thread.start()
    with pytest.raises(RendezvousError, match=r"missing of 4: rank 1, 3$"):
        rendezvous(0, 4, port=port, timeout_s=3)
    thread.join()
    assert signed.is_set()


def test_rank_0_is_missing() -> None:
    port = free_port()
    with pytest.raises(RendezvousError, match=rf"^rank 1: rank 0 not at 127.0.0.1:{port} "):
        rendezvous(1, 2, port=port, timeout_s=1)


def test_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RendezvousError, match=f"rank 0: cannot listen at 127.0.0.1:{port}"):
            rendezvous(0, 2, port=port, timeout_s=1)


def listening_addresses(port: int) -> list[str]:
    """Local addresses (as the kernel prints them) on which somebody listens at `port`."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A" and local.endswith(f":{port:04X}"):
                found.append(local)
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's tables of sockets")
def test_only_the_given_address_is_listened_at() -> None:
    """TCPStore by itself listens on every interface, for anybody to write to."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    seen: list[str] = []

    def rank_1() -> None:
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20))
        store.wait(["here/0"])
        seen.extend(listening_addresses(port))

    thread = threading.Thread(target=rank_1)
    thread.start()
    with pytest.raises(RendezvousError, match=r"missing of 2: rank 1$"):
        rendezvous(0, 2, port=port, timeout_s=2, listener=listener)
    thread.join()
    assert seen == [f"0100007F:{port:04X}"]

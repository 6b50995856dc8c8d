"""The load client: sends a workload to a server and says when everything happened.

`run_load` is the door. The parent hands out jobs (`load`, `crew`), worker processes send them and
take the moments (`worker`, `runner`, `courier`, `exchange`, `connections`, `arrival`, `http1`,
`tally`), `health` judges whether the client itself got in the way. `probe`, `scrape` and `profile`
are errands beside it.
"""

from __future__ import annotations

from atom.bench.client.load import run_load
from atom.bench.client.probe import ServerInfo, negotiate, probe
from atom.bench.client.profile import profile
from atom.bench.client.scrape import delta, server_metrics

__all__ = [
    "ServerInfo",
    "delta",
    "negotiate",
    "probe",
    "profile",
    "run_load",
    "server_metrics",
]

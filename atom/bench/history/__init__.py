"""The run history: an SQLite file of runs, their samples, where they come from, in and out.

It knows nothing of servers, of workloads or of how runs are judged.
"""

from atom.bench.history.errors import HistoryError
from atom.bench.history.provenance import collect, fingerprint
from atom.bench.history.runs import commit_of, new_run_id, recipe_of, started_at
from atom.bench.history.store import History, default_path

__all__ = [
    "History",
    "HistoryError",
    "collect",
    "commit_of",
    "default_path",
    "fingerprint",
    "new_run_id",
    "recipe_of",
    "started_at",
]

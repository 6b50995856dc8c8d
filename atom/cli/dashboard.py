"""`atom dashboard build | serve`: the run history as pages."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from atom.cli.common import console, print_json
from atom.cli.flags import CONTEXT

app = typer.Typer(context_settings=CONTEXT, add_completion=False, no_args_is_help=True)

HistoryFile = Annotated[
    Path | None,
    typer.Option(
        "--history",
        metavar="FILE",
        help="The history. (default: $ATOM_HISTORY, else ~/.local/share/atom/history.db)",
    ),
]
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@app.callback()
def _root() -> None:
    """Build or serve the dashboard of the run history.

    Static pages: performance, trade-offs, trends, data and traces, accuracy.
    """


@app.command()
def build(
    history: HistoryFile = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write into.")
    ] = Path("atom-dashboard"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the dashboard as a folder of files, which opens without a server or a network.

    Its own files in the folder are replaced, others are left alone.
    """
    from atom.bench.dashboard import build as build_site
    from atom.bench.history import History

    with History(history) as opened:
        built = build_site(opened, out)
        source = opened.path
    if as_json:
        facts = {"index": str(built.page), "runs": built.runs, "regressions": built.regressions}
        print_json({**facts, "history": str(source)})
        return
    runs = f"{built.runs:,} run{'' if built.runs == 1 else 's'}"
    found = f"{built.regressions} regression{'' if built.regressions == 1 else 's'}"
    console().print(f"{built.page}: {runs} of {source}, {found} marked", markup=False)
    if not built.runs:
        console(stderr=True).print("the history is empty: atom bench fills it", markup=False)


@app.command()
def serve(
    history: HistoryFile = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8010,
) -> None:
    """Serve the dashboard until Ctrl-C; reloading the page shows what the history has gained."""
    from atom.bench.dashboard.serve import make_server
    from atom.bench.history import default_path

    path = history or default_path()
    server = make_server(path, host, port)
    # Not within the handler: `shutdown` waits for the loop that the handler interrupts.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    shown = f"[{host}]" if ":" in host else host
    console().print(f"http://{shown}:{server.server_address[1]}/ shows {path}", markup=False)
    if host not in LOOPBACK:
        console(stderr=True).print(
            "warning: everyone who reaches this address can read the history", markup=False
        )
    stop.wait()
    server.shutdown()
    server.server_close()

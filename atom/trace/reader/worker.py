"""`python -m atom.trace.reader.worker FILE`: reads one trace and writes it to stdout (`wire`)."""

from __future__ import annotations

import sys
from pathlib import Path

from atom.trace.errors import TraceError
from atom.trace.reader import wire
from atom.trace.reader.read import read_trace


def main() -> None:
    out = sys.stdout.buffer
    try:
        wire.send(out, read_trace(Path(sys.argv[1])))
    except TraceError as error:
        wire.send_header(out, wire.Header(error=str(error)))


if __name__ == "__main__":
    main()

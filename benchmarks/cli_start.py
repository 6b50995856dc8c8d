"""How long `atom --help` takes, the aim being under 0.3 s: `python benchmarks/cli_start.py`.

Prints the median and the spread of N fresh processes for a few commands that need no torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = (["--help"], ["--version"], ["serve", "--help"], ["recipe", "schema"])


def seconds(argv: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "atom.cli", *argv], capture_output=True, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=10, help="processes per command")
    count = parser.parse_args().n
    for argv in COMMANDS:
        taken = sorted(seconds(argv) for _ in range(count))
        print(
            f"atom {' '.join(argv):<16} median {statistics.median(taken):.3f} s, "
            f"from {taken[0]:.3f} to {taken[-1]:.3f} s ({count} runs)"
        )


if __name__ == "__main__":
    main()

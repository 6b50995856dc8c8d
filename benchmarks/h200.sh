#!/usr/bin/env bash
# The whole table on a machine that has torch and Triton but not this package: run from anywhere.
#   benchmarks/h200.sh [arguments of h200.py]
# The raw figures and the engines' output go to $OUT (default: the current directory).
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
out="${OUT:-$PWD}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" "$root/benchmarks/h200.py" \
  --json "$out/h200.json" --log "$out/h200.log" "$@"

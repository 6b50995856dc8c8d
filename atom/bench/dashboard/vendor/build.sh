#!/usr/bin/env bash
# Builds ../static/echarts.min.js from pinned packages (package-lock.json holds their sha512) in a
# folder of its own, and compares it with echarts.sha256. `make vendor UPDATE=1` writes a new sum.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/vendor" "$work/static"
cp package.json package-lock.json entry.js "$work/vendor"
(cd "$work/vendor" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && npm run --silent build)
modules=$work/vendor/node_modules
{
  cat "$modules/echarts/NOTICE" && printf '\n\n'
  cat "$modules/echarts/LICENSE" && printf '\n\n== echarts, parts from d3.js ==\n\n'
  cat "$modules/echarts/licenses/LICENSE-d3" && printf '\n\n== zrender ==\n\n'
  cat "$modules/zrender/LICENSE" && printf '\n\n== tslib ==\n\n'
  cat "$modules/tslib/LICENSE.txt"
} > "$work/static/echarts.LICENSE"

if [ -n "${UPDATE:-}" ]; then
  (cd "$work/static" && sha256sum echarts.min.js echarts.LICENSE) > echarts.sha256
fi
(cd "$work/static" && sha256sum --check --quiet) < echarts.sha256
cp "$work/static/echarts.min.js" "$work/static/echarts.LICENSE" ../static/

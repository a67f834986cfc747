#!/usr/bin/env bash
# What does the watchdog cost a decode? On the sandbox of `make demo`, or the host in LAB_HOST. Writes its section of docs/benchmarks.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
host=${LAB_HOST:-mixed-gpu-sandbox}
[ -n "${LAB_HOST:-}" ] || tests/lab/demo.sh >&2
tests/lab/lab.sh run podman exec -i "$host" python3 - "${1:-30}" < tests/bench/watchdog_host.py |
  PYTHONPATH=.venv/collections python tests/bench/watchdog_cost.py docs/benchmarks.md

#!/usr/bin/env bash
# watchdog_faults.sh [MINUTES]: is each fault of a served model noticed, and MINUTES (60) of mixed load taken for none?
# On the sandbox of `make demo`, or the host in LAB_HOST. Writes its section of docs/benchmarks.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
host=${LAB_HOST:-mixed-gpu-sandbox}
[ -n "${LAB_HOST:-}" ] || tests/lab/demo.sh >&2
tests/lab/lab.sh run podman exec -i "$host" python3 - "${1:-60}" < tests/bench/watchdog_faults_host.py |
  PYTHONPATH=.venv/collections python tests/bench/watchdog_faults.py docs/benchmarks.md

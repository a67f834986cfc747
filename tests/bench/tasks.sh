#!/usr/bin/env bash
# What a task costs with a filter and without, beside the commit of before. Writes its section of docs/benchmarks.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
before=$(tests/bench/before.sh)
exec python tests/bench/task_cost.py --before "$(git -C "$before" rev-parse --short HEAD)" "$before/.venv/collections" docs/benchmarks.md

#!/usr/bin/env bash
# Compare planners on recorded and simulated pairs, without any device. Writes their sections of docs/benchmarks.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
requirements/add.sh benchmarks
export PYTHONPATH=.venv/collections
.venv/bin/python tests/bench/families.py docs/benchmarks.md --machines 120
.venv/bin/python tests/bench/planes.py docs/benchmarks.md --machines 100
.venv/bin/python tests/bench/earlier_tunings.py docs/benchmarks.md --machines 60
.venv/bin/python tests/bench/speculation.py docs/benchmarks.md --machines 300
exec .venv/bin/python tests/bench/planners.py --pairs 800 "$@" docs/benchmarks.md

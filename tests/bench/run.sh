#!/usr/bin/env bash
# Is the chosen split the best? Measure every split that fits on the sandbox of `make demo`, twice, in opposite
# order. Writes its section of docs/benchmarks.md. About ten minutes on two idle cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/lab/demo.sh
mkdir -p build/bench
tests/lab/lab.sh run ansible-playbook -i inventories/sandbox tests/bench/sweep.yml
python tests/bench/summarise.py build/bench/sweep.json docs/benchmarks.md

#!/usr/bin/env bash
# Is what a lender's network costs predicted? In network namespaces of its own, with llama.cpp's programs in the folder
# MIXED_GPU_LLAMA_BIN, root and a C compiler. Before it the tests that need the same, and that no test host can run.
# Writes its section of docs/benchmarks.md. Ten minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python -m pytest -q -m 'live and link' tests/unit/plugins/module_utils/_split/test_link_changes.py \
  tests/unit/plugins/module_utils/_diagnosis/test_slow_lender_live.py
PYTHONPATH=.venv/collections python tests/bench/link_bars.py docs/benchmarks.md

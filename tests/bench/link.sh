#!/usr/bin/env bash
# Is what a lender's network costs predicted? In network namespaces of its own, with llama.cpp's programs in the folder
# MIXED_GPU_LLAMA_BIN. Writes its section of docs/benchmarks.md. Five minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=.venv/collections python tests/bench/link_bars.py docs/benchmarks.md

#!/usr/bin/env bash
# How fast is a verified download, beside hf download, get_url and curl? Writes its section of docs/benchmarks.md. No root.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=.venv/collections exec .venv/bin/python tests/bench/downloads.py "$@" docs/benchmarks.md

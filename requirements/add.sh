#!/usr/bin/env bash
# add.sh NAME: install the packages of requirements/NAME.txt into .venv as well, once.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/$1-$(sha256sum <"requirements/$1.txt" | cut -c1-12)
if [ -e "$stamp" ]; then exit; fi
.venv/bin/python -m pip install -q --disable-pip-version-check --no-color --prefer-binary --require-hashes -r "requirements/$1.txt"
rm -f ".venv/$1"-*
touch "$stamp"

#!/usr/bin/env bash
# own_venv.sh NAME: print the folder of an environment with the packages of requirements/NAME.txt alone, made once.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(python -c 'import sys; print("py%d%d" % sys.version_info[:2])')
venv=${MIXED_GPU_CACHE:-$HOME/.cache/homelab-mixed-gpu}/${1//_/-}-$(sha256sum <"requirements/$1.txt" | cut -c1-12)-$version
if [ ! -e "$venv/ready" ]; then
  echo "${1//_/-} | installing its own environment (once)" >&2
  python -m venv --clear "$venv" >&2
  "$venv/bin/pip" install -q --disable-pip-version-check --require-hashes -r "requirements/$1.txt" >&2
  touch "$venv/ready"
fi
echo "$venv"

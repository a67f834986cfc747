#!/usr/bin/env bash
# Make .venv: pinned Python packages, and a collections folder in which this checkout is homelab.mixed_gpu.
# Also holds the connection plugin that the lab needs, out of the pinned PyPI bundle "ansible" (Galaxy is not needed).
# venv.sh python: see to it that Python can make environments, and make none.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
cache=${MIXED_GPU_CACHE:-$HOME/.cache/homelab-mixed-gpu}
collections=.venv/collections/ansible_collections
stamp=.venv/ready-$(cat requirements/{development,bundle}.txt requirements/venv.sh | sha256sum | cut -c1-12)

mkdir -p "$collections/homelab"
[ "$(readlink "$collections/homelab/mixed_gpu")" = "$PWD" ] || ln -sfn "$PWD" "$collections/homelab/mixed_gpu"
if [ -e "$stamp" ]; then exit; fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "$python is $("$python" --version 2>&1), this project needs Python 3.11 or newer: set PYTHON=<a newer one>" >&2
  exit 1
}
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  echo "venv | $python cannot make virtual environments: installing python3-venv"
  sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -q && $sudo apt-get install -qy --no-install-recommends python3-venv
fi
if [ "${1:-}" = python ]; then exit; fi

echo "venv | installing pinned packages into .venv (once, about two minutes)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --disable-pip-version-check --no-color --progress-bar off --prefer-binary \
  --require-hashes -r requirements/development.txt | grep -v '^Requirement already satisfied' || [ "${PIPESTATUS[0]}" = 0 ]

mkdir -p "$cache/wheels"
.venv/bin/python -m pip download -q --disable-pip-version-check --no-deps --require-hashes -d "$cache/wheels" -r requirements/bundle.txt
.venv/bin/python - "$collections" "$cache"/wheels/ansible-*.whl <<'PY'
import pathlib
import sys
import zipfile

wanted = ("community/docker", "community/library_inventory_filtering_v1")
with zipfile.ZipFile(sys.argv[2]) as wheel:
    prefixes = tuple(f"ansible_collections/{name}/" for name in wanted)
    members = [name for name in wheel.namelist() if name.startswith(prefixes)]
    wheel.extractall(pathlib.Path(sys.argv[1]).parent, members)
PY
rm -f .venv/ready-*
touch "$stamp"

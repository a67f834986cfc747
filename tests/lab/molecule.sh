#!/usr/bin/env bash
# Run Molecule where the test hosts are. molecule.sh [SCENARIO] [molecule options], or MOLECULE_COMMAND=converge|verify|destroy
# for working on a scenario without making its host anew each time.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ANSIBLE_CONFIG=$PWD/ansible.cfg ANSIBLE_COLLECTIONS_PATH=$PWD/.venv/collections ANSIBLE_HOME=$PWD/.ansible
export LAB_HOST=${LAB_HOST:-mixed-gpu-molecule} MOLECULE_PROJECT_DIRECTORY=$PWD PY_COLORS=0 NO_COLOR=1 ANSIBLE_NOCOLOR=1
tests/lab/lab.sh up
scenario=${1:-default}
shift || true
exec tests/lab/lab.sh run molecule "${MOLECULE_COMMAND:-test}" -s "$scenario" "$@"

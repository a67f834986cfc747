#!/usr/bin/env bash
# molecule.sh [SCENARIO] [molecule options]: run Molecule in the lab. MOLECULE_COMMAND=converge|verify|destroy works
# on a scenario without a new host each time.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ANSIBLE_CONFIG=$PWD/ansible.cfg ANSIBLE_COLLECTIONS_PATH=$PWD/.venv/collections ANSIBLE_HOME=$PWD/.ansible
export ANSIBLE_STDOUT_CALLBACK=ansible.builtin.default   # tests read every task
scenario=${1:-default}
host=mixed-gpu-molecule-${scenario//_/-}   # scenarios may run at the same time
export LAB_HOST=${LAB_HOST:-$host} MOLECULE_PROJECT_DIRECTORY=$PWD PY_COLORS=0 NO_COLOR=1 ANSIBLE_NOCOLOR=1
tests/lab/lab.sh up
shift || true
exec tests/lab/lab.sh run molecule --base-config molecule/base.yml "${MOLECULE_COMMAND:-test}" -s "$scenario" "$@"

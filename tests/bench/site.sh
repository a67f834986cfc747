#!/usr/bin/env bash
# How long is a run of site.yml that changes nothing, beside the commit of before? Each on a sandbox that it made itself.
# Writes its section of docs/benchmarks.md. Half an hour on two idle cores where llama.cpp is not compiled yet.
set -euo pipefail
cd "$(dirname "$0")/../.."
before=$(tests/bench/before.sh)
lab=$PWD/tests/lab/lab.sh
site() (
  cd "$1"
  LAB_HOST=$2 ANSIBLE_CONFIG=$1/ansible.cfg ANSIBLE_HOME=$1/.ansible "$lab" run ansible-playbook -i inventories/sandbox homelab.mixed_gpu.site
)
tests/lab/demo.sh
"$lab" create mixed-gpu-before
site "$before" mixed-gpu-before
runs=build/bench/site
rm -rf "$runs" && mkdir -p "$runs"
for turn in 1 2 3; do
  for side in before after; do
    if [ $side = before ]; then folder=$before host=mixed-gpu-before; else folder=$PWD host=mixed-gpu-sandbox; fi
    began=$(date +%s.%N)
    site "$folder" "$host" >"$runs/$side-$turn.log"
    echo "seconds=$(python -c "import time; print(round(time.time() - $began, 1))")" >>"$runs/$side-$turn.log"
  done
done
python tests/bench/site_cost.py "$(git -C "$before" rev-parse --short HEAD)" "$runs" docs/benchmarks.md
"$lab" destroy mixed-gpu-before

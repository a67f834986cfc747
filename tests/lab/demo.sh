#!/usr/bin/env bash
# The main job on a host made for it: site.yml on a container with systemd and two llama.cpp devices of unequal speed.
#   demo.sh         build, tune, serve and prove; again: change nothing
#   demo.sh clean   remove the host; the lab too, when this was its only host
# MIXED_GPU_DEMO_PORT (8080) is the port on 127.0.0.1 of this machine that reaches the server.
set -euo pipefail
cd "$(dirname "$0")/../.."
lab=tests/lab/lab.sh
port=${MIXED_GPU_DEMO_PORT:-8080}
export LAB_HOST=mixed-gpu-sandbox

if [ "${1:-}" = clean ]; then
  "$lab" destroy "$LAB_HOST"
  "$lab" down
  rm -rf reports/sandbox.*
  exit
fi

started=$SECONDS
"$lab" create "$LAB_HOST"
"$lab" run ansible-playbook -i inventories/sandbox homelab.mixed_gpu.site "$@"
"$lab" forward "$LAB_HOST" "$port" 8080
echo
python tests/lab/prove.py "http://127.0.0.1:$port"
echo
cat reports/sandbox.txt
cat <<TEXT

It runs, and stays: http://127.0.0.1:$port (a chat page in a browser; the OpenAI API under /v1)
Report            reports/sandbox.html
Look around       tests/lab/lab.sh run ${LAB_ENGINE:-podman} exec -it $LAB_HOST bash
Remove            make demo-clean
Took              $((SECONDS - started)) s
TEXT

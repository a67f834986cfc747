#!/usr/bin/env bash
# The main job on a host made for it: site.yml on a container with systemd and two llama.cpp devices of unequal speed.
#   demo.sh         build, tune, serve and prove; a second run changes nothing
#   demo.sh check   check what the demo needs of this machine, and print its port
#   demo.sh clean   remove the host, and the lab where that was its only host
# MIXED_GPU_DEMO_PORT is the server's port on 127.0.0.1 of this machine: 8080 or the next free one where unset.
set -euo pipefail
cd "$(dirname "$0")/../.."
lab=tests/lab/lab.sh
export LAB_HOST=mixed-gpu-sandbox

if [ "${1:-}" = clean ]; then
  "$lab" destroy "$LAB_HOST"
  rm -rf reports/sandbox.*
  others=$("$lab" hosts | xargs)
  [ -z "$others" ] || { echo "demo | the lab stays for its other hosts: $others"; exit; }
  exec "$lab" down
fi

started=$SECONDS
port=$("${PYTHON:-python3}" tests/lab/demo_check.py)
[ "${1:-}" != check ] || { echo "$port"; exit; }
"$lab" create "$LAB_HOST"
"$lab" forward "$LAB_HOST" "$port" 8080   # now, so that nobody else takes the port meanwhile
"$lab" run ansible-playbook -i inventories/sandbox homelab.mixed_gpu.site "$@"
echo
key="$lab run ${LAB_ENGINE:-podman} exec $LAB_HOST cat /etc/mixed_gpu/llama-server.key"
MIXED_GPU_API_KEY=$($key) python tests/lab/prove.py "http://127.0.0.1:$port"
echo
cat reports/sandbox.txt
cat <<TEXT

It runs, and stays: http://127.0.0.1:$port (the OpenAI API under /v1)
API key           $key
Report            reports/sandbox.html
Look around       tests/lab/lab.sh run ${LAB_ENGINE:-podman} exec -it $LAB_HOST bash
Remove            make demo-clean
Took              $((SECONDS - started)) s
TEXT

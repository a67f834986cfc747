#!/usr/bin/env bash
# Install ExLlama as far as a machine without a card allows: PyTorch from PyPI, the engine's extension compiled for an RTX
# 3090 and an RTX 4090 with the toolkit that the role cuda_toolkit makes out of NVIDIA's wheels, and the real TabbyAPI
# started without a model, as the unit starts it. 4 GB to download, 16 GB of disk; up to half an hour on two idle cores
# for v2, several hours for v3. ccache makes the next run short.
#
# Environment: EXLLAMA_ENGINE=v2|v3; EXLLAMA_SERVER_GIT, TabbyAPI's repository where its own cannot be reached: a URL, or a bare repository here.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ANSIBLE_CONFIG=$PWD/ansible.cfg ANSIBLE_COLLECTIONS_PATH=$PWD/.venv/collections ANSIBLE_HOME=$PWD/.ansible
export LAB_HOST=${LAB_HOST:-mixed-gpu-exllama-build} NO_COLOR=1 ANSIBLE_NOCOLOR=1
engine=${EXLLAMA_ENGINE:-v2} server=${EXLLAMA_SERVER_GIT:-} variables=()
trap 'rm -f "$play"' EXIT
play=$(mktemp /tmp/exllama-build.XXXXXX.yml)

say() { printf 'exllama-build | %s\n' "$*"; }
die() { say "$*"; exit 1; }
inside() { tests/lab/lab.sh run "${LAB_ENGINE:-podman}" exec -i "$LAB_HOST" "$@"; }

cat > "$play" <<PLAY
- name: Install ExLlama
  hosts: mixed_gpu
  gather_facts: false
  vars:
    cuda_toolkit_source: wheels
    cuda_toolkit_cublas: false    # PyTorch's own packages have it
    exllamav2_engine: $engine
    exllamav2_cuda_architectures: [86, 89]
    exllamav2_jobs: ${JOBS:-2}
    exllamav2_timeout_seconds: 36000
  roles:
    - role: homelab.mixed_gpu.cuda_toolkit
    - role: homelab.mixed_gpu.exllamav2
PLAY
tests/lab/lab.sh create "$LAB_HOST"
if [ -d "$server" ]; then
  tar -C "$server" -c . | inside sh -c 'mkdir -p /srv/tabbyapi.git && tar -C /srv/tabbyapi.git -x --no-same-owner'
  server=/srv/tabbyapi.git
fi
[ -z "$server" ] || variables=(-e "exllamav2_server_git_url=$server")
run_play() { tests/lab/lab.sh run ansible-playbook -i molecule/cuda_toolkit/inventory/hosts.yml "$play" "${variables[@]}"; }
began=$SECONDS
run_play
say "installed and compiled in $((SECONDS - began)) s"
began=$SECONDS
second=$(run_play | tee >(cat >&2))
grep -q 'changed=0 ' <<< "$second" || die "a second run changes something"
say "second run: $((SECONDS - began)) s, nothing changed"

release=$(inside readlink -f "/opt/exllama/$engine/current")
module=$(inside sh -c "ls $release/venv/lib/python3*/site-packages/exllama*_ext.so")
code=$(inside sh -c "strings -a '$module' | grep -o 'sm_8[69]' | sort -u | tr '\n' ' '")
[ "$code" = "sm_86 sm_89 " ] || die "$module has code for '$code', not for both cards"
say "$module has code for $code"

# The real server without a model, in the unit's sandbox: it must answer, demand the key, and not log the key.
sandbox=$(PYTHONPATH=.venv/collections .venv/bin/python -c '
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import unit_sandbox
print("\n".join(unit_sandbox.lines("exllama", unit_sandbox.nodes(["CUDA"]), ["localhost"])))')
inside sh -c 'umask 077; mkdir -p /run/try; echo a-key-for-this-test > /run/try/key
  echo "{\"network\": {\"host\": \"127.0.0.1\", \"port\": 5000, \"disable_auth\": false}}" > /run/try/config'
inside sh -c 'cat > /opt/exllama/try_server.py' < roles/exllamav2/files/exllama_server.py
inside sh -c 'cat > /run/systemd/system/exllama-server.service' <<UNIT
[Service]
ExecStart=$release/venv/bin/python /opt/exllama/try_server.py $release/tabbyapi
LoadCredential=config.yml:/run/try/config
LoadCredential=api_key:/run/try/key
RuntimeDirectory=exllama-server
WorkingDirectory=%t/exllama-server
Environment=PYTHONDONTWRITEBYTECODE=1 NO_COLOR=1
DynamicUser=yes
$sandbox
IPAddressAllow=localhost
UNIT
inside sh -c 'systemctl daemon-reload && systemctl restart exllama-server'
status() { inside curl -s -o /dev/null -w '%{http_code}' "$@" || true; }
for _ in $(seq 120); do [ "$(status http://127.0.0.1:5000/health)" = 200 ] && break; sleep 1; done
answers="$(status http://127.0.0.1:5000/health) $(status http://127.0.0.1:5000/v1/models) $(status -H 'Authorization: Bearer a-key-for-this-test' http://127.0.0.1:5000/v1/models)"
journal=$(inside journalctl --no-pager -u exllama-server)
[ "$answers" = "200 401 200" ] || die "TabbyAPI answers $answers; its journal: $journal"
grep -q 'API key is: (not shown)' <<< "$journal" || die "TabbyAPI says something else about its keys than before: $journal"
grep -q 'a-key-for-this-test' <<< "$journal" && die "the key is in the journal"
inside ls -A /run/exllama-server/ | grep -q logs && die "TabbyAPI writes a log file"
say "TabbyAPI $(inside git -c safe.directory='*' -C "$release/tabbyapi" rev-parse --short HEAD) runs, demands the key, and does not print the key"
[ -n "${KEEP_HOST:-}" ] || tests/lab/lab.sh destroy "$LAB_HOST"

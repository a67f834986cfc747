#!/usr/bin/env bash
# Build llama.cpp with its chat page on a test host, with the real npm and its registry, and chat in a real Chromium.
#   web_ui.sh          build, serve, prove, chat; writes docs/images/chat_page.png
#   web_ui.sh clean    remove the host; finished pages and compiled files stay in the caches
# Ten minutes on two idle cores the first time; the page and the compiler's cache make the next run short.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ANSIBLE_CONFIG=$PWD/ansible.cfg ANSIBLE_COLLECTIONS_PATH=$PWD/.venv/collections ANSIBLE_HOME=$PWD/.ansible
export ANSIBLE_STDOUT_CALLBACK=ansible.builtin.default
export LAB_HOST=${LAB_HOST:-mixed-gpu-web-ui} NO_COLOR=1 ANSIBLE_NOCOLOR=1
lab=tests/lab/lab.sh

say() { printf 'web-ui | %s\n' "$*"; }
inside() { "$lab" run "${LAB_ENGINE:-podman}" exec -i "$LAB_HOST" "$@"; }

if [ "${1:-}" = clean ]; then
  exec "$lab" destroy "$LAB_HOST"
fi

"$lab" create "$LAB_HOST"
play() { "$lab" run ansible-playbook -i molecule/cuda_toolkit/inventory/hosts.yml tests/lab/web_ui.yml "$@"; }
changes() { play --tags build "$@" | grep -o 'changed=[0-9]* *unreachable=.*failed=[0-9]*' | xargs; }
nothing="changed=0 unreachable=0 failed=0"

planned=$(changes --check)
say "a check of a fresh host: $planned"
began=$SECONDS
play "$@"
say "built and proved in $((SECONDS - began)) s"
[ "$(changes)" = "$nothing" ] || { say "a second run changes something"; exit 1; }
[ "$(changes --check)" = "$nothing" ] || { say "a check after it announces a change"; exit 1; }
say "a second run and a check after it change nothing"
inside sh -ec 'ls -l /var/cache/mixed_gpu; ls -A /opt/llama.cpp/.work; grep "chat page" /opt/llama.cpp/current/build.log'

inside sh -ec '
  command -v chromium >/dev/null || {
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium fonts-dejavu-core python3-venv >/dev/null
  }
  [ -x /opt/chat/bin/python ] || python3 -m venv /opt/chat
  /opt/chat/bin/pip install -q playwright==1.65.2
  cat > /opt/chat/chat.py' < tests/lab/web_ui_chat.py
inside /opt/chat/bin/python /opt/chat/chat.py http://127.0.0.1:8080 /etc/web-ui.key /opt/chat/page.png
inside cat /opt/chat/page.png > docs/images/chat_page.png
say "$(file -b docs/images/chat_page.png | cut -d, -f1,2), $(stat -c %s docs/images/chat_page.png) bytes"

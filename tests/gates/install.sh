#!/usr/bin/env bash
# The tarball installs, and its playbooks run by their full names from a folder that knows nothing of the checkout.
set -euo pipefail
cd "$(dirname "$0")/../.."
tarballs=("$PWD"/build/homelab-mixed_gpu-*.tar.gz)
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
unset ANSIBLE_CONFIG
export ANSIBLE_COLLECTIONS_PATH=$home/collections ANSIBLE_HOME=$home/ansible
ansible-galaxy collection install --offline -p "$home/collections" "${tarballs[0]}" >/dev/null
printf 'mixed_gpu:\n  hosts:\n    box:\n      ansible_connection: local\n      ansible_python_interpreter: "{{ ansible_playbook_python }}"\n' > hosts.yml
for playbook in "$home"/collections/ansible_collections/homelab/mixed_gpu/playbooks/*.yml; do
  ansible-playbook -i hosts.yml --syntax-check "homelab.mixed_gpu.$(basename "$playbook" .yml)" >/dev/null
done
ansible-doc -t module homelab.mixed_gpu.split_benchmark >/dev/null
ansible-doc -t role homelab.mixed_gpu.split_tuning >/dev/null
# whether this machine would do (systemd, a free port) is not the question; that the installed playbook can tell, is
if ! ansible-playbook -i hosts.yml homelab.mixed_gpu.preflight >preflight.log 2>&1 &&
  ! grep -qE '^fatal: .*"msg": "(systemd|root|port [0-9]+|memory|disk [^:]*|operating system): ' preflight.log; then
  tail -n 40 preflight.log
  exit 1
fi
grep -E '"(ok|warn|FAIL) +operating system ' preflight.log >/dev/null
echo "install: the built collection's playbooks run by name"
